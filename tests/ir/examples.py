"""An example of every operation: a small program, inputs, and what must come out of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ir.formulas import BINARY, PLAIN, UNARY
from tests.ir.shared_programs import SHARED, UNDEFINED
from tilewright.ir.core import Module, Op
from tilewright.ir.parser import parse


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


def pointwise(name: str, count: int, dtype: str = "f64", attrs: str = "") -> str:
    letters = "xyz"[:count]
    params = ", ".join(f"%{c}: tensor<N x {dtype}>" for c in letters)
    values = ", ".join(f"%{c}" for c in letters)
    return f"graph f<N>({params}) {{ %r = math.{name} {values} {attrs} return %r }}"


def _tensor(op: str, attrs: str, *inputs: Any, want: Any) -> Example:
    """An operation on tensors of the inputs' shapes."""
    types = [f"{' x '.join(map(str, x.shape))} x f64" for x in inputs]
    params = ", ".join(f"%{'xyz'[i]}: tensor<{t}>" for i, t in enumerate(types))
    values = ", ".join(f"%{'xyz'[i]}" for i in range(len(inputs)))
    text = f"graph f({params}) {{ %r = tensor.{op} {values} {{{attrs}}} return %r }}"
    return Example(f"tensor.{op}", text, inputs, want)


def on_streams(op: str, line: str, out: str, *inputs: Any, want: Any) -> Example:
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


tile_example = _tile  # for files of their own


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
        yield Example(f"math.{name}", pointwise(name, 1), (np.array(PLAIN),))
    for name in BINARY:
        pair = (np.array(PLAIN), np.array(PLAIN[::-1]))
        yield Example(f"math.{name}", pointwise(name, 2), pair)
    yes_no = (np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool))
    for name, want in (("and", [1, 0, 0, 0]), ("or", [1, 1, 1, 0])):
        yield Example(f"math.{name}", pointwise(name, 2, "bool"), yes_no, np.array(want, bool))
    yield Example("math.not", pointwise("not", 1, "bool"), yes_no[:1], ~yes_no[0])
    whole = (np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 0]))
    yield Example("math.mod", pointwise("mod", 2, "i64"), whole, np.array([1, 1, -1, -1, 5]))
    three = tuple(np.array(v) for v in ([2.0, math.inf], [3.0, 0.0], [0.5, 1.0]))
    yield Example("math.fma", pointwise("fma", 3), three, np.array([6.5, math.nan]))
    compared = pointwise("compare", 2, attrs='{relation = "le"}')
    pair = (np.array([1.0, 2.0, math.nan]), np.array([1.0, 1.0, math.nan]))
    yield Example("math.compare", compared, pair, np.array([True, False, False]))
    chosen = (
        "graph f<N>(%c: tensor<N x bool>, %x: tensor<N x f64>, %y: tensor<1 x f64>) "
        "{ %r = math.select %c, %x, %y return %r }"
    )
    choice = (np.array([True, False]), np.array([1.0, math.nan]), np.array([5.0]))
    yield Example("math.select", chosen, choice, np.array([1.0, 5.0]))
    cast = pointwise("cast", 1, attrs="{dtype = i64}")
    yield Example("math.cast", cast, (np.array([1.9, -1.9, 0.0]),), np.array([1, -1, 0]))
    const = "graph f() { %r = math.const {value = -2.5, type = tensor<f64>} return %r }"
    yield Example("math.const", const, (), np.array(-2.5))
    size = "graph f<N>(%x: tensor<N x f64>) { %r = math.size {size = size(2*N - 1), "
    size += "type = tensor<i64>} return %r }"
    yield Example("math.size", size, (np.zeros(5),), np.array(9))
    yield from _tensor_examples()
    yield from _stream_examples()
    yield from _tile_examples()
    yield from _index_examples()
    for name, lines in SHARED.items():
        yield _tile(name, lines, T, want=T)
    # which has a value only lane by lane
    yield _tile("tile.undefined", UNDEFINED, T, want=None, out="1 x 8")


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
    moved = np.array([[row[2], row[0], row[1]] for row in X.tolist()])
    yield _tensor("roll", "axis = 1, shift = 1", X, want=moved)
    yield _tensor("slice", "axis = 1, start = 1, stop = 3", X, want=X[:, 1:])
    both = np.array([[*a, *c] for a, c in zip(X.tolist(), Y.tolist(), strict=True)])
    yield _tensor("concat", "axis = -1", X, Y, want=both)
    text = "graph f() { %r = tensor.iota {axis = 0, type = tensor<3 x 2 x i64>} return %r }"
    yield Example("tensor.iota", text, (), np.array([[0, 0], [1, 1], [2, 2]]))
    text = (
        "graph f(%x: tensor<2 x 3 x f64>, %i: tensor<2 x 1 x i64>, %j: tensor<2 x i64>) "
        "{ %r = tensor.gather %x, %i, %j return %r }"
    )
    at = (np.array([[1], [5]]), np.array([2, -1]))  # outside: the nearest inside
    picked = np.array([[X[1, 2], X[1, 0]], [X[1, 2], X[1, 0]]])
    yield Example("tensor.gather", text, (X, *at), picked)


def _stream_examples() -> Iterator[Example]:
    yield on_streams("stream.source", "%r = math.neg %a", f"%o = {SINK}", X, Y, want=-X)
    turned = '%o = stream.sink %a {dims = [["m"], ["n"]], type = tensor<3 x 2 x f64>}'
    yield on_streams("stream.sink", "", turned, X, Y, want=X.T)
    index = '%i = stream.index {axis = "m", type = stream<n=2, m=3; i64>}\n'
    index += "%r = math.cast %i {dtype = f64}"
    columns = np.array([[0.0, 1.0, 2.0]] * 2)
    yield on_streams("stream.index", index, f"%o = {SINK}", X, Y, want=columns)
    gather = '%i = stream.index {axis = "m", type = stream<n=2, m=3; i64>}\n'
    gather += '%j = stream.index {axis = "n", type = stream<n=2, m=3; i64>}\n%k = math.sub %j, %i\n'
    gather += '%r = stream.gather %x, %k, %i {dims = [["*"], ["*"]], '
    gather += "type = stream<n=2, m=3; f64>}"
    below = np.array([[X[0, j] for j in range(3)], [X[1, 0], X[0, 1], X[0, 2]]])
    yield on_streams("stream.gather", gather, f"%o = {SINK}", X, Y, want=below)
    rows = '%s = stream.reduce %a {kind = "max", axis = "m"}\n'
    rows += "%r = stream.repeat %s {axis = axis(m, 3)}"
    highest = np.array([[max(row)] * 3 for row in X.tolist()])
    yield on_streams("stream.repeat", rows, f"%o = {SINK}", X, Y, want=highest)
    total = '%r = stream.reduce %a {kind = "sum", axis = "m"}'
    yield on_streams(
        "stream.reduce", total, ROW_SINK, X, Y, want=np.array([sum(r) for r in X.tolist()])
    )
    scan = '%r, %before = stream.scan %a {kind = "max", axis = "m"}'
    yield on_streams("stream.scan", scan, f"%o = {SINK}", X, Y, want=_running(X))
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
    rolled = '%s = stream.roll %a {axis = "d", shift = 2}\n'
    rolled += '%t = math.mul %s, %b\n%r = stream.fold %t {kind = "sum", axis = "d"}'
    turned = [
        sum(a[(d - 2) % 3] * b[d] for d in range(3))
        for a, b in zip(X.tolist(), Y.tolist(), strict=True)
    ]
    yield Example("stream.roll", vectors.replace("LINE", rolled), (X, Y), np.array(turned))
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
    take = "%r = tile.take %a {at = 2}\n" + STORE
    yield _tile("tile.take", take, T, want=T[2:3], out="1 x 8")
    column = "tile.load %x, %c0, %c0 {dims = [0, -1], layout = local(4, 1).replicate(4)}"
    across = "tile.coordinate {dim = 1, layout = local(4, 1).spatial(1, 4)}"
    turn = (
        f"%p = {column}\n%i = {across}\n%f = math.cast %i {{dtype = f64}}\n%s = math.add %p, %f\n"
        f"%r = tile.transpose %s\n{STORE}"
    )
    turned = np.array([[T[j, 0] + i for j in range(4)] for i in range(4)])
    yield _tile("tile.transpose", turn, T, want=turned, out="4 x 4")
    yield from _product_examples()
    loop = (
        f"%r = tile.for %c0, %c4, %a {{step = 1}} (%i: index, %s: reg<4 x 8 x f64, {LAYOUT}>)"
        " { %t = math.add %s, %s yield %t }\n"
    )
    yield _tile("tile.for", loop + STORE, T, want=T * 16)
    turns = (
        f"%n, %r = tile.while %c4, %c4, %a (%i: index, %s: reg<4 x 8 x f64, {LAYOUT}>)"
        " { %t = math.add %s, %s %j = math.sub %i, %c1 yield %j, %j, %t }\n"
    )
    yield _tile("tile.while", turns + STORE, T, want=T * 16)
    store = "tile.store %z, %o, %c0, %c0 {dims = [0, 1]}"
    never = f"tile.if %c4, %c1 () {{ %z = math.neg %a {store} yield }}\n"
    once = never.replace("%c4, %c1", "%c1, %c4").replace("%z", "%w")
    yield _tile("tile.if", f"%r = math.abs %a\n{STORE}\n{once}{never}", T, want=-T)


def _unpacking() -> Example:
    lines = "%w = math.const {value = 16909060, type = reg<1 x 8 x i32, local(1, 8)>}\n"
    lines += '%r = tile.unpack %w {packing = "quads(8) lanes 16 group 8", dim = 0, dtype = f64, '
    lines += f"layout = local(4, 8)}}\n{STORE}"
    return _tile("tile.unpack", lines, T, want=np.outer([4, 3, 2, 1], np.ones(8)))


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
    words = "{1}.spatial(1, 1, 4).local(1, 1, 2)"
    words = f"tile.load %x, %c0, %c0 {{{{dims = [{{0}}, 2], layout = {words}}}}}"
    a, c = words.format(0, "local(2, 1, 1)"), words.format(1, "local(1, 2, 1)")
    acc = "reg<2 x 2 x 4 x f32, local(2, 2, 1).spatial(1, 1, 4)>"
    dot = f"%a = {a}\n%b = {c}\n%z = math.const {{value = 1.0, type = {acc}}}\n"
    dot = head.format("2 x 2 x 4", f"{dot}%r = tile.pair_dot %z, %a, %b")
    pairs = T[:2].reshape(2, 4, 2)
    sums = 1 + (pairs[:, None] * pairs[None]).sum(-1)
    yield Example("tile.pair_dot", dot.replace("4 x bf16, unit 2", "4 x f32, unit 2"), (T,), sums)
    whole = "%p = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 8)}\n"
    whole += "%q = tile.load %x, %c0, %c0 {dims = [1, 0], layout = local(8, 4)}\n"
    whole += "%z = math.const {value = 1.0, type = reg<4 x 4 x f64, local(4, 4)>}\n"
    whole += "%r = tile.product %z, %p, %q\n" + STORE
    yield _tile("tile.product", whole, T, want=1 + T @ T.T, out="4 x 4")
    scatter = (
        "%p = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 8)}\n"
        "%i = tile.coordinate {dim = 0, layout = local(4, 8)}\n"
        "%j = tile.coordinate {dim = 1, layout = local(4, 8)}\n"
        "%four = math.const {value = 4, type = reg<1 x 1 x i64, local(1, 1)>}\n"
        '%k = math.fma %j, %four, %i\n%all = math.compare %i, %four {relation = "lt"}\n'
        "tile.scatter %p, %o, %c0, %k, %all"
    )
    yield _tile("tile.scatter", scatter, T, want=T.T, out="8 x 4")
    yield from _indexed_examples()
    yield _unpacking()
    turned = "%r = tile.rearrange %a {layout = spatial(4, 2).local(1, 4)}"
    yield _tile("tile.rearrange", f"{turned}\n{STORE}", T, want=T)


def _indexed_examples() -> Iterator[Example]:
    rows = (
        "%i = tile.coordinate {dim = 0, layout = local(4, 1)}\n"
        "%three = math.const {value = 3, type = reg<1 x 1 x i64, local(1, 1)>}\n"
        "%j = math.sub %three, %i\n%c6 = math.add %c4, %c2\n"
        "%r = tile.load_rows %x, %j, %c2, %c6 {layout = local(4, 8)}\n" + STORE
    ).replace("%c2", "%two")
    rows = "%two = math.add %c1, %c1\n" + rows
    want = np.concatenate([T[::-1, 2:6], np.zeros((4, 4))], 1)
    yield _tile("tile.load_rows", rows, T, want=want)
    whole = "%p = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 8)}\n"
    scan = whole + "%r = tile.scan %p {dim = 1}\n" + STORE
    yield _tile("tile.scan", scan, T, want=np.cumsum(T, 1))
    shape = whole + "%r = tile.reshape %p {layout = local(16, 2)}\n" + STORE
    yield _tile("tile.reshape", shape, T, want=T.reshape(16, 2), out="16 x 2")
    alternate = whole + "%r = tile.alternate %p {at = 1}\n" + STORE
    yield _tile("tile.alternate", alternate, T, want=T[:, 1::2], out="4 x 4")


def _index_examples() -> Iterator[Example]:
    number = "%f = math.cast %i {dtype = f64}\n%r = math.add %a, %f\n" + STORE
    index = "%j = SOURCE\n%i = tile.splat %j\n" + number
    yield _tile("tile.splat", index.replace("SOURCE", "math.add %c4, %c4"), T, want=T + 8)
    one = "%k = tile.splat %c4\n" + index.replace("SOURCE", "tile.integer %k")
    yield _tile("tile.integer", one, T, want=T + 4)
    yield _tile("tile.block", index.replace("SOURCE", "tile.block {dim = 0}"), T, want=T)
    yield _tile("tile.size", index.replace("SOURCE", "tile.size {size = size(7)}"), T, want=T + 7)
    yield _tile("tile.stride", index.replace("SOURCE", "tile.stride %x {dim = 0}"), T, want=T + 8)
    less = "tile.less %c1, %c4"
    yield _tile("tile.less", index.replace("SOURCE", less), T, want=T + 1)
    here = "%i = tile.coordinate {dim = 1, layout = local(4, 1).spatial(1, 8)}\n" + number
    yield _tile("tile.coordinate", here, T, want=T + np.arange(8))
    numbers = (
        "tile f(%x: buffer<4 x i32, unit 0>, %o: buffer<1 x i64, unit 0>) "
        "with {grid = [[1, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n%c2 = math.const {value = 2, type = index}\n"
        "%i = tile.read %x, %c2\n%r = tile.splat %i {rank = 1}\n"
        "tile.store %r, %o, %c0 {dims = [-1]}\nreturn }"
    )
    yield Example("tile.read", numbers, (np.array([3, 1, -7, 5]),), np.array([-7]))
    together = (
        "tile f(%x: buffer<3 x 4 x f64, unit 1>, %p: buffer<3 x 4 x f64, unit 1>, "
        "%n: buffer<1 x i32, unit 0>, %o: buffer<1 x 4 x f64, unit 1>) "
        "with {grid = [[3, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n%b = tile.block {dim = 0}\n"
        "%a = tile.load %x, %b, %c0 {dims = [0, 1], layout = local(1, 4)}\n"
        "tile.store %a, %p, %b, %c0 {dims = [0, 1]}\n"
        "%last = tile.last_of %n, %c0 {count = 3}\n"
        "tile.if %c0, %last () {\n"
        "%all = tile.load %p, %c0, %c0 {dims = [0, 1], layout = local(3, 4)}\n"
        '%r = tile.reduce %all {kind = "sum", dim = 0}\n'
        "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}\nyield }\nreturn }"
    )
    rows = np.arange(12.0).reshape(3, 4)
    given = rows, np.full((3, 4), np.nan), np.zeros(1, "i4")
    yield Example("tile.last_of", together, given, rows.sum(0, keepdims=True))


EXAMPLES = list(_examples())
