"""What Hypothesis draws: dtypes, sizes, layouts, values, small tensor programs, attention.

A program comes with inputs and with ``scale``, a bound on the magnitude of everything it
computes, so
that a comparison knows what rounding may do. Generated arithmetic is bounded by construction: it
contains no quotient by something near zero and no exponential of something large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Builder, Graph, Module, Region, Value
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, F64, I64, TABLE, DType
from tilewright.ir.evaluate import evaluate
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size, SizeLike, product
from tilewright.ir.types import TensorType

Draw = st.DrawFn
ONE = Size.of(1)

# ---- dtypes, sizes, layouts, values


def dtypes() -> st.SearchStrategy[DType]:
    """Any row of the dtype table."""
    return st.sampled_from(list(TABLE.values()))


def float_dtypes() -> st.SearchStrategy[DType]:
    """Any float of the dtype table."""
    return st.sampled_from([d for d in TABLE.values() if d.is_float])


def size_names() -> st.SearchStrategy[str]:
    """Names of sizes, among them ones that look like keywords of the grammar."""
    return st.sampled_from(["N", "M", "K", "B_1", "x", "index", "size", "local", "unit", "graph"])


def sizes(names: Sequence[str] = ("N", "M", "K", "L_q")) -> st.SearchStrategy[Size]:
    """Polynomials over ``names`` with small coefficients, negative ones included."""
    monomials = st.lists(st.sampled_from(names), max_size=3)
    terms = st.lists(st.tuples(st.integers(-9, 9), monomials), max_size=4)
    return terms.map(_polynomial)


def _polynomial(terms: list[tuple[int, list[str]]]) -> Size:
    total = Size()
    for coefficient, monomial in terms:
        piece = Size.of(coefficient)
        for name in monomial:
            piece = piece * name
        total = total + piece
    return total


@st.composite
def layouts(draw: Draw, rank: int | None = None, most: int = 64) -> Layout:
    """Products of up to four atoms with at most ``most`` lanes and ``most`` registers."""
    rank = draw(st.integers(1, 3)) if rank is None else rank
    out = Layout(rank)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["local", "spatial", "replicate"]))
        small = st.sampled_from([1, 1, 2, 3, 4])
        count = draw(small)
        step = out.replicate(count)
        if kind != "replicate":
            step = getattr(out, kind)(*[draw(small) for _ in range(rank)])
        if step.lanes <= most and step.registers <= most:
            out = step
    return out


SPECIAL = (
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-310,
    -5e-324,
    1e-40,
    -1e-45,
    3.4e38,
    65504.0,
)


def numbers(special: bool = False) -> st.SearchStrategy[float]:
    """Moderate floats, with ``special`` also zeros, infinities, NaN, denormals and huge ones."""
    plain = st.floats(-4, 4, width=32)
    return st.one_of(plain, st.sampled_from(SPECIAL)) if special else plain


def moderate(draw: Draw, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
    """A float64 array of moderate numbers from a drawn seed (cheap to draw, hard to shrink)."""
    seed = draw(st.integers(0, 2**20))
    return np.random.default_rng(seed).standard_normal(tuple(shape)) * scale


def sprinkled(draw: Draw, array: np.ndarray, special: Sequence[float], most: int = 3) -> np.ndarray:
    """``array`` with up to ``most`` elements replaced by special values."""
    out = array.copy()
    if out.size:
        for _ in range(draw(st.integers(0, most))):
            out.reshape(-1)[draw(st.integers(0, out.size - 1))] = draw(st.sampled_from(special))
    return out


# ---- programs


@dataclass
class Program:
    """A module with inputs for it. ``scale`` bounds all magnitudes, ``tags`` says what is in it."""

    module: Module
    inputs: tuple[np.ndarray, ...]
    sizes: dict[str, int]
    scale: float = 1.0
    tags: frozenset[str] = frozenset()

    def run(self, module: Module | None = None, precision: str | None = "f64") -> tuple[Any, ...]:
        """The outputs of ``module`` (of the program itself if None) for these inputs."""
        module = self.module if module is None else module
        return evaluate(module, *self.inputs, precision=precision, sizes=dict(self.sizes))

    def __repr__(self) -> str:
        shapes = ", ".join(str(x.shape) for x in self.inputs)
        return f"{self.module}// sizes {self.sizes}, inputs {shapes}, tags {sorted(self.tags)}"


def assert_same(got: Sequence[Any], want: Sequence[Any], scale: float, rtol: float = 1e-9) -> None:
    """Outputs agree up to ``rtol`` relative to ``scale``; infinities and NaN exactly."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=rtol * scale
        )


@dataclass
class Known:
    """A value of a program being drawn, with a bound on its magnitude."""

    value: Value
    bound: float

    @property
    def shape(self) -> tuple[Size, ...]:
        assert isinstance(self.value.type, TensorType)
        return self.value.type.shape

    @property
    def dtype(self) -> DType:
        assert isinstance(self.value.type, TensorType)
        return self.value.type.dtype


@dataclass
class Sketch:
    """A random program under construction."""

    draw: Draw
    sizes: dict[str, int]
    build: Builder = field(default_factory=Builder)
    params: list[Value] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)
    pool: list[Known] = field(default_factory=list)
    scale: float = 1.0
    tags: set[str] = field(default_factory=set)
    special: bool = False
    count: int = 0

    # ---- small tools

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def some(self, test: Callable[[Known], bool] = lambda _: True) -> Known | None:
        """A value of the pool, late ones more often, or None if no one passes ``test``."""
        good = [k for k in self.pool if test(k)]
        return self.pick(good + good[-3:]) if good else None

    def extent(self, size: Size) -> int:
        return size.evaluate(self.sizes)

    def param(self, shape: Sequence[SizeLike], dtype: DType = F32, scale: float = 1.0) -> Known:
        type_ = TensorType.of(list(shape), dtype)
        hint = f"in{'abcdefgh'[len(self.params)]}"
        value = Value(type_, hint)
        extents = [self.extent(s) for s in type_.shape]
        if dtype == BOOL:
            seed = self.draw(st.integers(0, 2**20))
            array = np.random.default_rng(seed).random(extents) < 0.7
        else:
            array = np.asarray(dtype.round(moderate(self.draw, extents, scale)), np.float64)
        self.params.append(value)
        self.inputs.append(array)
        known = Known(value, 6.0 * scale)
        self.pool.append(known)
        return known

    def op(self, cls: type, *operands: Known, bound: float, hint: str = "", **attrs: Any) -> Known:
        self.count += 1
        hint = hint or f"v{'abcdefghijklmnopqrstuvwxyz'[self.count % 26]}"
        value = self.build(cls, *[k.value for k in operands], hint=hint, **attrs)
        self.scale = max(self.scale, bound)
        self.tags.add(cls.name)
        return Known(value, bound)

    def const(self, number: float, like: Known) -> Known:
        type_ = TensorType((), like.dtype)
        return Known(self.build(m.Const, value=number, type=type_, hint="c"), abs(number))

    def keep(self, known: Known | None) -> None:
        if known is not None:
            self.pool.append(known)

    def finish(self, results: Sequence[Known], name: str = "program") -> Program:
        body = Region(tuple(self.params), tuple(self.build.ops), tuple(k.value for k in results))
        names = tuple(self.sizes)
        module = Module((Graph("graph", name, names, body),))
        return Program(module, tuple(self.inputs), self.sizes, self.scale, frozenset(self.tags))

    # ---- steps of a random program

    def unary(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        if x is None:
            return None
        cls = self.pick([m.Neg, m.Abs, m.Tanh, m.Sigmoid, m.Exp, m.Round, m.Sqrt, m.Log])
        if cls is m.Exp and not x.bound <= 12:
            return None
        if cls in (m.Sqrt, m.Log):
            x = self.op(m.Abs, x, bound=x.bound)
            x = self.op(m.Add, x, self.const(1.0, x), bound=x.bound + 1)
        bound = {m.Tanh: 1.0, m.Sigmoid: 1.0}.get(cls, x.bound)
        return self.op(cls, x, bound=math.exp(x.bound) if cls is m.Exp else bound)

    def with_constant(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        if x is None:
            return None
        cls = self.pick([m.Mul, m.Add, m.Sub, m.Div, m.Max, m.Min])
        number = self.pick([0.5, 1.0, 2.0, -1.25, 3.0, 0.0])
        number = 2.0 if cls is m.Div and number == 0 else number
        bound = x.bound + abs(number) if cls is not m.Mul else x.bound * max(1.0, abs(number))
        pair = [x, self.const(number, x)]
        if cls is not m.Div and self.draw(st.booleans()):
            pair.reverse()
        return self.op(cls, *pair, bound=2 * bound)

    def binary(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype and broadcastable(k.shape, x.shape))
        if x is None or y is None:
            return None
        cls = self.pick([m.Add, m.Sub, m.Mul, m.Max, m.Min, m.Div])
        if cls is m.Mul and x.bound * y.bound > 1e6:
            return None
        if cls is m.Div:
            y = self.op(m.Abs, y, bound=y.bound)
            y = self.op(m.Add, y, self.const(1.0, y), bound=y.bound + 1)
        return self.op(cls, x, y, bound=max(x.bound + y.bound, x.bound * y.bound))

    def select(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype and broadcastable(k.shape, x.shape))
        if x is None or y is None:
            return None
        relation = self.pick(list(m.Compare.RELATIONS))
        condition = self.op(m.Compare, x, y, bound=1, relation=relation)
        other = self.const(self.pick([0.0, 1.0, -2.0]), x)
        pair = [x, self.pick([y, other])]
        return self.op(m.Select, condition, *pair, bound=max(x.bound, y.bound, 2.0))

    def iota(self) -> Known | None:
        shaped = self.some(lambda k: bool(k.shape))
        if shaped is None:
            return None
        axis = self.draw(st.integers(0, len(shaped.shape) - 1))
        shape = tuple(s if i == axis else ONE for i, s in enumerate(shaped.shape))
        type_ = TensorType(shape, I64)
        at = self.op(t.Iota, bound=8, axis=axis, type=type_)
        return self.op(m.Cast, at, bound=8, dtype=F32)

    def reduce(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape) and k.dtype.is_float)
        if x is None:
            return None
        kind = self.pick(["sum", "max", "min", "sum"])
        axis = self.draw(st.integers(-len(x.shape), len(x.shape) - 1))
        keep = self.draw(st.booleans())
        bound = x.bound * max(1, self.extent(x.shape[axis]))
        return self.op(t.Reduce, x, bound=bound, kind=kind, axis=axis, keep=keep)

    def softmax(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape) and k.dtype.is_float)
        if x is None:
            return None
        axis = self.draw(st.integers(-len(x.shape), len(x.shape) - 1))
        return self.op(t.Softmax, x, bound=1, axis=axis, safe=self.draw(st.booleans()))

    def contract(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        y = x and self.some(lambda k: k.dtype == x.dtype)
        if x is None or y is None:
            return None
        letters = "abcdefghij"
        left = letters[: len(x.shape)]
        size_of = dict(zip(left, x.shape, strict=True))
        right, fresh = "", iter(letters[len(left) :])
        for size in y.shape:
            free = [c for c in left if c not in right and size_of[c] == size]
            right += free[0] if free and self.draw(st.integers(0, 3)) else next(fresh)
            size_of[right[-1]] = size
        every = list(dict.fromkeys(left + right))
        out = [c for c in self.draw(st.permutations(every)) if self.draw(st.booleans())][:3]
        if self.special and not set(left) ^ set(right) <= set(out):
            return None  # see test_to_stream on sums over a letter of one side
        summed = math.prod(self.extent(size_of[c]) for c in every if c not in out)
        bound = x.bound * y.bound * max(1, summed)
        if bound > 1e7:
            return None
        equation = f"{left},{right}->{''.join(out)}"
        return self.op(t.Contract, x, y, bound=bound, equation=equation)

    def transpose(self) -> Known | None:
        x = self.some(lambda k: len(k.shape) > 1)
        if x is None:
            return None
        order = tuple(self.draw(st.permutations(range(len(x.shape)))))
        return self.op(t.Transpose, x, bound=x.bound, permutation=order)

    def reshape(self) -> Known | None:
        x = self.some(lambda k: bool(k.shape))
        if x is None:
            return None
        shape = list(x.shape)
        at = self.draw(st.integers(0, len(shape) - 1))
        how = self.pick(["merge", "insert", "squeeze", "split"])
        if how == "merge" and at + 1 < len(shape):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif how == "insert" and len(shape) < 4:
            shape.insert(at, ONE)
        elif how == "squeeze" and ONE in shape:
            shape.remove(ONE)
        elif how == "split" and (parts := split(shape[at])) is not None:
            shape[at : at + 1] = parts
        return self.op(t.Reshape, x, bound=x.bound, shape=tuple(shape))

    def broadcast(self) -> Known | None:
        x = self.some()
        if x is None:
            return None
        named = [Size.of(n) for n in self.sizes]
        shape = [self.pick([ONE, *named]) if s == ONE else s for s in x.shape]
        if len(shape) < 3 and self.draw(st.booleans()):
            shape.insert(0, self.pick(named))
        return self.op(t.Broadcast, x, bound=x.bound, shape=tuple(shape))

    def cast(self) -> Known | None:
        x = self.some(lambda k: k.dtype.is_float)
        if x is None:
            return None
        return self.op(m.Cast, x, bound=x.bound, dtype=self.pick([F32, BF16, F16, F32]))


def broadcastable(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """True if two shapes broadcast as in NumPy for all values of their names."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(x == y or ONE in (x, y) for x, y in pairs)


def split(size: Size) -> list[Size] | None:
    """A product of two names as these two, or None."""
    if len(size.terms) != 1 or len(size.terms[0][0]) != 2 or size.terms[0][1] != 1:
        return None
    return [Size.of(n) for n in size.terms[0][0]]


STEPS = (
    *("unary", "with_constant", "binary", "reduce", "contract", "transpose", "reshape"),
    *("broadcast", "select", "softmax", "cast", "iota"),
)


@st.composite
def tensor_programs(
    draw: Draw, steps: Sequence[str] = STEPS, most: int = 7, special: bool = False
) -> Program:
    """A random DAG over one to three inputs; with ``special`` inputs hold infinities, NaN, …"""
    names = {n: draw(st.integers(1, 4)) for n in ("N", "M", "K")}
    sketch = Sketch(draw, names, special=special)
    dims = [Size.of(n) for n in names] + [Size.of(2), ONE]
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.sampled_from(dims), min_size=1, max_size=3, unique=True))
        sketch.param(shape)
    for _ in range(draw(st.integers(1, most))):
        sketch.keep(getattr(sketch, draw(st.sampled_from(steps)))())
    made = [k for k in sketch.pool if k.value not in sketch.params] or sketch.pool[-1:]
    results = [made[-1]]
    if len(made) > 1 and draw(st.integers(0, 4)) == 0:
        results.append(made[-2])
    program = sketch.finish(results)
    if special:
        values = SPECIAL[:9]
        program.inputs = tuple(sprinkled(draw, x, values) for x in program.inputs)
    return program


# ---- attention

SCORE_STEPS = (
    *("scale", "soft_cap", "bias", "bias_row", "bool_mask", "causal", "window", "alibi"),
    *("negate", "key_mask", "head_scale", "shifted_causal"),
)


@dataclass
class AttentionShape:
    """Sizes of an attention program; ``group`` query heads share a key head."""

    heads: int = 1
    group: int = 1
    queries: int = 3
    keys: int = 4
    depth: int = 2
    width: int = 2


@st.composite
def attention_shapes(draw: Draw, most_depth: int = 4, empty: bool = False) -> AttentionShape:
    least = 0 if empty else 1
    return AttentionShape(
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.integers(least, 6)),
        draw(st.integers(least, 7)),
        draw(st.integers(1, most_depth)),
        draw(st.integers(1, most_depth)),
    )


# How inputs lie in memory: [K, G, N, D], [K*G, N, D], [N, K, G, D], [N, K*G*D], [K*G*N, D].
FORMS = ("grouped", "heads", "sequence", "merged", "flat")


class AttentionSketch(Sketch):
    """softmax(f(q k^T)) v over [K, G, N, D] queries and [K, M, D] keys."""

    def operand(
        self, form: str, heads: list[str], length: str, depth: int, dtype: DType, wide: DType
    ) -> Known:
        """An input in some form, brought to [*heads, length, depth] in ``wide``."""
        all_heads = product(heads)
        x = self.param(
            {
                "grouped": [*heads, length, depth],
                "heads": [all_heads, length, depth],
                "sequence": [length, *heads, depth],
                "merged": [length, all_heads * depth],
                "flat": [all_heads * length, depth],
            }[form],
            dtype,
        )
        x = x if dtype == wide else self.op(m.Cast, x, bound=6, dtype=wide)
        sized = tuple(Size.of(n) for n in (*heads, length, depth))
        if form == "flat" or (form == "heads" and len(heads) > 1):
            x = self.op(t.Reshape, x, bound=6, shape=sized)
        if form == "merged":
            x = self.op(t.Reshape, x, bound=6, shape=(sized[-2], *sized[:-2], sized[-1]))
        if form in ("sequence", "merged"):
            order = (*range(1, len(heads) + 1), 0, len(heads) + 1)
            x = self.op(t.Transpose, x, bound=6, permutation=order)
        return x

    def output(self, form: str, o: Known, width: int) -> Known:
        """[K, G, N, E] in the form of the inputs."""
        heads = Size.of("K") * "G"
        if form in ("sequence", "merged"):
            o = self.op(t.Transpose, o, bound=6, permutation=(2, 0, 1, 3), hint="o")
        if form == "merged":
            o = self.op(t.Reshape, o, bound=6, shape=(Size.of("N"), heads * width), hint="o")
        if form == "heads":
            o = self.op(t.Reshape, o, bound=6, shape=(heads, *o.shape[2:]), hint="o")
        if form == "flat":
            o = self.op(t.Reshape, o, bound=6, shape=(heads * "N", o.shape[-1]), hint="o")
        return o

    def scale_(self, x: Known, number: float) -> Known:
        return self.op(m.Mul, x, self.const(number, x), bound=x.bound * abs(number))

    def positions(self) -> tuple[Known, Known]:
        rows = TensorType.of(["N", 1], I64)
        columns = TensorType.of([1, "M"], I64)
        i = self.op(t.Iota, bound=8, axis=0, type=rows, hint="i")
        return i, self.op(t.Iota, bound=8, axis=1, type=columns, hint="j")

    def masked(self, condition: Known, x: Known) -> Known:
        outside = self.const(-math.inf, x)
        return self.op(m.Select, condition, x, outside, bound=x.bound, hint="masked")

    def step(self, name: str, x: Known) -> Known:
        self.tags.add(name)
        return getattr(self, f"on_{name}")(x)

    def on_scale(self, x: Known) -> Known:
        return self.scale_(x, self.pick([0.5, 0.125, 1.5, 1.0]))

    def on_negate(self, x: Known) -> Known:
        return self.op(m.Neg, x, bound=x.bound) if "masked" not in self.tags else x

    def on_soft_cap(self, x: Known) -> Known:
        if "masked" in self.tags:  # the cap of -inf is finite again: allowed, but no mask any more
            return x
        cap = self.const(4.0, x)
        return self.op(
            m.Mul, self.op(m.Tanh, self.op(m.Div, x, cap, bound=9), bound=1), cap, bound=4
        )

    def on_bias(self, x: Known) -> Known:
        shape = self.pick([["N", "M"], [1, "M"], ["K", "G", "N", "M"], ["K", "G", 1, "M"]])
        return self.op(m.Add, x, self.param(shape), bound=x.bound + 6)

    def on_bias_row(self, x: Known) -> Known:
        return self.op(m.Add, x, self.param(["N", 1]), bound=x.bound + 6)

    def on_head_scale(self, x: Known) -> Known:
        if "masked" in self.tags:  # 0 * -inf and negative factors are no masks
            return x
        return self.op(m.Mul, x, self.param(["K", "G", 1, 1], scale=0.5), bound=x.bound * 3)

    def on_bool_mask(self, x: Known) -> Known:
        shape = self.pick([["N", "M"], ["K", "G", "N", "M"], ["K", 1, "N", "M"]])
        self.tags.add("masked")
        return self.masked(self.param(shape, BOOL), x)

    def on_key_mask(self, x: Known) -> Known:
        self.tags.add("masked")
        return self.masked(self.param([1, "M"], BOOL), x)

    def on_causal(self, x: Known) -> Known:
        i, j = self.positions()
        self.tags.add("masked")
        pair, relation = self.pick([((j, i), "le"), ((i, j), "ge"), ((j, i), "lt"), ((i, j), "gt")])
        return self.masked(self.op(m.Compare, *pair, bound=1, relation=relation), x)

    def on_shifted_causal(self, x: Known) -> Known:
        i, j = self.positions()
        self.tags.add("masked")
        far = self.op(m.Add, i, self.const(self.pick([-2, 1, 3]), i), bound=12, hint="far")
        return self.masked(self.op(m.Compare, j, far, bound=1, relation="le"), x)

    def on_window(self, x: Known) -> Known:
        i, j = self.positions()
        self.tags.add("masked")
        near = self.op(m.Sub, i, self.const(2, i), bound=12, hint="near")
        after = self.op(m.Compare, j, near, bound=1, relation="gt")
        before = self.op(m.Compare, j, i, bound=1, relation="le")
        return self.masked(self.op(m.And, before, after, bound=1), x)

    def on_alibi(self, x: Known) -> Known:
        i, j = self.positions()
        distance = self.op(m.Cast, self.op(m.Sub, j, i, bound=8), bound=8, dtype=x.dtype)
        slope = self.const(0.25, x)
        return self.op(m.Add, x, self.op(m.Mul, distance, slope, bound=2), bound=x.bound + 2)


@st.composite
def attention_programs(
    draw: Draw,
    shape: AttentionShape | None = None,
    dtype: DType = F32,
    score_steps: Sequence[str] = SCORE_STEPS,
    most_depth: int = 4,
    empty: bool = False,
    statistics: bool = True,
    forms: Sequence[str] = FORMS,
) -> Program:
    """softmax(f(q k^T)) v where f is up to four drawn steps: scaling, caps, biases, masks.

    Inputs and output come in one of ``FORMS``. With ``statistics`` the logarithm of the sum may be
    a second output.
    """
    shape = draw(attention_shapes(most_depth, empty)) if shape is None else shape
    names = {"K": shape.heads, "G": shape.group, "N": shape.queries, "M": shape.keys}
    sketch = AttentionSketch(draw, names)
    form = draw(st.sampled_from(list(forms)))
    sketch.tags.add(form)
    wide = F64 if dtype == F64 else F32
    q = sketch.operand(form, ["K", "G"], "N", shape.depth, dtype, wide)
    k = sketch.operand(form, ["K"], "M", shape.depth, dtype, wide)
    v = sketch.operand(form, ["K"], "M", shape.width, dtype, wide)
    s = sketch.op(t.Contract, q, k, bound=36 * shape.depth, equation="kgnd,kmd->kgnm", hint="s")
    for name in draw(st.lists(st.sampled_from(list(score_steps)), max_size=4, unique=True)):
        s = sketch.step(name, s)
    axis = draw(st.sampled_from([3, -1]))
    safe = draw(st.booleans()) or shape.keys == 0  # see test_reorder: an empty row divides 0 by 0
    p = sketch.op(t.Softmax, s, bound=1, axis=axis, safe=safe, hint="p")
    if dtype == BF16 and draw(st.booleans()):
        p = sketch.op(m.Cast, p, bound=1, dtype=BF16, hint="p")
        p = sketch.op(m.Cast, p, bound=1, dtype=F32, hint="p")
    o = sketch.op(t.Contract, p, v, bound=6, equation="kgnm,kme->kgne", hint="o")
    o = o if dtype == wide else sketch.op(m.Cast, o, bound=6, dtype=dtype, hint="o")
    results = [sketch.output(form, o, shape.width)]
    if statistics and draw(st.integers(0, 3)) == 0:
        results.append(_log_sum(sketch, s))
    return sketch.finish(results, "attention")


def _log_sum(sketch: AttentionSketch, s: Known) -> Known:
    """log sum exp of the scores, -inf for a row of -inf (as torch.logsumexp has it)."""
    sketch.tags.add("log_sum")
    top = sketch.op(t.Reduce, s, bound=s.bound, kind="max", axis=3, keep=True, hint="top")
    least = sketch.const(-math.inf, top)
    empty = sketch.op(m.Compare, top, least, bound=1, relation="eq", hint="empty")
    zero = sketch.const(0.0, top)
    top = sketch.op(m.Select, empty, zero, top, bound=s.bound, hint="top")
    e = sketch.op(m.Exp, sketch.op(m.Sub, s, top, bound=s.bound), bound=1, hint="e")
    total = sketch.op(t.Reduce, e, bound=8, kind="sum", axis=3, keep=True, hint="total")
    log = sketch.op(m.Log, total, bound=8, hint="log")
    return sketch.op(m.Add, log, top, bound=s.bound + 8, hint="lse")
