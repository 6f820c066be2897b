"""Tile programs in NumPy: every work item in turn, memory with a mark for what was written."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tilewright.ir import ops_math, ops_tile
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import BindError, EvaluationError
from tilewright.ir.evaluate import Arithmetic, check, reported
from tilewright.ir.evaluate_lines import LineOps
from tilewright.ir.evaluate_role_ops import RoleOps
from tilewright.ir.evaluate_roles import Barrier, Order
from tilewright.ir.ops_tile import Bounds
from tilewright.ir.ops_tile_memory import CopyAsync, Undefined
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, RegisterType, ScratchType, SharedType


@cache
def _special(worker: Any, name: str) -> Any:
    """How a worker does an operation that is more than its reference, if it is."""
    return getattr(worker, "do_" + name.replace(".", "_"), None)


@dataclass
class Memory:
    """An array and which of its elements hold something."""

    array: Any
    written: Any

    @staticmethod
    def of(shape: tuple[int, ...], dtype: DType, exact: bool) -> Memory:
        host = "float64" if exact and dtype.is_float else dtype.host
        return Memory(np.zeros(shape, host), np.zeros(shape, bool))

    def strides(self) -> list[int]:
        return [math.prod(self.array.shape[d + 1 :]) for d in range(self.array.ndim)]


def grid_of(graph: Graph, sizes: dict[str, int]) -> tuple[int, ...]:
    """How many work items each grid dimension has: ceil(size / tile)."""
    return tuple(-(-Size.of(s).evaluate(sizes) // tile) for s, tile in graph.attrs.get("grid", ()))


def run_tile_program(
    graph: Graph,
    inputs: list[Any],
    arithmetic: Arithmetic,
    sizes: dict[str, int] | None,
    lanes: bool = False,
) -> tuple[Any, ...]:
    """Runs all work items; parameters are inputs, then outputs. Returns the outputs."""
    worker = Worker
    if lanes:
        from tilewright.ir.evaluate_lanes import LaneWorker

        worker = LaneWorker
    outputs = int(graph.attrs.get("outputs", 0))
    given = graph.params[: len(graph.params) - outputs]
    shell = Graph(graph.level, graph.name, graph.sizes, Region(given, ()), graph.attrs)
    values = bind_sizes(shell, [a.shape for a in inputs], sizes)
    memories: list[Memory] = []
    for param, array in zip(given, inputs, strict=True):
        if not isinstance(param.type, BufferType):
            raise BindError(f"%{param.hint}: {param.type} cannot be an input, a buffer can")
        settled = np.ascontiguousarray(arithmetic.settle(array, param.type.dtype))
        memories.append(Memory(settled.reshape(array.shape), np.ones(array.shape, bool)))
    for param in graph.params[len(given) :]:
        if not isinstance(param.type, BufferType):
            raise BindError(f"%{param.hint}: {param.type} cannot be an output, a buffer can")
        shape = tuple(s.evaluate(values) for s in param.type.shape)
        memories.append(Memory.of(shape, param.type.dtype, arithmetic.exact))
    base: dict[Value, Any] = dict(zip(graph.params, memories, strict=True))
    for item in itertools.product(*map(range, grid_of(graph, values))):
        worker(arithmetic, values, item, graph).run(graph.body, dict(base))
    for op in graph.body.walk():
        if isinstance(op, ops_tile.LastOf) and base[op.counters].array.any():
            raise EvaluationError(f"{op.name}: counters are not 0 after all work items", op.loc)
    for memory, param in zip(memories[len(given) :], graph.params[len(given) :], strict=True):
        if not memory.written.all():
            raise EvaluationError(f"{graph.name}: part of the output %{param.hint} is not written")
    return tuple(m.array for m in memories[len(given) :])


class Worker(RoleOps, LineOps):
    """Executes regions for one work item, a whole tile at a time."""

    def __init__(
        self, arithmetic: Arithmetic, sizes: dict[str, int], item: tuple[int, ...], graph: Graph
    ) -> None:
        self.arithmetic, self.sizes, self.item, self.graph = arithmetic, sizes, item, graph
        self.order, self.role_warps, self.barriers = Order(), (), list[Barrier]()

    def run(self, region: Region, scope: dict[Value, Any]) -> list[Any]:
        for op in region.ops:
            self.step(op, scope)
        return [scope[v] for v in region.yields]

    def step(self, op: Op, scope: dict[Value, Any]) -> None:
        special = _special(type(self), op.name)  # type: ignore[arg-type]  # hashable it is
        inputs = [scope[v] for v in op.operands]
        if special is not None:
            outputs = special(self, op, inputs, scope)
        elif isinstance(op, ops_tile.Coordinate):
            outputs = (op.reference_tile(),)
        else:
            outputs = (op.reference(*inputs),)
        for result, output in zip(op.results, outputs, strict=True):
            scope[result] = self.settle(result, output)

    def settle(self, result: Value, output: Any) -> Any:
        type_ = result.type
        if isinstance(type_, RegisterType):
            if not isinstance(output, np.ndarray) or output.shape != type_.shape:
                output = np.broadcast_to(output, type_.shape)
            exact = self.arithmetic.exact and type_.dtype.is_float
            if output.dtype == np.float64 if exact else type_.dtype.is_hosts(output.dtype):
                return output  # nothing to round
            return self.arithmetic.settle(output, type_.dtype)
        return output if isinstance(output, Memory | list) else int(output)  # list: barriers

    def do_math_const(self, op: ops_math.Const, inputs: Any, scope: Any) -> Any:
        return (op.value if isinstance(op.type, RegisterType) else int(op.value),)

    def do_tile_block(self, op: ops_tile.BlockId, inputs: Any, scope: Any) -> Any:
        check(0 <= op.dim < len(self.item), f"the grid has {len(self.item)} dimensions", op)
        return (self.item[op.dim],)

    def do_tile_size(self, op: ops_tile.SizeOf, inputs: Any, scope: Any) -> Any:
        return (op.size.evaluate(self.sizes),)

    def do_tile_stride(self, op: ops_tile.StrideOf, inputs: Any, scope: Any) -> Any:
        return (inputs[0].strides()[op.dim],)

    def do_tile_splat(self, op: ops_tile.Splat, inputs: Any, scope: Any) -> Any:
        return (np.asarray(inputs[0]),)

    def do_tile_alloc(self, op: ops_tile.Alloc, inputs: Any, scope: Any) -> Any:
        assert isinstance(op.type, ScratchType)
        with reported(op):
            return (Memory.of(op.type.shape, op.type.dtype, self.arithmetic.exact),)

    def do_tile_for(self, op: ops_tile.For, inputs: list[Any], scope: dict[Value, Any]) -> Any:
        region, carried = op.regions[0], list(inputs[2:])
        for counter in range(inputs[0], inputs[1], op.step):
            inner = dict(scope)
            inner.update(zip(region.params, [counter, *carried], strict=True))
            carried = self.run(region, inner)
        return carried

    def do_tile_while(self, op: ops_tile.While, inputs: list[Any], scope: dict[Value, Any]) -> Any:
        region, (go, *carried) = op.regions[0], inputs
        while go > 0:
            inner = dict(scope)
            inner.update(zip(region.params, carried, strict=True))
            go, *carried = self.run(region, inner)
        return carried

    def do_tile_if(self, op: ops_tile.If, inputs: list[Any], scope: dict[Value, Any]) -> Any:
        if inputs[0] < inputs[1]:
            self.run(op.regions[0], dict(scope))
        return ()

    def positions(
        self, dims: tuple[int, ...], bounds: Bounds, shape: tuple[int, ...], rest: list[Any]
    ) -> tuple[list[Any], Any]:
        """For each memory dimension the positions of the tile's elements, and which are valid."""
        rank = len(dims)
        limits = dict(zip([d for d, _ in bounds], rest[rank:], strict=True))
        kinds = dict(bounds)
        found, valid = [], np.broadcast_to(np.asarray(True), shape)
        for base, dim in zip(rest[:rank], dims, strict=True):
            if dim < 0:
                found.append(np.broadcast_to(np.asarray(base), shape))
                continue
            view = [1] * len(shape)
            view[dim] = shape[dim]
            at = (base + np.arange(shape[dim])).reshape(view)
            if dim in limits:
                if kinds[dim] != "clamp":
                    valid = valid & (at < limits[dim])
                at = np.minimum(at, max(limits[dim] - 1, 0))
            found.append(np.broadcast_to(at, shape))
        return found, valid

    def inside(self, op: Op, memory: Memory, at: list[Any]) -> None:
        """Raises EvaluationError unless all positions lie in the memory."""
        for position, size in zip(at, memory.array.shape, strict=True):
            inside = bool(np.all((position >= 0) & (position < size)))
            check(inside, f"index outside 0..{size - 1}", op)

    def window(
        self, op: Any, memory: Memory, shape: tuple[int, ...], rest: list[Any]
    ) -> tuple[Any, ...] | None:
        """The tile's place as slices, if it lies in memory whole and in memory's order: most do,
        and NumPy is slow at positions."""
        limits = {d: limit for (d, _), limit in zip(op.bounds, rest[len(op.dims) :], strict=True)}
        found, last = [], -1
        for base, dim, size in zip(rest, op.dims, memory.array.shape, strict=False):
            if dim < 0:
                end = base + 1
                found.append(base)
            elif dim > last:
                end = base + shape[dim]
                found.append(slice(base, end))
                last = dim
            else:
                return None
            if base < 0 or end > min(size, limits.get(dim, size)):
                return None
        return tuple(found)

    def do_tile_load(self, op: ops_tile.Load, inputs: list[Any], scope: Any) -> Any:
        memory, rest = inputs[0], inputs[1:]
        place = self.window(op, memory, op.layout.shape, rest)
        if place is not None and memory.written[place].all():
            sizes = (n if d in op.dims else 1 for d, n in enumerate(op.layout.shape))
            return (memory.array[place].copy().reshape(tuple(sizes)),)
        at, valid = self.positions(op.dims, op.bounds, op.layout.shape, rest)
        self.inside(op, memory, at)
        values, written = memory.array[tuple(at)], memory.written[tuple(at)]
        check(bool(np.all(written | ~valid)), "reads scratch that nothing wrote", op)
        return (np.where(valid, values, np.zeros_like(values)),)

    def do_tile_store(self, op: ops_tile.Store, inputs: list[Any], scope: Any) -> Any:
        value, memory, rest = inputs[0], inputs[1], inputs[2:]
        place = self.window(op, memory, value.shape, rest)
        kept = tuple(value.shape[d] for d in op.dims if d >= 0)
        if place is not None and math.prod(kept) == value.size:
            memory.array[place] = value.reshape(kept)
            memory.written[place] = True
            return ()
        at, valid = self.positions(op.dims, op.bounds, value.shape, rest)
        full = [p[valid] for p in at]
        self.inside(op, memory, full)
        memory.array[tuple(full)] = value[valid] if full else value[valid][0]
        memory.written[tuple(full)] = True
        return ()

    def do_tile_read(self, op: ops_tile.Read, inputs: list[Any], scope: Any) -> Any:
        memory, at = inputs[0], tuple(inputs[1:])
        for position, size in zip(at, memory.array.shape, strict=True):
            check(0 <= position < size, f"index {position} outside 0..{size - 1}", op)
        check(bool(memory.written[at]), "reads what nothing wrote", op)
        return (int(memory.array[at]),)

    def do_tile_gather(self, op: ops_tile.Gather, inputs: list[Any], scope: Any) -> Any:
        memory, offset, offsets = inputs
        at = offset + offsets
        inside = bool(np.all((at >= 0) & (at < memory.array.size)))
        check(inside, f"offset outside 0..{memory.array.size - 1}", op)
        check(bool(np.all(memory.written.reshape(-1)[at])), "reads what nothing wrote", op)
        return (memory.array.reshape(-1)[at],)

    def do_tile_scatter(self, op: ops_tile.Scatter, inputs: list[Any], scope: Any) -> Any:
        value, memory, offset, offsets, inside = inputs
        at = (offset + offsets)[inside]
        check(
            bool(np.all((at >= 0) & (at < memory.array.size))),
            f"offset outside 0..{memory.array.size - 1}",
            op,
        )
        check(len(set(at.tolist())) == at.size, "writes one place twice", op)
        places = np.unravel_index(at, memory.array.shape)
        memory.array[places] = value[inside]
        memory.written[places] = True
        return ()

    def do_tile_last_of(self, op: ops_tile.LastOf, inputs: list[Any], scope: Any) -> Any:
        memory, at = inputs[0], tuple(inputs[1:])
        self.inside(op, memory, list(at))
        check(bool(memory.written[at]), "counts where nobody wrote a 0", op)
        check(0 <= memory.array[at] < op.count, "more work items than are counted", op)
        memory.array[at] = (memory.array[at] + 1) % op.count
        return (int(memory.array[at] == 0),)

    def do_tile_load_rows(self, op: ops_tile.LoadRows, inputs: list[Any], scope: Any) -> Any:
        memory, rows, start, *limit = inputs
        columns = start + np.arange(op.layout.shape[1 - op.dim])
        columns = np.expand_dims(columns, op.dim)
        valid = columns < (limit[0] if limit else memory.array.shape[1])
        at = [rows, np.where(valid, columns, 0)]
        self.inside(op, memory, [rows, columns] if not limit else at)
        check(bool(np.all(memory.written[tuple(at)] | ~valid)), "reads what nothing wrote", op)
        values = memory.array[tuple(at)]
        return (np.where(valid, values, np.zeros_like(values)),)

    def do_tile_copy_async(self, op: CopyAsync, inputs: list[Any], scope: Any) -> Any:
        source, target, rest = inputs[0], inputs[1], inputs[2:]
        start, end = len(op.dims), len(op.dims) + len(op.to)
        shape = op.layout.shape
        at, valid = self.positions(op.dims, op.bounds, shape, rest[:start] + rest[end:])
        self.inside(op, source, at)
        values, written = source.array[tuple(at)], source.written[tuple(at)]
        check(bool(np.all(written | ~valid)), "reads what nothing wrote", op)
        to, _ = self.positions(op.to, (), shape, rest[start:end])
        self.inside(op, target, to)
        target.array[tuple(to)] = np.where(valid, values, np.zeros_like(values))
        target.written[tuple(to)] = True
        return ()

    def do_tile_group_product(self, op: ops_tile.GroupProduct, inputs: Any, scope: Any) -> Any:
        acc, a, memory, first = inputs
        written = bool(op.matrix(memory.written, first).all())
        if isinstance(op.a.type, SharedType):
            written = written and bool(a.written.all())
            a = a.array
        check(written, "reads shared memory that nothing wrote", op)
        return (op.reference(acc, a, memory.array, first),)

    def do_nothing(self, op: Op, inputs: Any, scope: Any) -> Any:
        return ()

    do_tile_prefetch = do_tile_barrier = do_tile_commit = do_tile_wait = do_nothing
    do_tile_fence = do_nothing

    def do_tile_undefined(self, op: Undefined, inputs: Any, scope: Any) -> Any:
        raise EvaluationError(f"{op.name}: has no value; evaluate with lanes=True", op.loc)
