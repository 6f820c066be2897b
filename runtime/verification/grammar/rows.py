"""Statistics of rows: sums, softmaxes, norms, entropies of scores that are given or computed."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.dtypes import BF16, F16, F32, I64
from tilewright.ir.sizes import Size
from tilewright.runtime.verification.grammar.sketch import TAME, Draw, Drawn, Known, Sketch

WIDTHS = (8, 1, 3, 16, 17, 64)


class RowSketch(Sketch):
    """Rows [N, M] of ``s``; each ``of_`` method is a statistic of them."""

    def scores(self) -> Known:
        """Given, or a product of queries and keys, perhaps bent."""
        dtype = self.pick([F32, F32, BF16, F16])
        if self.chance(2):
            depth = self.pick(WIDTHS)
            q = self.wide(self.param(["N", depth], dtype, TAME))
            k = self.wide(self.param(["M", depth], dtype, TAME))
            s = self.mul(self.contract("nd,md->nm", q, k), depth**-0.5)
        else:
            values = ("normal", "whole", "mixed", "normal:100", "normal:1e-20", "odd:0.02")
            s = self.wide(self.param(["N", "M"], dtype, values))
        for name in self.draw(st.lists(st.sampled_from(sorted(BENDS)), max_size=2, unique=True)):
            s = BENDS[name](self, s)
        return s

    # ---- parts of statistics

    def exponentials(self, s: Known) -> tuple[Known, Known, Known]:
        """The maximum, exponentials of what is below it, their sum."""
        top = self.reduce(s, "max")
        e = self.op(m.Exp, self.sub(s, top), bound=1)
        return top, e, self.reduce(e)

    def length(self) -> Known:
        """M as a number, counted."""
        ones = self.op(t.Broadcast, self.const(1.0), shape=(Size.of("N"), Size.of("M")))
        return self.reduce(ones)

    def log_softmax(self, s: Known) -> tuple[Known, Known]:
        """log softmax and log sum exp."""
        top, _, total = self.exponentials(s)
        lse = self.add(self.op(m.Log, total, bound=8), top)
        return self.sub(s, lse), lse

    def softmax(self, s: Known) -> Known:
        if self.chance(2):
            return self.op(t.Softmax, s, bound=1, axis=1, safe=False)
        _, e, total = self.exponentials(s)
        return self.op(m.Div, e, total, bound=1)

    def weighted(self, p: Known) -> Known:
        v = self.param(["M", self.pick(WIDTHS)], values=TAME)
        return self.contract("nm,me->ne", p, v)

    def deviations(self, s: Known) -> tuple[Known, Known]:
        """Differences from the mean, and the mean."""
        mean = self.div(self.reduce(s), self.length())
        return self.sub(s, mean), mean

    def row_scale(self, s: Known, centred: bool) -> Known:
        """Rows normalised as by RMSNorm or LayerNorm."""
        x = self.deviations(s)[0] if centred else s
        mean = self.div(self.reduce(self.mul(x, x)), self.length())
        factor = self.op(m.Rsqrt, self.add(mean, self.pick([1e-5, 1e-6])), bound=1)
        return self.op(m.Mul, x, factor, bound=4)

    # ---- statistics: [N, 1], [N, E] or [N, M]

    def of_sum(self, s: Known) -> Known:
        return self.reduce(s)

    def of_extreme(self, s: Known) -> Known:
        return self.reduce(s, self.pick(["max", "min"]))

    def of_lse(self, s: Known) -> Known:
        return self.log_softmax(s)[1]

    def of_weighted(self, s: Known) -> Known:
        return self.weighted(self.softmax(s))

    def of_difference(self, s: Known) -> Known:
        other = self.param(["N", "M"], values=TAME)
        return self.weighted(self.sub(self.softmax(s), self.softmax(other)))

    def of_sigmoids(self, s: Known) -> Known:
        gates = self.op(m.Sigmoid, s, bound=1)
        if self.chance(2):
            gates = self.op(m.Div, gates, self.reduce(gates), bound=1)
        return self.weighted(gates)

    def of_squares(self, s: Known) -> Known:
        p = self.softmax(s)
        return self.reduce(self.mul(p, p))

    def of_entropy(self, s: Known) -> Known:
        if self.chance(2):
            logs, _ = self.log_softmax(s)
            p = self.op(m.Exp, logs, bound=1)
            return self.op(m.Neg, self.reduce(self.mul(p, logs)))
        logs, lse = self.log_softmax(s)
        p = self.softmax(s)
        return self.sub(lse, self.reduce(self.mul(p, s)))

    def of_expected(self, s: Known) -> Known:
        return self.reduce(self.mul(self.softmax(s), self.param([1, "M"], values=TAME)))

    def of_cross_entropy(self, s: Known) -> Known:
        labels = self.param(["N", 1], I64, ("below:5", "constant:0", "below:300"))
        j = self.iota([1, "M"], 1)
        hit = self.op(m.Compare, j, labels, bound=1, relation="eq")
        logs, lse = self.log_softmax(s)
        if self.chance(2):
            picked = self.op(m.Select, hit, logs, self.const(0.0))
            return self.op(m.Neg, self.reduce(picked))
        picked = self.op(m.Select, hit, s, self.const(0.0))
        return self.sub(lse, self.reduce(picked))

    def of_mean(self, s: Known) -> Known:
        return self.deviations(s)[1]

    def of_variance(self, s: Known) -> Known:
        d, _ = self.deviations(s)
        return self.div(self.reduce(self.mul(d, d)), self.length())

    def of_covariance(self, s: Known) -> Known:
        d, _ = self.deviations(s)
        e, _ = self.deviations(self.param(["N", "M"], values=TAME))
        return self.div(self.reduce(self.mul(d, e)), self.length())

    def of_ratio(self, s: Known) -> Known:
        above = self.reduce(self.mul(s, self.param(["N", "M"], values=TAME)))
        return self.div(above, self.reduce(self.positive(s)))

    def of_norm(self, s: Known) -> Known:
        return self.row_scale(s, self.chance(2))

    def of_norm_product(self, s: Known) -> Known:
        x = self.row_scale(s, self.chance(2))
        if self.chance(2):
            x = self.mul(x, self.param(["M"], values=TAME))
        w = self.param([self.pick(WIDTHS), "M"], values=TAME)
        return self.contract("nm,em->ne", x, w)

    def of_softmax(self, s: Known) -> Known:
        return self.softmax(s)

    def of_cosine(self, s: Known) -> Known:
        other = self.param(["N", "M"], values=TAME)
        below = self.mul(self.reduce(self.mul(s, s)), self.reduce(self.mul(other, other)))
        factor = self.op(m.Rsqrt, self.add(below, 1e-6), bound=1)
        return self.mul(self.reduce(self.mul(s, other)), factor)


def _shifted(sketch: RowSketch, s: Known) -> Known:
    return sketch.add(s, sketch.param([1, "M"], values=TAME))


def _by_row(sketch: RowSketch, s: Known) -> Known:
    return sketch.div(s, sketch.param(["N", 1], values=("positive",)))


def _squared(sketch: RowSketch, s: Known) -> Known:
    return sketch.mul(s, s) if s.bound < 1e4 else s


def _bent(sketch: RowSketch, s: Known) -> Known:
    return sketch.op(m.Tanh, s, bound=1)


def _clipped(sketch: RowSketch, s: Known) -> Known:
    return sketch.op(m.Max, s, sketch.const(0.0))


BENDS: dict[str, Callable[[RowSketch, Known], Known]] = {
    "bent": _bent,
    "by_row": _by_row,
    "clipped": _clipped,
    "shifted": _shifted,
    "squared": _squared,
}
STATISTICS = tuple(name for name in vars(RowSketch) if name.startswith("of_"))


def rows(draw: Draw, lanes: int) -> Drawn:
    """One or two statistics of the same rows."""
    del lanes
    sketch = RowSketch(draw, {"N": 70, "M": 500})
    s = sketch.scores()
    names = draw(st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=2, unique=True))
    results = [getattr(sketch, name)(s) for name in names]
    if len(results) == 2 and sketch.chance(3):
        a, b = results
        if a.shape == b.shape:
            results = [sketch.add(a, b)]
    if results[0].shape[-1] == Size.of(1) and sketch.chance(3):
        results[0] = sketch.op(m.Sqrt, sketch.positive(results[0]))
    return sketch.finish(*results, name="rows")
