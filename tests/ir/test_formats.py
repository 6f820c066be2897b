"""Codes of up to 8 bits: every code of every dtype, against ml_dtypes and exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.dtypes import TABLE, DType, table_dtype
from tilewright.ir.errors import ParseError, SettingError, UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.types import ScratchType

CODED = [d for d in TABLE.values() if d.bits <= 8 and d.name != "bool"]
FLOATS = [d for d in CODED if d.is_float and d.name != "e8m0"]
PEERS = {
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f4e2m1": "float4_e2m1fn",
    "f6e2m3": "float6_e2m3fn",
    "f6e3m2": "float6_e3m2fn",
    "e8m0": "float8_e8m0fnu",
    "i4": "int4",
    "u4": "uint4",
    "i2": "int2",
    "u2": "uint2",
}


def all_codes(dtype: DType) -> np.ndarray:
    return np.arange(1 << dtype.bits, dtype=np.uint8)


def peer_values(dtype: DType) -> np.ndarray:
    """What ml_dtypes says all stored codes stand for."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = all_codes(dtype)
    if dtype.kind == "int":  # stored biased, ml_dtypes has two's complement
        codes = codes ^ (1 << dtype.bits - 1)
    return codes.view(getattr(ml_dtypes, PEERS[dtype.name])).astype(np.float64)


def is_even(dtype: DType, code: int) -> bool:
    """Which of two neighbouring codes a tie goes to, from the definitions."""
    if dtype.is_float and not dtype.mantissa:
        raise AssertionError("decided by size")
    return (dtype.decode(code) if dtype.is_int else code) % 2 == 0


def nearest(dtype: DType, x: float) -> float:
    """The value that x rounds to, by trying all codes in exact arithmetic."""
    values = [(float(dtype.decode(c)), int(c)) for c in all_codes(dtype)]
    values = [(v, c) for v, c in values if math.isfinite(v)]
    exact = Fraction(x)
    least = min(abs(Fraction(v) - exact) for v, _ in values)
    best = [(v, c) for v, c in values if abs(Fraction(v) - exact) == least]
    if len({v for v, _ in best}) == 1:  # 0 and -0 are the same distance away
        return best[0][0]
    if dtype.is_float and not dtype.mantissa:
        sizes = sorted((abs(v), v) for v, _ in best)
        return sizes[0][1] if sizes[0][0] == 0 else sizes[-1][1]
    even = [v for v, c in best if is_even(dtype, c)]
    assert len(set(even)) == 1, (dtype, x, best)
    return even[0]


def interesting(dtype: DType) -> np.ndarray:
    """All values, what lies half-way between neighbours, the doubles next to these, far ones."""
    values = dtype.decode(all_codes(dtype)).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    middle = values[:-1] + (values[1:] - values[:-1]) / 2
    near = np.concatenate([values, middle])
    far = [1e300, 3e38, 2 * values.max() + 1, 1e-300, 5e-324]
    out = [near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), far, -np.array(far)]
    return np.concatenate(out)


def test_the_table_has_every_width_and_every_split() -> None:
    wanted = {f"u{n}" for n in range(1, 9)} | {f"i{n}" for n in range(2, 9)} | {"nf4", "e8m0"}
    wanted |= {f"f{k}e{x}m{k - 1 - x}" for k in range(3, 9) for x in range(1, k)}
    own = {d.name for d in CODED if not d.name.startswith("test_")}  # of files collected before
    assert wanted == own


@pytest.mark.parametrize("dtype", CODED, ids=str)
def test_decode_then_encode_gives_every_code_back(dtype: DType) -> None:
    codes = all_codes(dtype)
    values = dtype.decode(codes)
    assert values.dtype == np.float32
    back = dtype.encode(values)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(back[numbers], codes[numbers])
    assert np.isnan(dtype.decode(back[~numbers])).all()


@pytest.mark.parametrize("name", PEERS)
def test_every_code_means_what_ml_dtypes_says(name: str) -> None:
    dtype = TABLE[name]
    np.testing.assert_array_equal(dtype.decode(all_codes(dtype)), peer_values(dtype))


@pytest.mark.parametrize("name", [n for n in PEERS if TABLE[n].is_float])
def test_rounding_agrees_with_ml_dtypes_within_the_range(name: str) -> None:
    """Beyond it, ml_dtypes gives NaN or infinity where this saturates; and it rounds doubles to f32
    first, so only those that are f32 can be compared."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = TABLE[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20000) * 2.0 ** rng.integers(-16, 10, 20000)
    with np.errstate(over="ignore"):
        x = np.concatenate([x, interesting(dtype)]).astype(np.float32)
    x = np.abs(x[x != 0]) if name == "e8m0" else x
    x = x[(np.abs(x) <= dtype.largest) & (np.abs(x) >= 2.0**-126)]
    theirs = x.astype(getattr(ml_dtypes, PEERS[name])).view(np.uint8)
    np.testing.assert_array_equal(dtype.encode(x), theirs)


@pytest.mark.parametrize("dtype", [d for d in CODED if d.name != "e8m0"], ids=str)
def test_encoding_is_nearest_even_in_exact_arithmetic(dtype: DType) -> None:
    rng = np.random.default_rng(dtype.bits)
    drawn = rng.standard_normal(40) * dtype.largest * 10.0 ** rng.integers(-3, 1, 40)
    x = np.concatenate([interesting(dtype), drawn])
    x = x if len(x) < 400 else rng.permutation(x)[:400]
    got = dtype.decode(dtype.encode(x))
    for number, value in zip(x, got, strict=True):
        assert float(value) == nearest(dtype, float(number)), number
    np.testing.assert_array_equal(dtype.encode(x.astype(np.float64)), dtype.encode(x))


def test_powers_of_two_round_up_at_ties_and_have_no_zero() -> None:
    e8m0 = TABLE["e8m0"]
    x = [1.5, np.nextafter(1.5, 0), 3.0, 0.0, -0.0, 1e-300, 1e300, np.inf, -1e-300, -2.0, np.nan]
    np.testing.assert_array_equal(e8m0.encode(x), [128, 127, 129, 0, 0, 0, 254, 254, 255, 255, 255])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signs_infinities_and_nan_of_floats(dtype: DType) -> None:
    sign = 1 << dtype.bits - 1
    assert list(dtype.encode([0.0, -0.0, 5e-324, -5e-324])) == [0, sign, 0, sign]
    most = np.inf if dtype.name == "f8e5m2" else dtype.largest
    assert list(dtype.decode(dtype.encode([np.inf, -np.inf]))) == [most, -most]
    assert list(dtype.decode(dtype.encode([1e300, -1e300]))) == [dtype.largest, -dtype.largest]
    lost = dtype.decode(dtype.encode(np.nan))
    assert np.isnan(lost) if dtype.special else lost == 0


def test_whole_numbers_beyond_doubles_saturate() -> None:
    assert TABLE["u8"].encode(np.int64(2**62 + 1)) == 255
    assert TABLE["i3"].encode(-(2**62)) == 0


@pytest.mark.parametrize("name", ["f16", "bool", "i32"])
def test_wide_types_have_no_codes(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        TABLE[name].encode(1.0)


@pytest.mark.parametrize("dtype", [d for d in CODED if not d.is_int], ids=str)
def test_round_is_decode_of_encode(dtype: DType) -> None:
    x = interesting(dtype)
    np.testing.assert_array_equal(dtype.round(x), dtype.decode(dtype.encode(x)))


@given(st.integers(-(2**40), 2**40), st.sampled_from([d for d in CODED if d.is_int and d.bits < 8]))
def test_whole_numbers_wrap_in_programs(value: int, dtype: DType) -> None:
    got = int(dtype.round(value))
    assert dtype.holds(got) and (got - value) % (1 << dtype.bits) == 0


@pytest.mark.parametrize("dtype", CODED, ids=str)
def test_programs_of_every_dtype_parse_print_and_run(dtype: DType) -> None:
    text = f"graph g(%x: tensor<4 x {dtype}>, %s: tensor<N x 3 x {dtype}>) {{ return %x, %s }}"
    module = parse(text.replace("graph g", "graph g<N>"))
    assert f"tensor<4 x {dtype}>" in str(module)
    values = dtype.decode(all_codes(dtype)[:4] if dtype.bits > 1 else np.array([0, 1, 1, 0]))
    x, _ = evaluate(module, values, np.zeros((2, 3)))
    assert x.dtype == np.dtype(dtype.host)
    np.testing.assert_array_equal(x, values)


def test_scratch_of_small_elements_takes_whole_bytes() -> None:
    module = parse("graph g(%x: tensor<5 x u4>) { return %x }")
    shape = module.main.params[0].type.shape  # type: ignore[union-attr]
    assert ScratchType(shape, TABLE["u4"]).bytes == 3


def test_an_unknown_float_is_a_parse_error() -> None:
    with pytest.raises(ParseError, match="f4e2m2"):
        parse("graph g(%x: tensor<4 x f4e2m2>) { return %x }")


def test_a_table_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.ir.dtypes.TABLE", dict(TABLE))
    made = table_dtype("mine", [3.0, -1.0, 0.1, 3.0])
    assert (made.bits, made.kind) == (2, "table")
    # 1.55 lies half-way between codes 2 and 0, up to the rounding of 0.1; 3 has two codes
    assert list(made.encode([10.0, 0.0, -9.0, np.nan, 2.0])) == [0, 2, 1, 2, 0]
    assert table_dtype("mine", [3, -1, 0.1, 3]) is made
    with pytest.raises(SettingError, match="other values"):
        table_dtype("mine", [0.0, 1.0])


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("t", [1.0, 2.0, 3.0], "3 values"),
        ("t", [1.0], "1 values"),
        ("t", [0.0] * 512, "512 values"),
        ("t", [0.0, math.nan], "finite"),
        ("t", [0.0, 1e39], "finite"),
        ("u4", [0.0, 1.0], "other values"),
        ("f 4", [0.0, 1.0], "no name"),
    ],
)
def test_tables_that_are_refused(name: str, values: list[float], match: str) -> None:
    before = dict(TABLE)
    with pytest.raises(SettingError, match=match):
        table_dtype(name, values)
    assert before == TABLE


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_any_table_rounds_to_the_nearest(values: list[float]) -> None:
    dtype = DType("t", "table", 2, "float32", table=tuple(values))
    for x in [*interesting(dtype), 0.3]:
        exact = Fraction(float(x))
        got = abs(Fraction(float(dtype.decode(dtype.encode(x)))) - exact)
        assert got == min(abs(Fraction(float(v)) - exact) for v in values)
