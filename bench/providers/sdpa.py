"""PyTorch's scaled_dot_product_attention: its back ends by name, and what lets it take its fast
ways.

With one query, the heads of a group may as well be packed as several queries of one head: torch
then reads keys and values once for all of them, as it does not with enable_gqa.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.problem import Form, NotOffered, Problem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    case: Attention = problem.case
    if case.score:
        raise NotOffered("takes no function of scores")
    q, k, v = inputs
    options: dict[str, Any] = {"is_causal": case.causal, "enable_gqa": case.heads != case.groups}
    if case.function is not None:
        count = partial(torch.arange, device=case.device)
        options["attn_mask"] = case.function(case.keys)(
            0, 0, count(case.queries)[:, None], count(case.keys)
        )
    call = partial(sdpa, q, k, v, **options)
    forms = [Form("as it chooses", lambda: call)]
    if q.is_cuda:  # on a CPU it always takes flash where it can
        forms += [Form(name, partial(_with, backend, call)) for name, backend in BACKENDS.items()]
    if case.queries == 1 and case.heads != case.groups:
        forms.append(Form("packed heads", lambda: partial(packed, q, k, v)))
    return forms


def cudnn(problem: Problem, inputs: Inputs) -> list[Form]:
    """Of the same, cuDNN's kernels alone."""
    return [form for form in attention(problem, inputs) if form.name == "cudnn"]


def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, heads, _, head = q.shape
    groups = k.shape[1]
    out = sdpa(q.reshape(batch, groups, heads // groups, head), k, v)
    return out.reshape(batch, heads, 1, head)


def _with(backend: SDPBackend, call: Callable[[], Any]) -> Callable[[], Any]:
    def chosen() -> Any:
        with sdpa_kernel(backend):
            return call()

    return chosen


OFFERS = {"torch-sdpa": {"attention": attention}, "cudnn": {"attention": cudnn}}
