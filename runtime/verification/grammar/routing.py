"""Routing to experts: scores, choices, weights, counts and places."""

from __future__ import annotations

import math

from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Attr, Op
from tilewright.ir.dtypes import BF16, F32, I32
from tilewright.ir.sizes import Size
from tilewright.runtime.verification.grammar.sketch import TAME, Draw, Drawn, Known, Sketch

EXPERTS = (8, 4, 3, 12, 16, 60, 64)
HIDDEN = (16, 8, 33, 64)


class RoutingSketch(Sketch):
    """Tokens ``T``."""

    def both(self, cls: type[Op], x: Known, **attrs: Attr) -> tuple[Known, Known]:
        """An operation with two results."""
        self.count += 2
        hints = [f"best{self.count}", f"ids{self.count}"]
        op = self.build.add(cls(x.value, hints=hints, **attrs))
        return Known(op.results[0], x.bound), Known(op.results[1], float(self.extent(x.shape[-1])))

    def logits(self, experts: int) -> Known:
        if self.chance(3):
            hidden, dtype = self.pick(HIDDEN), self.pick([F32, BF16])
            x = self.wide(self.param(["T", hidden], dtype, TAME))
            gate = self.wide(self.param([experts, hidden], dtype, TAME))
            return self.contract("th,eh->te", x, gate)
        values = ("normal", "whole", "odd", "constant:0", "mixed")
        return self.param(["T", experts], F32, values)

    def choose(self, x: Known, k: int) -> tuple[Known, Known]:
        attrs: dict[str, Attr] = {"k": k}
        if self.chance(2):
            attrs["ties"] = "torch"
            attrs["ordered"] = not self.chance(3)
        return self.both(r.TopK, x, **attrs)

    def normalised(self, weights: Known) -> Known:
        total = self.add(self.reduce(weights), 1e-20)
        return self.mul(self.div(weights, total), self.pick([1.0, 2.5]))

    def places(self, ids: Known, experts: int) -> list[Known]:
        """How many choices each expert has, and where each stands."""
        counts = self.op(r.SegmentCount, ids, segments=Size.of(experts))
        offsets = self.op(r.PrefixSum, counts, axis=0, exclusive=True)
        out = [counts]
        if self.chance(2):
            out.append(self.op(r.SegmentRank, ids, offsets))
        return out

    def allowed(self, p: Known, k: int, experts: int) -> Known:
        """-inf outside of the best groups of experts (DeepSeek)."""
        groups = 4
        apart = self.op(t.Reshape, p, shape=(Size.of("T"), Size.of(groups), Size.of(experts // 4)))
        best = self.reduce(apart, "max", 2, keep=False)
        _, group = self.both(r.TopK, best, k=2)
        zeros = self.op(t.Broadcast, self.const(0.0), shape=(Size.of("T"), Size.of(groups)))
        ones = self.op(t.Broadcast, self.const(1.0), shape=(Size.of("T"), Size.of(2)))
        mask = self.op(r.Scatter, zeros, group, ones, axis=1, kind="set")
        column = self.op(t.Reshape, mask, shape=(Size.of("T"), Size.of(groups), Size.of(1)))
        wide = self.op(t.Broadcast, column, shape=apart.shape)
        every = self.op(t.Reshape, wide, shape=p.shape)
        inside = self.op(m.Compare, every, self.const(1.0), bound=1, relation="eq")
        return self.op(m.Select, inside, p, self.const(-math.inf))

    def mapped(self, ids: Known, experts: int) -> Known:
        """Experts of the token's adapter instead."""
        own = self.param(["T", 1], I32, ("below:3", "constant:0", "between:-1:2"))
        table = self.param(["A", experts], I32, (f"below:{experts}",))
        return self.op(t.Gather, table, own, ids)


def routing(draw: Draw, lanes: int) -> Drawn:
    """A router: weights and experts of every token, perhaps counts and places."""
    del lanes
    sketch = RoutingSketch(draw, {"T": 300, "A": 4})
    experts = sketch.pick(EXPERTS)
    x = sketch.logits(experts)
    k = sketch.pick([n for n in (2, 1, 4, 6, 8) if n <= experts])
    before = sketch.chance(2)
    p = x
    if before:
        if sketch.chance(2):
            p = sketch.op(m.Sigmoid, x, bound=1)
        else:
            p = sketch.op(t.Softmax, x, bound=1, axis=1)
    scored = sketch.add(p, sketch.param([experts], values=TAME)) if sketch.chance(3) else p
    if experts % 4 == 0 and experts > 8 and k <= experts // 2 and sketch.chance(3):
        scored = sketch.allowed(scored, k, experts)
    values, ids = sketch.choose(scored, k)
    weights = values if scored is p else sketch.op(r.TakeAlong, p, ids, axis=1)
    if not before and sketch.chance(2):
        weights = sketch.op(t.Softmax, weights, bound=1, axis=1)
    elif before and sketch.chance(2):
        weights = sketch.normalised(weights)
    results = [weights, ids]
    if sketch.chance(3):
        results[1] = ids = sketch.mapped(ids, experts)
    if sketch.chance(2):
        results += sketch.places(ids, experts)
    return sketch.finish(*results, name="routing")
