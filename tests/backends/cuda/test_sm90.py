"""What sm_90a adds, on the host: mbarriers, tiles copied by the accelerator, products of a warp
group. test_product.py has a whole kernel of them."""

from __future__ import annotations

import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tilewright.backends.cuda.host import TensorMap, run_on_host
from tilewright.ir.errors import (
    BindError,
    KernelAlignmentError,
    KernelDeadlockError,
    KernelDivergenceError,
    KernelFaultError,
    KernelRaceError,
    KernelUninitialisedError,
)

on_the_host = pytest.mark.skipif(not shutil.which("g++"), reason="the emulation needs g++")
BF16 = ml_dtypes.bfloat16


INCLUDE = '#include "tilewright_kernel.h"\n'


def kernel(name: str, parameters: str, body: str, threads: int, shared: int) -> str:
    return (
        f"TW_KERNEL({name}, {threads}, 1)({parameters}) {{\n"
        f"TW_SHARED({shared}); const int t = tw::thread();\n{body}\n}}\n"
    )


def run(
    parameters: str, body: str, *arguments: Any, threads: int = 128, shared: int = 0, seed: int = 0
) -> None:
    """One block of a body, with ``tw_shared`` and ``t``, the thread."""
    text = INCLUDE + kernel("k", parameters, body, threads, shared)
    run_on_host(text, "k", 1, arguments, threads, shared, seed)


# ---- products of a warp group -------------------------------------------------------------------
def swizzled(image: np.ndarray, width: int) -> np.ndarray:
    """Bytes at a multiple of 1,024 as a swizzle of ``width`` places them: a piece of 16 bytes at
    address x is found at x with its bits 4… xored with those from bit 7 on."""
    out = np.zeros_like(image)
    for at in range(0, image.size, 16):
        to = at ^ ((at >> 7 & max(width // 16 - 1, 0)) << 4)
        out[to : to + 16] = image[at : at + 16]
    return out


def operand(x: np.ndarray, width: int, transposed: bool) -> tuple[np.ndarray, int, int, int]:
    """[rows, k] in memory: the bytes, what 16 of k add to the address, leading and stride."""
    rows, depth = x.shape
    per = width // 2  # elements of a row of the image
    if width == 0:  # 8 by 8 elements are 128 bytes one after the other
        tiles = x.reshape(rows // 8, 8, depth // 8, 8)
        if transposed:  # [k / 8][row / 8][k][row]
            image = tiles.transpose(2, 0, 3, 1)
            return image.reshape(-1).view(np.uint8), rows * 32, rows * 16, 128
        image = tiles.transpose(2, 0, 1, 3)  # [k / 8][row / 8][row][k]
        return image.reshape(-1).view(np.uint8), rows * 32, rows * 16, 128
    if transposed:  # [row / per][k][row]
        image = x.T.reshape(depth, rows // per, per).transpose(1, 0, 2)
        step = 16 * width
        leading = depth * width
    else:  # [row][k], k no more than a row of the image
        assert depth == per
        image, step, leading = x, 32, 16
    flat = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
    return swizzled(flat, width), step, leading, 8 * width


@on_the_host
@pytest.mark.parametrize(
    ("dtype", "columns", "width_a", "transposed_a", "width_b", "transposed_b"),
    [
        (BF16, 64, 128, False, 128, False),
        (np.float16, 128, 128, True, 128, True),
        (BF16, 32, 64, False, 64, True),
        (BF16, 96, 64, True, 64, False),
        (np.float16, 16, 32, False, 32, True),
        (BF16, 24, 32, True, 32, False),
        (BF16, 8, 0, False, 0, True),
        (BF16, 256, 0, True, 0, False),
        (BF16, 80, None, False, 128, False),
        (np.float16, 192, None, False, 128, True),
    ],
)
def test_wgmma_of_every_layout(
    dtype: Any,
    columns: int,
    width_a: int | None,
    transposed_a: bool,
    width_b: int,
    transposed_b: bool,
) -> None:
    """``width_a`` None: the left operand is in registers."""
    depth = 64 if width_b == 0 else width_b // 2
    rng = np.random.default_rng(0)
    a = (rng.integers(-64, 65, (64, depth)) / 16).astype(dtype)  # sums are exact in any order
    b = (rng.integers(-64, 65, (columns, depth)) / 16).astype(dtype)
    image_a, step_a, leading_a, stride_a = operand(a, width_a or 0, transposed_a)
    image_b, step_b, leading_b, stride_b = operand(b, width_b, transposed_b)
    start_b = -(-image_a.size // 1024) * 1024
    image = np.concatenate([image_a, np.zeros(start_b - image_a.size, np.uint8), image_b])
    image = np.pad(image, (0, -image.size % 16))
    kind = "tw::bf16" if dtype is BF16 else "tw::f16"
    at_b = f"tw_shared + {start_b} + k * {step_b}"
    right = f"tw::wgmma_descriptor({at_b}, {leading_b}, {stride_b}, {width_b})"
    if width_a is None:
        call = (
            f"uint32_t r[4]; for (int i = 0; i < 4; ++i) r[i] = a[((t / 32 * 16 + t % 32 / 4 +"
            f" i % 2 * 8) * {depth} + 16 * k + i / 2 * 8) / 2 + t % 4];\n"
            f"tw::wgmma<{kind}, {columns}, {int(transposed_b)}>(d, r, {right}, k > 0);"
        )
    else:
        left = f"tw::wgmma_descriptor(tw_shared + k * {step_a}, {leading_a}, {stride_a}, {width_a})"
        call = (
            f"tw::wgmma<{kind}, {columns}, {int(transposed_b)}, {int(transposed_a)}>"
            f"(d, {left}, {right}, k > 0);"
        )
    out = np.zeros((128, columns // 2), np.float32)
    run(
        "const unsigned char* image, const uint32_t* a, float* out",
        f"for (int i = 16 * t; i < {image.size}; i += 2048)\n"
        " tw::shared_store_vec<16>(tw_shared + i, tw::global_load_vec<16>(image + i));\n"
        f"tw::fence_async(); tw::barrier();\nfloat d[{columns // 2}]; tw::wgmma_fence();\n"
        f"for (int k = 0; k < {depth // 16}; ++k) {{ {call} }}\n"
        f"tw::wgmma_commit(); tw::wgmma_wait<0>();\n"
        f"for (int i = 0; i < {columns // 2}; ++i) out[t * {columns // 2} + i] = d[i];",
        image,
        np.ascontiguousarray(a).view(np.uint32),
        out,
        shared=image.size,
    )
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    thread, i = np.divmod(np.arange(out.size), columns // 2)
    row = thread // 32 * 16 + thread % 32 // 4 + i % 4 // 2 * 8
    np.testing.assert_array_equal(
        out.reshape(-1), expected[row, i // 4 * 8 + thread % 4 * 2 + i % 2]
    )


# ---- tiles --------------------------------------------------------------------------------------
@on_the_host
@pytest.mark.parametrize(
    ("shape", "box", "at", "swizzle"),
    [
        ((40, 64), (16, 32), (30, 48), 64),
        ((40, 64), (8, 64), (-3, -8), 128),
        ((9, 5, 16), (2, 4, 16), (8, 3, 0), 32),
        ((3, 4, 5, 8), (2, 2, 4, 8), (2, -1, 2, 0), 0),
        ((2, 3, 4, 5, 16), (1, 2, 2, 4, 8), (1, 2, 3, 1, 8), 0),
    ],
)
def test_tiles_in_and_out_again(
    shape: tuple[int, ...], box: tuple[int, ...], at: tuple[int, ...], swizzle: int
) -> None:
    """A load, checked in shared memory (zeros outside), and a store of the same tile elsewhere."""
    x = np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
    tile, copy = np.zeros(box, np.int16), np.zeros_like(x)
    size = tile.nbytes
    places = ", ".join(map(str, at[::-1]))
    run(
        "TW_TENSOR_MAP x, TW_TENSOR_MAP copy, unsigned char* y",
        f"unsigned char* const bar = tw_shared + {size};\n"
        "if (t == 0) { tw::mbarrier_init(bar, 1); tw::mbarrier_init_fence(); }\n"
        "tw::barrier();\nif (t == 0) {\n"
        f"tw::mbarrier_arrive_expect(bar, {size}); tw::tma_load(tw_shared, x, bar, {places}); }}\n"
        "tw::mbarrier_wait(bar, 0);\n"
        f"if (t == 0) {{ tw::tma_store(copy, tw_shared, {places});"
        " tw::tma_store_commit(); tw::tma_store_wait<0>(); }\n"
        f"for (int i = 16 * t; i < {size}; i += 16 * 32)\n"
        " tw::global_store_vec<16>(y + i, tw::shared_load_vec<16>(tw_shared + i));",
        TensorMap(x, box, swizzle),
        TensorMap(copy, box, swizzle),
        tile,
        threads=32,
        shared=size + 8,
    )
    padded = np.pad(x, [(n, n) for n in box])
    window = tuple(slice(p + n, p + 2 * n) for p, n in zip(at, box, strict=True))
    expected = padded[window]
    image = swizzled(np.ascontiguousarray(expected).reshape(-1).view(np.uint8), swizzle)
    np.testing.assert_array_equal(tile.reshape(-1).view(np.uint8), image)
    inside = np.zeros_like(padded)
    inside[window] = expected
    middle = tuple(slice(n, n + s) for n, s in zip(box, shape, strict=True))
    np.testing.assert_array_equal(copy, inside[middle])


@pytest.mark.parametrize(
    ("box", "swizzle", "words"),
    [
        ((64,), 128, "2 to 5 axes"),
        ((8, 512), 0, "256"),
        ((8, 32), 128, "swizzle"),
        ((8, 4), 0, "16"),
    ],
)
def test_tiles_that_cannot_be(box: tuple[int, ...], swizzle: int, words: str) -> None:
    with pytest.raises(BindError, match=words):
        TensorMap(np.zeros((64, 64), BF16), box, swizzle)


INIT = (
    "if (t == 0) tw::mbarrier_init(tw_shared + 1024, {});\n"
    "tw::barrier();\nunsigned char* const bar = tw_shared + 1024;\n"
)
LOAD = (
    "if (t == 0) { tw::mbarrier_arrive_expect(bar, 512); tw::bulk_load(tw_shared, x, 512, bar); }\n"
)
READ = "y[t] = tw::shared_load<int>(tw_shared + 4 * t);\n"
OVERWRITE = "if (t == 5) tw::shared_store<int>(tw_shared, 1);\n"

CASES: dict[str, tuple[str, type[KernelFaultError] | None, str]] = {
    "waited for": (INIT.format(1) + LOAD + "tw::mbarrier_wait(bar, 0);\n" + READ, None, ""),
    "waited for by one, and a barrier": (
        INIT.format(1) + LOAD + "if (t == 9) tw::mbarrier_wait(bar, 0);\ntw::barrier();\n" + READ,
        None,
        "",
    ),
    "not waited for": (INIT.format(1) + LOAD + READ, KernelFaultError, "shared memory"),
    "a barrier only": (
        INIT.format(1) + LOAD + "tw::barrier();\n" + READ,
        KernelRaceError,
        "a copy that mbarrier number 0 counts",
    ),
    "the phase before": (
        INIT.format(1) + LOAD + "tw::mbarrier_wait(bar, 1);\n" + READ,
        KernelFaultError,
        "shared memory",
    ),
    "fewer bytes than expected": (
        INIT.format(1)
        + LOAD.replace("expect(bar, 512", "expect(bar, 528")
        + "tw::mbarrier_wait(bar, 0);",
        KernelDeadlockError,
        "lacks 0 of 1 arrivals and 16 bytes",
    ),
    "an arrival too few": (
        INIT.format(2) + LOAD + "tw::mbarrier_wait(bar, 0);",
        KernelDeadlockError,
        "lacks 1 of 2 arrivals",
    ),
    "an arrival too many": (
        INIT.format(1)
        + "if (t == 0) tw::mbarrier_arrive_expect(bar, 16);\ntw::mbarrier_arrive(bar);",
        KernelDivergenceError,
        "one more than the 1 arrivals",
    ),
    "no mbarrier there": (
        "tw::mbarrier_wait(tw_shared, 0);",
        KernelUninitialisedError,
        "no mbarrier",
    ),
    "initialised, and nobody told": (
        "if (t == 0) tw::mbarrier_init(tw_shared, 1);\ntw::mbarrier_wait(tw_shared, 1);",
        KernelFaultError,
        "mbarrier",
    ),
    "initialised, and a shuffle": (  # which orders nothing
        "if (t == 0) tw::mbarrier_init(tw_shared, 1);\ntw::shuffle_xor(t, 1);\n"
        "if (t < 32) tw::mbarrier_wait(tw_shared, 1);",
        KernelRaceError,
        "nothing between",
    ),
    "a lane that ends while the others shuffle": (
        INIT.format(127) + "if (t == 5) { tw::mbarrier_wait(bar, 0); return; }\n"
        "tw::mbarrier_arrive(bar); if (t < 32) tw::shuffle_xor(t, 1);",
        KernelDivergenceError,
        "ends while",
    ),
    "written while on its way": (
        INIT.format(1) + LOAD + OVERWRITE,
        KernelRaceError,
        "shared memory",
    ),
    "an odd number of bytes": (
        INIT.format(1) + LOAD.replace("x, 512", "x, 500"),
        KernelAlignmentError,
        "multiples of 16",
    ),
    "arrivals order what was before them": (
        INIT.format(127)
        + "if (t) { tw::shared_store<int>(tw_shared + 4 * t, t); tw::mbarrier_arrive(bar); }\n"
        "else { tw::mbarrier_wait(bar, 0); y[0] = tw::shared_load<int>(tw_shared + 4 * 77); }",
        None,
        "",
    ),
    "written after the arrival": (
        INIT.format(127)
        + "if (t) { tw::mbarrier_arrive(bar); tw::shared_store<int>(tw_shared + 4 * t, t); }\n"
        "else { tw::mbarrier_wait(bar, 0); tw::shared_load<int>(tw_shared + 4 * 77); }",
        KernelFaultError,
        "shared memory",
    ),
}


# All cases in one text, which is compiled once.
TEXT = INCLUDE + "".join(
    kernel(f"k{i}", "const int* x, int* y", body, 128, 1032)
    for i, (body, _, _) in enumerate(CASES.values())
)


@on_the_host
@pytest.mark.parametrize("name", CASES)
def test_copies_and_mbarriers_that_are_refused_and_that_pass(name: str) -> None:
    _, error, words = CASES[name]
    symbol = f"k{list(CASES).index(name)}"
    arguments = [np.arange(128, dtype=np.int32), np.zeros(128, np.int32)]
    for seed in range(4):
        if error is None:
            run_on_host(TEXT, symbol, 1, arguments, 128, 1032, seed)
            continue
        with pytest.raises(error) as caught:
            run_on_host(TEXT, symbol, 1, arguments, 128, 1032, seed)
        assert words in str(caught.value)


@on_the_host
def test_what_threads_write_for_a_product_must_be_fenced() -> None:
    body = (
        "for (int i = 16 * t; i < 16384; i += 2048)"
        " tw::shared_store_vec<16>(tw_shared + i, tw::Vec<16>{0, 0, 0, 0});\n"
        "tw::fence_async(); tw::barrier(); float d[32]; tw::wgmma_fence();\n"
        "tw::wgmma<tw::bf16, 64>(d, tw::wgmma_descriptor(tw_shared, 16, 1024),"
        " tw::wgmma_descriptor(tw_shared + 8192, 16, 1024), false);\n"
        "tw::wgmma_commit(); tw::wgmma_wait<0>(); tw::global_store(y + t, d[0] + d[31]);"
    )
    y = np.ones(128, np.float32)
    run("float* y", body, y, shared=16384)
    assert not y.any()
    with pytest.raises(KernelRaceError, match="fence_async"):
        run("float* y", body.replace("tw::fence_async(); ", ""), y, shared=16384)
