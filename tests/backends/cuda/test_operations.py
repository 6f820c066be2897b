"""Every operation of the kernels' header on the host, against NumPy: exhaustive where the space is
small. The device header gives the same names; test_product.py compiles it."""

from __future__ import annotations

import shutil
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tilewright.backends.cuda.host import run_on_host

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulation needs g++")

BF16 = ml_dtypes.bfloat16
PATTERNS = np.arange(1 << 16, dtype=np.uint16)


def run(
    parameters: str, body: str, *arguments: Any, threads: int = 32, shared: int = 0, grid: int = 1
) -> None:
    """One kernel of a body, with ``tw_shared``, ``t`` (the thread) and ``g`` (of the grid)."""
    text = (
        f'#include "tilewright_kernel.h"\nTW_KERNEL(k, {threads}, 1)({parameters}) {{\n'
        f"TW_SHARED({shared}); const int t = tw::thread(), g = tw::block() * {threads} + t;\n"
        f"{body}\n}}\n"
    )
    run_on_host(text, "k", grid, arguments, threads, shared)


def words(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint32)


def same_floats(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the payload of NaN."""
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    kind = np.uint32 if found.dtype == np.float32 else np.uint16
    np.testing.assert_array_equal(found.view(kind)[~nan], expected.view(kind)[~nan])


# ---- floats of 16 bits --------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "dtype"), [("bf16", BF16), ("f16", np.float16)])
def test_16_bits_to_f32_for_every_pattern(name: str, dtype: Any) -> None:
    out = np.zeros(1 << 16, np.float32)
    run(
        f"const tw::{name}* x, float* y",
        "for (int i = t; i < 65536; i += 1024) y[i] = tw::to_float(tw::global_load(x + i));",
        PATTERNS.view(dtype),
        out,
        threads=1024,
    )
    same_floats(out, PATTERNS.view(dtype).astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", BF16), ("f16", np.float16)])
def test_f32_to_16_bits_around_every_tie(name: str, dtype: Any) -> None:
    bases = [PATTERNS.astype(np.uint32) << 16]
    # Every f16 and the middle to its neighbour, and a bit to either side of both.
    half = PATTERNS.view(np.float16).astype(np.float32).view(np.uint32)
    bases += [half, half + 0x1000]
    x = np.concatenate([b + np.uint32(d) for b in bases for d in (0, 1, 0x7FFF, 0x8000, 0x8001)])
    x = np.concatenate([x, bases[1] - 1, bases[2] - 1]).view(np.float32)
    out, packed = np.zeros(x.size, dtype), np.zeros(x.size, np.uint32)
    run(
        f"const float* x, tw::{name}* y, uint32_t* p, int n",
        f"for (int i = t; i < n; i += 1024) {{ y[i] = tw::to_{name}(x[i]);"
        f" p[i] = tw::pack_{name}(x[i], -x[i]); }}",
        x,
        out,
        packed,
        x.size,
        threads=1024,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        same_floats(out, x.astype(dtype))
        pairs = packed.view(np.uint16).reshape(-1, 2)
        same_floats(pairs[:, 0].copy().view(dtype), x.astype(dtype))
        same_floats(pairs[:, 1].copy().view(dtype), (-x).astype(dtype))


def test_tf32_keeps_ten_bits_and_rounds_ties_away() -> None:
    x = np.array([1.0, 1 + 2**-11, 1 + 2**-11 - 2**-20, -(1 + 2**-11), 3e38, np.inf], np.float32)
    out = np.zeros(x.size, np.uint32)
    run("const float* x, uint32_t* y", "if (t < 6) y[t] = tw::to_tf32(x[t]);", x, out)
    expected = np.array([1, 1 + 2**-10, 1, -(1 + 2**-10), 3e38, np.inf], np.float32)
    np.testing.assert_allclose(out.view(np.float32), expected, rtol=2.0**-11)
    np.testing.assert_array_equal(out.view(np.float32)[:4], expected[:4])


def rounded(value: Fraction, bits: int, least: int) -> float:
    """To ``bits`` of mantissa, ties to even; ``least``: the exponent of the smallest subnormal."""
    if value == 0:
        return 0.0
    exponent = max(abs(value).numerator.bit_length() - abs(value).denominator.bit_length(), -1100)
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - bits + 1, least)
    return float(round(value / unit) * unit)


@pytest.mark.parametrize(
    ("name", "dtype", "bits", "least"), [("bf16", BF16, 8, -133), ("f16", np.float16, 11, -24)]
)
def test_packed_arithmetic_rounds_once(name: str, dtype: Any, bits: int, least: int) -> None:
    rng = np.random.default_rng(0)
    scale = np.exp2(rng.integers(-12, 3, (3, 2000)))
    a, b, c = (rng.standard_normal((3, 2000)) * scale).astype(np.float32).astype(dtype)
    # Products that are ties, decided by an addend far below them.
    tiny = 2.0 ** max(least, -70)
    tie = np.array([1 + 2.0 ** (1 - bits)], np.float32).astype(dtype)
    a[:3], b[:3], c[:3] = tie, dtype(1.5), [tiny, -tiny, 0]
    out = np.zeros((4, 1000), np.uint32)
    calls = ("hfma2_{0}(a[i], b[i], c[i])", "hmul2_{0}(a[i], b[i])", "hadd2_{0}(a[i], b[i])")
    calls += ("hsub2_{0}(a[i], b[i])",)
    body = "".join(f"y[{n}000 + i] = tw::{call.format(name)};" for n, call in enumerate(calls))
    run(
        "const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* y",
        f"for (int i = t; i < 1000; i += 32) {{ {body.replace('y[0000', 'y[0')} }}",
        words(a),
        words(b),
        words(c),
        out,
    )
    x, y, z = ([Fraction(float(v)) for v in values] for values in (a, b, c))
    exact = (
        [p * q + r for p, q, r in zip(x, y, z, strict=True)],
        [p * q for p, q in zip(x, y, strict=True)],
        [p + q for p, q in zip(x, y, strict=True)],
        [p - q for p, q in zip(x, y, strict=True)],
    )
    for row, values in zip(out, exact, strict=True):
        expected = np.array([rounded(v, bits, least) for v in values])
        np.testing.assert_array_equal(row.view(dtype).astype(np.float64), expected)


# ---- bits ---------------------------------------------------------------------------------------
def test_every_lop3_table() -> None:
    out = np.zeros((8, 256), np.uint32)
    run(
        "uint32_t* y",
        "[&]<int... I>(std::integer_sequence<int, I...>) {"
        "((y[t * 256 + I] = tw::lop3<I>(t & 4 ? ~0u : 0, t & 2 ? ~0u : 0, t & 1 ? ~0u : 0)), ...);"
        "}(std::make_integer_sequence<int, 256>());".replace("[&]", "if (t < 8) [&]"),
        out,
    )
    for i in range(8):
        bit = np.arange(256) >> i & 1
        np.testing.assert_array_equal(out[i], np.where(bit, 0xFFFFFFFF, 0))


def test_every_prmt_selector() -> None:
    a, b = 0x83020100, 0x07868504
    out = np.zeros(1 << 16, np.uint32)
    run(
        "uint32_t a, uint32_t b, uint32_t* y",
        "for (int i = t; i < 65536; i += 1024) y[i] = tw::prmt(a, b, i);",
        a,
        b,
        out,
        threads=1024,
    )
    source = np.array([a, b], np.uint32).view(np.uint8)
    expected = np.zeros((1 << 16, 4), np.uint8)
    for byte in range(4):
        nibble = PATTERNS >> 4 * byte & 15
        value = source[nibble & 7]
        expected[:, byte] = np.where(nibble & 8, np.where(value & 128, 255, 0), value)
    np.testing.assert_array_equal(out, expected.reshape(-1).view(np.uint32))


def test_funnel_shifts_wrap_at_32() -> None:
    low, high = 0x89ABCDEF, 0x01234567
    out = np.zeros(64, np.uint32)
    run(
        "uint32_t low, uint32_t high, uint32_t* y",
        "y[t] = tw::funnel_shift_right(low, high, t);",
        low,
        high,
        out,
        threads=64,
    )
    whole = high << 32 | low
    np.testing.assert_array_equal(out, [whole >> n % 32 & 0xFFFFFFFF for n in range(64)])


def test_approximate_functions() -> None:
    x = np.linspace(-20, 20, 1024, dtype=np.float32)
    out = np.zeros((5, 1024), np.float32)
    run(
        "const float* x, float* y",
        "y[t] = tw::exp2(x[t]); y[1024 + t] = tw::tanh(x[t]); y[2048 + t] = tw::rcp(x[t]);"
        "y[3072 + t] = tw::log2(x[t] * x[t]); y[4096 + t] = tw::rsqrt(x[t] * x[t]);",
        x,
        out,
        threads=1024,
    )
    square = x * x
    expected = [np.exp2(x), np.tanh(x), 1 / x, np.log2(square), 1 / np.sqrt(square)]
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


# ---- a warp together ----------------------------------------------------------------------------
def test_shuffles_and_votes() -> None:
    out = np.zeros((3, 32, 64), np.int32)
    run(
        "int* y",
        "for (int m = 0; m < 32; ++m) {"
        " y[m * 64 + t] = tw::shuffle_xor(3 * t, m);"
        " y[2048 + m * 64 + t] = (int)tw::shuffle(2.0f * t, (m + t * t) % 32);"
        " y[4096 + m * 64 + t] = (int)tw::ballot(t % (m + 1) == 0); }",
        out,
        threads=64,
    )
    thread = np.arange(64)
    for m in range(32):
        np.testing.assert_array_equal(out[0, m], 3 * (thread ^ m))
        np.testing.assert_array_equal(out[1, m], 2 * (thread // 32 * 32 + (m + thread**2) % 32))
        votes = [sum(1 << i for i in range(32) if (w * 32 + i) % (m + 1) == 0) for w in (0, 1)]
        np.testing.assert_array_equal(out[2, m].view(np.uint32), np.repeat(votes, 32))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("form", ["", "_trans"])
def test_ldmatrix(count: int, form: str) -> None:
    """Thread 4·r + c / 2 gets elements (r, c) and (r, c + 1); transposed, (c, r) and (c + 1, r)."""
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    out = np.zeros((32, count), np.uint32)
    run(
        "const uint16_t* x, uint32_t* y",
        f"for (int i = t; i < {count * 8}; i += 32)"
        " tw::shared_store_vec<16>(tw_shared + 48 * i, tw::global_load_vec<16>(x + 8 * i));\n"
        "tw::warp_barrier();\n"
        f"uint32_t r[{count}];\n"
        f"tw::ldmatrix_x{count}{form}(r, tw_shared + 48 * (t % {count * 8}));\n"
        f"for (int i = 0; i < {count}; ++i) y[{count} * t + i] = r[i];",
        matrices,
        out,
        shared=48 * 8 * count,
    )
    expected = matrices.transpose(0, 2, 1) if form else matrices
    pairs = np.ascontiguousarray(expected).view(np.uint32).reshape(count, 32)
    np.testing.assert_array_equal(out, pairs.T)


@pytest.mark.parametrize("form", ["", "_trans"])
def test_stmatrix(form: str) -> None:
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    held = matrices.transpose(0, 2, 1) if form else matrices
    out = np.zeros((4, 8, 8), np.uint16)
    run(
        "const uint32_t* x, uint16_t* y",
        "uint32_t r[4] = {x[t], x[32 + t], x[64 + t], x[96 + t]};\n"
        f"tw::stmatrix_x4{form}(tw_shared + 16 * t, r);\n"
        "tw::global_store_vec<16>(y + 8 * t, tw::shared_load_vec<16>(tw_shared + 16 * t));",
        np.ascontiguousarray(held).view(np.uint32).reshape(4, 32),
        out,
        shared=512,
    )
    np.testing.assert_array_equal(out, matrices)


def fragment(matrix: np.ndarray, packed: int) -> np.ndarray:
    """[32, registers, packed] of a row-major [rows, k] operand, as the PTX manual draws it: lane
    4·g + p holds k = packed·p … of row g; then row g + 8 (A only); then both 4·packed of k on."""
    rows, depth = matrix.shape
    out = np.zeros((32, rows // 8 * (depth // (4 * packed)), packed), matrix.dtype)
    for lane in range(32):
        g, p = lane // 4, lane % 4
        for register in range(out.shape[1]):
            row = g + 8 * (register % (rows // 8))
            k = 4 * packed * (register // (rows // 8)) + packed * p
            out[lane, register] = matrix[row, k : k + packed]
    return out


def results(d: np.ndarray) -> np.ndarray:
    """[16, 8] of [32, 4]."""
    lane, register = np.divmod(np.arange(128), 4)
    out = np.zeros((16, 8), d.dtype)
    out[lane // 4 + register // 2 * 8, lane % 4 * 2 + register % 2] = d.reshape(-1)
    return out


@pytest.mark.parametrize(
    ("call", "dtype", "depth", "packed", "sums"),
    [
        ("mma_16816<tw::bf16>", BF16, 16, 2, np.float32),
        ("mma_16816<tw::f16>", np.float16, 16, 2, np.float32),
        ("mma_1688_tf32", np.float32, 8, 1, np.float32),
        ("mma_16832_s8", np.int8, 32, 4, np.int32),
    ],
)
def test_mma(call: str, dtype: Any, depth: int, packed: int, sums: Any) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (16, depth)), rng.integers(-128, 128, (8, depth))
    c = rng.integers(-1000, 1000, (16, 8))
    if np.dtype(sums) == np.float32:
        a, b, c = a / 64, b / 64, c / 8  # products and sums are exact: any order is right
    a, b, d = a.astype(dtype), b.astype(dtype), np.zeros((32, 4), sums)
    for register in range(4):
        for lane in range(32):
            d[lane, register] = c[lane // 4 + register // 2 * 8, lane % 4 * 2 + register % 2]
    kind = "float" if np.dtype(sums) == np.float32 else "int"
    run(
        f"const uint32_t* x, const uint32_t* y, {kind}* z",
        "uint32_t a[4], b[2]; " + kind + " d[4];\n"
        "for (int i = 0; i < 4; ++i) a[i] = x[4 * t + i], d[i] = z[4 * t + i];\n"
        "for (int i = 0; i < 2; ++i) b[i] = y[2 * t + i];\n"
        f"tw::{call}(d, a, b);\n"
        "for (int i = 0; i < 4; ++i) z[4 * t + i] = d[i];",
        words(fragment(a, packed)),
        words(fragment(b, packed)),
        d,
    )
    expected = c + a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_array_equal(results(d), expected.astype(sums))


def test_mma_adds_one_k_after_the_other() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((16, 16)).astype(BF16), rng.standard_normal((8, 16)).astype(BF16)
    d = np.zeros((32, 4), np.float32)
    run(
        "const uint32_t* x, const uint32_t* y, float* z",
        "uint32_t a[4], b[2]; float d[4] = {};\n"
        "for (int i = 0; i < 4; ++i) a[i] = x[4 * t + i];\n"
        "for (int i = 0; i < 2; ++i) b[i] = y[2 * t + i];\n"
        "tw::mma_16816<tw::bf16>(d, a, b);\nfor (int i = 0; i < 4; ++i) z[4 * t + i] = d[i];",
        words(fragment(a, 2)),
        words(fragment(b, 2)),
        d,
    )
    expected = np.zeros((16, 8), np.float32)
    for k in range(16):
        expected += a[:, k, None].astype(np.float32) * b[None, :, k].astype(np.float32)
    np.testing.assert_array_equal(results(d), expected)


# ---- memory -----------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [4, 8, 16])
def test_background_copies_and_zeros_out_of_range(size: int) -> None:
    x = np.random.default_rng(3).integers(0, 256, 64 * size + 5, np.uint8)
    out = np.zeros(128 * size, np.uint8)
    run(
        "const unsigned char* x, unsigned char* y",
        f"constexpr int N = {size};\n"
        "tw::copy_async<N>(tw_shared + N * t, x + N * t, t < 64);\n"
        "tw::commit(); tw::wait<0>(); tw::barrier();\n"
        "const int from = N * (127 - t);\n"
        "tw::global_store_vec<N>(y + N * t, tw::shared_load_vec<N>(tw_shared + from));",
        x,
        out,
        threads=128,
        shared=128 * size,
    )
    expected = np.concatenate([x[: 64 * size], np.zeros(64 * size, np.uint8)]).reshape(128, size)
    np.testing.assert_array_equal(out.reshape(128, size), expected[::-1])


def test_groups_of_copies_are_waited_for_in_order() -> None:
    x, out = np.arange(32 * 4, dtype=np.int32), np.zeros(32 * 4, np.int32)
    run(
        "const int* x, int* y",
        "for (int i = 0; i < 4; ++i) {"
        " tw::copy_async<4>(tw_shared + 4 * (32 * i + t), x + 32 * i + t); tw::commit(); }\n"
        "tw::wait<2>(); for (int i = 0; i < 2; ++i)"
        " y[32 * i + t] = tw::shared_load<int>(tw_shared + 4 * (32 * i + t));\n"
        "tw::wait<0>(); for (int i = 2; i < 4; ++i)"
        " y[32 * i + t] = tw::shared_load<int>(tw_shared + 4 * (32 * i + t));",
        x,
        out,
        shared=512,
    )
    np.testing.assert_array_equal(out, x)


def test_the_last_block_to_count_sees_what_the_others_wrote() -> None:
    """Split sums in one launch: partial results, a counter, and a fixed order by the last block."""
    partial, count, out = np.zeros((5, 32), np.float32), np.zeros(1, np.int32), np.zeros(32, "f4")
    run(
        "float* partial, int* count, float* y",
        "tw::global_store(partial + g, 1.0f + g);\n"
        "tw::barrier();\n"
        "if (t == 0) tw::shared_store<int>(tw_shared, tw::atomic_add(count, 1));\n"
        "tw::barrier();\n"
        "if (tw::shared_load<int>(tw_shared) != tw::grid() - 1) return;\n"
        "float sum = 0; for (int i = 0; i < 5; ++i) sum += tw::global_load(partial + 32 * i + t);\n"
        "tw::global_store(y + t, sum);",
        partial,
        count,
        out,
        shared=4,
        grid=5,
    )
    np.testing.assert_array_equal(out, (1.0 + np.arange(160)).reshape(5, 32).sum(0))
