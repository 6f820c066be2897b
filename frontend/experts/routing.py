"""Per-token adapter ids: which experts a token's choices mean, and what a call in progress said."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from tilewright.ir.errors import ExpertError
from tilewright.runtime.expert_memory.snapshot import Layer, Snapshot
from tilewright.runtime.experts.rerouting import Rerouting, check_range

AdapterIds = torch.Tensor | str | int | None | Sequence[str | int | None]


def reroute(ids: torch.Tensor, adapter_ids: torch.Tensor, pi: torch.Tensor) -> torch.Tensor:
    """ids'[b, k] = ids[b, k] if adapter_ids[b] < 0 else Pi[adapter_ids[b], ids[b, k]]
    (arXiv 2508.17624): the meaning, as torch operations.

    ``ids`` integers [T, k] of base experts, ``adapter_ids`` integers [T], ``pi`` int32 [N, E] ->
    [T, k] of ids' dtype. Raises ExpertError for ids out of range (on CPUs; devices check).
    """
    if ids.dim() != 2 or adapter_ids.shape != ids.shape[:1]:
        raise ExpertError(
            f"rerouting: ids must be [T, k] and adapter ids [T]; they are {list(ids.shape)} and "
            f"{list(adapter_ids.shape)}"
        )
    if ids.device.type == "cpu":
        check_range("adapter ids", adapter_ids, -1, pi.shape[0] - 1)
    return Rerouting(adapter_ids, pi).apply(ids)


@dataclass
class Active:
    """What one ``with bank.adapters(…)`` says: checked adapter ids, and the snapshot it leased.

    ``ids`` int32 [n] on the CPU, one for each token or for each sequence, or one for all.
    ``sequences``: how many the batch has that the model is called with, None where only a part of
    the model is called.
    """

    ids: torch.Tensor
    snapshot: Snapshot
    sequences: int | None = None
    _spread: dict[tuple[int, int | None, torch.device], torch.Tensor] = field(default_factory=dict)

    def of_tokens(self, tokens: int, device: torch.device) -> torch.Tensor:
        """int32 [tokens]: each sequence's id for all of its tokens.

        As many sequences in a row have one id as ``generate`` makes of one prompt (its beams).
        Raises ExpertError if the ids do not fit the batch: no sequence is ever split.
        """
        key = tokens, self.sequences, device
        known = self._spread.get(key)
        if known is None:
            if not self._fits(tokens):
                batch = "" if self.sequences is None else f"{self.sequences} sequences, "
                raise ExpertError(
                    f"{len(self.ids)} adapter ids for {batch}{tokens} tokens: give one for each "
                    "token, one for each sequence of the batch, or one"
                )
            known = self.ids.repeat_interleave(tokens // len(self.ids)).to(device)
            self._spread[key] = known
        return known

    def _fits(self, tokens: int) -> bool:
        count = len(self.ids)
        if count in (1, tokens):
            return True
        sequences = tokens if self.sequences is None else self.sequences
        # Rows that are no multiple of the sequences: the model left the padding out, and where a
        # sequence ends is not known here.
        return sequences % count == 0 and tokens % max(sequences, 1) == 0

    def rerouting(self, tokens: int, layer: Layer, device: torch.device) -> Rerouting:
        """What a layer's router's choices for so many tokens mean."""
        return Rerouting(self.of_tokens(tokens, device), self.snapshot.maps[layer])


# What is active in this thread, by the identity of the bank: banks of several models do not meet.
ACTIVE: ContextVar[dict[int, Active]] = ContextVar("tilewright_adapters", default={})  # noqa: B039


def hear_batches(model: nn.Module, bank: int) -> None:
    """From now on every call of a bank's model says how many sequences its batch has: the layers
    see tokens only. ``bank``: the bank's identity, so that copies of the model do not hold it."""
    model.register_forward_pre_hook(_untraced(_Before)(bank), with_kwargs=True)
    model.register_forward_hook(_untraced(_After)(bank), always_call=True)


@dataclass(frozen=True)
class _Before:
    bank: int

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        active = ACTIVE.get().get(self.bank)
        if active is not None:
            active.sequences = _sequences(args, kwargs)


@dataclass(frozen=True)
class _After:
    """After a call, whatever came of it: parts that are called alone have no batch."""

    bank: int

    def __call__(self, *_: Any) -> None:
        active = ACTIVE.get().get(self.bank)
        if active is not None:
            active.sequences = None


@cache
def _untraced(kind: Any) -> Any:
    """A kind of hook that torch.compile calls before or after its graphs, as it does the layers.
    Not when this file is imported: Dynamo takes seconds to load."""
    kind.__call__ = torch.compiler.disable(kind.__call__)  # type: ignore[no-untyped-call]
    return kind


def _sequences(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The size of the batch in a call of a model of transformers, if its arguments tell it."""
    named = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "hidden_states"))
    for given in (*named, *args[:1]):
        if isinstance(given, torch.Tensor) and given.dim() >= 2:
            return int(given.shape[0])
    return None


def slots_of(given: AdapterIds, snapshot: Snapshot) -> torch.Tensor:
    """Names, slots, None for the base, or integers (a tensor [T] or [B, S]) as int32 [n].

    Raises ExpertError for a name that is not loaded, a slot that is empty or does not exist, and
    anything that is no id.
    """
    if isinstance(given, torch.Tensor):
        kind = given.dtype
        if kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise ExpertError(f"adapter ids must be integers; they are {given.dtype}")
        found = given.detach().reshape(-1).cpu().long()
    else:
        each = [given] if given is None or isinstance(given, (str, int)) else list(given)
        found = torch.tensor([_slot(item, snapshot) for item in each], dtype=torch.long)
    if not found.numel():
        raise ExpertError("adapter ids are empty: give one for each token or sequence")
    loaded = {adapter.slot for adapter in snapshot.adapters.values()}
    wrong = sorted(set(found.tolist()) - loaded - {-1})
    if wrong:
        known = ", ".join(f"{a.slot} ({a.name})" for a in snapshot.adapters.values()) or "none"
        raise ExpertError(f"no adapter in slot {wrong[0]}; -1 is the base, loaded are: {known}")
    return found.int()


def _slot(item: object, snapshot: Snapshot) -> int:
    if item is None:
        return -1
    if isinstance(item, str):
        return snapshot.adapter(item).slot
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    raise ExpertError(f"an adapter id is a name, a slot, -1 or None; not {item!r}")
