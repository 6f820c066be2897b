"""FlashAttention's own packages: version 2 (``flash_attn``), and where it is installed version 3
(``flash_attn_interface``). Tensors lie as they take them: [batch, length, heads, head]."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tilewright.bench.mask_workloads import CAP, alibi_slopes
from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.on_gpu.attention import WINDOW
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

MODULES = {"FlashAttention 2": "flash_attn", "FlashAttention 3": "flash_attn_interface"}
SPLITS = "split over keys"


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    case: Attention = problem.case
    forms = []
    for title, module in MODULES.items():
        if importlib.util.find_spec(module) is None:
            continue
        options = _options(case, two=module == "flash_attn")
        if options is None:
            continue
        forms.append(Form(title, partial(_plain, module, options, inputs), _read))
        if case.queries == 1:
            name = f"{title}, {SPLITS}"
            forms.append(Form(name, partial(_decode, module, inputs), _read))
    if not forms:
        raise NotOffered(f"has no mask or score of this kind: {case.kind or 'function'}")
    return forms


def _options(case: Attention, two: bool) -> dict[str, Any] | None:
    """The problem as its arguments; None if it cannot be said with them."""
    if case.kind == "window":
        return {"causal": True, "window_size": (WINDOW - 1, 0)}
    if case.kind == "soft cap":
        return {"causal": case.causal, "softcap": CAP}
    if case.kind == "ALiBi" and two:
        slopes = alibi_slopes(case.heads, case.device)
        return {"causal": case.causal, "alibi_slopes": slopes}
    return None if case.kind or case.function else {"causal": case.causal}


def _turned(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    return tuple(x.transpose(1, 2).contiguous() for x in inputs)


def _plain(module: str, options: dict[str, Any], inputs: Inputs) -> Call:
    function: Callable[..., Any] = importlib.import_module(module).flash_attn_func
    return partial(function, *_turned(inputs), **options)


def _decode(module: str, inputs: Inputs) -> Call:
    """What a server calls: it shares the keys out among blocks."""
    function: Callable[..., Any] = importlib.import_module(module).flash_attn_with_kvcache
    q, k, v = _turned(inputs)
    lengths = torch.full((q.shape[0],), k.shape[1], dtype=torch.int32, device=q.device)
    return partial(function, q, k, v, cache_seqlens=lengths)


def _read(result: Any) -> torch.Tensor:
    """Early versions of 3 give the sums, too."""
    out: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return out.transpose(1, 2)


OFFERS = {"flash-attn": {"attention": attention}}
