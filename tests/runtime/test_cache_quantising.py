"""Quantising tokens as a kernel: the codes, scales and zeros that torch's operations give, bit by
bit on the CPU; on a GPU to the last place of its divisions."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tilewright
from tests.cache_programs import forms
from tilewright.gpu import using_backend
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BackendMissingError, BindError
from tilewright.runtime.kv_cache import quantise as module
from tilewright.runtime.kv_cache.quantise import _by_kernel, _by_torch
from tilewright.runtime.kv_cache.words import split

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SCALES = st.sampled_from([torch.float16, torch.float32])
FORMS = st.sampled_from(["lanes", "codes"]).flatmap(forms)


def groups(form: CacheForm, seed: int, dtype: torch.dtype, size: float) -> torch.Tensor:
    """Whole groups of tokens, some of them of one number, or of zeros."""
    generator = torch.Generator().manual_seed(seed)
    dim, whole = (3, form.channel_groups) if form.by == "token" else (2, 2)
    shape = [2, 1, 3, form.width]
    shape[dim] = whole * form.group
    x = torch.randn(shape, generator=generator) * size + 3 * size * (seed % 2)
    parted = split(x, dim, (whole, form.group))
    parted[0, 0, :1] = size
    return parted.to(dtype)


@settings(max_examples=60, deadline=None)
@given(FORMS, st.booleans(), DTYPES, SCALES, st.integers(0, 99), st.sampled_from([0, 1e-6, 1, 1e3]))
def test_a_kernel_gives_torchs_bits(
    form: CacheForm,
    symmetric: bool,
    dtype: torch.dtype,
    scales: torch.dtype,
    seed: int,
    size: float,
) -> None:
    assume(not symmetric or form.bits > 1)
    x = groups(form, seed, dtype, size)
    got = _by_kernel(x, form, symmetric, scales)
    want = _by_torch(x.float(), form, symmetric, scales, "k")
    assert got is not None and len(got) == len(want) == (2 if symmetric else 3)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("by", ["token", "channel"])
def test_numbers_that_no_code_holds_are_torchs_to_refuse(bad: float, by: str) -> None:
    form = CacheForm("lanes", 8, 64, by, 64)
    x = groups(form, 1, torch.float32, 1.0)
    x[1, 0, -1, 0, 5] = bad
    assert _by_kernel(x, form, False, torch.float16) is None
    with pytest.raises(BindError, match="float32" if math.isfinite(bad) else "NaN or infinite"):
        _by_torch(x, form, False, torch.float16, "k")


def test_torch_does_what_no_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing compiles, and where kernels come from a bundle."""
    x = torch.randn(1, 2, 40, 32)
    want = tilewright.KVCache(1, 2, 32).append(x, x).dequantize()
    asked: list[object] = []

    def none(*facts: object) -> Any:
        asked.append(facts)
        raise BackendMissingError("no compiler")

    monkeypatch.setattr("tilewright.runtime.kv_cache.coder.coder", none)
    got = tilewright.KVCache(1, 2, 32).append(x, x).dequantize()
    assert len(asked) == 2 and all(map(torch.equal, got, want))
    monkeypatch.setattr(module, "bundle_in_use", object)
    got = tilewright.KVCache(1, 2, 32).append(x, x).dequantize()
    assert len(asked) == 2 and all(map(torch.equal, got, want))


def near(form: CacheForm, got: Any, want: Any) -> bool:
    """Scales and zeros may differ in the last place, codes by one where that decides."""
    codes = (got[0].int() - want[0].int()).abs()
    beside = all(
        torch.allclose(a.float(), b.float(), rtol=2e-3, atol=1e-6)
        for a, b in zip(got[1:], want[1:], strict=True)
    )
    return beside and int(codes.max()) <= 1 and float((codes > 0).float().mean()) < 0.02


ON_GPUS = [
    CacheForm("lanes", 8, 32, "token", 32),
    CacheForm("codes", 4, 48, "token", 16),
    CacheForm("lanes", 3, 16, "channel", 32),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ON_GPUS, ids=lambda f: f"{f.bits} by {f.by}")
def test_cuda_in_the_emulation(form: CacheForm, symmetric: bool) -> None:
    x = groups(form, 3, torch.bfloat16, 1.0)
    with using_backend("cuda-host"):
        got = _by_kernel(x, form, symmetric, torch.float16)
    assert near(form, got, _by_torch(x.float(), form, symmetric, torch.float16, "k"))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ON_GPUS, ids=lambda f: f"{f.bits} by {f.by}")
def test_on_a_gpu(form: CacheForm, symmetric: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = groups(form, 3, torch.bfloat16, 1.0)
    got = _by_kernel(x.cuda(), form, symmetric, torch.float16)
    assert got is not None
    want = _by_torch(x.float(), form, symmetric, torch.float16, "k")
    assert near(form, [y.cpu() for y in got], want)
