"""Products of rows with weights, what comes before them (norms) and after (gates, biases)."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.sizes import Size
from tilewright.runtime.verification.grammar.sketch import (
    FLOAT_VALUES,
    TAME,
    Draw,
    Drawn,
    Known,
    Sketch,
)

DEPTHS = (8, 1, 2, 5, 16, 31, 64, 100, 192)


class ProductSketch(Sketch):
    """x [M, K] and weights [N, K]; K is a number or a name."""

    def norm(self, x: Known, count: float) -> Known:
        """RMSNorm or LayerNorm along the last axis."""
        if self.chance(2):
            x = self.sub(x, self.mul(self.reduce(x), 1 / count))
        mean = self.mul(self.reduce(self.mul(x, x)), 1 / count)
        factor = self.op(m.Rsqrt, self.add(mean, 1e-5), bound=1)
        x = self.op(m.Mul, x, factor, bound=4)
        return self.mul(x, self.param([x.shape[-1]], values=TAME)) if self.chance(2) else x

    def weight(self, depth: int | str, dtype: DType) -> tuple[Known, str]:
        """A weight and the letters of its dimensions, in either order."""
        transposed = self.chance(3)
        shape = [depth, "N"] if transposed else ["N", depth]
        values = ("normal", "whole", "mixed:4", "normal:1e-20", "constant:0")
        return self.param(shape, dtype, values), "kn" if transposed else "nk"

    def product(self, x: Known, depth: int | str, dtype: DType) -> Known:
        w, letters = self.weight(depth, dtype)
        if dtype != F32 and self.chance(2):  # a product of narrow numbers
            x = self.op(m.Cast, x, dtype=dtype)
            return self.wide(self.contract(f"mk,{letters}->mn", x, w))
        return self.contract(f"mk,{letters}->mn", x, self.wide(w))

    def activated(self, x: Known) -> Known:
        name = self.pick(["none", "relu", "silu", "gelu", "tanh"])
        if name == "relu":
            return self.op(m.Max, x, self.const(0.0))
        if name == "silu":
            return self.mul(x, self.op(m.Sigmoid, x, bound=1))
        if name == "tanh":
            return self.op(m.Tanh, x, bound=1)
        if name == "gelu":
            cube = self.mul(self.mul(x, x), x)
            inner = self.mul(self.add(x, self.mul(cube, 0.044715)), 0.7978845608028654)
            bent = self.add(self.op(m.Tanh, inner, bound=1), 1.0)
            return self.mul(self.mul(x, 0.5), bent)
        return x


def products(draw: Draw, lanes: int) -> Drawn:
    """One product, or two of the same rows, with what surrounds them."""
    del lanes
    sketch = ProductSketch(draw, {"M": 70, "N": 150, "K": 130, "B": 3})
    depth: int | str = sketch.pick(DEPTHS) if not sketch.chance(4) else "K"
    dtype, weights = sketch.pick([F32, BF16, F16]), sketch.pick([F32, F32, BF16, F16])
    batched = sketch.chance(5)
    shape = ["B", "M", depth] if batched else ["M", depth]
    x = sketch.wide(sketch.param(shape, dtype, FLOAT_VALUES))
    if batched:
        x = sketch.op(t.Reshape, x, shape=(Size.of("B") * "M", x.shape[-1]))
    if isinstance(depth, int) and sketch.chance(3):
        x = sketch.norm(x, depth)
    y = sketch.activated(sketch.product(x, depth, weights))
    if sketch.chance(3):
        y = sketch.mul(y, sketch.product(x, depth, weights))
    if sketch.chance(3):
        y = sketch.add(y, sketch.param(["N"], values=TAME))
    if batched:
        y = sketch.op(t.Reshape, y, shape=(Size.of("B"), Size.of("M"), Size.of("N")))
    if sketch.chance(4):
        y = sketch.add(y, sketch.param(y.shape, values=TAME))
    if sketch.chance(4):
        y = sketch.op(m.Cast, y, dtype=sketch.pick([BF16, F16]))
    return sketch.finish(y, name="product")
