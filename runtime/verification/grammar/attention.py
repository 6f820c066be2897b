"""Attention: softmax(f(q k^T)) v, where f is scaling, caps, biases and masks."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, I32, DType
from tilewright.ir.sizes import Size, product
from tilewright.runtime.verification.grammar.sketch import TAME, Draw, Drawn, Known, Sketch

# How inputs lie: [K, G, N, D], [K*G, N, D], [N, K, G, D], [N, K*G*D].
FORMS = ("grouped", "heads", "sequence", "merged")
WIDTHS = (2, 1, 3, 4, 8, 16, 20, 32, 64, 80)
HEADS = ["K", "G"]


class AttentionSketch(Sketch):
    """q [K, G, N, D], k [K, M, D], v [K, M, E]; ``masked``: some scores are -inf already."""

    masked: bool = False

    def operand(self, form: str, heads: list[str], length: str, depth: int, dtype: DType) -> Known:
        """An input in some form, brought to [*heads, length, depth] in f32."""
        every = product(heads)
        shape: dict[str, list[Size | str | int]] = {
            "grouped": [*heads, length, depth],
            "heads": [every, length, depth],
            "sequence": [length, *heads, depth],
            "merged": [length, every * depth],
        }
        values = (
            "normal",
            "whole",
            "mixed:3",
            "normal:20",
            "constant:0",
            "normal:1e-20",
            "odd:0.01",
        )
        x = self.wide(self.param(shape[form], dtype, values))
        lengths: list[str | int] = [*heads, length, depth]
        sized = tuple(Size.of(n) for n in lengths)
        if form == "heads" and len(heads) > 1:
            x = self.op(t.Reshape, x, shape=sized)
        if form == "merged":
            x = self.op(t.Reshape, x, shape=(sized[-2], *sized[:-2], sized[-1]))
        if form in ("sequence", "merged"):
            order = (*range(1, len(heads) + 1), 0, len(heads) + 1)
            x = self.op(t.Transpose, x, permutation=order)
        return x

    def output(self, form: str, o: Known, width: int) -> Known:
        """[K, G, N, E] in the form of the inputs."""
        heads = product(HEADS)
        if form in ("sequence", "merged"):
            o = self.op(t.Transpose, o, permutation=(2, 0, 1, 3))
        if form == "merged":
            o = self.op(t.Reshape, o, shape=(Size.of("N"), heads * width))
        if form == "heads":
            o = self.op(t.Reshape, o, shape=(heads, *o.shape[2:]))
        return o

    def positions(self) -> tuple[Known, Known]:
        return self.iota(["N", 1], 0), self.iota([1, "M"], 1)

    def where(self, condition: Known, x: Known) -> Known:
        self.masked = True
        return self.op(m.Select, condition, x, self.const(-math.inf), bound=x.bound)

    def compare(self, a: Known, b: Known, relation: str) -> Known:
        return self.op(m.Compare, a, b, bound=1, relation=relation)

    # ---- steps of the scores

    def on_scale(self, x: Known) -> Known:
        return self.mul(x, self.pick([0.5, 0.125, 1.5, 1.0]))

    def on_negate(self, x: Known) -> Known:
        return x if self.masked else self.op(m.Neg, x)

    def on_soft_cap(self, x: Known) -> Known:
        if self.masked:  # the cap of -inf is finite again: allowed, but no mask any more
            return x
        cap = self.const(self.pick([4.0, 20.0]))
        return self.mul(self.op(m.Tanh, self.div(x, cap), bound=1), cap)

    def on_bias(self, x: Known) -> Known:
        shapes = [["N", "M"], [1, "M"], [*HEADS, "N", "M"], [*HEADS, 1, "M"], ["N", 1]]
        return self.add(x, self.param(self.pick(shapes), values=TAME))

    def on_added_mask(self, x: Known) -> Known:
        self.masked = True
        shape = self.pick([["N", "M"], [*HEADS, "N", "M"], [1, "M"]])
        return self.add(x, self.param(shape, values=("masking", "masking:0.95", "masking:1")))

    def on_head_scale(self, x: Known) -> Known:
        # 0 * -inf and negative factors are no masks
        return x if self.masked else self.mul(x, self.param([*HEADS, 1, 1], values=TAME))

    def on_mask(self, x: Known) -> Known:
        shape = self.pick([["N", "M"], [*HEADS, "N", "M"], ["K", 1, "N", "M"], [1, "M"]])
        return self.where(self.param(shape, BOOL, ("true", "true:0.05", "true:0", "true:1")), x)

    def on_causal(self, x: Known) -> Known:
        i, j = self.positions()
        a, b, relation = self.pick([(j, i, "le"), (i, j, "ge"), (j, i, "lt"), (i, j, "gt")])
        return self.where(self.compare(a, b, relation), x)

    def on_shifted_causal(self, x: Known) -> Known:
        i, j = self.positions()
        far = self.op(m.Add, i, self.const(self.pick([1, -2, 3, 17]), i.dtype))
        return self.where(self.compare(j, far, "le"), x)

    def on_window(self, x: Known) -> Known:
        i, j = self.positions()
        near = self.op(m.Sub, i, self.const(self.pick([2, 20, 1]), i.dtype))
        inside = self.op(m.And, self.compare(j, i, "le"), self.compare(j, near, "gt"), bound=1)
        return self.where(inside, x)

    def on_documents(self, x: Known) -> Known:
        kinds = ("below:3", "constant:0", "below:100")
        rows = self.param(["N", 1], I32, kinds)
        keys = self.param([1, "M"], I32, kinds)
        return self.where(self.compare(rows, keys, "eq"), x)

    def on_lengths(self, x: Known) -> Known:
        _, j = self.positions()
        lengths = self.param(["K", 1, 1, 1], j.dtype, ("below:40", "constant:0", "constant:1000"))
        return self.where(self.compare(j, lengths, "lt"), x)

    def on_alibi(self, x: Known) -> Known:
        i, j = self.positions()
        distance = self.op(m.Cast, self.op(m.Sub, j, i), dtype=F32)
        return self.add(x, self.mul(distance, 0.25))


STEPS = tuple(name for name in vars(AttentionSketch) if name.startswith("on_"))


def attention(draw: Draw, lanes: int) -> Drawn:
    """A form of attention."""
    del lanes
    sketch = AttentionSketch(draw, {"K": 3, "G": 4, "N": 70, "M": 300})
    form, dtype = sketch.pick(FORMS), sketch.pick([F32, F32, BF16, F16])
    depth, width = sketch.pick(WIDTHS), sketch.pick(WIDTHS)
    q = sketch.operand(form, HEADS, "N", depth, dtype)
    k = sketch.operand(form, ["K"], "M", depth, dtype)
    v = sketch.operand(form, ["K"], "M", width, dtype)
    s = sketch.contract("kgnd,kmd->kgnm", q, k)
    for name in draw(st.lists(st.sampled_from(STEPS), max_size=4, unique=True)):
        s = getattr(sketch, name)(s)
    p = sketch.op(t.Softmax, s, bound=1, axis=3, safe=not sketch.chance(3))
    if dtype != F32 and sketch.chance(2):
        p = sketch.wide(sketch.op(m.Cast, p, dtype=dtype))
    o = sketch.contract("kgnm,kme->kgne", p, v)
    o = o if dtype == F32 else sketch.op(m.Cast, o, dtype=dtype)
    results = [sketch.output(form, o, width)]
    if sketch.chance(4):
        results.append(log_sum(sketch, s))
    return sketch.finish(*results, name="attention")


def log_sum(sketch: Sketch, s: Known) -> Known:
    """log sum exp along the last axis, -inf for a row of -inf (as torch.logsumexp has it)."""
    top = sketch.reduce(s, "max")
    least = sketch.const(-math.inf)
    empty = sketch.op(m.Compare, top, least, bound=1, relation="eq")
    top = sketch.op(m.Select, empty, sketch.const(0.0), top)
    e = sketch.op(m.Exp, sketch.sub(s, top), bound=1)
    return sketch.add(sketch.op(m.Log, sketch.reduce(e), bound=8), top)
