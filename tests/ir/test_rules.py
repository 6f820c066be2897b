"""Rules of operations: what breaks one is refused, by the name of the operation and of the rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ir.examples import LAYOUT
from tilewright.ir.core import REGISTRY, Value
from tilewright.ir.dtypes import BF16, F16, I64
from tilewright.ir.errors import VerifyError
from tilewright.ir.parser import parse
from tilewright.ir.types import Size, TensorType

N, M = Size.of("N"), Size.of("M")
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
    (R, "%q = tile.take %r {at = 4}", "tile.take", "there are 4 rows"),
    (R, "%q = tile.take %s {at = 0}", "tile.take", "local and outermost"),
    (R, "%q = tile.transpose %r", "tile.transpose", "layout must be"),
    (R, "%q = tile.reduce_to_lanes %r", "tile.reduce_to_lanes", "lanes"),
    (R, "%q = tile.pack_pairs %r {dtype = f32}", "tile.pack_pairs", "16-bit"),
    (R, "%q = tile.pack_pairs %s {dtype = bf16}", "tile.pack_pairs", "local, outermost"),
    (R, "%q = tile.split_pairs %h", "tile.split_pairs", "layout must be"),
    (R, "%q = tile.pair_dot %r, %r, %r", "tile.pair_dot", "16-bit"),
    (R, "%q = tile.pair_dot %r, %h, %h", "tile.pair_dot", "innermost registers"),
    (
        R,
        "%v = tile.view %r {dtype = f16, layout = local(4, 1).spatial(1, 8).local(1, 2)}\n"
        "%q = tile.pair_dot %s, %v, %v",
        "tile.pair_dot",
        "lanes of their sums",
    ),
    (R, "%q = tile.rearrange %r {layout = local(1, 4)}", "tile.rearrange", "must be of"),
    (R, "%q = tile.rearrange %r {layout = local(4, 8)}", "tile.rearrange", "lanes"),
    (R, "%q = math.add %r, %s", "math.add", "layouts"),
    (R, "tile.for %i, %i {step = 0} (%j: index) { yield }", "tile.for", "positive"),
    (R, "tile.for %i, %i {step = 1} () { yield }", "tile.for", "region parameters"),
    (
        R,
        "%q = tile.for %i, %i, %i {step = 1} (%j: index, %k: index) { yield %r }",
        "tile.for",
        "match inits",
    ),
    (R, "tile.while %i", "tile.while", "needs one region"),
    (R, "tile.while %i (%j: index) { yield %j, %j }", "tile.while", "region parameters"),
    (R, "tile.while %i () { yield }", "tile.while", "the next go"),
    (R, "%q = tile.while %i, %i (%j: index) { yield %j, %r }", "tile.while", "match inits"),
    (R, "tile.if %i, %i", "tile.if", "needs one region"),
    (R, "tile.if %i, %i () { yield %i }", "tile.if", "needs one region"),
]


@pytest.mark.parametrize(("head", "line", "op", "rule"), BROKEN, ids=[b[1][:60] for b in BROKEN])
def test_a_broken_rule_is_named(head: str, line: str, op: str, rule: str) -> None:
    opening = "" if "{" in head else " {"
    with pytest.raises(VerifyError, match=rule) as caught:
        parse(f"{head}{opening}\n{line}\nreturn }}")
    assert caught.value.message.startswith(f"{op}(")
    assert caught.value.location is not None
    assert caught.value.location.line == 2 + line.count("\n")


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
    (G, "%r = math.sub %b, %b"),
    (S, '%r = stream.index {axis = "n", type = stream<n=N; f32>}'),
    (S, '%r = stream.sink %a {dims = [["n"], ["m"]], type = tensor<N x M x f16>}'),
    (S, '%r = stream.sink %a {dims = [["n"], ["m"]], type = tensor<M x N x f32>}'),
    (S, '%r = stream.source %x {dims = [["n"], ["m"]], type = stream<n=M, m=N; f32>}'),
]


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
