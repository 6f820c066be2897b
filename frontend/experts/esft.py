"""Which experts to fine-tune for a task, from its tokens' routing (ESFT, arXiv 2407.01906)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tilewright.frontend.experts.adapter_files import layer_number
from tilewright.frontend.experts.find import heard
from tilewright.ir.errors import DataError, SettingError

SCORES = ("gate", "token")
_Key = TypeVar("_Key", bound=int | str)
Choices = tuple[torch.Tensor, torch.Tensor]


def expert_scores(
    ids: torch.Tensor, weights: torch.Tensor, experts: int, score: str = "gate"
) -> torch.Tensor:
    """How much a task uses each expert of a layer: f64 [experts], summing to 1.

    ``ids`` integers [T, k] and ``weights`` [T, k] are what the router chose for the task's tokens.
    "gate": the mean gate score (ESFT-Gate); "token": the share of tokens that chose the expert
    (ESFT-Token), 1/k each. Raises SettingError, DataError.
    """
    if score not in SCORES:
        raise SettingError(f"score must be one of {', '.join(SCORES)}; it is {score!r}")
    if ids.dim() != 2 or ids.shape != weights.shape or not ids.numel():
        raise DataError(
            f"ids and weights must both be [T, k] with tokens in them; they are {list(ids.shape)} "
            f"and {list(weights.shape)}"
        )
    flat = ids.reshape(-1).long().cpu()
    if int(flat.min()) < 0 or int(flat.max()) >= experts:
        raise DataError(
            f"ids must be in 0 to {experts - 1}; {int(flat.min())} to {int(flat.max())}"
        )
    each = weights.detach().reshape(-1).double().cpu() if score == "gate" else torch.ones(len(flat))
    if bool((each < 0).any()) or not float(each.sum()) > 0:
        raise DataError("gate scores must not be negative, and not all be zero")
    total = torch.zeros(experts, dtype=torch.float64).index_add_(0, flat, each.double())
    return total / total.sum()


def select_experts(
    routing: Mapping[_Key, Choices],
    experts: int,
    threshold: float,
    *,
    score: str = "gate",
    most: int | None = None,
) -> dict[_Key, list[int]]:
    """For each layer the fewest experts whose scores sum to at least ``threshold`` (ESFT's p).

    ``routing``: by layer, the (ids, weights) of ``record_choices`` or of your own; ``score`` as in
    ``expert_scores``; ``most``: no more than so many, as a slot has room for. Ties go to the lower
    number. Raises SettingError, DataError.
    """
    if not 0 < threshold <= 1:
        raise SettingError(f"threshold must be above 0 and at most 1; it is {threshold}")
    found = {}
    for layer, (ids, weights) in routing.items():
        scores = expert_scores(ids, weights, experts, score)
        order = torch.sort(scores, descending=True, stable=True).indices
        sums = scores[order].cumsum(0)
        # a sum that is the threshold but for rounding reaches it
        count = min(experts, 1 + int((sums < threshold - 1e-12).sum()))
        found[layer] = sorted(order[: count if most is None else min(count, most)].tolist())
    return found


@contextmanager
def record_choices(model: nn.Module) -> Iterator[dict[int | str, Choices]]:
    """Within the block every call of the model adds its tokens' (ids [T, k], weights [T, k]), on
    the CPU, to the mapping by layer. Leave padding out of what you record."""
    found: dict[int | str, Choices] = {}

    def hear(name: str, args: Any, kwargs: Any) -> None:
        """(hidden states, ids, weights), by place or by name."""
        number = layer_number(name)
        layer = name if number is None else number
        ids, weights = (value.detach().cpu() for value in [*args, *kwargs.values()][1:3])
        if layer in found:
            before = found[layer]
            ids, weights = torch.cat([before[0], ids]), torch.cat([before[1], weights])
        found[layer] = ids, weights

    with heard(model, hear):
        yield found
