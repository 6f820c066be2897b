"""Providers for GPUs, which are not installed where tests run: each is played by a module that does
what its documentation says, so that what we give it is right."""

from __future__ import annotations

import math
import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilewright.bench.contender import prepare
from tilewright.bench.devices import Host, Rehearsal
from tilewright.bench.providers import cublas, flash_attn_, gemlite_, marlin, sdpa
from tilewright.bench.providers.catalogue import PROVIDERS, provider
from tilewright.bench.suites import catalogue as suites
from tilewright.bench.suites.on_gpu import lowbit
from tilewright.bench.suites.problem import Problem

PLACE = Rehearsal()


def problems(name: str) -> list[Problem]:
    return suites.suite(name, PLACE).problems(True)


def played(monkeypatch: pytest.MonkeyPatch, name: str, **what: Any) -> None:
    """A module of this name, and those above it."""
    for end in [i for i, c in enumerate(name) if c == "."]:
        monkeypatch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
    module = types.ModuleType(name)
    module.__dict__.update(what, __spec__=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def statuses(name: str, offer: Any) -> dict[str, Any]:
    """What becomes of a provider on every problem of a suite, none of it failed or wrong."""
    found = {}
    for problem in problems(name):
        inputs = problem.make()
        contender = prepare(problem, inputs, problem.exact(inputs), "x", offer, Host())
        assert contender.status in ("ok", "none"), f"{problem.name}: {contender.reason}"
        found[problem.name] = contender
    return found


# ---- who is asked on what


def test_every_provider_has_a_kind_of_device_and_a_module() -> None:
    for each in PROVIDERS:
        assert each.kinds and set(each.kinds) <= {"cpu", "cuda"}
        reason = each.absence(Host())
        assert ("--device cuda" in reason) == ("cpu" not in each.kinds)
    assert "not on GPUs" in provider("openvino").absence(PLACE)
    assert "rehearsal" in provider("cudnn").absence(PLACE)
    assert provider("torch-eager").absence(PLACE) == ""


def test_modules_of_providers_that_are_not_here_can_be_imported() -> None:
    """They import what they measure only when they do."""
    for each in PROVIDERS:
        if "cuda" in each.kinds and each.name != "transformers":
            assert each.offers()


# ---- FlashAttention


def flash(q: Any, k: Any, v: Any, *, two: bool, **options: Any) -> Any:
    """As flash_attn_func documents itself: [batch, length, heads, head]; a window of (left, right)
    keys, keys aligned with the end of queries, scores capped as softcap * tanh(score / softcap),
    ALiBi's bias -slope * |distance|."""
    known = {"causal", "window_size", "softcap"} | ({"alibi_slopes"} if two else set())
    assert set(options) <= known
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    far = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None] - k.shape[2] + q.shape[2]
    if cap := options.get("softcap", 0.0):
        scores = cap * torch.tanh(scores / cap)
    if (slopes := options.get("alibi_slopes")) is not None:
        assert slopes.dtype == torch.float32
        scores = scores - slopes.double()[:, None, None] * far.abs()
    left, right = options.get("window_size", (-1, -1))
    right = 0 if options.get("causal") else right
    hidden = (far > right) & (right >= 0) | (far < -left) & (left >= 0)
    out = (scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).float().transpose(1, 2)
    return out if two else (out, None)


def flash_cache(q: Any, k: Any, v: Any, *, two: bool, cache_seqlens: torch.Tensor) -> Any:
    assert cache_seqlens.dtype == torch.int32 and cache_seqlens.tolist() == [k.shape[1]] * len(q)
    return flash(q, k, v, two=two)


@pytest.mark.parametrize("small_window", [True, False])
def test_flash_attention(monkeypatch: pytest.MonkeyPatch, small_window: bool) -> None:
    if small_window:  # the rehearsal's sequences are shorter than the window
        monkeypatch.setattr("tilewright.bench.suites.on_gpu.attention.WINDOW", 7)
        monkeypatch.setattr(flash_attn_, "WINDOW", 7)
    for name, two in (("flash_attn", True), ("flash_attn_interface", False)):
        functions = {
            "flash_attn_func": partial(flash, two=two),
            "flash_attn_with_kvcache": partial(flash_cache, two=two),
        }
        played(monkeypatch, name, **functions)
    found = statuses("attention", flash_attn_.attention)
    offered = {name for name, contender in found.items() if contender.status == "ok"}
    assert {name for name in found if name not in offered} == {
        name for name in found if name.startswith("documents")
    }
    decode = next(c for name, c in found.items() if name.endswith("keys"))
    assert len(decode.tried) == 4  # two versions, each with its two calls


# ---- low bits


class Packed:
    """GemLiteLinearTriton as its source has it: codes [N, K], scales [N, groups], one zero."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def pack(self, codes: torch.Tensor, scales: torch.Tensor, zero: int) -> None:
        n, k, group = (self.facts[x] for x in ("out_features", "in_features", "group_size"))
        assert codes.shape == (n, k) and codes.dtype == torch.uint8 and isinstance(zero, int)
        wide = codes.view(n, k // group, group).float() - zero
        self.weight = (wide * scales.view(n, -1)[:, :, None]).view(n, k)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert self.facts["input_dtype"] == self.facts["output_dtype"] == "f32"
        return x @ self.weight.T


def test_gemlite(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = types.SimpleNamespace(BF16="bf16", FP16="f16", FP32="f32")
    played(monkeypatch, "gemlite.core", GemLiteLinearTriton=Packed, DType=kinds)
    found = statuses("lowbit", gemlite_.lowbit)
    for name, contender in found.items():
        assert (contender.status == "ok") == (name[1] in "1248"), name


def words_to_codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """GPTQ's words [K * bits / 32, N] as codes [N, K]: the least bits of a word first."""
    each = 32 // bits
    parts = [(words.long() >> bits * i) & ((1 << bits) - 1) for i in range(each)]
    return torch.stack(parts, 1).reshape(-1, words.shape[1]).T


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_words_of_gptq(bits: int, outputs: int, blocks: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (outputs, 32 * blocks), generator=random).to(torch.uint8)
    words = marlin.gptq_words(codes, bits)
    assert words.shape == (blocks * bits, outputs) and words.dtype == torch.int32
    assert torch.equal(words_to_codes(words, bits), codes.long())


def test_marlin(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's functions as their source has them, with a packing that changes nothing."""

    def repack(words: torch.Tensor, perm: Any, inner: int, outputs: int, bits: int) -> Any:
        assert len(perm) == 0 and words.shape == (inner * bits // 32, outputs)
        return words_to_codes(words, bits)

    def apply(**given_: Any) -> torch.Tensor:
        kind = given_["wtype"]
        bits = {"uint4b8": 4, "uint8b128": 8}[kind]
        codes, scales = given_["weight"], given_["weight_scale"]
        n, k = codes.shape
        assert (given_["output_size_per_partition"], given_["input_size_per_partition"]) == (n, k)
        assert given_["is_k_full"] and len(given_["weight_zp"]) == 0
        wide = codes.view(n, scales.shape[0], -1).float() - (1 << bits - 1)
        weight = (wide * scales.T[:, :, None]).view(n, k)
        return given_["input"] @ weight.T

    base = "vllm.model_executor.layers.quantization.utils"
    played(monkeypatch, f"{base}.marlin_utils")
    utils = types.SimpleNamespace(
        marlin_make_empty_g_idx=lambda device: torch.empty(0, dtype=torch.int),
        marlin_make_workspace_new=lambda device: torch.zeros(4, dtype=torch.int),
        marlin_permute_scales=lambda s, size_k, size_n, group_size: s,
        apply_gptq_marlin_linear=apply,
    )
    monkeypatch.setattr(sys.modules[base], "marlin_utils", utils)
    kinds = types.SimpleNamespace(uint4b8="uint4b8", uint8b128="uint8b128")
    scalar, ops = types.ModuleType("vllm.scalar_type"), types.ModuleType("vllm._custom_ops")
    scalar.scalar_types, ops.gptq_marlin_repack = kinds, repack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.scalar_type", scalar)
    monkeypatch.setattr(sys.modules["vllm"], "_custom_ops", ops, raising=False)
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", ops)
    found = statuses("lowbit", marlin.lowbit)
    for name, contender in found.items():
        assert (contender.status == "ok") == (name[1] in "48"), name


def test_codes_are_drawn_where_they_are_needed_and_reach_every_value() -> None:
    for problem in problems("lowbit"):
        given_, again = problem.make(), problem.make()
        assert torch.equal(given_.codes, again.codes) and torch.equal(given_.x, again.x)
        case = problem.case
        assert set(given_.codes.unique().tolist()) == set(range(1 << case.bits))
        assert given_.scales.shape == (case.outputs, case.inner // lowbit.GROUP)
        assert torch.equal(given_.scales.half().float(), given_.scales)
        assert given_.zero == 1 << case.bits - 1


# ---- torch's


def test_cublas_has_both_libraries_and_gives_the_users_choice_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = ["the user's"]

    def preferred(name: str | None = None) -> str:
        if name:
            chosen.append(name)
        return chosen[-1]

    linear, during = torch.nn.functional.linear, set()

    def watched(*given_: torch.Tensor) -> torch.Tensor:
        during.add(preferred())
        return linear(*given_)

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", preferred)
    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    found = statuses("lowbit", cublas.lowbit)
    assert all(len(contender.tried) == 2 for contender in found.values())
    assert preferred() == "the user's" and during == set(cublas.LIBRARIES)


def test_cublas_has_one_epilogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUBLASLT_EPILOGUE_GELU_BIAS is the tanh form; on CPUs torch takes the error function."""

    def activated(bias: Any, x: Any, weight: Any, *, use_gelu: bool) -> torch.Tensor:
        assert use_gelu
        return torch.nn.functional.gelu(torch.addmm(bias, x, weight), approximate="tanh")

    monkeypatch.setattr(torch, "_addmm_activation", activated)
    fused = statuses("fused", cublas.fused)
    (one,) = (name for name, contender in fused.items() if contender.status == "ok")
    assert one.startswith("product, bias, GELU")


def test_cudnn_is_one_of_sdpas_ways() -> None:
    problem = problems("attention")[0]
    q, k, v = problem.make()
    assert [form.name for form in sdpa.attention(problem, (q, k, v))] == ["as it chooses"]
    assert sdpa.cudnn(problem, (q, k, v)) == []  # on a CPU there is none
