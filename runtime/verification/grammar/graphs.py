"""Random graphs of operations: any step on any values so far."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.dtypes import BF16, BOOL, F16, F32
from tilewright.ir.sizes import Size
from tilewright.runtime.verification.grammar.sketch import (
    ONE,
    Draw,
    Drawn,
    Known,
    Sketch,
    broadcastable,
    is_float,
)

MOST_RANK = 4
MOST_BOUND = 1e9  # of what is drawn on purpose


class GraphSketch(Sketch):
    """Each step gives a new value, or None where the values so far do not allow it."""

    def unary(self) -> Known | None:
        x = self.some(is_float)
        if x is None:
            return None
        cls = self.pick([m.Neg, m.Abs, m.Exp, m.Tanh, m.Sigmoid, m.Sqrt, m.Log, m.Rsqrt, m.Exp2])
        if cls in (m.Exp, m.Exp2):
            return self.exp(x) if x.bound <= 60 else None
        if cls in (m.Sqrt, m.Log, m.Rsqrt):
            x = self.positive(x)
        bound = 1.0 if cls in (m.Tanh, m.Sigmoid, m.Rsqrt) else x.bound
        return self.op(cls, x, bound=bound)

    def with_constant(self) -> Known | None:
        x = self.some(is_float)
        if x is None:
            return None
        cls = self.pick([m.Mul, m.Add, m.Sub, m.Div, m.Max, m.Min])
        number = self.pick([0.5, 1.0, 2.0, -1.25, 3.0, 0.0])
        number = 2.0 if cls is m.Div and number == 0 else number
        pair = [x, self.const(number, x.dtype)]
        if cls is not m.Div and self.chance(2):
            pair.reverse()
        return self.op(cls, *pair, bound=2 * (x.bound + 3) if cls is not m.Mul else 3 * x.bound)

    def binary(self) -> Known | None:
        x = self.some(is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype and _fits(k, x))
        if x is None or y is None:
            return None
        cls = self.pick([m.Add, m.Sub, m.Mul, m.Max, m.Min, m.Div])
        if cls is m.Mul and x.bound * y.bound > MOST_BOUND:
            return None
        if cls is m.Div:
            y = self.positive(y)
        bound = x.bound * y.bound if cls is m.Mul else x.bound + y.bound
        return self.op(cls, x, y, bound=bound)

    def select(self) -> Known | None:
        x = self.some(is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype and _fits(k, x))
        if x is None or y is None:
            return None
        given = self.some(lambda k: k.dtype == BOOL and _fits(k, x) and _fits(k, y))
        if given is None:
            relation = self.pick(["lt", "le", "gt", "ge", "eq", "ne"])
            given = self.op(m.Compare, x, y, bound=1, relation=relation)
        other = self.const(self.pick([0.0, 1.0, -2.0, -math.inf]), x.dtype)
        return self.op(m.Select, given, x, self.pick([y, other]), bound=max(x.bound, y.bound, 2.0))

    def position(self) -> Known | None:
        shaped = self.some(lambda k: bool(k.shape))
        if shaped is None:
            return None
        axis = self.draw(st.integers(0, len(shaped.shape) - 1))
        at = self.iota([s if i == axis else ONE for i, s in enumerate(shaped.shape)], axis)
        return self.op(m.Cast, at, dtype=F32)

    def reduction(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape) and k.dtype.is_float)
        if x is None:
            return None
        axis = self.draw(st.integers(-len(x.shape), len(x.shape) - 1))
        return self.reduce(x, self.pick(["sum", "max", "min"]), axis, self.chance(2))

    def softmax(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape) and k.dtype.is_float)
        if x is None:
            return None
        axis = self.draw(st.integers(-len(x.shape), len(x.shape) - 1))
        return self.op(t.Softmax, x, bound=1, axis=axis, safe=self.chance(2))

    def product(self) -> Known | None:
        x = self.some(is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype)
        if x is None or y is None:
            return None
        left = "abcdefghij"[: len(x.shape)]
        size_of = dict(zip(left, x.shape, strict=True))
        right, fresh = "", iter("klmnopqrst")
        for size in y.shape:
            free = [c for c in left if c not in right and size_of[c] == size]
            right += free[0] if free and not self.chance(4) else next(fresh)
            size_of[right[-1]] = size
        every = list(dict.fromkeys(left + right))
        out = [c for c in self.draw(st.permutations(every)) if not self.chance(2)][:3]
        summed = math.prod(self.extent(size_of[c]) for c in every if c not in out)
        if x.bound * y.bound * max(1, summed) > MOST_BOUND:
            return None
        return self.contract(f"{left},{right}->{''.join(out)}", x, y)

    def transpose(self) -> Known | None:
        x = self.some(lambda k: len(k.shape) > 1)
        if x is None:
            return None
        order = tuple(self.draw(st.permutations(range(len(x.shape)))))
        return self.op(t.Transpose, x, permutation=order)

    def reshape(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape))
        if x is None:
            return None
        shape = list(x.shape)
        at = self.draw(st.integers(0, len(shape) - 1))
        how = self.pick(["merge", "insert", "squeeze"])
        if how == "merge" and at + 1 < len(shape):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif how == "insert" and len(shape) < MOST_RANK:
            shape.insert(at, ONE)
        elif how == "squeeze" and ONE in shape:
            shape.remove(ONE)
        return self.op(t.Reshape, x, shape=tuple(shape))

    def broadcast(self) -> Known | None:
        x = self.some()
        if x is None:
            return None
        named = [Size.of(n) for n in self.most]
        shape = [self.pick([ONE, *named]) if s == ONE else s for s in x.shape]
        if len(shape) < 3 and self.chance(2):
            shape.insert(0, self.pick(named))
        return self.op(t.Broadcast, x, shape=tuple(shape))

    def cast(self) -> Known | None:
        x = self.some(is_float)
        return x and self.op(m.Cast, x, dtype=self.pick([F32, BF16, F16]))


def _fits(a: Known, b: Known) -> bool:
    return broadcastable(a.shape, b.shape)


STEPS = (
    *("unary", "with_constant", "binary", "reduction", "product", "softmax", "select"),
    *("transpose", "reshape", "broadcast", "cast", "position"),
    *("unary", "with_constant", "binary", "reduction", "product"),
)


def graphs(draw: Draw, lanes: int) -> Drawn:
    """A random graph over one to three inputs."""
    del lanes
    sketch = GraphSketch(draw, {"N": 70, "M": 200, "K": 40})
    dims = [Size.of(n) for n in sketch.most] + [Size.of(2), ONE]
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.sampled_from(dims), min_size=1, max_size=3, unique=True))
        sketch.param(shape, sketch.pick([F32, F32, F32, BF16, F16]))
    if sketch.chance(4):
        sketch.param([sketch.pick(dims), sketch.pick(dims)], BOOL, ("true", "true:0.1"))
    for _ in range(draw(st.integers(1, 8))):
        sketch.keep(getattr(sketch, draw(st.sampled_from(STEPS)))())
    inputs = set(sketch.params)
    made = [k for k in sketch.pool if k.value not in inputs]
    results = made[-1:] or [sketch.wide(sketch.pool[0])]
    if len(made) > 1 and sketch.chance(4):
        results.append(made[-2])
    named = {n for p in sketch.params for s in Known(p, 0).shape for n in s.names}
    unnamed = [n for n in sketch.most if n not in named]  # sizes must follow from inputs
    used = {
        n for op in sketch.build.ops for r in op.results for s in Known(r, 0).shape for n in s.names
    }
    for name in unnamed:
        if name in used:
            sketch.param([name], values=("normal",))
    return sketch.finish(*results)
