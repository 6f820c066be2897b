"""Positions in 32 bits where nothing can overflow: twice as many fit a vector, and processors
without 64-bit comparisons or conversions compute with them at all.

A position is below ``LONGEST``, which the runtime checks; what is computed from positions, sizes
and constants is narrowed as far as its bounds allow. Integers from memory keep their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import StreamType
from tilewright.passes.rewrite import Rewriter

LONGEST = 1 << 30  # more positions than any axis of a kernel may have
_LIMIT = (1 << 31) - 1
Bounds = tuple[int, int]


def narrow_positions(graph: Graph) -> Graph:
    """The stream graph with its arithmetic on positions in i32."""
    return _Narrowing(graph).run()


class _Narrowing:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.build = graph, Rewriter()
        self.bounds: dict[Value, Bounds] = {}
        self.narrow: dict[Value, Value] = {}
        self.wide: dict[Value, Value] = {p: p for p in graph.params}

    def run(self) -> Graph:
        for op in self.graph.body.ops:
            self.build.loc = op.loc
            bounds = self._bounds(op)
            if bounds is not None and _is_wide(op.result) and self._fits(op, bounds):
                self.bounds[op.result] = bounds
                self.narrow[op.result] = self._narrowed(op)
            else:
                self._kept(op)
        results = tuple(self.as_wide(v) for v in self.graph.results)
        return self.graph.with_body(Region(self.graph.params, tuple(self.build.ops), results))

    def as_wide(self, value: Value) -> Value:
        """The value in its own dtype."""
        if value not in self.wide:
            self.wide[value] = self.build(m.Cast, self.narrow[value], dtype=I64, hint=value.hint)
        return self.wide[value]

    def _fits(self, op: Op, bounds: Bounds) -> bool:
        inside = bounds[0] >= -_LIMIT and bounds[1] <= _LIMIT
        return inside and all(v in self.narrow or not _is_wide(v) for v in op.operands)

    def _narrowed(self, op: Op) -> Value:
        attrs: dict[str, Any] = dict(op.attrs)
        if isinstance(attrs.get("type"), StreamType):
            given = attrs["type"]
            attrs["type"] = StreamType(given.loops, given.element, I32)
        if isinstance(op, m.Cast):
            attrs["dtype"] = I32
        operands = [self.narrow.get(v) or self.as_wide(v) for v in op.operands]
        return self.build(type(op), *operands, hint=op.result.hint, **attrs)

    def _kept(self, op: Op) -> None:
        """An op that keeps its result's dtype; comparisons, casts and indices take narrow operands
        if all of them are."""
        takes = isinstance(op, m.Compare | m.Cast | s.Gather)
        if takes and all(v in self.narrow or not _is_wide(v) for v in op.operands):
            operands = [self.narrow.get(v) or self.as_wide(v) for v in op.operands]
        else:
            operands = [self.as_wide(v) for v in op.operands]
        same = all(a is b for a, b in zip(operands, op.operands, strict=True))
        fresh = op if same else op.rebuilt(operands)
        self.build.add(fresh)
        for old, new in zip(op.results, fresh.results, strict=True):
            new.hint = old.hint
            self.wide[old] = new

    def _bounds(self, op: Op) -> Bounds | None:
        if isinstance(op, s.Index):
            return 0, LONGEST - 1
        if isinstance(op, m.SizeValue):
            return _size_bounds(op.size)
        if isinstance(op, m.Const):
            whole = float(op.value).is_integer() if abs(op.value) < _LIMIT else False
            return (int(op.value), int(op.value)) if whole else None
        if isinstance(op, s.Repeat | m.Cast):
            return self.bounds.get(op.x)
        rule = _RULES.get(type(op))
        operands = op.operands[1:] if isinstance(op, m.Select) else op.operands
        inputs = [self.bounds[v] for v in operands if v in self.bounds]
        return rule(*inputs) if rule is not None and len(inputs) == len(operands) else None


def _is_wide(value: Value) -> bool:
    return isinstance(value.type, StreamType) and value.type.dtype == I64


def _size_bounds(size: Size) -> Bounds | None:
    low = high = 0
    for names, factor in size.terms:
        if len(names) > 1:
            return None
        most = factor * LONGEST if names else factor
        low, high = low + min(most, 0 if names else most), high + max(most, 0 if names else most)
    return low, high


def _quotient(x: Bounds, y: Bounds) -> Bounds | None:
    return (x[0] // y[0], x[1] // y[0]) if y[0] == y[1] > 0 else None


def _remainder(x: Bounds, y: Bounds) -> Bounds | None:
    return (0, y[1] - 1) if y[0] > 0 else None


def _product(x: Bounds, y: Bounds) -> Bounds:
    ends = [a * b for a in x for b in y]
    return min(ends), max(ends)


def _magnitude(x: Bounds) -> Bounds:
    return max(x[0], -x[1], 0), max(x[1], -x[0])


_RULES: dict[type[Op], Callable[..., Bounds | None]] = {
    m.Add: lambda x, y: (x[0] + y[0], x[1] + y[1]),
    m.Sub: lambda x, y: (x[0] - y[1], x[1] - y[0]),
    m.Mul: _product,
    m.Div: _quotient,
    m.Mod: _remainder,
    m.Neg: lambda x: (-x[1], -x[0]),
    m.Abs: _magnitude,
    m.Min: lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    m.Max: lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    m.Select: lambda x, y: (min(x[0], y[0]), max(x[1], y[1])),
}
