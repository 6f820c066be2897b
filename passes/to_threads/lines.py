"""Gathers whose elements lie in lines: an offset for every row instead of one for every element.

    offsets = rows [m, 1] + coordinate {dim = 1} [1, n]
    x = tile.gather memory, at, offsets         ->  x = tile.load_lines memory, at, rows {dim = 1}

Threads then hold as many offsets as they have rows, and copy or load at once what lies side by
side. Lines that a condition leaves out are not read (``gaps``).
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.layout import Layout
from tilewright.ir.types import BufferType, RegisterType, Type
from tilewright.passes.rewrite import Rewriter, rewrite_graph

LEAST = 8  # elements of a line


def in_lines(graph: Graph) -> Graph:
    """The program on whole blocks with ``tile.load_lines`` where elements lie in lines."""
    return rewrite_graph(graph, _rule)


def _rule(r: Rewriter, op: Op) -> Value | tuple[()] | None:
    if isinstance(op, t.LoadRows):
        return _rows(r, op)
    if isinstance(op, t.Scatter):
        return _scattered(r, op)
    if isinstance(op, m.Select):
        return _with_gaps(r, op)
    return _gathered(r, op) if isinstance(op, t.Gather) else None


def _rows(r: Rewriter, op: t.LoadRows) -> Value | None:
    buffer = op.source.type
    if not isinstance(buffer, BufferType) or buffer.unit != 1:
        return None
    stride = r(t.Splat, r(t.StrideOf, op.source, dim=0, hint="stride"), hint="stride")
    offsets = r(m.Mul, op.rows, stride, hint="offsets")
    limit = [r(m.Sub, end, op.rest[0], hint="left") for end in op.rest[1:]]
    hint = op.result.hint
    return r(
        t.LoadLines,
        op.source,
        op.rest[0],
        offsets,
        *limit,
        dim=1 - op.dim,
        layout=op.layout,
        hint=hint,
    )


def _gathered(r: Rewriter, op: t.Gather) -> Value | None:
    found = _lines(r, op.source.type, op.offsets)
    if found is None:
        return None
    offsets, dim = found
    assert isinstance(op.result.type, RegisterType)
    layout, hint = op.result.type.layout, op.result.hint
    return r(t.LoadLines, op.source, op.offset, offsets, dim=dim, layout=layout, hint=hint)


def _scattered(r: Rewriter, op: t.Scatter) -> tuple[()] | None:
    """Writes to lines, of which some are left out."""
    found = _lines(r, op.target.type, op.offsets)
    if found is None:
        return None
    offsets, dim = found
    inside: Value | None = None
    for term in _terms(r, op.inside, m.And):
        made = r.producer(term)
        if isinstance(made, m.Const) and made.value:
            continue
        several = isinstance(made, m.Or) and _shape(made.lhs)[dim] == 1  # the same, several times
        one = made.operands[0] if made is not None and several else term
        if _shape(one)[dim] != 1:
            return None
        inside = one if inside is None else r(m.And, inside, one, hint="inside")
    if inside is not None:
        offsets = _left_out(r, inside, offsets)
    gaps = inside is not None
    r.add(t.StoreLines(op.value, op.target, op.offset, offsets, dim=dim, gaps=gaps, loc=op.loc))
    return ()


def _with_gaps(r: Rewriter, op: m.Select) -> Value | None:
    """Lines of which a condition leaves some out: those are not read."""
    load, zero = r.producer(op.lhs, t.LoadLines), r.producer(op.rhs, m.Const)
    if not isinstance(load, t.LoadLines) or not isinstance(zero, m.Const) or zero.value != 0:
        return None
    condition = op.condition
    if _shape(condition) not in ((1, 1), _shape(load.offsets)) or load.attrs["gaps"]:
        return None
    offsets = _left_out(r, condition, load.offsets)
    attrs = {**load.attrs, "gaps": True}
    hint = op.result.hint
    return r(t.LoadLines, load.source, load.offset, offsets, *load.rest, hint=hint, **attrs)


def _left_out(r: Rewriter, inside: Value, offsets: Value) -> Value:
    """Offsets that are negative where lines are left out."""
    none = r(m.Const, value=-1, type=RegisterType(I64, Layout(2)), hint="none")
    return r(m.Select, inside, offsets, none, hint="offsets")


def _lines(r: Rewriter, memory: Type, offsets: Value) -> tuple[Value, int] | None:
    """Offsets of lines, and the dimension along which their elements lie side by side."""
    shape = _shape(offsets)
    if len(shape) != 2 or not isinstance(memory, BufferType):
        return None
    terms = [x for x in _terms(r, offsets, m.Add) if not _is_zero(r, x)]
    for dim in (1, 0):
        along = [x for x in terms if _shape(x)[dim] > 1]
        if shape[dim] < LEAST or shape[1 - dim] == 1 or len(along) != 1:
            continue
        if _shape(along[0])[1 - dim] > 1:
            continue
        rest = _line(r, along[0], dim, memory.unit)
        if rest is not None:
            others = [x for x in terms if x is not along[0]]
            return _total(r, [*others, *rest], shape, dim), dim
    return None


def _total(r: Rewriter, terms: list[Value], whole: tuple[int, ...], dim: int) -> Value:
    """The sum of what is added up to the offset of a line."""
    shape = tuple(1 if d == dim else size for d, size in enumerate(whole))
    total = None
    for term in sorted(terms, key=lambda x: _shape(x) != shape):
        total = term if total is None else r(m.Add, total, term, hint="offsets")
    if total is None or _shape(total) != shape:
        zero = RegisterType(I64, Layout(2).local(*shape))
        nothing = r(m.Const, value=0, type=zero, hint="zero")
        total = nothing if total is None else r(m.Add, nothing, total, hint="offsets")
    return total


def _terms(r: Rewriter, value: Value, kind: type[Op]) -> Iterator[Value]:
    """What is added up (or otherwise put together) to a tile."""
    op = r.producer(value, kind)
    if op is None:
        yield value
        return
    for part in op.operands:
        yield from _terms(r, part, kind)


def _line(r: Rewriter, value: Value, dim: int, unit: int) -> list[Value] | None:
    """What is added to 0, 1, 2, … along a dimension of single steps; None if it is no such tile."""
    op = r.producer(value)
    if isinstance(op, m.Mul):
        for one, other in (op.operands, op.operands[::-1]):
            step = r.producer(other, t.Splat)
            stride = r.producer(step.operands[0]) if step is not None else None
            if isinstance(stride, t.StrideOf) and stride.dim == unit:
                return _line(r, one, dim, unit)
        return None
    if isinstance(op, m.Cast) and op.dtype == I64:
        return _line(r, op.x, dim, unit)
    if isinstance(op, m.Add):
        for one, other in (op.operands, op.operands[::-1]):
            if set(_shape(other)) == {1} and _is_i64(other):
                found = _line(r, one, dim, unit)
                return None if found is None else [*found, other]
        return None
    return [] if isinstance(op, t.Coordinate) and op.dim == dim else None


def _is_zero(r: Rewriter, value: Value) -> bool:
    op = r.producer(value, m.Const)
    return isinstance(op, m.Const) and op.value == 0


def _is_i64(value: Value) -> bool:
    return isinstance(value.type, RegisterType) and value.type.dtype == I64


def _shape(value: Value) -> tuple[int, ...]:
    assert isinstance(value.type, RegisterType)
    return value.type.shape
