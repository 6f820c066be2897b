"""Operations on bits and packed codes: their rules, and their meaning against plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.examples import pointwise
from tests.ir.formulas import BITS
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I8, I32, TABLE, U8, DType
from tilewright.ir.errors import EvaluationError, VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_tile import Dot
from tilewright.ir.packing import ORDERS, Packing
from tilewright.ir.parser import parse
from tilewright.ir.types import RegisterType

INTEGERS = [TABLE[name] for name in ("i64", "i32", "i16", "i8", "u8")]


def numbers(dtype: DType) -> list[int]:
    facts = np.iinfo(dtype.host)
    negative = [-2, -1] if facts.min else []
    return sorted({facts.min, facts.min + 1, *negative, 0, 1, 0x55, facts.max})


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", BITS)
def test_functions_of_bits(name: str, dtype: DType) -> None:
    shift = name.startswith("shift")
    rights = range(dtype.bits) if shift else numbers(dtype)
    grid = list(itertools.product(numbers(dtype), rights))
    left, right = (np.array(v, dtype.host) for v in zip(*grid, strict=True))
    (got,) = evaluate(parse(pointwise(name, 2, str(dtype))), left, right)
    want = [BITS[name](a, b, dtype.bits, dtype.kind == "int") for a, b in grid]
    assert got.dtype == dtype.host and got.tolist() == want


@given(seed=st.integers(0, 2**31), lanes=st.sampled_from([1, 4, 16]), rows=st.integers(1, 3))
@settings(max_examples=40)
def test_views_there_and_back(seed: int, lanes: int, rows: int) -> None:
    """Words as bytes, lowest first, in every lane; and back."""
    words_layout = Layout(2).local(rows, 1).spatial(1, lanes)
    bytes_layout = Layout(3).local(rows, 1, 1).spatial(1, lanes, 1).local(1, 1, 4)
    words = np.random.default_rng(seed).integers(-(1 << 31), 1 << 31, (rows, lanes))
    words = words.astype(np.int32)
    there = View(Value(RegisterType(I32, words_layout), "x"), dtype=U8, layout=bytes_layout)
    found = there.reference(words)
    assert found.tolist() == [[[int(w) >> 8 * i & 255 for i in range(4)] for w in r] for r in words]
    back = View(there.result, dtype=I32, layout=words_layout)
    assert np.array_equal(back.reference(found), words)
    number = View(there.x, dtype=F32, layout=words_layout)
    assert number.reference(words).astype("f4").tobytes() == words.view("f4").tobytes() or (
        np.isnan(words.view("f4")).any()
    )


def test_products_of_bytes_wrap_as_32_bits_do() -> None:
    acc = Value(RegisterType(I32, Layout(2).local(1, 2)), "acc")
    a = Value(RegisterType(I8, Layout(3).local(1, 1, 4)), "a")
    b = Value(RegisterType(U8, Layout(3).local(1, 2, 4)), "b")
    dot = Dot(acc, a, b)
    signed = np.array([[[-128, 127, -1, 0]]], np.int8)
    codes = np.array([[[255, 255, 255, 9], [1, 2, 3, 4]]], np.uint8)
    got = dot.reference(np.array([[5, -7]], np.int32), signed, codes)
    assert got.tolist() == [[5 - 510, -7 + -128 + 254 - 3]]
    signed_codes = Value(RegisterType(I8, Layout(3).local(1, 2, 4)), "b")
    assert Dot(acc, a, signed_codes).result.type == acc.type
    floats = Value(RegisterType(F32, Layout(3).local(1, 2, 4)), "b")
    with pytest.raises(VerifyError, match="i8 and u8"):
        Dot(acc, a, floats)
    with pytest.raises(VerifyError, match="i8 and u8"):
        Dot(Value(RegisterType(F32, Layout(2).local(1, 2)), "acc"), a, b)


STORED = [d for d in TABLE.values() if d.bits <= 8 and d.name not in ("bool", "e8m0")]


@given(
    dtype=st.sampled_from(STORED),
    order=st.sampled_from(ORDERS),
    lanes=st.sampled_from([1, 4]),
    group=st.integers(1, 40),
    shape=st.tuples(st.integers(0, 2), st.integers(0, 40)),
    extra=st.sampled_from(["", "zeros", "sums"]),
    scale=st.sampled_from(["f32", "e8m0", "f8e4m3"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_packed_codes_mean_what_they_say(
    dtype: DType,
    order: str,
    lanes: int,
    group: int,
    shape: tuple[int, int],
    extra: str,
    scale: str,
    seed: int,
) -> None:
    """(decode(code) - zero) * scale, one number at a time."""
    packing = getattr(Packing, order)(dtype.bits, lanes, group)
    rng, (blocks, k) = np.random.default_rng(seed), shape
    n, groups = blocks * lanes, packing.groups(k)
    columns = packing.chunks(k) * packing.words * lanes
    codes = rng.integers(0, 1 << dtype.bits, (n, k)).astype(np.uint8)
    scales = rng.standard_normal((n, groups)).astype("f4")
    if scale != "f32":
        scales = rng.integers(0, 256, (n, groups)).astype(np.uint8)
    zeros = rng.integers(0, 9, (n, groups)).astype(np.int32)
    more = [zeros] if extra else []
    kind = "i32" if extra == "sums" else "u8"
    more = [z.astype(kind.replace("i32", "i4").replace("u8", "u1")) for z in more]
    third = f", %z: tensor<{blocks} x {groups * lanes} x {kind}>" if extra else ""
    text = (
        f"graph f(%w: tensor<{blocks} x {columns} x i32>, "
        f"%s: tensor<{blocks} x {groups * lanes} x {'f32' if scale == 'f32' else 'u8'}>{third}) "
        f'{{ %r = tensor.dequantize %w, %s{", %z" if extra else ""} {{packing = "{packing}", '
        f'dtype = {dtype}, length = size({k}), zero = 2, extra = "{extra}", scale = {scale}}} '
        "return %r }"
    )
    module = parse(text)
    assert parse(str(module)) == module
    beside = [packing.pack_groups(a).reshape(blocks, groups * lanes) for a in (scales, *more)]
    (got,) = evaluate(
        module, packing.pack(codes).reshape(blocks, columns), *beside, precision="f64"
    )
    assert got.shape == (n, k)
    worth = np.arange(1 << dtype.bits) if dtype.is_int else dtype.decode(np.arange(1 << dtype.bits))
    factor = scales if scale == "f32" else TABLE[scale].decode(scales)
    for row, column in itertools.product(range(n), range(k)):
        at = row, column // group
        zero = int(zeros[at]) if extra == "zeros" else 2
        want = (float(worth[codes[row, column]]) - zero) * float(factor[at])
        assert got[row, column] == want or (np.isnan(want) and np.isnan(got[row, column]))


# ---- rules

DEQUANTIZE = (
    "graph f<B, S, G>(%w: tensor<B x S x i32>, %s: tensor<B x G x f32>, %u: tensor<B x G x u8>, "
    "%i: tensor<B x G x i32>, %c: tensor<G x B x f32>, %h: tensor<2 x 8 x i32>, "
    "%m: tensor<B x G x bool>, %t: tensor<2 x 2 x 4 x f32>) {\n%r = tensor.dequantize OPERANDS "
    '{packing = "PACKING", dtype = DTYPE, length = size(LENGTH)MORE}\nreturn %r }'
)
GOOD = {"OPERANDS": "%w, %s", "PACKING": "quads(4) lanes 4 group 8", "DTYPE": "u4"}
GOOD |= {"LENGTH": "16", "MORE": ""}
BROKEN = [
    ({"PACKING": "quads(3) lanes 4 group 8"}, "no packing"),
    ({"PACKING": "quads(4) lanes 0 group 8"}, "no packing"),
    ({"PACKING": "quads(,) lanes 4 group 8"}, "no packing"),
    ({"PACKING": ""}, "no packing"),
    ({"PACKING": "heaps(4) lanes 4 group 8"}, "no order 'heaps'"),
    ({"PACKING": "quads(4) lanes 99999999999999999999 group 8"}, "no packing"),
    ({"DTYPE": "f4e2m1", "PACKING": "quads(8) lanes 4 group 8"}, "codes of 8 bits are no f4e2m1"),
    ({"DTYPE": "u3"}, "codes of 4 bits are no u3"),
    ({"DTYPE": "f32"}, "codes of 4 bits are no f32"),
    ({"DTYPE": "i64"}, "codes of 4 bits are no i64"),
    ({"DTYPE": "bool", "PACKING": "quads(8) lanes 4 group 8"}, "codes of 8 bits are no bool"),
    ({"OPERANDS": "%s, %s"}, "words are i32"),
    ({"OPERANDS": "%w, %c"}, "blocks"),
    ({"OPERANDS": "%h, %t"}, "blocks"),
    ({"OPERANDS": "%h, %s"}, "blocks"),
    ({"OPERANDS": "%w, %u"}, "scales are floats"),
    ({"OPERANDS": "%w, %s, %u"}, "needs 2 operands"),
    ({"MORE": ', extra = "zeros"'}, "needs 3 operands"),
    ({"MORE": ', extra = "both"'}, "extra is"),
    ({"OPERANDS": "%w, %s, %m", "MORE": ', extra = "zeros"'}, "zeros are numbers"),
    ({"OPERANDS": "%w, %s, %u", "MORE": ', extra = "sums"'}, "sums are i32"),
    ({"MORE": ", scale = e8m0"}, "scales in e8m0 are u8"),
    ({"OPERANDS": "%w, %u", "MORE": ", scale = f4e2m1"}, "scale is f32, e8m0 or f8e4m3"),
    ({"OPERANDS": "%h, %h", "LENGTH": "24"}, "scales are floats"),
]


@pytest.mark.parametrize(("change", "rule"), BROKEN, ids=[str(b[0]) for b in BROKEN])
def test_a_broken_rule_is_named(change: dict[str, str], rule: str) -> None:
    text = DEQUANTIZE
    for key, value in {**GOOD, **change}.items():
        text = text.replace(key, value)
    with pytest.raises(VerifyError, match=rule) as caught:
        parse(text)
    assert caught.value.message.startswith("tensor.dequantize(")


WIDTHS = [
    (16, 8, 8, True),
    (16, 16, 8, False),
    (16, 8, 12, False),
    (24, 12, 12, True),
    (0, 0, 0, True),
]


@pytest.mark.parametrize(("length", "words", "groups", "fits"), WIDTHS)
def test_known_widths_must_fit(length: int, words: int, groups: int, fits: bool) -> None:
    """Memory beyond what codes need would not be read; less would be read beyond its end."""
    text = (
        f"graph f(%w: tensor<2 x {words} x i32>, %s: tensor<2 x {groups} x f32>) "
        '{ %r = tensor.dequantize %w, %s {packing = "quads(4) lanes 4 group 8", dtype = u4, '
        f"length = size({length})}} return %r }}"
    )
    if fits:
        assert str(parse(text).main.results[0].type) == f"tensor<8 x {length} x f32>"
        return
    with pytest.raises(VerifyError, match=f"{length} codes need \\d+ columns"):
        parse(text)


def test_widths_that_turn_out_wrong_are_reported() -> None:
    text = DEQUANTIZE
    for key, value in GOOD.items():
        text = text.replace(key, value)
    others = [np.zeros((2, 8), "u1"), np.zeros((2, 8), "i4"), np.zeros((8, 2), "f4")]
    others += [np.zeros((2, 8), "i4"), np.zeros((2, 8), bool), np.zeros((2, 2, 4), "f4")]
    with pytest.raises(EvaluationError, match=r"tensor\.dequantize"):
        evaluate(parse(text), np.zeros((2, 5), "i4"), np.zeros((2, 8), "f4"), *others)


STREAM = (
    "stream f<B, S, G>(%w: tensor<B x S x i32>, %s: tensor<B x G x f32>) {{\n"
    '%r = stream.dequantize %w, %s {{packing = "quads(4) lanes 4 group 8", dtype = u4, '
    "dims = {dims}, type = {type}}}\nreturn }}"
)
BROKEN_STREAMS = [
    ('[["n"]]', "stream<n=4*B; k=16 x f32>", "dims are"),
    ('[["n"], ["k"], []]', "stream<n=4*B; k=16 x f32>", "dims are"),
    ('[["x"], ["k"]]', "stream<n=4*B; k=16 x f32>", "dims are"),
    ('[["n", "k"], []]', "stream<n=4*B; k=16 x f32>", "dims are"),
    ('[["n"], []]', "stream<n=4*B; k=16 x f32>", "element"),
    ('[["n"], ["k"]]', "stream<n=4*B; k=16 x f16>", "values are f32"),
    ('[["n"], ["k"]]', "stream<n=B; k=16 x f32>", "there are 4\\*B rows"),
    ('[[], ["k"]]', "stream<n=4*B; k=16 x f32>", "there are 4\\*B rows"),
    ('[["n"], ["k"]]', "tensor<4 x 16 x f32>", "must be a stream"),
]


@pytest.mark.parametrize(
    ("dims", "type_", "rule"), BROKEN_STREAMS, ids=[b[0] for b in BROKEN_STREAMS]
)
def test_a_broken_rule_of_streams_is_named(dims: str, type_: str, rule: str) -> None:
    with pytest.raises(VerifyError, match=rule) as caught:
        parse(STREAM.format(dims=dims, type=type_))
    assert caught.value.message.startswith("stream.dequantize(")


TILES = "tile f(%r: reg<1 x 4 x i32, spatial(1, 4)>, %f: reg<1 x 4 x f32, spatial(1, 4)>) {\n"
BROKEN_TILES = [
    ("tile.view %r {dtype = f32, layout = local(1, 4)}", "keeps the lanes"),
    (
        "tile.view %r {dtype = f64, layout = spatial(1, 4)}",
        r"bits of a lane \(32, not 64\)",
    ),
    ("tile.view %r {dtype = u8, layout = spatial(1, 4)}", "keeps the bits"),
    ("tile.lookup %f {values = [1.0, 2.0]}", "indices are i32"),
    ("tile.lookup %r {values = []}", "power of two"),
    ("tile.lookup %r {values = [1.0, 2.0, 3.0]}", "power of two"),
    ("tile.lookup_bytes %f {values = [1]}", "words of i32"),
    ("tile.lookup_bytes %r {values = []}", "at most 64"),
    (f"tile.lookup_bytes %r {{values = {[0] * 65}}}", "at most 64"),
    ("tile.lookup_bytes %r {values = [256]}", "unsigned bytes"),
    ("tile.lookup_bytes %r {values = [-1]}", "unsigned bytes"),
    ("math.bit_and %f, %f", "must be int"),
    ("math.shift_left %r, %f", "one dtype"),
]


@pytest.mark.parametrize(("line", "rule"), BROKEN_TILES, ids=[b[0][:50] for b in BROKEN_TILES])
def test_a_broken_rule_of_tiles_is_named(line: str, rule: str) -> None:
    with pytest.raises(VerifyError, match=rule) as caught:
        parse(f"{TILES}%x = {line}\nreturn }}")
    assert caught.value.message.startswith(f"{line.split(maxsplit=1)[0]}(")
