"""What reads expert memory on a device while adapters come and go, and what it must find there."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from tilewright import TilewrightError
from tilewright.bench.expert_adapters import ADAPTERS, LAYERS, draw_counts, draw_experts
from tilewright.experts import ExpertMemory


class Pool:
    """Known weights: the base, and for every adapter expert another stretch of one random block.

    The block lies in pageable and in pinned host memory and on the device, so that each source of
    a load costs nothing to make and each byte is known on the device.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.device = device
        self.shapes = dict(shapes)
        torch.manual_seed(0)
        self.base = {
            key: torch.randn(shape, device=device, dtype=dtype) / shape[-1] ** 0.5
            for key, shape in shapes.items()
        }
        size = 4 * max(t[0].numel() for t in self.base.values()) + 1_000_003
        block = torch.randn(size, device=device).to(dtype)
        self._blocks = {"device": block, "pageable": block.cpu(), "pinned": block.cpu()}
        if device.type == "cuda":
            self._blocks["pinned"] = self._blocks["pinned"].pin_memory()
        self._room = size
        self._known: dict[tuple[str, int, int, str, str], torch.Tensor] = {}
        self._experts: dict[tuple[str, int], list[int]] = {}
        torch.cuda.synchronize()  # ready on every stream

    def experts(self, name: str, layer: int) -> list[int]:
        """Which experts of a layer an adapter brings, the same at every call."""
        if (name, layer) not in self._experts:
            shape = next(shape for shape in ADAPTERS if shape.name == name)
            count = draw_counts(shape)[layer % LAYERS]
            total = next(iter(self.shapes.values()))[0]
            drawn = draw_experts(count, total, random.Random(f"{name} {layer}"))
            self._experts[name, layer] = drawn
        return self._experts[name, layer]

    def expert(
        self, name: str, layer: int, expert: int, key: str, where: str = "device"
    ) -> torch.Tensor:
        """One weight of one expert of an adapter, a view of the block at an offset of its own."""
        known = (name, layer, expert, key, where)
        if known not in self._known:  # remembered, lest Python's work hold up other threads
            shape = self.shapes[key][1:]
            count = shape[0] * shape[1]
            start = random.Random(f"{name} {layer} {expert} {key}").randrange(self._room - count)
            self._known[known] = self._blocks[where][start : start + count].view(shape)
        return self._known[known]

    def parts(self, name: str, layers: int, where: str = "pageable") -> dict[int | str, Any]:
        """An adapter as ExpertMemory.load takes it."""
        return {
            layer: {
                expert: {k: self.expert(name, layer, expert, k, where) for k in self.shapes}
                for expert in self.experts(name, layer)
            }
            for layer in range(layers)
        }

    def base_is_intact(self, memory: ExpertMemory) -> bool:
        """Every byte of every layer's base experts, through the whole range and ``base``."""
        return all(
            torch.equal(weight.tensor[: weight.experts], self.base[key])
            and torch.equal(weight.base, self.base[key])
            for weights in memory.layers.values()
            for key, weight in weights.items()
        )

    def adapter_is_intact(self, memory: ExpertMemory, name: str) -> bool:
        """Every byte of an adapter, found through the expert maps."""
        with memory.lease([name]) as snapshot:
            slot = snapshot.adapters[name].slot
            for layer, weights in memory.layers.items():
                if not isinstance(layer, int):
                    return False
                places = snapshot.maps[layer][slot].tolist()
                for expert, key in itertools.product(self.experts(name, layer), weights):
                    found = weights[key].tensor[places[expert]]
                    if not torch.equal(found, self.expert(name, layer, expert, key)):
                        return False
        return True


class BaseReader:
    """Multiplies with all base experts of a layer, step by step; results stay the same."""

    name = "base"

    def __init__(self, memory: ExpertMemory, pool: Pool, stream: torch.cuda.Stream) -> None:
        self.memory, self.pool = memory, pool
        self.reads = 0
        self.seconds: list[float] = []
        self.error: str | None = None
        shape = pool.shapes["gate_up_proj"]
        self._x = torch.randn(shape[0], 8, shape[2], device=pool.device).to(
            pool.base["gate_up_proj"].dtype
        )
        torch.cuda.synchronize()  # the input is ready on every stream
        self._stream = stream
        self._wanted = [self._step(layer) for layer in memory.layers]

    def run_for(self, seconds: float) -> list[float]:
        """The time of each step in that time, with nothing else going on."""
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        self.run(stop)
        found, self.seconds = self.seconds[3:], []
        return found

    def run(self, stop: threading.Event) -> None:
        """Steps until stopped or until a result differs."""
        try:
            for at in itertools.cycle(range(len(self._wanted))):
                if stop.is_set():
                    return
                began = time.perf_counter()
                found = self._step(list(self.memory.layers)[at])
                self.seconds.append(time.perf_counter() - began)
                with torch.cuda.stream(self._stream):
                    if not torch.equal(found, self._wanted[at]):
                        self.error = f"layer {at}: another result than before"
                        return
                self.reads += 1
        except Exception as error:  # of the driver, in a thread: the main one reports it
            self.error = repr(error)

    def _step(self, layer: Any) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            weights = self.memory.layers[layer]
            up = torch.bmm(self._x, weights["gate_up_proj"].base.transpose(1, 2))
            half = up.shape[-1] // 2
            return_value = torch.bmm(
                torch.nn.functional.silu(up[..., :half]) * up[..., half:],
                weights["down_proj"].base.transpose(1, 2),
            )
            self._stream.synchronize()
        return return_value


class LeaseReader:
    """Leases a loaded adapter, compares every byte of one of its layers, lets go, and again."""

    name = "adapters"

    def __init__(
        self, memory: ExpertMemory, pool: Pool, stream: torch.cuda.Stream, seed: int
    ) -> None:
        self.memory, self.pool = memory, pool
        self.reads = 0
        self.seconds: list[float] = []
        self.error: str | None = None
        self._source = random.Random(seed)
        self._stream = stream

    def run(self, stop: threading.Event) -> None:
        """Until stopped or until a byte differs."""
        try:
            while not stop.is_set() and self.error is None:
                names = sorted(self.memory.snapshot.adapters)
                if names:
                    self._read(self._source.choice(names))
                time.sleep(0.002)  # lets the loader unload what nobody holds
        except Exception as error:
            self.error = repr(error)

    def _read(self, name: str) -> None:
        layer = self._source.choice(list(self.memory.layers))
        assert isinstance(layer, int)
        try:
            # The comparisons are started under the lease and may still run when it ends: unloading
            # has to wait for them.
            with self.memory.lease([name]) as snapshot, torch.cuda.stream(self._stream):
                places = snapshot.maps[layer][snapshot.adapters[name].slot].tolist()
                same = [
                    (
                        weight.tensor[places[expert]] == self.pool.expert(name, layer, expert, key)
                    ).all()
                    for expert in self.pool.experts(name, layer)
                    for key, weight in self.memory.layers[layer].items()
                ]
        except TilewrightError:
            return  # unloaded since we looked
        with torch.cuda.stream(self._stream):
            if not all(flag.item() for flag in same):
                self.error = f"{name}, layer {layer}: other bytes than were loaded"
        self.reads += 1
