"""A node's function as rows of numbers that the engine interprets, with registers for its values.

One row is one operation. An operand is the register where its element begins, and how the result's
places map to the operand's: ``SAME`` place by place, ``SINGLE`` one number for all, else the start
of a list of places in ``lists`` (broadcasting by the names of axes, contractions, folds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import Arithmetic
from tilewright.ir.ops_remake import RemakeStream
from tilewright.ir.reduction import identity_of
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.channels.nodes import Node, NodeGraph
from tilewright.runtime.simulator.opcodes import (
    CODE,
    CONTRACT,
    FOLD,
    GATHER,
    INDEX,
    KINDS,
    REDUCE,
    RESCALED,
    SCAN,
    SINK,
    SOURCE,
)

SAME, SINGLE = -1, -2
FIELDS = 12  # code, places, result, 3 operands, 3 maps, and 3 that depend on the code
MOST_PLACES = 1 << 24  # of one list: a contraction of elements with more products is refused


@dataclass
class Functions:
    """The rows of all nodes, and what they refer to."""

    graph: NodeGraph
    sizes: Mapping[str, int]
    rows: list[list[int]] = field(default_factory=list)
    lists: list[int] = field(default_factory=list)
    initial: list[float] = field(default_factory=list)  # of the registers
    addresses: list[tuple[int, dict[str, int]]] = field(default_factory=list)  # start, steps
    memory: dict[Value, int] = field(default_factory=dict)  # where inputs and outputs begin
    memory_size: int = 0
    constants: dict[Value, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        exact = Arithmetic(exact=True)
        for op in self.graph.graph.body.ops:
            if set(op.results) <= self.graph.constants:
                given = [self.constants[v] for v in op.operands]
                sized = getattr(op, "reference_size", None)
                out = sized(op.attrs["size"].evaluate(self.sizes)) if sized else None
                found = out if sized else op.reference(*map(np.asarray, given))
                dtype = getattr(op.results[0].type, "dtype", None)
                self.constants[op.results[0]] = float(exact.settle(found, dtype))

    def extent(self, axes: Sequence[Axis]) -> list[int]:
        return [axis.size.evaluate(self.sizes) for axis in axes]

    def places(self, value: Value) -> int:
        """How many numbers one element of a stream has."""
        return math.prod(self.extent(_stream(value).element))

    def register(self, count: int, value: float = 0.0) -> int:
        self.initial.extend([value] * count)
        return len(self.initial) - count

    def tensor(self, value: Value) -> int:
        """Where a tensor begins in memory."""
        if value not in self.memory:
            self.memory[value] = self.memory_size
            self.memory_size += math.prod(self.shape(value))
        return self.memory[value]

    def shape(self, value: Value) -> list[int]:
        assert isinstance(value.type, TensorType)
        return [n.evaluate(self.sizes) for n in value.type.shape]

    def list_of(self, numbers: Any) -> int:
        flat = np.asarray(numbers, np.int64).reshape(-1)
        if len(flat) > MOST_PLACES:
            raise UnsupportedError(
                "an element is too large to simulate: make its axes loops or choose smaller sizes"
            )
        self.lists.extend(flat.tolist())
        return len(self.lists) - len(flat)


def _stream(value: Value) -> StreamType:
    assert isinstance(value.type, StreamType)
    return value.type


class NodeFunction:
    """Appends one node's rows to ``functions``; knows the register of each of its values."""

    def __init__(self, functions: Functions, node: Node) -> None:
        self.all, self.node = functions, node
        self.registers: dict[Value, int] = {}
        self.first_row = len(functions.rows)
        self.first_address = len(functions.addresses)
        for value in node.reads:
            self.registers[value] = functions.register(functions.places(value))
        for op in node.ops:
            self.add(op)
        self.last_row = len(functions.rows)
        self.last_address = len(functions.addresses)

    def of(self, value: Value) -> int:
        """The register of a value, which may come through wires or be a constant."""
        value = self.all.graph.source_of(value)
        if value not in self.registers:
            self.registers[value] = self.all.register(1, self.all.constants[value])
        return self.registers[value]

    def fresh(self, value: Value, initial: float = 0.0) -> int:
        self.registers[value] = self.all.register(self.all.places(value), initial)
        return self.registers[value]

    def row(self, code: int, places: int, result: int, *rest: int) -> None:
        row = [code, places, result, *rest]
        self.all.rows.append(row + [0] * (FIELDS - len(row)))

    def add(self, op: Op) -> None:
        if isinstance(op, s.Repeat):
            self.registers[op.result] = self.of(op.x)
        elif type(op) in _SPECIAL:
            _SPECIAL[type(op)](self, op)
        elif "pointwise" in op.traits and _pointwise_name(op) in CODE:
            self.pointwise(op)
        else:
            raise UnsupportedError(f"the simulator does not run {op.name}", op.loc)

    def map_to(self, value: Value, axes: Sequence[Axis]) -> int:
        """How places of ``axes`` map to those of a value's element."""
        own = _stream(value).element
        if own == tuple(axes):
            return SAME
        return self.all.list_of(_places(self.all, own, axes)) if own else SINGLE

    def pointwise(self, op: Op) -> None:
        out = op.results[0]
        given = [self.of(v) for v in op.operands]
        maps = [self.map_to(v, _stream(out).element) for v in op.operands]
        pad = [0] * (3 - len(given))
        result = self.fresh(out)
        code = CODE[_pointwise_name(op)]
        self.row(code, self.all.places(out), result, *given, *pad, *maps, *([SINGLE] * len(pad)))

    def address(self, tensor: Value, steps: dict[str, int]) -> int:
        self.all.addresses.append((self.all.tensor(tensor), steps))
        return len(self.all.addresses) - 1

    def element_steps(self, type_: StreamType, steps: Mapping[str, int]) -> int:
        """Places of an element in memory, from its first: SAME if they follow one another."""
        offsets = np.zeros([1], np.int64)
        for axis, size in zip(type_.element, self.all.extent(type_.element), strict=True):
            moved = np.arange(size) * steps.get(axis.name, 0)
            offsets = (offsets[:, None] + moved[None, :]).reshape(-1)
        return SAME if (offsets == np.arange(len(offsets))).all() else self.all.list_of(offsets)

    def source(self, op: s.Source) -> None:
        type_ = _stream(op.result)
        steps = _steps(self.all, op.tensor, op.dims, type_.axes)
        at, places = self.address(op.tensor, steps), self.element_steps(type_, steps)
        result = self.fresh(op.result)
        self.row(SOURCE, self.all.places(op.result), result, 0, 0, 0, places, 0, 0, at)

    def sink(self, op: s.Sink) -> None:
        type_ = _stream(op.x)
        steps = _steps(self.all, op.result, op.dims, type_.axes)
        at, places = self.address(op.result, steps), self.element_steps(type_, steps)
        self.row(SINK, self.all.places(op.x), 0, self.of(op.x), 0, 0, places, 0, 0, at)

    def index(self, op: s.Index) -> None:
        type_ = _stream(op.result)
        names = [a.name for a in type_.loops]
        result = self.fresh(op.result)
        if op.axis in names:
            self.row(INDEX, self.all.places(op.result), result, names.index(op.axis))
            return
        own = [a for a in type_.element if a.name == op.axis]
        positions = _places(self.all, own, type_.element)
        self.all.initial[result : result + len(positions)] = [float(x) for x in positions]

    def gather(self, op: s.Gather) -> None:
        if op.index_element:
            message = "the simulator does not run look-ups of several positions at once"
            raise UnsupportedError(message, op.loc)
        shape = self.all.shape(op.tensor)
        strides = _strides(shape)
        given, steps = list(op.indices), {}
        listed = [len(given)]
        for (name,), size, stride in zip(op.dims, shape, strides, strict=True):
            if name == s.INDEXED:
                listed += [self.of(given.pop(0)), size, stride]
            else:
                steps[name] = stride
        result = self.fresh(op.result)
        if math.prod(shape):
            places = self.element_steps(_stream(op.result), steps)
            at, begin = self.all.list_of(listed), self.all.tensor(op.tensor)
            self.row(GATHER, self.all.places(op.result), result, at, begin, 0, places)

    def contract(self, op: s.Contract) -> None:
        left, out = (_stream(v).element for v in (op.lhs, op.result))
        summed = [a for a in left if a.name in op.axes]
        axes = [*out, *summed]
        maps = [self.map_to(v, axes) for v in (op.lhs, op.rhs)]
        count = math.prod(self.all.extent(summed))
        given = [self.of(op.lhs), self.of(op.rhs)]
        places = self.all.places(op.result)
        self.row(CONTRACT, places, self.fresh(op.result), *given, 0, *maps, 0, count)

    def fold(self, op: s.Fold) -> None:
        folded = [a for a in _stream(op.x).element if a.name == op.axis]
        at = self.map_to(op.x, [*_stream(op.result).element, *folded])
        count, x = math.prod(self.all.extent(folded)), self.of(op.x)
        start = self.all.register(1, _identity(op.kind, _stream(op.x).dtype))
        result, places = self.fresh(op.result), self.all.places(op.result)
        self.row(FOLD, places, result, x, start, 0, at, 0, 0, count, KINDS[op.kind])

    def reduce(self, op: s.Reduce) -> None:
        neutral = _identity(op.kind, _stream(op.x).dtype)
        start = self.all.register(1, neutral)
        x, scale = self.of(op.x), self.of(op.rescale[0]) if op.rescale else 0
        result, places = self.fresh(op.result, neutral), self.all.places(op.result)
        code = RESCALED if op.rescale else REDUCE
        self.row(code, places, result, x, scale, start, 0, 0, 0, 0, KINDS[op.kind])

    def scan(self, op: s.Scan) -> None:
        start = self.all.register(1, _identity(op.kind, _stream(op.x).dtype))
        x, places = self.of(op.x), self.all.places(op.x)
        now, before = (self.fresh(v) for v in op.results)
        self.row(SCAN, places, now, x, before, start, 0, 0, 0, 0, KINDS[op.kind])


_SPECIAL: dict[type[Op], Any] = {
    s.Source: NodeFunction.source,
    s.Sink: NodeFunction.sink,
    s.Index: NodeFunction.index,
    s.Contract: NodeFunction.contract,
    RemakeStream: NodeFunction.contract,
    s.Fold: NodeFunction.fold,
    s.Reduce: NodeFunction.reduce,
    s.Scan: NodeFunction.scan,
}
if hasattr(s, "Gather"):
    _SPECIAL[s.Gather] = NodeFunction.gather


def _pointwise_name(op: Op) -> str:
    """The engine's name of a pointwise operation; casts and integers have their own."""
    name = op.name.partition(".")[2]
    if isinstance(op, m.Compare):
        return str(op.relation)
    if isinstance(op, m.Cast):
        return _cast_name(op)
    dtype = _stream(op.operands[0]).dtype
    if dtype.kind == "bool":
        name = {"add": "or", "mul": "and", "max": "or", "min": "and"}.get(name, name)
    if dtype.is_int and name in ("div", "mod", "pow"):
        return f"integer_{name}"
    return "copy" if name == "round" and not dtype.is_float else name


def _cast_name(op: m.Cast) -> str:
    if op.dtype.kind == "bool":
        return "to_bool"
    return "truncate" if op.dtype.is_int and _stream(op.x).dtype.is_float else "copy"


def _identity(kind: str, dtype: DType) -> float:
    host = np.float64 if dtype.is_float else np.dtype(dtype.host)
    return float(identity_of(kind, host))


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[at + 1 :]) for at in range(len(shape))]


def _steps(
    functions: Functions, tensor: Value, dims: s.Dims, axes: Sequence[Axis]
) -> dict[str, int]:
    """How far one step along an axis moves in memory; several axes of a dimension: mixed radix."""
    sizes = dict(zip([a.name for a in axes], functions.extent(axes), strict=True))
    steps: dict[str, int] = {}
    for dim, stride in zip(dims, _strides(functions.shape(tensor)), strict=True):
        step = stride
        for name in reversed(dim):
            steps[name] = step
            step *= sizes[name]
    return steps


def _places(functions: Functions, own: Sequence[Axis], axes: Sequence[Axis]) -> list[int]:
    """For each place of ``axes`` the place of the element ``own`` that lies under it."""
    sizes = functions.extent(axes)
    strides = dict(zip([a.name for a in own], _strides(functions.extent(own)), strict=True))
    at = np.zeros([1], np.int64)
    for axis, size in zip(axes, sizes, strict=True):
        moved = np.arange(size) * strides.get(axis.name, 0)
        at = (at[:, None] + moved[None, :]).reshape(-1)
    found: list[int] = at.tolist()
    return found
