"""A tile program as MLIR text: control flow, arguments, and each operation through its emitter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.backends.mlir.bits import BitEmitter
from tilewright.backends.mlir.control import ControlFlow
from tilewright.backends.mlir.lanes import LaneEmitter
from tilewright.backends.mlir.memory import Access, MemoryEmitter, MemoryRef
from tilewright.backends.mlir.pointwise import Scalars, emit_pointwise
from tilewright.backends.mlir.registers import (
    Registers,
    element_type,
    held_type,
    is_uniform,
    physical,
    refuse_what_vectors_lack,
    register_map,
    spread,
)
from tilewright.backends.mlir.rounding import in_ieee_mode
from tilewright.backends.mlir.text import MlirText
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType, IndexType, RegisterType, ScratchType

# The argument block of a kernel (see runtime/kernel.py): five words, grid extents, sizes, buffers.
COUNTER, SLOT, SCRATCH, SCRATCH_BYTES, ITEMS, HEADER = 0, 1, 2, 3, 4, 5
SCRATCH_ALIGNMENT = 64


def scratch_bytes(graph: Graph) -> int:
    """Bytes of scratch that one worker needs."""
    total = 0
    for op in graph.body.walk():
        if isinstance(op, t.Alloc):
            assert isinstance(op.type, ScratchType)
            total += _aligned(op.type.bytes)
    return total


def _aligned(size: int) -> int:
    return -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT


def emit_module(graph: Graph, target: Target, symbol: str) -> str:
    """MLIR text of a module with one function ``symbol`` that works through the kernel's items."""
    refuse_what_vectors_lack(graph)
    return _Program(graph, target).run(symbol)


class _Program(ControlFlow):
    """Writes one function."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.text = MlirText()
        self.memory = MemoryEmitter(self.text)
        self.lanes = LaneEmitter(self.text, target)
        self.writers = {**BitEmitter(self.text, target).writers, **self.lanes.writers}
        self.values: dict[Value, Any] = {}
        self.numbers: dict[Value, float] = {}
        self.extents: list[str] = []
        self.sizes: dict[str, str] = {}
        self.blocks: list[str] = []
        self.scratch_at = 0
        self.scratch_base = ""

    def run(self, symbol: str) -> str:
        text = self.text
        total = self._arguments()
        counter = self._word(COUNTER, "!llvm.ptr")
        with in_ieee_mode(text, self.graph, self.target):
            self._work(counter, total)
        body = "\n".join(text.lines)
        return (
            f"module {{\n  func.func @{symbol}(%args: !llvm.ptr) {{\n{body}\n    return\n  }}\n}}\n"
        )

    def _work(self, counter: str, total: str) -> None:
        """The loop over work items, which workers claim from a counter: one by one, or so many at
        once that there are about as many ``claims`` as a program of cheap items asks for."""
        text, claims = self.text, self.graph.attrs.get("claims")
        step = text.i64(1)
        if claims is not None:
            parts = text.op(f"arith.divsi {total}, {text.i64(int(claims))} : i64")
            step = text.op(f"arith.maxsi {parts}, {step} : i64")
        first = text.op(f"llvm.atomicrmw add {counter}, {step} monotonic : !llvm.ptr, i64")
        text.line(f"%end = scf.while (%item = {first}) : (i64) -> i64 {{")
        with text.region():
            more = text.op(f"arith.cmpi slt, %item, {total} : i64")
            text.line(f"scf.condition({more}) %item : i64")
        text.line("} do {")
        text.line("^bb0(%here: i64):")
        with text.region():
            if claims is None:
                self._item("%here")
            else:
                self._items(step, total)
            following = text.op(f"llvm.atomicrmw add {counter}, {step} monotonic : !llvm.ptr, i64")
            text.line(f"scf.yield {following} : i64")
        text.line("}")

    def _items(self, step: str, total: str) -> None:
        """Those of one claim."""
        text = self.text
        past = text.op(f"arith.addi %here, {step} : i64")
        end = text.op(f"arith.minsi {past}, {total} : i64")
        text.line(f"scf.for %one = %here to {end} step {text.i64(1)} : i64 {{")
        with text.region():
            self._item("%one")
        text.line("}")

    def _item(self, number: str) -> None:
        """A work item: its place on the grid, and what it computes there."""
        self._place(number)
        self._region(self.graph.body)

    # ---- arguments

    def _word(self, at: int, type_: str = "i64") -> str:
        place = self.text.address("%args", self.text.i64(at), "i64")
        return self.text.op(f"llvm.load {place} : !llvm.ptr -> {type_}")

    def _arguments(self) -> str:
        text, at = self.text, HEADER
        total = self._word(ITEMS)
        slots, base = self._word(SLOT, "!llvm.ptr"), self._word(SCRATCH, "!llvm.ptr")
        slot = text.op(f"llvm.atomicrmw add {slots}, {text.i64(1)} monotonic : !llvm.ptr, i64")
        skip = text.op(f"arith.muli {slot}, {self._word(SCRATCH_BYTES)} : i64")
        self.scratch_base = text.address(base, skip, "i8")
        for _ in self.graph.attrs["grid"]:
            self.extents.append(self._word(at))
            at += 1
        for name in self.graph.sizes:
            self.sizes[name] = self._word(at)
            at += 1
        for param in self.graph.params:
            at = self._buffer(param, at)
        return total

    def _buffer(self, param: Value, at: int) -> int:
        type_ = param.type
        assert isinstance(type_, BufferType)
        pointer = self._word(at, "!llvm.ptr")
        strides = []
        for dim in range(len(type_.shape)):
            unit = dim == type_.unit
            strides.append(self.text.i64(1) if unit else self._word(at + 1 + dim))
        self.values[param] = MemoryRef(pointer, strides, type_.dtype)
        return at + 1 + len(type_.shape)

    def _place(self, item: str) -> None:
        """Positions on the grid, the last dimension fastest."""
        self.blocks = []
        for extent in reversed(self.extents):
            self.blocks.append(self.text.op(f"arith.remsi {item}, {extent} : i64"))
            item = self.text.op(f"arith.divsi {item}, {extent} : i64")
        self.blocks.reverse()

    # ---- operations

    def _region(self, region: Region) -> list[str]:
        for op in region.ops:
            self._op(op)
        return [name for value in region.yields for name in self._flat(value)]

    def _op(self, op: Op) -> None:
        handler: Callable[[Any], Any] | None = getattr(self, "_" + op.name.replace(".", "_"), None)
        if handler is not None:
            result = handler(op)
        elif op.name in self.writers:
            result = self.writers[op.name](op, *(self.values[v] for v in op.operands))
        elif "pointwise" in op.traits:
            result = self._pointwise(op)
        else:
            raise UnsupportedError(f"{op.name} in the mlir back end", op.loc)
        if len(op.results) == 1 and not isinstance(op, t.For | t.While):
            self.values[op.result] = result

    def _pointwise(self, op: Op) -> Any:
        type_ = op.result.type
        if isinstance(type_, IndexType):
            names = [self.values[v] for v in op.operands]
            return self._index(op, names)
        assert isinstance(type_, RegisterType)
        lanes = 1 if is_uniform(type_.layout) else type_.layout.lanes
        inputs = [self._aligned_to(v, type_, lanes) for v in op.operands]
        dtype = getattr(op.operands[0].type, "dtype", I64)
        scalars = Scalars(self.text, self.target, type_.dtype, lanes)
        if isinstance(op, m.Compare):
            scalars.dtype = dtype
        names = [
            emit_pointwise(scalars, op, [x[i] for x in inputs], dtype)
            for i in range(physical(type_))
        ]
        return Registers(type_, names)

    def _index(self, op: Op, names: list[str]) -> str:
        """Integer arithmetic on run-time positions; division by zero gives zero."""
        if isinstance(op, m.Add):
            return self.text.add(*names)
        if isinstance(op, m.Mul):
            return self.text.mul(*names)
        if isinstance(op, m.Div | m.Mod):
            known = self.text.known(names[1])
            kind = "divsi" if isinstance(op, m.Div) else "remsi"
            divisor = names[1]
            if known is None:
                divisor = self.text.op(f"arith.maxsi {divisor}, {self.text.i64(1)} : i64")
            return self.text.op(f"arith.{kind} {names[0]}, {divisor} : i64")
        scalars = Scalars(self.text, self.target, I64, 1)
        return emit_pointwise(scalars, op, names, I64)

    def _aligned_to(self, value: Value, result: RegisterType, lanes: int) -> list[str]:
        """The operand's registers, one per register of the result, broadcast where it is
        narrower."""
        held = self.values[value]
        assert isinstance(held, Registers)
        constant = self._constant(value, lanes)
        if constant is not None:
            return [constant] * physical(result)
        if held.type.layout.registers == 1 and held.type.layout.lanes == 1:
            mapped = [0] * physical(result)
        else:
            mapped = register_map(held.type, result)
        names = held.names
        if held.uniform and lanes > 1:
            names = [spread(self.text, n, held.held, lanes) for n in names]
        return [names[i] for i in mapped]

    def _constant(self, value: Value, lanes: int) -> str | None:
        number = self.numbers.get(value)
        if number is None or lanes == 1:
            return None
        dtype = getattr(value.type, "dtype", I64)
        return Scalars(self.text, self.target, dtype, lanes).number(number, element_type(dtype))

    def _math_const(self, op: m.Const) -> Any:
        if isinstance(op.type, IndexType):
            return self.text.i64(int(op.value))
        assert isinstance(op.type, RegisterType)
        self.numbers[op.result] = op.value
        lanes = 1 if is_uniform(op.type.layout) else op.type.layout.lanes
        scalars = Scalars(self.text, self.target, op.type.dtype, lanes)
        name = scalars.number(op.value, element_type(op.type.dtype))
        return Registers(op.type, [name] * physical(op.type))

    def _math_cast(self, op: m.Cast) -> Any:
        if isinstance(op.x.type, IndexType):
            raise UnsupportedError("a cast of an index", op.loc)
        return self._pointwise(op)

    def _tile_block(self, op: t.BlockId) -> str:
        return self.blocks[op.dim]

    def _tile_size(self, op: t.SizeOf) -> str:
        return self._size(op.size)

    def _size(self, size: Size) -> str:
        text, total = self.text, self.text.i64(0)
        for monomial, coefficient in size.terms:
            term = text.i64(coefficient)
            for name in monomial:
                term = text.mul(term, self.sizes[name])
            total = text.add(total, term)
        return total

    def _tile_stride(self, op: t.StrideOf) -> str:
        held = self.values[op.buffer]
        assert isinstance(held, MemoryRef)
        return held.strides[op.dim]

    def _tile_alloc(self, op: t.Alloc) -> MemoryRef:
        assert isinstance(op.type, ScratchType)
        shape, text = op.type.shape, self.text
        pointer = text.address(self.scratch_base, text.i64(self.scratch_at), "i8")
        self.scratch_at += _aligned(op.type.bytes)
        strides, inner = [], 1
        for size in reversed(shape):
            strides.append(text.i64(inner))
            inner *= size
        return MemoryRef(pointer, strides[::-1], op.type.dtype)

    def _access(self, memory: Value, rest: tuple[Value, ...], op: t.Access) -> Access:
        held = self.values[memory]
        rank = len(held.strides)
        names = [self.values[v] for v in rest]
        limits = {dim: (kind, names[rank + at]) for at, (dim, kind) in enumerate(op.bounds)}
        return Access(held, names[:rank], op.dims, limits)

    def _tile_load(self, op: t.Load) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        return self.memory.load(self._access(op.source, op.rest, op), op.result.type)

    def _tile_prefetch(self, op: t.Prefetch) -> None:
        type_ = RegisterType(self.values[op.source].dtype, op.layout)
        self.memory.prefetch(self._access(op.source, op.rest, op), type_)

    def _tile_store(self, op: t.Store) -> None:
        self.memory.store(self._access(op.target, op.rest, op), self.values[op.value])

    def _tile_gather(self, op: t.Gather) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        source, offset = self.values[op.source], self.values[op.offset]
        return self.memory.gather(source, offset, self.values[op.offsets], op.result.type)

    def _tile_read(self, op: t.Read) -> str:
        at = [self.values[v] for v in op.at]
        return self.memory.read(Access(self.values[op.source], at, (-1,) * len(at), {}))

    def _tile_less(self, op: t.Less) -> str:
        a, b = self.values[op.lhs], self.values[op.rhs]
        below = self.text.op(f"arith.cmpi slt, {a}, {b} : i64")
        return self.text.op(f"arith.extui {below} : i1 to i64")

    def _tile_coordinate(self, op: t.Coordinate) -> Registers:
        type_ = op.result.type
        assert isinstance(type_, RegisterType)
        names = []
        for row in type_.layout.table():
            if is_uniform(type_.layout):
                names.append(self.text.i64(row[0][op.dim]))
            else:
                listed = ", ".join(str(index[op.dim]) for index in row)
                names.append(self.text.constant(f"dense<[{listed}]>", held_type(type_)))
        return Registers(type_, names)

    def _tile_splat(self, op: t.Splat) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        return Registers(op.result.type, [self.values[op.x]])

    def _tile_dot(self, op: t.Dot) -> Registers:
        acc, a, b = (self.values[v] for v in op.operands)
        return self.lanes.dot(op, acc, a, b)

    def _tile_reduce(self, op: t.Reduce) -> Registers:
        return self.lanes.reduce(op, self.values[op.x])

    def _tile_reduce_to_lanes(self, op: t.ReduceToLanes) -> Registers:
        return self.lanes.reduce_to_lanes(op, self.values[op.x])

    def _tile_stack(self, op: t.Stack) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        names = [n for part in op.parts for n in self.values[part].names]
        return Registers(op.result.type, names)

    def _tile_transpose(self, op: t.Transpose) -> Registers:
        return self.lanes.transpose(self.values[op.x])

    def _tile_take(self, op: t.Take) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        each = physical(op.result.type)
        names = self.values[op.x].names[op.at * each : (op.at + 1) * each]
        return Registers(op.result.type, names)

    def _tile_pack_pairs(self, op: t.PackPairs) -> Registers:
        return self.lanes.pack_pairs(op, self.values[op.x])

    def _tile_split_pairs(self, op: t.SplitPairs) -> Registers:
        assert isinstance(op.result.type, RegisterType)
        return Registers(op.result.type, self.values[op.x].names)
