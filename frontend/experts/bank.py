"""Many adapters on one model: ``ExpertBank`` keeps the experts of all of them in expert memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from tilewright.frontend.experts.adapter_files import (
    AdapterSource,
    AdapterWeights,
    layer_number,
    read_adapter,
)
from tilewright.frontend.experts.banked import BankLayer, install, is_banked, uninstall
from tilewright.frontend.experts.expert_layout import ExpertLayout
from tilewright.frontend.experts.find import experts_of
from tilewright.frontend.experts.routing import (
    ACTIVE,
    Active,
    AdapterIds,
    hear_batches,
    slots_of,
)
from tilewright.ir.errors import ExpertError
from tilewright.runtime.expert_memory.figures import MemoryFigures
from tilewright.runtime.expert_memory.memory import AdapterParts, ExpertMemory
from tilewright.runtime.expert_memory.snapshot import Layer

SHARE = 0.25  # of a core, for loading and unloading: decoding goes on beside it


class ExpertBank:
    """The experts of a Hugging Face model and of up to ``slots`` adapters (arXiv 2508.17624).

    An adapter is a fine-tuned copy of some experts of some layers (ESFT). All adapters serve tokens
    of one batch: ``with bank.adapters(["law", None]): model(…)``. Base weights move into the bank's
    memory, layer by layer; the model itself stays as it is, and so do its results without adapters.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int = 8,
        experts_per_slot: int | None = None,
        *,
        kind: str = "auto",
        page: int | None = None,
    ) -> None:
        """``experts_per_slot`` is E_max, the most experts that an adapter may bring in a layer
        (default: a quarter of the layer's, at least 1). ``kind``: "pages", "padded" or "auto";
        ``page``: bytes mapped at a time. Memory is where the model's is.

        Make the bank last: after ``.to(…)``, ``.half()``. Raises ExpertError for a model without
        experts, with a bank, or without room for so many slots, UnsupportedError for quantised or
        distributed experts.
        """
        found = dict(experts_of(model))
        if not found or any(is_banked(module) for module in found.values()):
            raise ExpertError(
                "the model has a bank already: use that"
                if found
                else "the model has no mixture-of-experts layers of transformers' interface"
            )
        layouts = {name: ExpertLayout.of(name, module) for name, module in found.items()}
        self._modules = _numbered(found)
        self._layouts = {layer: layouts[name] for name, layer in self._modules.items()}
        if experts_per_slot is None:
            most = max(len(_some(layout)) for layout in self._layouts.values())
            experts_per_slot = max(1, most // 4)
        self.memory = ExpertMemory(slots, experts_per_slot, kind=kind, page=page)
        try:
            for name, layer in self._modules.items():
                layout = self._layouts[layer]
                with torch.no_grad():
                    weights = self.memory.add_layer(layer, layout.parameters)
                install(found[name], BankLayer(self, layer, found[name], weights))
        except BaseException:  # also when the user interrupts
            for module in found.values():
                uninstall(module)
            raise
        hear_batches(model, id(self))

    @property
    def slots(self) -> int:
        return self.memory.slots

    @property
    def experts_per_slot(self) -> int:
        return self.memory.experts_per_slot

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with experts: numbers of decoder layers, or modules' names where those would
        not tell layers apart."""
        return tuple(self.memory.layers)

    def load(self, name: str, weights: AdapterSource, *, share: float = SHARE) -> int:
        """Loads an adapter, while others serve: its slot.

        ``weights``: ``{layer: {expert: matrices}}``, a state dict, or a path to safetensors in
        ESFT's layout. Matrices are ``gate_proj``, ``up_proj`` [I, H] and ``down_proj`` [H, I], or
        ``gate_up_proj`` and ``down_proj`` as the model stores them. ``share`` of one core's time is
        taken for copying; 1 is as fast as it goes. Raises ExpertError for what does not fit the
        model, DataError for files that are none; nothing has changed then.
        """
        found = read_adapter(name, weights, self._modules)
        return self.memory.load(name, self._parts(name, found), share)

    def unload(self, name: str, *, share: float = SHARE) -> None:
        """Gives an adapter's memory back. Raises ExpertError if it is not loaded or in use."""
        self.memory.unload(name, share)

    def slot(self, name: str) -> int:
        """The slot of a loaded adapter: its id in tensors of ids. Raises ExpertError."""
        with self.memory.lease([name]) as snapshot:
            return snapshot.adapters[name].slot

    def maps(self, layer: Layer) -> torch.Tensor:
        """Pi of a layer, int32 [slots, E]: which row serves expert e for the adapter in slot i.
        A later load or unload makes a new one. Raises ExpertError for an unknown layer."""
        self.memory.experts(layer)
        return self.memory.snapshot.maps[layer]

    def report(self) -> MemoryFigures:
        """Adapters, slots, experts per layer, sparsity; bytes mapped, existing, padded; F_mem."""
        return self.memory.figures()

    @contextmanager
    def adapters(self, ids: AdapterIds) -> Iterator[None]:
        """Calls of the model in this block and thread use these adapters.

        ``ids``: a name for all tokens, or names (None: the base) or slots (-1: the base), one for
        each sequence of the batch (or for as many in a row as ``generate`` makes of a prompt) or
        one for each token, as a list or an integer tensor. They are checked here, before any
        weight is read, and cannot be unloaded before the block ends; a call whose batch they do
        not fit raises. Raises ExpertError.
        """
        snapshot = self.memory.snapshot
        chosen = slots_of(ids, snapshot)
        names = {snapshot.name_of(slot) for slot in set(chosen.tolist()) if slot >= 0}
        with self.memory.lease(name for name in names if name) as leased:
            for name in names:
                if name and leased.adapters[name].slot != snapshot.adapters[name].slot:
                    raise ExpertError(
                        f"adapter {name!r} moved to another slot meanwhile: try again"
                    )
            token = ACTIVE.set({**ACTIVE.get(), id(self): Active(chosen, leased)})
            try:
                yield
            finally:
                ACTIVE.reset(token)

    def _parts(self, name: str, found: AdapterWeights) -> AdapterParts:
        """Matrices as the layers store them. Raises ExpertError, before anything is touched."""
        parts: dict[Layer, dict[int, Mapping[str, object]]] = {}
        for layer, experts in found.items():
            if layer not in self._layouts:
                known = ", ".join(repr(layer) for layer in self.layers)
                raise ExpertError(
                    f"adapter {name!r}: no layer {layer!r} with experts; {known} have"
                )
            layout = self._layouts[layer]
            total = len(_some(layout))
            for expert, matrices in experts.items():
                if (
                    isinstance(expert, bool)
                    or not isinstance(expert, int)
                    or not 0 <= expert < total
                ):
                    raise ExpertError(
                        f"adapter {name!r}: layer {layer!r} has experts 0 to {total - 1}, not "
                        f"{expert!r}"
                    )
                where = f"adapter {name!r}, layer {layer!r}, expert {expert}"
                parts.setdefault(layer, {})[expert] = layout.stored(where, expert, matrices)
        return parts  # type: ignore[return-value]


def _numbered(modules: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """Each module's layer: its number, or its name if the numbers are not all there or differ."""
    numbers = {name: layer_number(name) for name in modules}
    known = {number for number in numbers.values() if number is not None}
    if len(known) < len(modules):
        return {name: name for name in modules}
    return {name: number for name, number in numbers.items() if number is not None}


def _some(layout: ExpertLayout) -> torch.Tensor:
    return next(iter(layout.parameters.values()))
