"""A bundle's programs as callables: NumPy arrays or torch tensors in, the same kind out.

How a call goes is worked out once for its dtypes, shapes and strides and then kept: which form of
each kernel, sizes, outputs, work items. A call after that fills in addresses and runs. Nothing is
compiled, and no Python text is made: what no form covers is refused, and the key that differs
named.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.errors import BindError, BundleError
from tilewright.ir.sizes import parse_size
from tilewright.runtime.bundle.arrays import (
    NumpyArrays,
    Seen,
    TorchArrays,
    arrays_of,
    require_dtype,
)
from tilewright.runtime.bundle.forms import find_form
from tilewright.runtime.bundle.manifest import Buffer, Code, Program, Sized, Step

LINE = 64  # bytes of a cache line: counters and scratch memory are aligned to it
_MOST_PLANS = 1024
_running: dict[int, object] = {}  # what native code uses now: an interrupted call may leave threads
Arrays = TorchArrays | NumpyArrays
Prepared = Callable[[Arrays, list[Any], dict[str, Any]], None]


class BundledProgram:
    """A program of a bundle. ``codes`` by symbol, ``sized`` by form; ``address`` finds the machine
    code of a symbol.

    Called with NumPy arrays or with torch tensors on the CPU; the results are new and contiguous,
    in a tuple. Raises BindError for inputs that do not fit the program, BundleError for such as no
    compiled form of it takes. Safe to call from several threads.
    """

    def __init__(
        self,
        program: Program,
        codes: Mapping[str, Code],
        sized: Mapping[str, Sized],
        address: Callable[[str], int],
        where: str,
    ) -> None:
        self.program, self.codes, self.sized = program, codes, sized
        self.address, self.where = address, where
        self._plans: dict[object, list[Launch]] = {}

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.program.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs."""
        return self.program.inputs

    @property
    def text(self) -> str:
        """Its IR, which ``tilewright.parse`` reads where the parser is installed."""
        return self.program.text

    def __repr__(self) -> str:
        return f"BundledProgram({self.name}({', '.join(self.inputs)}) of {self.where})"

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        """The results."""
        kind = self._kind(arrays)
        key: object = None
        plan = None
        with suppress(AttributeError, RuntimeError, TypeError):  # no arrays, or without strides
            key = kind.key(arrays)
            plan = self._plans.get(key)
        values = dict(zip(self.inputs, arrays, strict=False))
        if plan is None:
            plan = self._prepare(kind, arrays)  # which refuses what has no key
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        for launch in plan:
            launch(kind, arrays, values)
        return tuple(values[name] for name in self.program.results)

    def _prepare(self, kind: Arrays, arrays: Sequence[Any]) -> list[Launch]:
        """How calls with such inputs go."""
        if len(arrays) != len(self.inputs):
            names = ", ".join(f"%{n}" for n in self.inputs)
            raise BindError(f"{self.name} takes {names}; {len(arrays)} inputs given")
        seen = {n: kind.seen(f"%{n}", x) for n, x in zip(self.inputs, arrays, strict=True)}
        plan = []
        for step in self.program.steps:
            launch = self._launch(step, [seen[n] for n in step.inputs])
            for name, buffer, shape in zip(
                step.outputs, launch.results, launch.shapes, strict=True
            ):
                seen[name] = Seen(buffer.dtype, shape, _contiguous(shape))
            plan.append(launch)
        return plan

    def _launch(self, step: Step, given: list[Seen]) -> Launch:
        family = step.family
        for buffer, seen in zip(family.params, given, strict=False):
            require_dtype(f"%{buffer.name}", buffer, seen)
        tables = [_table(given[source], family.table_stride) for source in family.tables]
        whole = [*given, *(t for t in tables for _ in range(2))]
        sizes = bind_sizes(_graph(family.name, family.sizes, family.params), _shapes(whole))
        form = find_form(family, sizes, [x.unit for x in whole], whole, self.where)
        code = self.codes[self.sized[form.form].pick(_shapes(whole))]
        return self._started(step, code, _with_sizes(code, whole), whole)

    def _kind(self, arrays: Sequence[Any]) -> Arrays:
        """How to look at inputs."""
        return arrays_of(arrays)

    def _started(self, step: Step, code: Code, sizes: dict[str, int], given: list[Seen]) -> Launch:
        """What starts a code with inputs of these shapes."""
        return CpuLaunch(step, code, sizes, given, self.address(code.symbol))


def _table(seen: Seen, stride: int) -> Seen:
    """The table of extremes of an input."""
    shape = (*seen.shape[:-1], -(-seen.shape[-1] // stride))
    return Seen("i64", shape, _contiguous(shape))


def _with_sizes(code: Code, given: Sequence[Seen]) -> dict[str, int]:
    """The code's sizes of a call."""
    inputs = code.params[: len(code.params) - code.outputs]
    if len(inputs) != len(given):
        raise BundleError(f"{code.symbol} takes {len(inputs)} inputs, its program {len(given)}")
    for buffer, seen in zip(inputs, given, strict=True):
        require_dtype(f"%{buffer.name}", buffer, seen)
    names = {n for p in inputs for s in p.shape for n in parse_size(s).names}
    return bind_sizes(_graph(code.kernel, tuple(sorted(names)), inputs), _shapes(given))


def _graph(name: str, sizes: tuple[str, ...], params: Sequence[Buffer]) -> Graph:
    """Inputs and sizes as ``bind_sizes`` takes them."""
    values = tuple(Value(replace(p.type, unit=-1), p.name) for p in params)
    used = {n for p in params for s in p.shape for n in parse_size(s).names}
    return Graph("tile", name, tuple(n for n in sizes if n in used), Region(values, ()))


def _shapes(seen: Sequence[Seen]) -> list[tuple[int, ...]]:
    return [x.shape for x in seen]


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        steps[dim] = steps[dim + 1] * max(1, shape[dim + 1])
    return tuple(steps)


@dataclass(frozen=True)
class Memory:
    """Aligned memory of a call: where it begins, and what owns it."""

    address: int
    view: memoryview


def memory(size: int) -> Memory:
    """So many bytes from a cache line on."""
    owner = (ctypes.c_char * (size + LINE))()
    first = -ctypes.addressof(owner) % LINE
    return Memory(ctypes.addressof(owner) + first, memoryview(owner)[first : first + size])


class Launch:
    """One kernel of a program for inputs of given dtypes, shapes and strides."""

    def __init__(self, step: Step, code: Code, sizes: dict[str, int], given: list[Seen]) -> None:
        self.step, self.code = step, code
        self.results = code.params[len(code.params) - code.outputs :]
        self.shapes = [tuple(parse_size(s).evaluate(sizes) for s in r.shape) for r in self.results]
        if any(n < 0 for shape in self.shapes for n in shape):
            raise BindError(f"{code.kernel}: a result would have a negative size ({self.shapes})")
        self.grid = [max(0, -(-parse_size(s).evaluate(sizes) // tile)) for s, tile in code.grid]
        self.items = prod(self.grid)
        made = zip(self.results, self.shapes, strict=True)
        outputs = [Seen(r.dtype, s, _contiguous(s)) for r, s in made]
        self.buffers = [*given, *outputs]
        self.sizes = tuple(sizes[n] for n in code.sizes)

    def __call__(self, kind: Arrays, given: Sequence[Any], values: dict[str, Any]) -> None:
        """Runs it: takes its inputs from the values by name, and puts its results there."""
        inputs = [values[name] for name in self.step.inputs]
        for source in self.step.family.tables:
            inputs += kind.extremes(inputs[source], self.step.family.table_stride)
        results = [
            kind.empty(shape, r.dtype, given)
            for r, shape in zip(self.results, self.shapes, strict=True)
        ]
        values.update(zip(self.step.outputs, results, strict=True))
        if self.items:
            buffers = [*inputs, *results]
            addresses = [kind.address(x) for x in buffers]
            if not all(addresses):
                self._require_memory(addresses)
            self.run(kind, addresses, buffers)

    def _require_memory(self, addresses: list[int]) -> None:
        """BindError for a buffer that has elements and no memory."""
        for address, seen in zip(addresses, self.buffers, strict=True):
            if not address and 0 not in seen.shape:
                raise BindError(f"{self.code.kernel}: an input is a tensor without memory")

    def run(self, kind: Arrays, addresses: list[int], buffers: list[Any]) -> None:
        """Runs the code on buffers that lie there."""
        raise NotImplementedError


class CpuLaunch(Launch):
    """A function of the library, on the threads of the CPU."""

    def __init__(
        self, step: Step, code: Code, sizes: dict[str, int], given: list[Seen], function: int
    ) -> None:
        super().__init__(step, code, sizes, given)
        self.function, self.scratch = function, -(-code.scratch_bytes // LINE) * LINE
        words = [0, 0, 0, self.scratch, self.items, *self.grid, *self.sizes]
        self.places: list[int] = []  # of the buffers' addresses among the words
        for buffer in self.buffers:
            self.places.append(len(words))
            words += (0, *buffer.strides)
        self.words = words  # as every call has them, but for addresses
        pad = LINE - 8
        self.frame = struct.Struct(f"=q{pad}xq{pad}x{len(words)}q")
        self.free: list[tuple[Memory, Memory]] = []  # argument blocks and scratch memory

    def run(self, kind: Arrays, addresses: list[int], buffers: list[Any]) -> None:
        """Fills an argument block and runs the code on all threads."""
        words = self.words.copy()
        for place, address in zip(self.places, addresses, strict=True):
            words[place] = address
        threads, run = kind.pool()
        threads = min(threads, self.items)
        wanted = threads * self.scratch
        try:
            block, scratch = self.free.pop()
        except IndexError:
            block, scratch = memory(self.frame.size), memory(wanted)
        if len(scratch.view) < wanted:
            scratch = memory(wanted)
        at = block.address
        words[0], words[1], words[2] = at, at + LINE, scratch.address
        self.frame.pack_into(block.view, 0, 0, 0, *words)
        held = block, scratch, buffers
        _running[id(held)] = held
        run(self.function, at + 2 * LINE, threads)
        del _running[id(held)]  # not after an interruption: other threads may still be at it
        self.free.append((block, scratch))
