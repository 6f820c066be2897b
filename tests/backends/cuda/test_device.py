"""Every operation of the kernels' header compiled for the device, and what it becomes there. What
the operations mean is tested on the host (test_operations.py, test_sm90.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tilewright.backends.cuda import compile as compiling
from tilewright.backends.cuda.compile import compile_kernel, compiler_missing
from tilewright.backends.gpu.machine_code import disassembler_missing, resources
from tilewright.ir.errors import BackendMissingError

missing = compiler_missing() or disassembler_missing()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

SM80 = """#include "tilewright_kernel.h"
TW_KERNEL(k, 128, 2)(const uint32_t* x, uint32_t* y, int* count, float f, int n) {
  TW_SHARED(4096);
  const int t = tw::thread() + tw::block() + tw::grid() + tw::lane() + tw::warp();
  tw::Vec<16> v = tw::global_load_stream<16>(x + 4 * t);
  const tw::Vec<8> w = tw::global_load_vec<8>(x + 2 * t);
  tw::shared_store_vec<16>(tw_shared + 16 * t, v);
  tw::shared_store<tw::f16>(tw_shared + 2 * t, tw::to_f16(f));
  tw::copy_async<4>(tw_shared + 4 * t, x); tw::copy_async<8>(tw_shared + 8 * t, x, n > 3);
  tw::copy_async<16>(tw_shared + 16 * t, x, n > 4); tw::commit(); tw::wait<0>();
  tw::barrier(1, 64); tw::barrier_arrive(2, 64); tw::warp_barrier(); tw::barrier();
  uint32_t a[4], b[2], c[1];
  tw::ldmatrix_x4(a, tw_shared + 16 * t); tw::ldmatrix_x2(b, tw_shared + 16 * t);
  tw::ldmatrix_x1(c, tw_shared + 16 * t); b[0] += c[0];
  tw::ldmatrix_x1_trans(c, tw_shared + 16 * t); b[1] += c[0];
  float d[4] = {f, f, f, f};
  int e[4] = {n, n, n, n};
  tw::mma_16816<tw::bf16>(d, a, b); tw::mma_16816<tw::f16>(d, a, b);
  tw::ldmatrix_x4_trans(a, tw_shared + 16 * t); tw::ldmatrix_x2_trans(b, tw_shared + 16 * t);
  tw::mma_1688_tf32(d, a, b); tw::mma_16832_s8(e, a, b);
  float g = tw::exp2(d[0]) + tw::log2(d[1]) + tw::rcp(d[2]) + tw::rsqrt(d[3]) + tw::tanh(f);
  g += tw::to_float(tw::shared_load<tw::bf16>(tw_shared)) + tw::shuffle_xor(g, 1);
  uint32_t h = tw::pack_bf16(g, f) ^ tw::pack_f16(f, g) ^ tw::ballot(g > f);
  h = tw::lop3<0xea>(h, a[0], a[1]) + tw::prmt(h, a[2], n) + tw::funnel_shift_right(h, a[3], n);
  h += tw::hfma2_bf16(h, a[0], b[0]) ^ tw::hmul2_bf16(h, a[1]) ^ tw::hadd2_bf16(h, a[2]);
  h += tw::hfma2_f16(h, a[0], b[1]) ^ tw::hmul2_f16(h, a[1]) ^ tw::hadd2_f16(h, a[2]);
  h += tw::hsub2_bf16(h, n) ^ tw::hsub2_f16(h, n) ^ tw::to_tf32(g) ^ tw::to_bf16(g).bits;
  h += tw::movmatrix(h);
  h += tw::shuffle(h, 3) + tw::pack(tw::to_bf16(f), tw::to_bf16(g)) + tw::atomic_add(count, 1);
  v.words[0] += h + e[0] + e[1] + e[2] + e[3] + w.words[1];
  tw::global_store_vec<16>(y + 4 * t, v);
}
"""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90a", "sm_100a"])
def test_every_operation_of_sm_80(architecture: str) -> None:
    found = resources(compile_kernel(SM80, architecture, "k"))
    for name in (
        "LDG.E.NA.128",
        "STS.128",
        "STG.E.128",
        "LDGSTS.E",
        "LDGSTS.E.BYPASS.128",
        "LDSM.16.M88",
        "LDSM.16.MT88",
        "HMMA.16816.F32.BF16",
        "HMMA.16816.F32",
        "HMMA.1688.F32.TF32",
        "IMMA.16832.S8.S8",
        "MUFU.EX2",
        "MUFU.TANH",
        "PRMT",
        "LOP3.LUT",
        "HFMA2.BF16_V2",
        "F2FP",
        "SHFL.BFLY",
        "SHFL.IDX",
        "MOVM.16.MT88",
        "BAR.ARV",
    ):
        assert found.count(name), name
    assert found.spills == 0


def test_every_operation_of_sm_90a() -> None:
    widths = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
    calls = "".join(
        f"{{ float d[{n // 2}] = {{}}; uint32_t r[4] = {{1, 2, 3, 4}}; tw::wgmma_fence();\n"
        f"tw::wgmma<{kind}, {n}, 1, 1>(d, left, left + k, k); tw::wgmma<{kind}, {n}>(d, r, left);\n"
        f"tw::wgmma_commit(); tw::wgmma_wait<0>();\n"
        f"for (int i = 0; i < {n // 2}; ++i) tw::global_store(y + i, d[i]); }}\n"
        for kind, n in [("tw::bf16", n) for n in widths] + [("tw::f16", 64), ("tw::f16", 256)]
    )
    loads = "".join(
        f"tw::tma_load(tw_shared, x, bar, {at}); tw::tma_store(x, tw_shared, {at});\n"
        for at in ("k, 1", "k, 1, 2", "k, 1, 2, 3", "k, 1, 2, 3, 4")
    )
    text = (
        '#include "tilewright_kernel.h"\nTW_KERNEL(k, 128, 1)(TW_TENSOR_MAP x, float* y, int k) {\n'
        "TW_SHARED(2048); unsigned char* const bar = tw_shared + 1024; tw::tma_prefetch(x);\n"
        "const uint64_t left = tw::wgmma_descriptor(tw_shared, 16, 1024);\n"
        f"{loads}{calls} tw::mbarrier_arrive(bar); tw::bulk_load(tw_shared, y, 512, bar);\n"
        "uint32_t r[4] = {1, 2, 3, 4}; tw::stmatrix_x4(tw_shared, r);\n"
        "tw::stmatrix_x4_trans(tw_shared, r); tw::fence_async();\n"
        "tw::tma_store_commit(); tw::tma_store_wait<0>(); }\n"
    )
    found = resources(compile_kernel(text, "sm_90a", "k"))
    for n in widths:
        assert found.count(f"HGMMA.64x{n}x16.F32.BF16") == 2
    for d in (2, 3, 4, 5):
        assert found.count(f"UTMALDG.{d}D") == 1 and found.count(f"UTMASTG.{d}D") == 1


@pytest.mark.parametrize("path", ["_with_nvcc", "_with_nvrtc"])
def test_both_compilers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "_with_nvcc":
        if compiling._nvcc() is None:
            pytest.skip("no nvcc here")
        monkeypatch.setattr(compiling, "_nvrtc", lambda: None)
    elif compiling._nvrtc() is None:
        pytest.skip("no NVRTC here")
    assert resources(compile_kernel(SM80, "sm_80", "k")).count("HMMA") == 3
    with pytest.raises(compiling.KernelCompileError, match="kernel k"):
        compile_kernel(SM80 + "}", "sm_80", "k")


def test_neither_compiler_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing() -> None:
        return None

    monkeypatch.setattr(compiling, "_nvrtc", nothing)
    monkeypatch.setattr(compiling, "_nvcc", nothing)
    with pytest.raises(BackendMissingError, match="pip install"):
        compile_kernel(SM80, "sm_80", "k")
    assert "nvcc" in str(compiler_missing())


@pytest.mark.parametrize("header", ["tilewright.cuh", "tilewright_sm90.cuh"])
def test_what_a_warp_does_together_stays_where_it_is(header: str) -> None:
    """CUDA may move or drop an asm that is not volatile: under a condition that only some lanes
    meet, too, where an instruction for all of them must not stand."""
    text = (Path(compiling.__file__).parent / "headers" / header).read_text()
    found = re.findall(r'\basm\b( volatile)?\s*\((.*?)"[\s\\]*:', text, re.DOTALL)
    together = [(volatile, ptx) for volatile, ptx in found if ".sync" in ptx]
    assert together and not [ptx for volatile, ptx in together if not volatile]
