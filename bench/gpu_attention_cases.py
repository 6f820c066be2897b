"""The problems of ``gpu_attention``: masks and scores, schedules to try, small cases with what
float64 says. Measures and prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import tilewright
from tilewright.bench.mask_workloads import alibi_slopes, document_numbers
from tilewright.gpu import using_backend, using_schedule

Function = Callable[..., Any]


@dataclass(frozen=True)
class Way:
    """How a kernel is made: rows, positions, warps, stages and bulk copies (None: as it would be
    anyway), and by which back end."""

    schedule: tuple[int, int, int, int, bool] | None
    backend: str = "triton"


DEFAULT = Way(None, "gpu")
WAYS: dict[str, Way] = {
    "64x64 4w 3s bulk": Way((64, 64, 4, 3, True)),
    "cuda 64x64 4w 3s": Way((64, 64, 4, 3, True), "cuda"),
    "cuda 128x96 8w 3s": Way((128, 96, 8, 3, True), "cuda"),
    "cuda 128x128 8w 2s": Way((128, 128, 8, 2, True), "cuda"),
}
DRY = {"16x16": Way((16, 16, 4, 2, False))}
SHAPE = (4, 16, 128)  # batch, heads, head size


# ---- masks and scores, as FlexAttention takes them


def alibi(heads: int, length: int, device: torch.device) -> dict[str, Function]:
    slopes = alibi_slopes(heads, device)
    return {
        "score_mod": lambda s, b, h, q, k: s + slopes[h] * (k - q),
        "mask_mod": lambda b, h, q, k: q >= k,
    }


def soft_cap(heads: int, length: int, device: torch.device) -> dict[str, Function]:
    return {
        "score_mod": lambda s, b, h, q, k: 20.0 * torch.tanh(s / 20.0),
        "mask_mod": lambda b, h, q, k: q >= k,
    }


def documents(heads: int, length: int, device: torch.device) -> dict[str, Function]:
    number = document_numbers(length, 1024).to(device, torch.int32)
    return {"mask_mod": lambda b, h, q, k: (number[q] == number[k]) & (q >= k)}


def window(heads: int, length: int, device: torch.device) -> dict[str, Function]:
    return {"mask_mod": lambda b, h, q, k: (q >= k) & (q - k < 1024)}


MASKS: dict[str, Callable[[int, int, torch.device], dict[str, Function]]] = {
    "alibi": alibi,
    "soft cap": soft_cap,
    "documents": documents,
    "window": window,
}


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, options: dict[str, Function]
) -> torch.Tensor:
    """Attention in float64, written out."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    heads = torch.arange(q.shape[1], device=q.device)[None, :, None, None]
    rows = torch.arange(q.shape[2], device=q.device)[None, None, :, None]
    keys = torch.arange(k.shape[2], device=q.device)[None, None, None, :]
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
    if "score_mod" in options:
        s = options["score_mod"](s, batch, heads, rows, keys)
    if "mask_mod" in options:
        s = s.masked_fill(~options["mask_mod"](batch, heads, rows, keys), -torch.inf)
    if causal:
        s = s.masked_fill(keys > rows, -torch.inf)
    return torch.softmax(s, -1) @ v


def ours(
    way: Way,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    gqa = q.shape[1] != k.shape[1]
    with ExitStack() as stack:
        stack.enter_context(using_backend(way.backend))
        if way.schedule:
            stack.enter_context(using_schedule(*way.schedule))
        out = tilewright.attention(q, k, v, enable_gqa=gqa, **options)
    assert isinstance(out, torch.Tensor)
    return out


def _options(what: str, heads: int, length: int, device: torch.device) -> dict[str, Any]:
    return {**MASKS[what](heads, length, device)} if what in MASKS else {}


@dataclass(frozen=True)
class Case:
    """A small problem, the way that it tries, and what float64 says."""

    key: str
    bound: float
    ours: Callable[[], torch.Tensor]
    want: Callable[[], torch.Tensor]


def small_cases(device: torch.device, dry: bool) -> list[Case]:
    """Dtypes, odd lengths and head sizes, grouped heads, every mask; ways in turn."""
    bounds = {torch.bfloat16: 1.2e-2, torch.float16: 2e-3, torch.float32: 1e-5}
    sizes = [(2, 4, 2, 200, 333, 64), (1, 4, 4, 1, 130, 128), (1, 2, 1, 129, 257, 80)]
    sizes = [(1, 4, 2, 37, 41, 16)] if dry else sizes
    masks = ("causal", "documents") if dry else ("none", "causal", *MASKS)
    ways = list((DRY if dry else WAYS).items())
    cases: list[Case] = []
    generator = torch.Generator().manual_seed(0)
    for dtype, bound in bounds.items():
        for size in sizes if dtype == torch.bfloat16 else sizes[:1]:
            for what in masks:
                b, h, kv, n, m, d = size
                if what in MASKS:
                    n = m = max(n, m)
                shapes = (b, h, n, d), (b, kv, m, d), (b, kv, m, d)
                q, k, v = (torch.randn(x, generator=generator).to(device, dtype) for x in shapes)
                options = _options(what, h, n, device)
                name, way = ways[len(cases) % len(ways)]
                if dtype == torch.float32 and not dry:
                    name, way = "default", DEFAULT
                causal = what == "causal"
                cases.append(
                    Case(
                        f"{dtype} {(b, h, kv, n, m, d)} {what}, {name}",
                        bound,
                        partial(ours, way, q, k, v, is_causal=causal, **options),
                        partial(plain_attention, q, k, v, causal, options),
                    )
                )
    return cases
