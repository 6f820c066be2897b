"""PyTorch without any fused operation of the kind: as one writes it down first."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.experts import first_result
from tilewright.bench.suites.fused import Tensors
from tilewright.bench.suites.lowbit import Weights
from tilewright.bench.suites.models import Given as GivenModel
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    return [Form("written out", lambda: partial(written_out(problem.case), *inputs))]


def written_out(case: Attention) -> Any:
    """Attention in torch operations; masks and scores as functions of index tensors."""
    share, mods = case.heads // case.groups, case.mods()
    count = partial(torch.arange, device=case.device)
    batch, heads = count(case.batch)[:, None, None, None], count(case.heads)[:, None, None]
    rows, columns = count(case.queries)[:, None], count(case.keys)
    at = batch, heads, rows, columns
    seen = (columns <= rows) if case.causal else None
    if "mask_mod" in mods:
        seen = mods["mask_mod"](*at)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if share > 1:
            k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if "score_mod" in mods:
            scores = mods["score_mod"](scores, *at)
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return torch.softmax(scores, -1) @ v

    return attention


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    """The product with the weights as floats: what one has who quantises nothing."""
    linear, name = torch.nn.functional.linear, f"{problem.case.floats} weights"

    def make() -> Call:
        return partial(linear, inputs.x, inputs.values().to(inputs.x.dtype))

    return [Form(name, make, float_weights=True)]


def experts(problem: Problem, inputs: Any) -> list[Form]:
    """Routing in separate operations; layers are transformers'."""
    if problem.section != "routing":
        raise NotOffered("has no layer of experts of its own; see transformers")
    side = problem.case.routing.torch_side(problem.case.product)
    return [Form("separate operations", lambda: partial(side, *inputs), first_result)]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    return [Form("separate operations", lambda: partial(problem.case.function, *inputs))]


def models(problem: Problem, inputs: GivenModel) -> list[Form]:
    return [Form("SDPA attention", lambda: partial(inputs.call, inputs.model))]


OFFERS = {
    "torch-eager": {
        "attention": attention,
        "lowbit": lowbit,
        "experts": experts,
        "fused": fused,
        "models": models,
    }
}
