"""Every operation of the registry: an example, its text, its rules, and its meaning.

Each row of a table is one operation. Meanings are compared with formulas written here in plain
Python, element by element, not with the NumPy function that the operation itself calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tilewright.ir.parser  # noqa: F401  (fills the registry)
from tilewright.ir.core import REGISTRY, Module, Op, Value
from tilewright.ir.dtypes import BF16, F16, F32, I64
from tilewright.ir.errors import VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.layout import Layout
from tilewright.ir.parser import parse
from tilewright.ir.types import (
    INDEX,
    Axis,
    BufferType,
    RegisterType,
    ScratchType,
    Size,
    StreamType,
    TensorType,
    Type,
)

INF, NAN = math.inf, math.nan
PLAIN = [0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 3.0, -7.25, 1e-3]
EDGES = [-0.0, INF, -INF, NAN, 5e-324, 1e300, -1e300, 1e-300]


@dataclass(frozen=True)
class Example:
    """A program with the operation ``op`` in it, inputs for it, and what must come out."""

    op: str
    text: str
    inputs: tuple[Any, ...] = ()
    want: Any = None

    def __str__(self) -> str:
        return self.op

    @property
    def module(self) -> Module:
        return parse(self.text)

    def operation(self) -> Op:
        """The operation itself."""
        return next(o for o in self.module.main.body.walk() if o.name == self.op)


# ---- pointwise: name, operands, formula in Python's floats


def _divide(a: float, b: float) -> float:
    if b == 0:
        same = math.copysign(1, a) == math.copysign(1, b)
        return NAN if a == 0 or math.isnan(a) else (INF if same else -INF)
    return a / b


def _guard(f: Callable[..., float], error: Callable[..., float]) -> Callable[..., float]:
    """``f``, and ``error`` where Python raises instead of giving NaN or infinity."""

    def guarded(*x: float) -> float:
        if any(math.isnan(v) for v in x):
            return NAN
        try:
            return f(*x)
        except (ValueError, OverflowError, ZeroDivisionError):
            return error(*x)

    return guarded


def _positive_infinity(*_: float) -> float:
    return INF


def _not_a_number(*_: float) -> float:
    return NAN


def _log(f: Callable[[float], float]) -> Callable[..., float]:
    return _guard(f, lambda x: -INF if x == 0 else NAN)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _round_even(x: float) -> float:
    return x if math.isinf(x) else math.copysign(float(round(x)), x)


def _maximum(a: float, b: float) -> float:
    return NAN if math.isnan(a) or math.isnan(b) else max(a, b)


def _minimum(a: float, b: float) -> float:
    return NAN if math.isnan(a) or math.isnan(b) else min(a, b)


def _times(a: float, b: float) -> float:
    if (math.isinf(a) and b == 0) or (a == 0 and math.isinf(b)):
        return NAN
    return a * b


def _scale2(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return NAN
    if math.isinf(b):
        return _times(a, INF if b > 0 else 0.0)
    try:
        return math.ldexp(a, max(-5000, min(5000, math.floor(b))))
    except OverflowError:
        return math.copysign(INF, a)


UNARY: dict[str, Callable[..., float]] = {
    "neg": lambda x: -x,
    "abs": math.fabs,
    "exp": _guard(math.exp, _positive_infinity),
    "exp2": _guard(math.exp2, _positive_infinity),
    "log": _log(math.log),
    "log2": _log(math.log2),
    "tanh": math.tanh,
    "sqrt": _guard(math.sqrt, _not_a_number),
    "rsqrt": _guard(lambda x: _divide(1.0, math.sqrt(x)), _not_a_number),
    "round": _guard(_round_even, _not_a_number),
    "sigmoid": _guard(_sigmoid, lambda x: 1.0 if x > 0 else 0.0),
    "fraction": _guard(lambda x: 0.0 if math.isinf(x) else x - math.floor(x), _not_a_number),
}
BINARY: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": _times,
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "pow": None,  # type: ignore[dict-item]  # its own test: Python and C differ at the edges
    "larger": lambda a, b: a if a > b else b,
    "smaller": lambda a, b: a if a < b else b,
    "scale2": _scale2,
}


def _pointwise(name: str, count: int, dtype: str = "f64", attrs: str = "") -> str:
    letters = "xyz"[:count]
    params = ", ".join(f"%{c}: tensor<N x {dtype}>" for c in letters)
    values = ", ".join(f"%{c}" for c in letters)
    return f"graph f<N>({params}) {{ %r = math.{name} {values} {attrs} return %r }}"


def _tensor(op: str, attrs: str, *inputs: Any, want: Any) -> Example:
    """An operation on tensors of the inputs' shapes."""
    types = [f"{' x '.join(map(str, x.shape))} x f64" for x in inputs]
    params = ", ".join(f"%{'xyz'[i]}: tensor<{t}>" for i, t in enumerate(types))
    values = ", ".join(f"%{'xyz'[i]}" for i in range(len(inputs)))
    text = f"graph f<N>({params}) {{ %r = tensor.{op} {values} {{{attrs}}} return %r }}"
    return Example(f"tensor.{op}", text, inputs, want)


def _stream(op: str, line: str, out: str, *inputs: Any, want: Any) -> Example:
    """An operation on streams over n and m, read from tensors [2, 3] %x and %y."""
    source = 'stream.source %{0} {{dims = [["n"], ["m"]], type = stream<n=2, m=3; f64>}}'
    text = (
        "stream f(%x: tensor<2 x 3 x f64>, %y: tensor<2 x 3 x f64>) {\n"
        f"%a = {source.format('x')}\n%b = {source.format('y')}\n{line}\n{out}\nreturn %o }}"
    )
    return Example(op, text, inputs, want)


def _tile(op: str, lines: str, *inputs: Any, want: Any, out: str = "4 x 8") -> Example:
    """A tile program: %x is read to the tile %a [4, 8] on 8 lanes; the lines store to %o."""
    params = "".join(f"%{'xy'[i]}: buffer<4 x 8 x f64, unit 1>, " for i in range(len(inputs)))
    load = (
        "%a = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
        if inputs
        else ""
    )
    text = (
        f"tile f({params}%o: buffer<{out} x f64, unit 1>) "
        "with {grid = [[1, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n%c1 = math.const {value = 1, type = index}\n"
        f"%c4 = math.const {{value = 4, type = index}}\n{load}{lines}\nreturn }}"
    )
    return Example(op, text, inputs, want)


LAYOUT = "local(4, 1).spatial(1, 8)"
X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.5]])
Y = np.array([[2.0, 0.25, -1.0], [1.0, 3.0, 5.0]])
T = np.arange(32.0).reshape(4, 8) - 11.5
SINK = 'stream.sink %r {dims = [["n"], ["m"]], type = tensor<2 x 3 x f64>}'
ROW_SINK = '%o = stream.sink %r {dims = [["n"]], type = tensor<2 x f64>}'
STORE = "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}"


def _softmax_rows(x: Any) -> Any:
    return np.array([[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in x])


def _running(x: Any) -> Any:
    return np.array([[max(row[: i + 1]) for i in range(len(row))] for row in x])


def _examples() -> Iterator[Example]:
    for name in UNARY:
        yield Example(f"math.{name}", _pointwise(name, 1), (np.array(PLAIN),))
    for name in BINARY:
        pair = (np.array(PLAIN), np.array(PLAIN[::-1]))
        yield Example(f"math.{name}", _pointwise(name, 2), pair)
    yes_no = (np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool))
    for name, want in (("and", [1, 0, 0, 0]), ("or", [1, 1, 1, 0])):
        yield Example(f"math.{name}", _pointwise(name, 2, "bool"), yes_no, np.array(want, bool))
    yield Example("math.not", _pointwise("not", 1, "bool"), yes_no[:1], ~yes_no[0])
    whole = (np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 0]))
    yield Example("math.mod", _pointwise("mod", 2, "i64"), whole, np.array([1, 1, -1, -1, 5]))
    three = tuple(np.array(v) for v in ([2.0, INF], [3.0, 0.0], [0.5, 1.0]))
    yield Example("math.fma", _pointwise("fma", 3), three, np.array([6.5, NAN]))
    compared = _pointwise("compare", 2, attrs='{relation = "le"}')
    pair = (np.array([1.0, 2.0, NAN]), np.array([1.0, 1.0, NAN]))
    yield Example("math.compare", compared, pair, np.array([True, False, False]))
    chosen = (
        "graph f<N>(%c: tensor<N x bool>, %x: tensor<N x f64>, %y: tensor<1 x f64>) "
        "{ %r = math.select %c, %x, %y return %r }"
    )
    choice = (np.array([True, False]), np.array([1.0, NAN]), np.array([5.0]))
    yield Example("math.select", chosen, choice, np.array([1.0, 5.0]))
    cast = _pointwise("cast", 1, attrs="{dtype = i64}")
    yield Example("math.cast", cast, (np.array([1.9, -1.9, 0.0]),), np.array([1, -1, 0]))
    const = "graph f() { %r = math.const {value = -2.5, type = tensor<f64>} return %r }"
    yield Example("math.const", const, (), np.array(-2.5))
    yield from _tensor_examples()
    yield from _stream_examples()
    yield from _tile_examples()


def _tensor_examples() -> Iterator[Example]:
    product = [[sum(X[i, k] * Y[j, k] for k in range(3)) for i in range(2)] for j in range(2)]
    equation = 'equation = "ik,jk->ji"'
    yield _tensor("contract", equation, X, Y, want=np.array(product))
    sums = np.array([[sum(row)] for row in X.tolist()])
    yield _tensor("reduce", 'kind = "sum", axis = -1, keep = true', X, want=sums)
    yield _tensor("softmax", "axis = 1", X, want=_softmax_rows(X))
    turned = np.array([[X[i, j] for i in range(2)] for j in range(3)])
    yield _tensor("transpose", "permutation = [1, 0]", X, want=turned)
    flat = np.array([v for row in X.tolist() for v in row])
    yield _tensor("reshape", "shape = [6]", X, want=flat)
    wide = np.array([[[v, v] for v in row] for row in X.tolist()])
    column = X.reshape(2, 3, 1)
    yield _tensor("broadcast", "shape = [2, 3, 2]", column, want=wide)
    text = "graph f() { %r = tensor.iota {axis = 0, type = tensor<3 x 2 x i64>} return %r }"
    yield Example("tensor.iota", text, (), np.array([[0, 0], [1, 1], [2, 2]]))


def _stream_examples() -> Iterator[Example]:
    yield _stream("stream.source", "%r = math.neg %a", f"%o = {SINK}", X, Y, want=-X)
    turned = '%o = stream.sink %a {dims = [["m"], ["n"]], type = tensor<3 x 2 x f64>}'
    yield _stream("stream.sink", "", turned, X, Y, want=X.T)
    index = '%i = stream.index {axis = "m", type = stream<n=2, m=3; i64>}\n'
    index += "%r = math.cast %i {dtype = f64}"
    columns = np.array([[0.0, 1.0, 2.0]] * 2)
    yield _stream("stream.index", index, f"%o = {SINK}", X, Y, want=columns)
    rows = '%s = stream.reduce %a {kind = "max", axis = "m"}\n'
    rows += "%r = stream.repeat %s {axis = axis(m, 3)}"
    highest = np.array([[max(row)] * 3 for row in X.tolist()])
    yield _stream("stream.repeat", rows, f"%o = {SINK}", X, Y, want=highest)
    total = '%r = stream.reduce %a {kind = "sum", axis = "m"}'
    yield _stream(
        "stream.reduce", total, ROW_SINK, X, Y, want=np.array([sum(r) for r in X.tolist()])
    )
    scan = '%r, %before = stream.scan %a {kind = "max", axis = "m"}'
    yield _stream("stream.scan", scan, f"%o = {SINK}", X, Y, want=_running(X))
    vectors = (
        "stream f(%x: tensor<2 x 3 x f64>, %y: tensor<2 x 3 x f64>) {\n"
        '%a = stream.source %x {dims = [["n"], ["d"]], type = stream<n=2; d=3 x f64>}\n'
        '%b = stream.source %y {dims = [["n"], ["d"]], type = stream<n=2; d=3 x f64>}\n'
        f"LINE\n{ROW_SINK}\nreturn %o }}"
    )
    dots = np.array(
        [sum(a * b for a, b in zip(*rows, strict=True)) for rows in zip(X, Y, strict=True)]
    )
    line = '%r = stream.contract %a, %b {axes = ["d"]}'
    yield Example("stream.contract", vectors.replace("LINE", line), (X, Y), dots)
    line = '%r = stream.fold %a {kind = "min", axis = "d"}'
    lowest = np.array([min(row) for row in X.tolist()])
    yield Example("stream.fold", vectors.replace("LINE", line), (X, Y), lowest)


def _tile_examples() -> Iterator[Example]:
    yield _tile("tile.load", "%r = math.neg %a\n" + STORE, T, want=-T)
    yield _tile("tile.store", "%r = math.abs %a\n" + STORE, T, want=np.abs(T))
    yield _tile(
        "tile.prefetch",
        "tile.prefetch %x, %c0, %c0 {dims = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
        f"%r = math.neg %a\n{STORE}",
        *(T,),
        want=-T,
    )
    number = "%f = math.cast %i {dtype = f64}\n%r = math.add %a, %f\n" + STORE
    index = "%j = SOURCE\n%i = tile.splat %j\n" + number
    yield _tile("tile.splat", index.replace("SOURCE", "math.add %c4, %c4"), T, want=T + 8)
    yield _tile("tile.block", index.replace("SOURCE", "tile.block {dim = 0}"), T, want=T)
    yield _tile("tile.size", index.replace("SOURCE", "tile.size {size = size(7)}"), T, want=T + 7)
    yield _tile("tile.stride", index.replace("SOURCE", "tile.stride %x {dim = 0}"), T, want=T + 8)
    here = "%i = tile.coordinate {dim = 1, layout = local(4, 1).spatial(1, 8)}\n" + number
    yield _tile("tile.coordinate", here, T, want=T + np.arange(8))
    scratch = (
        "%s = tile.alloc {type = scratch<4 x 8 x f64>}\n"
        "tile.store %a, %s, %c0, %c0 {dims = [0, 1]}\n"
        "%r = tile.load %s, %c0, %c0 {dims = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
    )
    yield _tile("tile.alloc", scratch + STORE, T, want=T)
    gather = (
        "%i = tile.coordinate {dim = 1, layout = spatial(1, 8)}\n"
        "%r = tile.gather %x, %c4, %i\ntile.store %r, %o, %c0, %c0 {dims = [0, 1]}"
    )
    yield _tile("tile.gather", gather, T, want=T.reshape(-1)[4:12].reshape(1, 8), out="1 x 8")
    total = '%r = tile.reduce %a {kind = "sum", dim = 0}\n' + STORE
    sums = np.array([[sum(T[i, j] for i in range(4)) for j in range(8)]])
    yield _tile("tile.reduce", total, T, want=sums, out="1 x 8")
    row = "tile.load %x, %c{0}, %c0 {{dims = [0, 1], layout = spatial(1, 8)}}"
    stack = f"%p = {row.format(1)}\n%q = {row.format(4)}\n%r = tile.stack %p, %q\n".replace(
        "%c4", "%c0"
    )
    yield _tile("tile.stack", stack + STORE, T, want=T[[1, 0]], out="2 x 8")
    yield from _product_examples()
    loop = (
        f"%r = tile.for %c0, %c4, %a {{step = 1}} (%i: index, %s: reg<4 x 8 x f64, {LAYOUT}>)"
        " { %t = math.add %s, %s yield %t }\n"
    )
    yield _tile("tile.for", loop + STORE, T, want=T * 16)
    store = "tile.store %z, %o, %c0, %c0 {dims = [0, 1]}"
    never = f"tile.if %c4, %c1 () {{ %z = math.neg %a {store} yield }}\n"
    once = never.replace("%c4, %c1", "%c1, %c4").replace("%z", "%w")
    yield _tile("tile.if", f"%r = math.abs %a\n{STORE}\n{once}{never}", T, want=-T)


def _product_examples() -> Iterator[Example]:
    load = "tile.load %x, %c0, %c0 {{dims = [{0}, {1}], layout = {2}}}"
    column = load.format(0, 2, "local(4, 1, 1).replicate(8)")
    row = load.format(2, 1, "local(1, 1, 1).spatial(1, 8, 1)")
    zero = "%z = math.const {value = 1.0, type = reg<4 x 8 x f64, local(4, 1).spatial(1, 8)>}"
    dot = f"%p = {column}\n%q = {row}\n{zero}\n%r = tile.dot %z, %p, %q\n{STORE}"
    outer = np.array([[1 + T[i, 0] * T[0, j] for j in range(8)] for i in range(4)])
    yield _tile("tile.dot", dot, T, want=outer)
    row = load.format(0, 2, "local(4, 1, 1).spatial(1, 1, 8)")
    lanes = (
        f"%p = {row}\n%i = tile.coordinate {{dim = 1, layout = local(4, 2, 1).spatial(1, 1, 8)}}\n"
        "%f = math.cast %i {dtype = f64}\n%q = math.add %p, %f\n%s = tile.reduce_to_lanes %q\n"
        "tile.store %s, %o, %c0, %c0 {dims = [0, 1]}"
    )
    sums = np.array([[sum(T[i].tolist()), sum(T[i].tolist()) + 8] for i in range(4)])
    yield _tile("tile.reduce_to_lanes", lanes, T, want=sums, out="4 x 2")
    # Pairs are of 16-bit floats, so these programs have their own parameters.
    head = (
        "tile f(%x: buffer<4 x 8 x bf16, unit 1>, %o: buffer<{0} x bf16, unit 2>) "
        "with {{grid = [[1, 1]], outputs = 1}} {{\n"
        "%c0 = math.const {{value = 0, type = index}}\n{1}\n"
        "tile.store %r, %o, %c0, %c0, %c0 {{dims = [0, 1, 2]}}\nreturn }}"
    )
    tile = "%a = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 1).spatial(1, 8)}\n"
    packed = head.format("2 x 8 x 2", tile + "%r = tile.pack_pairs %a {dtype = bf16}")
    pairs = np.array([[[T[2 * i + k, j] for k in range(2)] for j in range(8)] for i in range(2)])
    yield Example("tile.pack_pairs", packed, (T,), pairs)
    tile = "%a = tile.load %x, %c0, %c0 {dims = [-1, 1], layout = spatial(1, 4).local(1, 2)}\n"
    split = head.format("4 x 1 x 2", tile + "%r = tile.split_pairs %a")
    yield Example("tile.split_pairs", split, (T,), T[0].reshape(4, 1, 2))


EXAMPLES = list(_examples())


def test_no_operation_is_missing_from_the_table() -> None:
    assert sorted(e.op for e in EXAMPLES) == sorted(REGISTRY)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_text_parses_back(example: Example) -> None:
    module = example.module
    assert parse(str(module)) == module


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_declaration(example: Example) -> None:
    """Each op has a sentence about itself, and only ops that do something are not pure."""
    cls = REGISTRY[example.op]
    assert cls.__doc__ and cls.name == example.op
    effects = {"tile.load", "tile.store", "tile.gather", "tile.prefetch", "tile.alloc"}
    if not {"pure"} & cls.traits:
        assert example.op in effects | {"tile.for", "tile.if"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.want is not None], ids=str)
def test_meaning(example: Example) -> None:
    (got,) = evaluate(example.module, *example.inputs, precision="f64")
    assert got.shape == example.want.shape
    np.testing.assert_allclose(got, example.want, rtol=1e-13, atol=1e-13)


def _agree(got: float, want: float) -> bool:
    if math.isnan(want) or math.isinf(want) or want == 0:
        return got == want or (math.isnan(got) and math.isnan(want))
    return abs(got - want) <= 4e-16 * abs(want) * 4


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name: str) -> None:
    values = PLAIN + EDGES
    (got,) = evaluate(parse(_pointwise(name, 1)), np.array(values), precision="f64")
    for x, y in zip(values, got, strict=True):
        assert _agree(y, UNARY[name](x)), f"{name}({x}) = {y}, not {UNARY[name](x)}"


@pytest.mark.parametrize("name", [n for n in BINARY if n != "pow"])
def test_functions_of_two_numbers(name: str) -> None:
    grid = list(itertools.product(PLAIN + EDGES, repeat=2))
    left, right = (np.array(v) for v in zip(*grid, strict=True))
    (got,) = evaluate(parse(_pointwise(name, 2)), left, right, precision="f64")
    for (a, b), y in zip(grid, got, strict=True):
        assert _agree(y, BINARY[name](a, b)), f"{name}({a}, {b}) = {y}, not {BINARY[name](a, b)}"


def test_powers() -> None:
    left, right = np.array([2.0, 9.0, -2.0, -2.0, 0.0]), np.array([3.0, 0.5, 3.0, 0.5, 0.0])
    (got,) = evaluate(parse(_pointwise("pow", 2)), left, right, precision="f64")
    np.testing.assert_allclose(got, [8.0, 3.0, -8.0, NAN, 1.0])


@pytest.mark.parametrize("relation", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(relation: str) -> None:
    formulas = {
        **{"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b},
        **{"ge": lambda a, b: a >= b, "eq": lambda a, b: a == b, "ne": lambda a, b: a != b},
    }
    grid = list(itertools.product([0.0, -0.0, 1.0, INF, -INF, NAN], repeat=2))
    left, right = (np.array(v) for v in zip(*grid, strict=True))
    text = _pointwise("compare", 2, attrs=f'{{relation = "{relation}"}}')
    (got,) = evaluate(parse(text), left, right, precision="f64")
    assert got.tolist() == [formulas[relation](a, b) for a, b in grid]


def test_integer_division_rounds_down_and_by_zero_is_zero() -> None:
    left, right = np.array([7, -7, 7, -7, 5, 0]), np.array([2, 2, -2, -2, 0, 0])
    (got,) = evaluate(parse(_pointwise("div", 2, "i64")), left, right)
    assert got.tolist() == [3, -4, -4, 3, 0, 0]


def test_reduction_with_rescaling() -> None:
    line = '%r = stream.reduce %a, %b {kind = "sum", axis = "m"}'
    example = _stream("stream.reduce", line, ROW_SINK, X, Y, want=None)
    (got,) = evaluate(example.module, X, Y, precision="f64")
    for row, x, scale in zip(got, X, Y, strict=True):
        state = 0.0
        for value, factor in zip(x, scale, strict=True):
            state = state * factor + value
        assert row == state


def test_scan_gives_what_was_before() -> None:
    line = '%now, %r = stream.scan %a {kind = "max", axis = "m"}'
    example = _stream("stream.scan", line, f"%o = {SINK}", X, Y, want=None)
    (got,) = evaluate(example.module, X, Y, precision="f64")
    assert got.tolist() == [[-INF, 1.0, 1.0], [-INF, 0.5, 4.0]]


# ---- rules


N, M = Size.of("N"), Size.of("M")
KINDS: dict[str, Type] = {
    "tensor": TensorType((N, M), F32),
    "stream": StreamType((Axis("n", N),), (Axis("q", Size.of(5)),), F32),
    "buffer": BufferType((N, M), F32, 1),
    "scratch": ScratchType((4, 8), F32),
    "register": RegisterType(F32, Layout(2).local(5, 1).spatial(1, 7)),
    "index": INDEX,
}


def _kind(type_: Type) -> type:
    return type(type_)


def _with(op: Op, operands: list[Value]) -> Op:
    return type(op)(*operands, regions=op.regions, **op.attrs)


def _is_uniform(op: Op) -> bool:
    """One operand that may be of any level: pointwise functions of one number, casts."""
    return "pointwise" in op.traits and len(op.operands) == 1


WRONG_KIND = [
    pytest.param(example, at, kind, id=f"{example.op}-{at}-{kind}")
    for example in EXAMPLES
    for at, operand in enumerate(example.operation().operands)
    for kind, type_ in KINDS.items()
    if _kind(type_) is not _kind(operand.type)
]


def _marked(params: list[Any]) -> list[Any]:
    """Known mistakes: a cast does not look at its operand, memory can be selected from."""
    out = []
    for param in params:
        example, _, kind = param.values
        wrong = example.op == "math.cast" and kind in ("buffer", "scratch")
        mark = pytest.mark.xfail(strict=True, reason="a cast takes memory")
        out.append(pytest.param(*param.values, id=param.id, marks=[mark] if wrong else []))
    return out


@pytest.mark.parametrize(("example", "at", "kind"), _marked(WRONG_KIND))
def test_an_operand_of_another_level_is_refused(example: Example, at: int, kind: str) -> None:
    op = example.operation()
    operands = list(op.operands)
    operands[at] = Value(KINDS[kind], "wrong")
    if _is_uniform(op) and kind not in ("buffer", "scratch"):
        assert _with(op, operands).results
        return
    with pytest.raises(VerifyError) as caught:
        _with(op, operands)
    message = caught.value.message
    assert message.startswith(f"{example.op}(") and str(KINDS[kind]) in message
    assert message.split("): ", 1)[1].strip(), "no rule"


WITH_OPERANDS = [e for e in EXAMPLES if e.operation().operands]


@pytest.mark.parametrize("example", WITH_OPERANDS, ids=str)
def test_a_missing_operand_is_refused(example: Example) -> None:
    op = example.operation()
    with pytest.raises(VerifyError, match=f"^{op.name}\\("):
        type(op)(regions=op.regions, **op.attrs)
    if op.rest_name is None:
        with pytest.raises(
            VerifyError, match=f"^{op.name}.*takes {len(op.operand_names)} operands"
        ):
            type(op)(*op.operands, op.operands[0], regions=op.regions, **op.attrs)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_attributes_are_checked_by_name(example: Example) -> None:
    op = example.operation()
    with pytest.raises(VerifyError, match=f"^{op.name}.*has no attribute 'colour'"):
        type(op)(*op.operands, regions=op.regions, **op.attrs, colour=3)
    for name, spec in op.attribute_specs.items():
        if spec.required:
            left = {k: v for k, v in op.attrs.items() if k != name}
            with pytest.raises(VerifyError, match=f"^{op.name}.*needs the attribute '{name}'"):
                type(op)(*op.operands, regions=op.regions, **left)


G = (
    "graph f<N, M>(%x: tensor<N x M x f32>, %y: tensor<M x N x f32>, %b: tensor<M x bool>, "
    "%i: tensor<N x M x i64>)"
)
S = (
    'stream f(%x: tensor<N x M x f32>) { %a = stream.source %x {dims = [["n"], ["m"]], '
    'type = stream<n=N, m=M; f32>} %v = stream.source %x {dims = [["n"], ["m"]], '
    "type = stream<n=N; m=M x f32>}"
)
R = (
    "tile f(%x: buffer<N x M x f32, unit 1>, %i: index, "
    f"%r: reg<4 x 8 x f32, {LAYOUT}>, %s: reg<4 x 8 x f32, spatial(4, 1).local(1, 8)>, "
    f"%h: reg<4 x 8 x f16, {LAYOUT}>) {{"
)
BROKEN = [
    (G, "%r = math.add %x, %y", "math.add", "do not broadcast"),
    (G, "%r = math.add %x, %i", "math.add", "one dtype"),
    (G, "%r = math.select %x, %x, %x", "math.select", "condition must be bool"),
    (G, "%r = math.select %b, %x, %i", "math.select", "one dtype"),
    (G, '%r = math.compare %x, %x {relation = "=="}', "math.compare", "lt, le, gt"),
    (G, "%r = math.cast %x {dtype = 3}", "math.cast", "element type"),
    (
        G,
        '%r = tensor.contract %x, %y {equation = "nm,nm->n"}',
        "tensor.contract",
        "sizes N and M of 'n'",
    ),
    (G, '%r = tensor.contract %x, %y {equation = "nm->n"}', "tensor.contract", "equation is"),
    (
        G,
        '%r = tensor.contract %x, %y {equation = "nm,m->n"}',
        "tensor.contract",
        "name each dimension",
    ),
    (G, '%r = tensor.contract %x, %y {equation = "nn,mn->n"}', "tensor.contract", "once"),
    (G, '%r = tensor.contract %x, %y {equation = "nm,mk->nz"}', "tensor.contract", "output letter"),
    (G, '%r = tensor.contract %x, %i {equation = "nm,nm->n"}', "tensor.contract", "one dtype"),
    (G, '%r = tensor.reduce %x {kind = "mean", axis = 0}', "tensor.reduce", "sum, max or min"),
    (G, '%r = tensor.reduce %x {kind = "sum", axis = 2}', "tensor.reduce", "axis 2"),
    (G, "%r = tensor.softmax %x {axis = -3}", "tensor.softmax", "axis -3"),
    (G, "%r = tensor.softmax %i {axis = 0}", "tensor.softmax", "floats"),
    (G, "%r = tensor.transpose %x {permutation = [0, 0]}", "tensor.transpose", "order 2"),
    (
        G,
        "%r = tensor.reshape %x {shape = [size(N)]}",
        "tensor.reshape",
        r"N elements wanted, M\*N given",
    ),
    (
        G,
        "%r = tensor.broadcast %x {shape = [size(M), size(M)]}",
        "tensor.broadcast",
        "cannot widen",
    ),
    (G, "%r = tensor.broadcast %x {shape = [size(M)]}", "tensor.broadcast", "cannot widen"),
    (G, "%r = tensor.iota {axis = 0, type = tensor<N x f32>}", "tensor.iota", "integers"),
    (G, "%r = tensor.iota {axis = 1, type = tensor<N x i64>}", "tensor.iota", "axis 1"),
    (
        S,
        '%r = stream.source %x {dims = [["n"]], type = stream<n=N; f32>}',
        "stream.source",
        "every dim",
    ),
    (
        S,
        '%r = stream.source %x {dims = [["n"], ["k"]], type = stream<n=N; f32>}',
        "stream.source",
        "unknown",
    ),
    (
        S,
        '%r = stream.source %x {dims = [["n"], ["n"]], type = stream<n=N; f32>}',
        "stream.source",
        "axes",
    ),
    (
        S,
        '%r = stream.source %x {dims = [["n"], []], type = stream<n=N; d=4 x f32>}',
        "stream.source",
        "'d'",
    ),
    (
        S,
        '%r = stream.source %x {dims = [["n"], []], type = stream<n=N; f16>}',
        "stream.source",
        "dtypes",
    ),
    (
        S,
        '%r = stream.index {axis = "k", type = stream<n=N; i64>}',
        "stream.index",
        "one of the loops",
    ),
    (S, "%r = stream.repeat %a {axis = axis(m, M)}", "stream.repeat", "already runs over m"),
    (S, '%r = stream.contract %v, %a {axes = ["m"]}', "stream.contract", "same loops"),
    (S, '%r = stream.contract %v, %v {axes = ["d"]}', "stream.contract", "no axis 'd'"),
    (S, '%r = stream.fold %a {kind = "sum", axis = "m"}', "stream.fold", "no axis 'm'"),
    (S, '%r = stream.reduce %a {kind = "sum", axis = "n"}', "stream.reduce", "innermost"),
    (S, '%r = stream.reduce %a, %a {kind = "max", axis = "m"}', "stream.reduce", "only a sum"),
    (S, '%r = stream.reduce %a, %a, %a {kind = "sum", axis = "m"}', "stream.reduce", "at most one"),
    (S, '%r, %q = stream.scan %v {kind = "max", axis = "m"}', "stream.scan", "innermost"),
    (
        S,
        '%r = stream.sink %a {dims = [["n"]], type = tensor<N x f32>}',
        "stream.sink",
        "every axis",
    ),
    (S, "%r = math.add %a, %v", "math.add", "same loops"),
    (R, "%q = tile.stride %x {dim = 2}", "tile.stride", "no such dimension"),
    (R, "%q = tile.alloc {type = buffer<4 x f32, unit 0>}", "tile.alloc", "scratch"),
    (
        R,
        "%q = tile.load %x, %i {dims = [0, 1], layout = local(1, 1)}",
        "tile.load",
        "one index per",
    ),
    (R, "%q = tile.load %x, %i, %i {dims = [0], layout = local(1, 1)}", "tile.load", "2 entries"),
    (
        R,
        "%q = tile.load %x, %i, %i {dims = [0, 0], layout = local(2, 1)}",
        "tile.load",
        "one memory",
    ),
    (
        R,
        "%q = tile.load %x, %i, %i {dims = [0, -1], layout = local(2, 2)}",
        "tile.load",
        "runs nowhere",
    ),
    (R, "%q = tile.load %x, %i, %r {dims = [0, 1], layout = local(1, 1)}", "tile.load", "index"),
    (R, "tile.store %h, %x, %i, %i {dims = [0, 1]}", "tile.store", "dtypes must agree"),
    (R, "%q = tile.gather %x, %i, %r", "tile.gather", "i64"),
    (R, "%q = tile.dot %r, %r, %r", "tile.dot", r"\[m, 1, k\]"),
    (R, '%q = tile.reduce %r {kind = "mean", dim = 0}', "tile.reduce", "sum, max or min"),
    (R, "%q = tile.stack %r, %h", "tile.stack", "one type"),
    (R, "%q = tile.stack %r", "tile.stack", "size 1"),
    (R, "%q = tile.reduce_to_lanes %r", "tile.reduce_to_lanes", "lanes"),
    (R, "%q = tile.pack_pairs %r {dtype = f32}", "tile.pack_pairs", "16-bit"),
    (R, "%q = tile.pack_pairs %s {dtype = bf16}", "tile.pack_pairs", "local, outermost"),
    (R, "%q = tile.split_pairs %h", "tile.split_pairs", "layout must be"),
    (R, "%q = math.add %r, %s", "math.add", "layouts"),
    (R, "tile.for %i, %i {step = 0} (%j: index) { yield }", "tile.for", "positive"),
    (R, "tile.for %i, %i {step = 1} () { yield }", "tile.for", "region parameters"),
    (
        R,
        "%q = tile.for %i, %i, %i {step = 1} (%j: index, %k: index) { yield %r }",
        "tile.for",
        "match inits",
    ),
    (R, "tile.if %i, %i", "tile.if", "needs one region"),
    (R, "tile.if %i, %i () { yield %i }", "tile.if", "needs one region"),
]


@pytest.mark.parametrize(("head", "line", "op", "rule"), BROKEN, ids=[b[1][:60] for b in BROKEN])
def test_a_broken_rule_is_named(head: str, line: str, op: str, rule: str) -> None:
    opening = "" if "{" in head else " {"
    with pytest.raises(VerifyError, match=rule) as caught:
        parse(f"{head}{opening}\n{line}\nreturn }}")
    assert caught.value.message.startswith(f"{op}(")
    assert caught.value.location is not None and caught.value.location.line == 2


UNCHECKED = [
    (R, '%q = tile.reduce %r {kind = "sum", dim = 7}'),
    (R, "%q = tile.coordinate {dim = 7, layout = local(4, 1)}"),
    (R, "%q = tile.splat %i {rank = -1}"),
    (
        R,
        "%q = tile.load %x, %i, %i, %i "
        '{dims = [0, 1], bounds = [[0, "wrap"]], layout = local(1, 1)}',
    ),
    (R, "%q = tile.load %x, %i, %i {dims = [5, 1], layout = local(1, 1)}"),
    (G, "%r = math.exp %i"),
    (G, "%r = math.and %x, %x"),
    (G, "%r = math.add %b, %b"),
    (S, '%r = stream.index {axis = "n", type = stream<n=N; f32>}'),
    (S, '%r = stream.sink %a {dims = [["n"], ["m"]], type = tensor<N x M x f16>}'),
    (S, '%r = stream.sink %a {dims = [["n"], ["m"]], type = tensor<M x N x f32>}'),
    (S, '%r = stream.source %x {dims = [["n"], ["m"]], type = stream<n=M, m=N; f32>}'),
]


@pytest.mark.xfail(strict=True, reason="a rule that no verifier checks")
@pytest.mark.parametrize(("head", "line"), UNCHECKED, ids=[u[1][:60] for u in UNCHECKED])
def test_rules_without_a_check(head: str, line: str) -> None:
    opening = "" if "{" in head else " {"
    with pytest.raises(VerifyError):
        parse(f"{head}{opening}\n{line}\nreturn }}")


@pytest.mark.parametrize("dtype", [BF16, F16, I64], ids=str)
def test_results_take_the_dtype_of_their_operands(dtype: Any) -> None:
    x = Value(TensorType((N, M), dtype), "x")
    for name in ("math.add", "math.max"):
        assert REGISTRY[name](x, x).result.type == x.type
    compared = REGISTRY["math.compare"](x, x, relation="lt").result.type
    assert str(compared) == "tensor<N x M x bool>"
