"""Tensor programs as streams: the order of loops, shape changes that vanish, and refusals."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from tests.attention_programs import distances
from tests.passes.stages import run_streams, streamed
from tests.strategies import Program, assert_same
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.types import StreamType

RNG = np.random.default_rng(0)


def check(text: str, *inputs: Any, sizes: dict[str, int] | None = None) -> str:
    """The stream program's text, after comparing it with the tensor program."""
    module = parse(text)
    stream = streamed(module)
    want = evaluate(module, *inputs, precision="f64", sizes=sizes)
    got = evaluate(stream, *inputs, precision="f64", sizes=sizes)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    return str(stream)


ATTENTION = """graph f<H, N, M>(%q: tensor<H x N x 4 x f32>, %k: tensor<H x M x 4 x f32>,
                                %v: tensor<H x M x 3 x f32>) {
  %s = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
  %p = tensor.softmax %s {axis = 2}
  %o = tensor.contract %p, %v {equation = "hnm,hme->hne"}
  return %o
}"""


def qkv(h: int, n: int, m: int) -> list[Any]:
    return [RNG.standard_normal(s) for s in ((h, n, 4), (h, m, 4), (h, m, 3))]


def test_attention_streams_along_the_keys() -> None:
    text = check(ATTENTION, *qkv(2, 3, 5))
    assert "%s = stream.contract" in text and 'axes = ["d"]' in text
    stream = streamed(parse(ATTENTION)).main
    scores = next(op for op in stream.body.ops if op.name == "stream.contract").result.type
    assert isinstance(scores, StreamType)
    assert [a.name for a in scores.loops] == ["h", "n", "m"] and not scores.element


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 1), (1, 1, 1)])
def test_odd_sizes(shape: tuple[int, int, int]) -> None:
    check(ATTENTION, *qkv(*shape))


def test_norms_of_keys_beside_their_scores() -> None:
    """Distances for scores: the norms lack the rows, and are made beforehand."""
    inputs = tuple(x[0] for x in qkv(1, 5, 7))
    program = Program(parse(distances(4, 3)), inputs, {"N": 5, "M": 7})
    stream = streamed(program.module)
    assert [g.name for g in stream.graphs] == ["near_norm_made", "near"]
    assert_same(run_streams(program, stream), program.run(), program.scale)


def test_shape_changes_leave_no_operation() -> None:
    text = check(
        """graph f<N, M>(%x: tensor<N x M x 6 x f32>) {
          %a = tensor.transpose %x {permutation = [2, 0, 1]}
          %b = tensor.reshape %a {shape = [2, 3, size(N*M)]}
          %c = tensor.reshape %b {shape = [2, 1, 3, size(N*M)]}
          %r = math.neg %c
          return %r
        }""",
        RNG.standard_normal((2, 3, 6)),
    )
    assert set(text.split()) & {"stream.source", "stream.sink", "math.neg"}
    assert "reshape" not in text and "transpose" not in text


def test_repeated_keys_are_read_in_place() -> None:
    text = check(
        """graph f<K, G, M>(%q: tensor<(K*G) x 4 x f32>, %k: tensor<K x M x 4 x f32>) {
          %a = tensor.reshape %k {shape = [size(K), 1, size(M), 4]}
          %b = tensor.broadcast %a {shape = [size(K), size(G), size(M), 4]}
          %c = tensor.reshape %b {shape = [size(K*G), size(M), 4]}
          %s = tensor.contract %q, %c {equation = "hd,hmd->hm"}
          return %s
        }""",
        *(RNG.standard_normal((6, 4)), RNG.standard_normal((2, 5, 4))),
    )
    assert text.count("stream.source") == 2


def test_a_tensor_may_be_combined_with_itself_turned() -> None:
    check(
        """graph f<N>(%x: tensor<N x N x f32>) {
          %y = tensor.transpose %x {permutation = [1, 0]}
          %r = math.sub %x, %y
          return %r
        }""",
        RNG.standard_normal((3, 3)),
    )


def test_two_uses_of_an_input_have_their_own_axes() -> None:
    check(
        """graph f<N>(%x: tensor<N x f32>) {
          %s = tensor.contract %x, %x {equation = "n,m->nm"}
          return %s
        }""",
        RNG.standard_normal(4),
    )


def unsupported(text: str, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match) as caught:
        streamed(parse(text, "prog.tw"))
    assert caught.value.location is not None and caught.value.location.line > 0


def test_a_computed_value_and_its_transpose() -> None:
    unsupported(
        "graph f<N>(%x: tensor<N x N x f32>) { %y = math.exp %x "
        "%z = tensor.transpose %y {permutation = [1, 0]}\n%r = math.add %y, %z return %r }",
        "its own transpose",
    )


def test_a_reshape_across_dimensions() -> None:
    unsupported(
        "graph f<N, M>(%x: tensor<(2*N) x (3*M) x f32>) {\n"
        "%y = tensor.reshape %x {shape = [size(3*N), size(2*M)]} %r = math.exp %y return %r }",
        "splits and merges",
    )


REFUSED = {
    "outputs over different axes": "graph f<N, M>(%x: tensor<N x f32>, %y: tensor<M x f32>) { "
    "%a = math.exp %x %b = math.exp %y return %a, %b }",
    "a sum over a widened axis": "graph f<N>(%x: tensor<N x 1 x f32>) { "
    "%w = tensor.broadcast %x {shape = [size(N), 5]} "
    '%r = tensor.reduce %w {kind = "sum", axis = 1} return %r }',
    "a product over a widened axis": "graph f<N>(%x: tensor<N x 1 x f32>, "
    "%y: tensor<N x 5 x f32>) { "
    "%w = tensor.broadcast %x {shape = [size(N), 5]} "
    '%r = tensor.contract %w, %y {equation = "nm,nm->n"} return %r }',
    "a letter of one side only": "graph f<N>(%x: tensor<N x f32>, %y: tensor<N x 5 x f32>) { "
    '%r = tensor.contract %x, %y {equation = "n,nd->n"} return %r }',
    "two sums at once": "graph f<N, M>(%x: tensor<N x f32>, %y: tensor<M x f32>) { "
    '%r = tensor.contract %x, %y {equation = "n,m->"} return %r }',
    "a constant that is reduced": "graph f<N>(%x: tensor<N x 3 x f32>) { "
    "%one = math.const {value = 1.0, type = tensor<f32>} "
    "%c = tensor.broadcast %one {shape = [3]} %p = tensor.softmax %c {axis = 0} "
    "%r = math.add %x, %p return %r }",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_operation(text: str) -> None:
    """What cannot be streamed (if it cannot) is UnsupportedError, so that callers fall back."""
    module = parse(text)
    inputs = [
        RNG.standard_normal([s.constant or 2 for s in p.type.shape]) for p in module.main.params
    ]  # type: ignore[union-attr]
    try:
        stream = streamed(module)
    except UnsupportedError:
        return
    want = evaluate(module, *inputs, precision="f64")
    for a, b in zip(evaluate(stream, *inputs, precision="f64"), want, strict=True):
        np.testing.assert_allclose(a, b)


TWICE = {
    "sum y_a y_b": ("N", 'tensor.contract %y, %y {equation = "a,b->"}', (3,)),
    "sum y_am y_bm": ("N x M", 'tensor.contract %y, %y {equation = "am,bm->m"}', (3, 2)),
    "sum y_a z_b": ("N", 'tensor.contract %y, %z {equation = "a,b->"}', (3,)),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_letters_are_two_axes(name: str) -> None:
    shape, line, extents = TWICE[name]
    text = (
        f"graph f<{', '.join(shape.split(' x '))}>(%x: tensor<{shape} x f32>) {{ "
        f"%y = math.exp %x %z = math.exp %y %r = {line} return %r }}"
    )
    with suppress(UnsupportedError):
        check(text, RNG.standard_normal(extents))


@pytest.mark.xfail(
    strict=True, reason="einsum adds up x first: (0 + 1) * inf, not 0 * inf + 1 * inf"
)
def test_a_letter_of_one_side_sums_products() -> None:
    """The reference is not the sum of products that is promised; the stream form is."""
    check(
        "graph f<N, M>(%x: tensor<N x f32>, %y: tensor<M x f32>) { %a = math.neg %x "
        '%r = tensor.contract %a, %y {equation = "n,m->m"} return %r }',
        *(np.array([0.0, 1.0]), np.array([np.inf])),
    )


def test_iota_counts_axes_from_the_end() -> None:
    check(
        "graph f<N>(%x: tensor<N x f32>) { %i = tensor.iota {axis = -1, type = tensor<N x i64>} "
        "%f = math.cast %i {dtype = f32} %r = math.add %x, %f return %r }",
        RNG.standard_normal(4),
    )


def test_softmax_of_an_input_streams() -> None:
    text = check(
        "graph f<N, M>(%x: tensor<N x M x f32>, %v: tensor<M x 3 x f32>) { "
        "%p = tensor.softmax %x {axis = 1} "
        '%o = tensor.contract %p, %v {equation = "nm,me->ne"} return %o }',
        *(RNG.standard_normal((2, 5)), RNG.standard_normal((5, 3))),
    )
    assert "stream.fold" not in text


@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_integer_extremes(kind: str, axis: int) -> None:
    check(
        f"graph f<N, M>(%x: tensor<N x M x i64>) {{ "
        f'%r = tensor.reduce %x {{kind = "{kind}", axis = {axis}}} return %r }}',
        RNG.integers(-(2**60), 2**60, (3, 4)),
    )
