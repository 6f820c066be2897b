"""Tile programs lane by lane: every register tile as bits of lanes, shared memory with its races.

The whole-tile interpreter (evaluate_tile.py) says what a program means; this one also says that
each lane has what it computes with. It refuses bits that nothing wrote, lanes that should hold
copies of one element and do not, an operand that lies on another lane, and races on shared memory.

What a lane does by itself (arithmetic, moving registers, views, loads and stores) is done per lane.
Operations in which lanes work together (reductions, products, transposes) put the tile together
from its lanes, compute, and hand out the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tilewright.ir import ops_tile
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.evaluate import Arithmetic, check, reported
from tilewright.ir.evaluate_lanes_products import Products
from tilewright.ir.evaluate_lanes_registers import (
    Numbers,
    Registers,
    broadcast_registers,
    flat_table,
    index_table,
    owners,
    ravelled,
    registers_with,
)
from tilewright.ir.evaluate_lanes_shared import ENGINE, Access, CopyGroup, SharedMemory
from tilewright.ir.evaluate_tile import Memory, Worker
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_memory import CopyAsync, Undefined, Wait
from tilewright.ir.ops_tile_roles import CopyBulk
from tilewright.ir.types import RegisterType, SharedType

# where an element of the result comes from: the operand's number, and the index in it
Origin = tuple[Any, list[Any]]


def _of_stack(op: ops_tile.Stack, index: list[Any]) -> Origin:
    return index[0], [np.zeros_like(index[0]), *index[1:]]


def _of_take(op: ops_tile.Take, index: list[Any]) -> Origin:
    return 0, [index[0] + op.at, *index[1:]]


def _of_pack_pairs(op: ops_tile.PackPairs, index: list[Any]) -> Origin:
    return 0, [2 * index[0] + index[2], index[1]]


def _of_split_pairs(op: ops_tile.SplitPairs, index: list[Any]) -> Origin:
    return 0, [np.zeros_like(index[0]), 2 * index[0] + index[2]]


MOVES: dict[type[Op], Callable[[Any, list[Any]], Origin]] = {
    ops_tile.Stack: _of_stack,
    ops_tile.Take: _of_take,
    ops_tile.PackPairs: _of_pack_pairs,
    ops_tile.SplitPairs: _of_split_pairs,
}


class LaneWorker(Worker):
    """Executes regions for one work item, lane by lane."""

    def __init__(
        self, arithmetic: Arithmetic, sizes: dict[str, int], item: tuple[int, ...], graph: Graph
    ) -> None:
        super().__init__(arithmetic, sizes, item, graph)
        self.block = block_lanes(graph)
        self.shared: list[SharedMemory] = []
        self.begun, self.groups = CopyGroup(), list[CopyGroup]()
        self.products = Products()

    def step(self, op: Op, scope: dict[Value, Any]) -> None:
        special = getattr(self, "do_" + op.name.replace(".", "_"), None)
        inputs = [scope[v] for v in op.operands]
        if special is not None:
            outputs = special(op, inputs, scope)
        elif isinstance(op, ops_tile.Coordinate):
            outputs = (op.reference_tile(),)
        elif len(op.results) == 1 and isinstance(op.result.type, RegisterType):
            outputs = (self.compute(op, inputs, op.result.type),)
        else:
            outputs = (op.reference(*inputs),)
        for result, output in zip(op.results, outputs, strict=True):
            if isinstance(result.type, RegisterType):
                scope[result] = self.kept(op, result.type, output)
            else:
                scope[result] = self.settle(result, output)

    def kept(self, op: Op, type_: RegisterType, output: Any) -> Registers:
        """A result in its lanes; copies of an element must be the same bits."""
        held = output
        if not isinstance(held, Registers):
            held = Registers.of_tile(output, type_, self.arithmetic)
        return held.check_copies(op)

    def compute(self, op: Op, inputs: list[Any], type_: RegisterType) -> Registers:
        """The result of an operation without effects."""
        if "pointwise" in op.traits:
            arrays = [self._in_lanes(op, x, type_.layout) for x in inputs]
            values = np.broadcast_to(op.reference(*arrays), _places(type_.layout))
            return Registers.of(values, type_, self.arithmetic)
        if type(op) in MOVES:
            return self._moved(op, inputs, type_)
        whole = [x.tile(op) if isinstance(x, Registers) else x for x in inputs]
        return Registers.of_tile(op.reference(*whole), type_, self.arithmetic)

    def _in_lanes(self, op: Op, x: Any, whole: Layout) -> Any:
        """An operand's values [registers, lanes] of a result, each from the result's lane."""
        if not isinstance(x, Registers):
            return np.asarray(x)
        at = broadcast_registers(x.type.layout, whole)
        check(at is not None, f"{x.type} does not lie on the lanes of {whole}", op)
        return x.values(op, at)

    def _moved(self, op: Op, inputs: list[Registers], type_: RegisterType) -> Registers:
        index = index_table(type_.layout)
        number, origin = MOVES[type(op)](op, [index[..., d] for d in range(index.shape[-1])])
        out = Registers.undefined(type_, self.arithmetic.exact)
        for at, x in enumerate(inputs):
            places = registers_with(x.type.layout, ravelled(np.stack(origin, -1), x.type.shape))
            check(places is not None, f"moves elements of {x.type} to other lanes", op)
            assert places is not None
            if x.type.dtype != type_.dtype:
                return Registers.of(x.values(op, places), type_, self.arithmetic)
            part = x.moved(type_, *places)
            here = np.broadcast_to(np.asarray(number == at), out.bits.shape)
            bits = np.where(here, part.bits, out.bits)
            out = Registers(type_, bits, np.where(here, part.known, out.known), part.exact)
        return out

    def do_tile_view(self, op: Any, inputs: list[Registers], scope: Any) -> Any:
        assert isinstance(op.result.type, RegisterType)
        with reported(op):
            return (inputs[0].viewed(op.result.type, self.arithmetic),)

    def do_tile_integer(self, op: ops_tile.Integer, inputs: list[Registers], scope: Any) -> Any:
        return (op.reference(inputs[0].tile(op)),)

    def do_tile_scatter(self, op: ops_tile.Scatter, inputs: list[Any], scope: Any) -> Any:
        whole = [x.tile(op) if isinstance(x, Registers) else x for x in inputs]
        return super().do_tile_scatter(op, whole, scope)

    def do_tile_load_rows(self, op: ops_tile.LoadRows, inputs: list[Any], scope: Any) -> Any:
        whole = [x.tile(op) if isinstance(x, Registers) else x for x in inputs]
        return super().do_tile_load_rows(op, whole, scope)

    def do_tile_undefined(self, op: Undefined, inputs: Any, scope: Any) -> Any:
        assert isinstance(op.type, RegisterType)
        return (Registers.undefined(op.type, self.arithmetic.exact),)

    # ---- memory

    def do_tile_alloc(self, op: ops_tile.Alloc, inputs: Any, scope: Any) -> Any:
        if not isinstance(op.type, SharedType):
            return super().do_tile_alloc(op, inputs, scope)
        with reported(op):
            self.shared.append(SharedMemory.shared(op.type, self.arithmetic.exact, self.order))
        return (self.shared[-1],)

    def do_tile_load(self, op: ops_tile.Load, inputs: list[Any], scope: Any) -> Any:
        type_ = op.result.type
        assert isinstance(type_, RegisterType)
        values = self._read_tile(op, inputs[0], inputs[1:])
        return (Registers.of(values, type_, self.arithmetic),)

    def _places(
        self, op: Any, memory: Memory, shape: tuple[int, ...], rest: list[Any]
    ) -> tuple[Any, Any]:
        """For the tile's elements: row-major places in memory, and which are valid."""
        at, valid = self.positions(op.dims, op.bounds, shape, rest)
        self.inside(
            op, memory, at if not isinstance(op, ops_tile.Store) else [p[valid] for p in at]
        )
        return _flat(at, memory, shape), valid

    def _read_tile(self, op: ops_tile.Load | CopyAsync, memory: Memory, rest: list[Any]) -> Any:
        """What lanes read [registers, lanes] of a tile in memory."""
        places, valid = self._places(op, memory, op.layout.shape, rest)
        table = flat_table(op.layout)
        return self._read(op, memory, places.reshape(-1)[table], valid.reshape(-1)[table])

    def _read(self, op: Op, memory: Memory, places: Any, valid: Any) -> Any:
        """What lanes read at places [registers, lanes]; 0 where not valid."""
        if isinstance(memory, SharedMemory):
            memory.read(op, self._accesses(places, valid))
        missing = valid & ~memory.written.reshape(-1)[places]
        if missing.any():
            register, lane = (int(i) for i in np.argwhere(missing)[0])
            index = np.unravel_index(int(places[register, lane]), memory.array.shape)
            message = f"lane {lane} reads {[int(i) for i in index]} into register {register}"
            check(False, f"{message}, which nothing wrote", op)
        values = memory.array.reshape(-1)[places]
        return np.where(valid, values, np.zeros_like(values))

    def _accesses(self, places: Any, valid: Any) -> Iterator[Access]:
        """Elements and the lanes that read them; a tile of one lane is in every lane."""
        everyone = range(self.block if places.shape[1] == 1 else 1)
        for register, lane in np.argwhere(valid):
            for other in everyone:
                yield int(places[register, lane]), int(lane) + other

    def do_tile_store(self, op: ops_tile.Store, inputs: list[Any], scope: Any) -> Any:
        value, memory, rest = inputs[0], inputs[1], inputs[2:]
        shape = value.type.shape
        places, valid = self._places(op, memory, shape, rest)
        registers, lanes = owners(value.type.layout)
        mask = valid.reshape(-1)
        values = value.values(op, (registers[mask], lanes[mask]))
        places = places.reshape(-1)[mask]
        if isinstance(memory, SharedMemory):
            memory.write(op, _pairs(places, lanes[mask]), values)
            return ()
        memory.array.reshape(-1)[places] = values
        memory.written.reshape(-1)[places] = True
        return ()

    def do_tile_read(self, op: ops_tile.Read, inputs: list[Any], scope: Any) -> Any:
        out = super().do_tile_read(op, inputs, scope)
        memory = inputs[0]
        if isinstance(memory, SharedMemory):
            element = int(np.ravel_multi_index(tuple(inputs[1:]), memory.array.shape))
            memory.read(op, [(element, lane) for lane in range(self.block)])
        return out

    def do_tile_gather(self, op: ops_tile.Gather, inputs: list[Any], scope: Any) -> Any:
        memory, offset, offsets = inputs
        assert isinstance(op.result.type, RegisterType)
        places = offset + offsets.values(op)
        inside = bool(np.all((places >= 0) & (places < memory.array.size)))
        check(inside, f"offset outside 0..{memory.array.size - 1}", op)
        values = self._read(op, memory, places, np.ones(places.shape, bool))
        return (Registers.of(values, op.result.type, self.arithmetic),)

    # ---- lines

    def line_offsets(self, op: Any, offsets: Any, layout: Any) -> Any:
        if not isinstance(offsets, Registers):
            return offsets
        self._in_lanes(op, offsets, layout)
        return offsets.tile(op)

    def line_value(self, op: Any, value: Any) -> Any:
        return value.tile(op) if isinstance(value, Registers) else value

    def begin_lines(self, op: Any, target: Any, to: list[Any], values: Any) -> None:
        _, lanes = owners(op.layout)
        accesses = _pairs(_flat(to, target, op.layout.shape).reshape(-1), lanes)
        target.begin_copy(op, accesses)
        self.begun.copies.append((target, accesses, values.reshape(-1)))

    # ---- shared memory

    def do_tile_barrier(self, op: Op, inputs: Any, scope: Any) -> Any:
        if self.order.roles:
            self.order.barrier()
        else:
            self.before_roles()
        return ()

    def do_tile_copy_async(self, op: CopyAsync, inputs: list[Any], scope: Any) -> Any:
        source, target, rest = inputs[0], inputs[1], inputs[2:]
        start, end = len(op.dims), len(op.dims) + len(op.to)
        shape = op.layout.shape
        values = self._read_tile(op, source, rest[:start] + rest[end:])
        registers, lanes = owners(op.layout)
        to, _ = self.positions(op.to, (), shape, rest[start:end])
        self.inside(op, target, to)
        accesses = _pairs(_flat(to, target, shape).reshape(-1), lanes)
        target.begin_copy(op, accesses)
        self.begun.copies.append((target, accesses, values[registers, lanes]))
        return ()

    def do_tile_group_product(self, op: ops_tile.GroupProduct, inputs: Any, scope: Any) -> Any:
        return (self.products.product(op, inputs, self.arithmetic),)

    def do_tile_group_begin(self, op: Any, inputs: Any, scope: Any) -> Any:
        return (self.products.begin(op, inputs, self.arithmetic, self.order.me),)

    def do_tile_group_wait(self, op: Any, inputs: Any, scope: Any) -> Any:
        return (self.products.wait(op, inputs[0], self.order.me),)

    # ---- roles

    def before_roles(self) -> None:
        for memory in self.shared:
            memory.barrier()

    def begin_bulk(
        self, op: CopyBulk, target: SharedMemory, slot: int, values: Any
    ) -> Callable[[tuple[str, int]], None]:
        size = values.size
        accesses = [(slot * size + i, ENGINE) for i in range(size)]
        target.begin_copy(op, accesses)
        return lambda stamp: target.end_copy(accesses, values.reshape(-1), stamp)

    def do_tile_commit(self, op: Op, inputs: Any, scope: Any) -> Any:
        self.groups.append(self.begun)
        self.begun = CopyGroup()
        return ()

    def do_tile_wait(self, op: Op, inputs: Any, scope: Any) -> Any:
        assert isinstance(op, Wait)
        while len(self.groups) > op.pending:
            self.groups.pop(0).end()
        return ()


def block_lanes(graph: Graph) -> int:
    """Lanes of a block: those of its widest register tile."""
    layouts = [v.type.layout for op in graph.body.walk() for v in op.results if _is_tile(v)]  # type: ignore[union-attr]
    copies = CopyAsync, ops_tile.CopyLines
    layouts += [op.layout for op in graph.body.walk() if isinstance(op, copies)]
    return max((layout.lanes for layout in layouts), default=1)


def _is_tile(value: Value) -> bool:
    return isinstance(value.type, RegisterType)


def _places(layout: Layout) -> tuple[int, int]:
    return layout.registers, layout.lanes


def _flat(at: list[Any], memory: Memory, shape: tuple[int, ...]) -> Numbers:
    if not at:
        return np.zeros(shape, np.int64)
    return ravelled(np.stack(at, -1), memory.array.shape)


def _pairs(places: Any, lanes: Any) -> list[Access]:
    return [(int(p), int(lane)) for p, lane in zip(places, lanes, strict=True)]
