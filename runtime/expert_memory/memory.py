"""Adapters in the memory of the base model's layers: loaded, unloaded and leased while kernels run.

Readers (kernels) take no lock: they lease a snapshot, whose maps name only experts that are
complete. Loading writes where no map points to, and publishes a new snapshot at the end.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from tilewright.ir.errors import ExpertError
from tilewright.runtime.expert_memory.figures import (
    AdapterFigures,
    MemoryFigures,
    fragmentation,
    sparsity,
)
from tilewright.runtime.expert_memory.pace import Pace
from tilewright.runtime.expert_memory.snapshot import (
    Adapter,
    Layer,
    Snapshot,
    expert_map,
    with_adapter,
)
from tilewright.runtime.expert_memory.weight import ExpertWeight, Rows
from tilewright.runtime.locks import Guard

Part = torch.Tensor | Rows | Callable[[], Rows]
AdapterParts = Mapping[Layer, Mapping[int, Mapping[str, Part]]]


class ExpertMemory:
    """The weights of all layers with room for ``slots`` adapters of ``experts_per_slot`` experts.

    Expert e of adapter slot i is row E + i * experts_per_slot + e of each weight of a layer.
    """

    def __init__(
        self,
        slots: int,
        experts_per_slot: int,
        *,
        kind: str = "auto",
        page: int | None = None,
    ) -> None:
        """``kind`` and ``page`` as for ``reserve``. Raises ExpertError for sizes below 1."""
        if slots < 1 or experts_per_slot < 1:
            raise ExpertError(
                f"expert memory: {slots} slots of {experts_per_slot} experts; both are at least 1"
            )
        self.slots = slots
        self.experts_per_slot = experts_per_slot
        self.layers: dict[Layer, dict[str, ExpertWeight]] = {}
        self._kind, self._page = kind, page
        self._process = os.getpid()
        self._loading = Guard()  # held by whoever loads or unloads, for its whole time
        self._state = Guard()  # held for a few instructions, by readers too
        self._snapshot = Snapshot({})
        self._leases: Counter[str] = Counter()
        self._taken: set[int] = set()  # slots, of any number: those that are free take no memory

    @property
    def snapshot(self) -> Snapshot:
        """What is loaded now. It says nothing about how long: ``lease`` does."""
        return self._snapshot

    def add_layer(self, layer: Layer, base: Mapping[str, torch.Tensor]) -> dict[str, ExpertWeight]:
        """Copies a layer's base weights, each [E, ...], into ranges with room for all slots.

        Layers are added before adapters are loaded. Raises SettingError, and ExpertError, also
        where there is no room for so many slots; nothing has changed then.
        """
        with self._loading.lock:
            counts = {len(tensor) for tensor in base.values()}
            if layer in self.layers or self._snapshot.adapters or len(counts) != 1:
                raise ExpertError(
                    f"expert memory: layer {layer!r} is there, or its weights have different "
                    f"numbers of experts ({sorted(counts)}), or adapters are loaded already"
                )
            experts = counts.pop()
            rows = experts + self.slots * self.experts_per_slot
            try:
                _check_count(rows)
                weights = {
                    name: ExpertWeight(tensor, rows, kind=self._kind, page=self._page)
                    for name, tensor in base.items()
                }
                pi = expert_map(self.slots, experts).to(next(iter(base.values())).device)
            except (ExpertError, MemoryError, RuntimeError, OSError) as error:  # torch's, too
                raise self._no_room(layer, experts, base, error) from error
            self.layers[layer] = weights
            self._snapshot = Snapshot({**self._snapshot.maps, layer: pi})
            return weights

    def _no_room(
        self, layer: Layer, experts: int, base: Mapping[str, torch.Tensor], error: Exception
    ) -> ExpertError:
        rows = experts + self.slots * self.experts_per_slot
        weights = rows * sum(math.prod(t.shape[1:]) * t.element_size() for t in base.values())
        maps = self.slots * experts * torch.int32.itemsize
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        return ExpertError(
            f"expert memory: no room for layer {layer!r}: {experts} experts and {self.slots} slots "
            f"of {self.experts_per_slot} take {weights:,} bytes of addresses (of memory with kind "
            f"'padded') and {maps:,} bytes of memory for their map: {first}; make slots or "
            "experts_per_slot smaller"
        )

    def experts(self, layer: Layer) -> int:
        """E, the base experts of a layer. Raises ExpertError for an unknown layer."""
        return next(iter(self._layer(layer).values())).experts

    def load(self, name: str, parts: AdapterParts, share: float = 1.0) -> int:
        """Loads an adapter: its slot. ``parts[layer][expert][weight]`` is a tensor of the weight's
        form, several that give it one after the other along their first axis, or a function that
        makes them when they are copied.

        Copying takes ``share`` of one core's time. If anything is wrong, nothing
        has changed. Raises ExpertError.
        """
        pace = Pace(share)
        with self._loading.lock:
            self._check(name, parts)
            slot = next(slot for slot in range(self.slots) if slot not in self._taken)
            order = {layer: tuple(sorted(experts)) for layer, experts in parts.items() if experts}
            adapter = Adapter(name, slot, order)
            mapped: list[tuple[ExpertWeight, int, int]] = []
            try:
                self._fill(adapter, parts, pace, mapped)
                loaded = self._changed(adapter, loaded=True)
            except BaseException:  # also when the user interrupts
                for weight, first, count in mapped:
                    weight.settle()
                    weight.unmap(first, count)
                raise
            self._taken.add(slot)
            with self._state.lock:
                self._snapshot = loaded
            return slot

    def unload(self, name: str, share: float = 1.0) -> None:
        """Takes an adapter out and gives its memory back. Raises ExpertError if it is not loaded
        or in use; then nothing has changed."""
        pace = Pace(share)
        with self._loading.lock:
            self._check_process()
            adapter = self._snapshot.adapter(name)
            without = self._changed(adapter, loaded=False)
            with self._state.lock:  # from here on nobody gets a new lease of it
                if self._leases[name]:
                    raise ExpertError(
                        f"adapter {name!r} is in use by {self._leases[name]} calls: unload it when "
                        "they have returned"
                    )
                self._snapshot = without
            for weight in {w.device: w for w in self._weights()}.values():
                weight.settle()
            for layer, experts in adapter.experts.items():
                for weight in self.layers[layer].values():
                    weight.unmap(self._first(layer, adapter.slot), len(experts), pace)
            self._taken.remove(adapter.slot)

    @contextmanager
    def lease(self, names: Iterable[str]) -> Iterator[Snapshot]:
        """A snapshot in which these adapters stay loaded until the block ends. Raises ExpertError
        if one is not loaded."""
        held = set(names)
        with self._state.lock:
            snapshot = self._snapshot
            for name in held:
                snapshot.adapter(name)
            self._leases.update(held)
        try:
            yield snapshot
        finally:
            for found in snapshot.maps.values():
                if found.is_cuda:  # kernels that were started read the map after we let it go
                    found.record_stream(torch.cuda.current_stream(found.device))
            with self._state.lock:
                self._leases.subtract(held)

    def figures(self) -> MemoryFigures:
        """Bytes of all layers, and the adapters."""
        adapters = self._snapshot.adapters
        base = [self.experts(layer) for layer in self.layers]
        counts = {
            name: [len(adapter.experts.get(layer, ())) for layer in self.layers]
            for name, adapter in adapters.items()
        }
        return MemoryFigures(
            slots=self.slots,
            experts_per_slot=self.experts_per_slot,
            adapters={name: self._adapter_figures(a) for name, a in adapters.items()},
            mapped_bytes=sum(w.mapped_bytes for w in self._weights()),
            existing_bytes=sum(w.existing_bytes for w in self._weights()),
            padded_bytes=sum(w.padded_bytes for w in self._weights()),
            f_mem=fragmentation(base, len(adapters), self.experts_per_slot, list(counts.values())),
        )

    def _adapter_figures(self, adapter: Adapter) -> AdapterFigures:
        counts = {layer: len(adapter.experts.get(layer, ())) for layer in self.layers}
        sizes = {k: sum(w.form.nbytes for w in ws.values()) for k, ws in self.layers.items()}
        return AdapterFigures(
            slot=adapter.slot,
            experts=counts,
            sparsity=sparsity(list(counts.values())),
            nbytes=sum(count * sizes[layer] for layer, count in counts.items()),
        )

    def _fill(
        self,
        adapter: Adapter,
        parts: AdapterParts,
        pace: Pace,
        mapped: list[tuple[ExpertWeight, int, int]],
    ) -> None:
        """Maps and writes an adapter's experts; ``mapped`` says at any time what to take back."""
        for layer, experts in adapter.experts.items():
            first = self._first(layer, adapter.slot)
            for key, weight in self.layers[layer].items():
                weight.map(first, len(experts))
                mapped.append((weight, first, len(experts)))
                for place, expert in enumerate(experts):
                    part = parts[layer][expert][key]
                    rows = _rows(part() if callable(part) else part)
                    self._check_rows(f"adapter {adapter.name!r}", layer, expert, key, rows)
                    weight.write(first + place, rows, pace)
                weight.finish(first, len(experts), pace)

    def _check(self, name: str, parts: AdapterParts) -> None:
        """Everything that can be known before memory is touched. Raises ExpertError."""
        self._check_process()
        if not isinstance(name, str) or not name:  # None is the base, which has no adapter
            raise ExpertError(f"an adapter is named by a text that is not empty, not by {name!r}")
        who = f"adapter {name!r}"
        if name in self._snapshot.adapters:
            raise ExpertError(f"{who} is loaded already: unload it first, or take another name")
        if len(self._taken) == self.slots:
            names = ", ".join(self._snapshot.adapters) or "slots whose unloading failed"
            raise ExpertError(f"{who}: all {self.slots} slots are taken ({names})")
        if not any(parts.values()):
            raise ExpertError(f"{who} brings no expert")
        for layer, experts in parts.items():
            total = self.experts(self._known(who, layer))
            if len(experts) > self.experts_per_slot:
                raise ExpertError(
                    f"{who}: {len(experts)} experts in layer {layer!r}, a slot has room for "
                    f"{self.experts_per_slot}"
                )
            for expert, weights in experts.items():
                if isinstance(expert, bool) or not 0 <= expert < total:
                    raise ExpertError(
                        f"{who}: layer {layer!r} has experts 0 to {total - 1}, not {expert!r}"
                    )
                self._check_weights(who, layer, expert, weights)

    def _check_weights(
        self, who: str, layer: Layer, expert: int, weights: Mapping[str, Part]
    ) -> None:
        wanted = self.layers[layer]
        if set(weights) != set(wanted):
            raise ExpertError(
                f"{who}: expert {expert} of layer {layer!r} has {', '.join(sorted(weights))}; "
                f"the layer's weights are {', '.join(sorted(wanted))}"
            )
        for key, part in weights.items():
            if not callable(part):
                self._check_rows(who, layer, expert, key, _rows(part))

    def _check_rows(self, who: str, layer: Layer, expert: int, key: str, rows: Rows) -> None:
        form = self.layers[layer][key].form
        if not form.fits(rows):
            found = " and ".join(f"{data.dtype} {list(data.shape)}" for data in rows) or "nothing"
            raise ExpertError(
                f"{who}: {key} of expert {expert} of layer {layer!r} is {found}, the layer's is "
                f"{form.dtype} {list(form.shape)}"
            )

    def _check_process(self) -> None:
        """A forked child shares the memory file: what it changed would change here."""
        if os.getpid() != self._process:
            raise ExpertError(
                "expert memory: this process is a fork of the one that owns the memory; load and "
                "unload there"
            )

    def _known(self, who: str, layer: Layer) -> Layer:
        if layer not in self.layers:
            raise ExpertError(f"{who}: no layer {layer!r} with experts; there are {self._names()}")
        return layer

    def _layer(self, layer: Layer) -> dict[str, ExpertWeight]:
        return self.layers[self._known("expert memory", layer)]

    def _names(self) -> str:
        return ", ".join(repr(layer) for layer in self.layers) or "none"

    def _weights(self) -> Iterator[ExpertWeight]:
        return (weight for weights in self.layers.values() for weight in weights.values())

    def _first(self, layer: Layer, slot: int) -> int:
        return self.experts(layer) + slot * self.experts_per_slot

    def _changed(self, adapter: Adapter, loaded: bool) -> Snapshot:
        """The snapshot with or without an adapter: new maps for its layers, complete on their
        devices; all others are the same tensors."""
        before = self._snapshot
        others = {k: a for k, a in before.adapters.items() if k != adapter.name}
        maps = dict(before.maps)
        for layer, experts in adapter.experts.items():
            row = experts if loaded else ()
            maps[layer] = with_adapter(maps[layer], adapter.slot, row, self.experts_per_slot)
        for device in {found.device for found in maps.values() if found.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return Snapshot(maps, others | {adapter.name: adapter} if loaded else others)


def _check_count(rows: int) -> None:
    """Maps name rows by int32. Raises ExpertError."""
    most = torch.iinfo(torch.int32).max
    if rows > most:
        raise ExpertError(f"a weight has at most {most:,} rows, not {rows:,}")


def _rows(part: torch.Tensor | Rows) -> Rows:
    return [part] if isinstance(part, torch.Tensor) else part
