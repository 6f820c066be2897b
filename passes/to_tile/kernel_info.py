"""What a kernel's stream graph says about its axes: which loop streams, which rows share what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import BF16, F16, F32, F64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.ops_remake import RemakeStream
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.to_tile.lowbit.info import has_packed_weights, weight_axis


@dataclass
class KernelInfo:
    """Axes of a kernel. ``inner`` is walked in blocks; ``rows`` share what is read along it."""

    graph: Graph
    inner: Axis
    grid: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    depends: dict[Value, frozenset[str]]
    phase: dict[Value, int] = field(default_factory=dict)
    made: dict[Value, Op] = field(default_factory=dict)

    @property
    def splits(self) -> bool:
        """True if nothing is summed along the inner axis, so that work items can share it out."""
        return bool(self.inner.name) and not any(
            isinstance(op, s.Reduce | s.Scan) for op in self.graph.body.ops
        )

    @property
    def row_count(self) -> Size:
        return product(a.size for a in self.rows)

    @property
    def longest_element(self) -> int | None:
        """Numbers of the largest element of a stream; None if an axis has no known length."""
        types = [v.type for op in self.graph.body.ops for v in op.results]
        streams = [x for x in types if isinstance(x, StreamType)]
        axes = [[a.size.constant for a in x.element] for x in streams]
        if any(length is None for lengths in axes for length in lengths):
            return None
        return max((math.prod(n or 1 for n in lengths) for lengths in axes), default=1)

    @property
    def position_bytes(self) -> int:
        """Bytes of the largest element that an input has at a position of the inner axis; axes of
        unknown length do not count."""
        found = []
        for op in self.graph.body.ops:
            if isinstance(op, s.Source) and self.varies(op.result):
                assert isinstance(op.result.type, StreamType)
                lengths = [a.size.constant or 1 for a in op.result.type.element]
                found.append(math.prod(lengths) * op.result.type.dtype.bits // 8)
        return max(found, default=0)

    def varies(self, value: Value) -> bool:
        """True if the value changes along the inner axis within a block."""
        return self.inner.name in self.depends[value] and not isinstance(
            self.made.get(value), s.Scan
        )

    def in_block(self, value: Value) -> bool:
        """True if the value is computed block by block: it varies or follows a running
        statistic."""
        return self.varies(value) or self.phase[value] > 0

    def per_position(self, sink: s.Sink) -> bool:
        """True if the result has one number for every position of the inner axis."""
        return any(self.inner.name in dim for dim in sink.dims)

    def numbers_per_position(self) -> list[s.Sink]:
        """The results with one number for every position. Raises UnsupportedError for one with a
        vector for each: a block of those is no register tile."""
        sinks = [op for op in self.graph.body.ops if isinstance(op, s.Sink)]
        found = [op for op in sinks if self.per_position(op)]
        for op in found:
            if self.element(op.x):
                raise UnsupportedError("a vector for every position as a result", op.loc)
        return found

    def is_row_scalar(self, value: Value) -> bool:
        """True for a scalar that is the same throughout a row (constants apart)."""
        op = self.made.get(value)
        plain = op is not None and not isinstance(op, m.Const | m.SizeValue | s.Reduce | s.Scan)
        return plain and not self.in_block(value) and not self.element(value)

    def on_rows(self, value: Value) -> bool:
        """True if the value differs between rows."""
        return any(a.name in self.depends[value] for a in self.rows)

    def element(self, value: Value) -> tuple[Axis, ...]:
        assert isinstance(value.type, StreamType)
        return value.type.element

    def derive(self, op: Op) -> Value:
        """The result of an op that the graph does not have, computed from values that it has."""
        self.made[op.result] = op
        self.depends[op.result] = frozenset().union(*(self.depends[v] for v in op.operands))
        self.phase[op.result] = max((self.phase[v] for v in op.operands), default=0)
        return op.result

    @property
    def products(self) -> list[s.Contract]:
        """The contractions of what a row brings with what rows share."""
        ops = self.graph.body.ops
        return [op for op in ops if isinstance(op, s.Contract) and not isinstance(op, RemakeStream)]

    def heavy(self, value: Value) -> bool:
        """True if the value varies and computing it again would repeat a contraction."""
        op = self.made.get(value)
        cheap = s.Scan | s.Reduce | RemakeStream  # a block of what is made again lies in scratch
        if op is None or not self.varies(value) or isinstance(op, cheap):
            return False
        return isinstance(op, s.Contract | s.Fold) or any(self.heavy(v) for v in op.operands)


def is_row_kernel(graph: Graph) -> bool:
    """True if every result is a row computed from rows: nothing is summed along a loop or over two
    operands' shared axis, so that the element's axis can lie on lanes."""
    stream = (s.Reduce, s.Scan, s.Contract, StreamDequantize)
    types = [v.type for op in graph.body.ops for v in op.results]
    element = any(isinstance(x, StreamType) and x.element for x in types)
    return element and not any(isinstance(op, stream) for op in graph.body.ops)


def chooses(graph: Graph) -> bool:
    """True if a kernel chooses, counts, ranks, or reads tables at several computed positions."""
    return any("routing" in op.traits or _looks_up(op) for op in graph.body.ops)


def is_routing(graph: Graph) -> bool:
    """True if a kernel chooses, or has no loop at all."""
    return chooses(graph) or not _loops(graph)


def _looks_up(op: Op) -> bool:
    return isinstance(op, s.Gather) and bool(op.index_element)


def analyse(graph: Graph) -> KernelInfo:
    """The axes of a kernel. Raises UnsupportedError for a form that no schedule covers."""
    made = graph.producers()
    loops = _loops(graph)
    reduced = [op.axis for op in graph.body.ops if isinstance(op, s.Reduce | s.Scan)]
    _check_dtypes(graph)
    if is_routing(graph):
        depends = _depends(graph, "")
        return KernelInfo(graph, Axis("", Size.of(1)), (), loops[:1], depends, made=made)
    if is_row_kernel(graph):
        depends = _depends(graph, "")
        return KernelInfo(graph, Axis("", Size.of(1)), (), loops, depends, made=made)
    if not loops:
        raise UnsupportedError(f"{graph.name}: a kernel without a loop")
    if has_packed_weights(graph):
        weights = weight_axis(graph)
        rows = tuple(a for a in loops if a != weights)
        depends = _depends(graph, "")
        return KernelInfo(graph, Axis("", Size.of(1)), (weights,), rows, depends, made=made)
    inner = loops[-1]
    if set(reduced) - {inner.name}:
        raise UnsupportedError(f"{graph.name}: reductions over more than one loop")
    depends = _depends(graph, inner.name)
    outer = loops[:-1]
    shared = _shared_axes(graph, depends, inner.name)
    rows = tuple(a for a in outer if a.name not in shared)
    if not any(_is_inner_element(op, depends, inner.name) for op in graph.body.ops):
        rows = outer[-1:]
    grid = tuple(a for a in outer if a not in rows)
    info = KernelInfo(graph, inner, grid, rows, depends, made=made)
    _set_phases(info)
    return info


def _check_dtypes(graph: Graph) -> None:
    for op in graph.body.ops:
        for value in op.results:
            if not isinstance(value.type, StreamType):
                continue
            if not value.type.dtype.addressable:
                kind = value.type.dtype
                raise UnsupportedError(
                    f"{op.name} of {kind}, which memory holds packed only", op.loc
                )
            if value.type.dtype == F64:
                raise UnsupportedError(f"{op.name} in f64: kernels compute in f32", op.loc)


def _loops(graph: Graph) -> tuple[Axis, ...]:
    types = [v.type for op in graph.body.ops for v in op.results]
    return max((t.loops for t in types if isinstance(t, StreamType)), key=len, default=())


def _depends(graph: Graph, inner: str) -> dict[Value, frozenset[str]]:
    out: dict[Value, frozenset[str]] = {}
    for op in graph.body.ops:
        if isinstance(op, s.Source | StreamDequantize | CachedStream):
            found = frozenset(a for dim in op.dims for a in dim)
        elif isinstance(op, s.Index):
            found = frozenset({op.axis})
        else:
            found = frozenset().union(*(out.get(v, frozenset()) for v in op.operands))
        if isinstance(op, s.Gather):
            found |= frozenset(a.name for a in getattr(op.type, "element", ()))
        if isinstance(op, s.Reduce):
            found = found - {inner}
        if isinstance(op, s.Contract):
            found = found - frozenset(op.axes)
        for result in op.results:
            out[result] = found
    return out


def _is_inner_element(op: Op, depends: dict[Value, frozenset[str]], inner: str) -> bool:
    if not isinstance(op, s.Source | s.Gather | CachedStream | RemakeStream):
        return False
    type_ = op.result.type
    assert isinstance(type_, StreamType)
    return bool(type_.element) and inner in depends[op.result]


def _shared_axes(graph: Graph, depends: dict[Value, frozenset[str]], inner: str) -> set[str]:
    out: set[str] = set()
    for op in graph.body.ops:
        if _is_inner_element(op, depends, inner):
            out |= depends[op.result]
    return out


def _set_phases(info: KernelInfo) -> None:
    """A value that needs a running statistic of the block comes one phase after it."""
    for op in info.graph.body.ops:
        after = max((info.phase.get(v, 0) for v in op.operands), default=0)
        if isinstance(op, s.Scan):
            after += 1
        if isinstance(op, s.Reduce):
            after = 0  # its result is read when all blocks are done
        for result in op.results:
            info.phase[result] = after


def reads_across(info: KernelInfo, units: dict[str, int]) -> bool:
    """Whether all products read what rows share as [terms, positions]: neighbours in memory are
    positions of the inner axis, keys of attention or columns of weights. ``units`` are the inputs'
    dimensions with stride one."""
    shared = [v for op in info.products for v in op.operands if info.varies(v)]
    return bool(shared) and all(
        turned_source(info, v, lambda op: units.get(op.tensor.hint, -1)) for v in shared
    )


def turned_source(
    info: KernelInfo, value: Value, unit: Callable[[s.Source], int]
) -> s.Source | None:
    """The input that ``value`` is, widened to f32, if it is kept as [terms, positions]: neighbours
    in memory are positions of the inner axis. ``unit``: an input's dimension with stride one (-1:
    none)."""
    below, casts = strip_casts(info, value)
    op, (axis, *more) = info.made.get(below), info.element(value)
    if not isinstance(op, s.Source) or more:
        return None
    assert isinstance(op.result.type, StreamType)
    widened = all(getattr(c, "dtype", None) == F32 for c in casts)
    kinds = (BF16, F16) if casts else (F32,)
    at = unit(op)
    lies_so = at >= 0 and op.dims[at] == (info.inner.name,) and (axis.name,) in op.dims
    return op if lies_so and widened and op.result.type.dtype in kinds else None


def strip_casts(info: KernelInfo, value: Value) -> tuple[Value, list[Op]]:
    """``value`` without the casts on top of it, and those casts, outermost first."""
    casts: list[Op] = []
    op = info.made.get(value)
    while isinstance(op, m.Cast | s.Repeat):
        if isinstance(op, m.Cast):
            casts.append(op)
        value = op.x
        op = info.made.get(value)
    return value, casts


_FINITE = m.Neg | m.Abs | m.Add | m.Sub | m.Mul | m.Max | m.Min | m.Cast | s.Repeat | s.Roll


def finite_past_end(info: KernelInfo, value: Value) -> bool:
    """Whether a value is certainly a number past an end, where loads give zeros: it is loaded, or
    made of that by what makes numbers of numbers, and not by 1 / x or log x."""
    todo, seen = [value], set[Value]()
    while todo:
        value = todo.pop()
        op = info.made.get(value)
        if value in seen or isinstance(op, s.Source | s.Gather | s.Index | CachedStream):
            continue
        seen.add(value)
        if isinstance(op, m.Const):
            if not math.isfinite(op.value):
                return False
        elif isinstance(op, m.Select):
            todo += op.operands[1:]
        elif isinstance(op, _FINITE):
            todo += op.operands
        else:
            return False
    return True
