"""The masks and scores of ``tilewright bench figures masks``: functions, problems, and both sides
of a comparison with flex_attention. Decides no goals of its own and prints nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import tilewright
from tilewright.bench.records import Comparison, Goal
from tilewright.bench.timing import Effort, Timing, in_rounds, interleaved, summary, timed

Function = Callable[..., Any]
HEAD = 64
CAP = 20.0
NO_GOAL = Goal()
BLOCKS = (128, 64, 32)  # block sizes that flex_attention may choose from; 128 is its default


@dataclass(frozen=True)
class Workload:
    """A mask or score at one shape, f32, batch 1: ``make(length)`` gives the function."""

    name: str
    make: Callable[[int], Function]
    heads: int
    length: int
    goal: Goal = NO_GOAL
    score: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The function as an argument of ``tilewright.attention``."""
        return {"score_mod" if self.score else "mask_mod": self.make(self.length)}

    def inputs(self) -> list[Tensor]:
        """q, k, v [1, heads, length, 64], the same in every run."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.heads, self.length, HEAD)
        return [torch.randn(shape, generator=generator) for _ in range(3)]

    def smaller(self) -> Workload:
        """An eighth of the length, which is too short to mean anything."""
        return replace(self, name=f"{self.name}, an eighth", length=self.length // 8, goal=NO_GOAL)


def causal(_length: int) -> Function:
    return lambda b, h, q_idx, kv_idx: kv_idx <= q_idx


def window(_length: int, size: int = 256) -> Function:
    """The last ``size`` keys, a query's own included."""
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < size)


def documents(length: int) -> Function:
    """Documents of 512 tokens in the mean, at random cuts; each sees itself."""
    numbers = document_numbers(length)
    return lambda b, h, q_idx, kv_idx: numbers[q_idx] == numbers[kv_idx]


def causal_documents(length: int, mean: int = 512, device: str = "cpu") -> Function:
    numbers = document_numbers(length, mean).to(device)

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (numbers[q_idx] == numbers[kv_idx]) & (kv_idx <= q_idx)

    return mask


def document_numbers(length: int, mean: int = 512) -> Tensor:
    """0 0 0 1 1 … [length]: as many documents as have that mean length."""
    generator = torch.Generator().manual_seed(1)
    count = max(1, length // mean)
    cuts = torch.randperm(length - 1, generator=generator)[: count - 1] + 1
    starts = torch.zeros(length, dtype=torch.int64)
    starts[cuts] = 1
    return starts.cumsum(0)


def alibi_slopes(heads: int, device: torch.device | str = "cpu") -> Tensor:
    """2^(-8 / heads), … 2^-8, f32 [heads]."""
    return torch.exp2(-8.0 * torch.arange(1, heads + 1, device=device) / heads)


def alibi(_length: int, heads: int = 8, device: str = "cpu") -> Function:
    slopes = alibi_slopes(heads, device)
    return lambda score, b, h, q_idx, kv_idx: score - slopes[h] * (q_idx - kv_idx).abs()


def soft_cap(_length: int) -> Function:
    return lambda score, b, h, q_idx, kv_idx: CAP * torch.tanh(score / CAP)


def visible_share(mask_mod: Function, length: int, chunk: int = 1024) -> float:
    """The share of all pairs that a mask shows, counted in full for sequence and head 0."""
    zero, keys, seen = torch.tensor(0), torch.arange(length), 0
    for first in range(0, length, chunk):
        rows = torch.arange(first, min(first + chunk, length))[:, None]
        seen += int(mask_mod(zero, zero, rows, keys).expand(len(rows), length).sum())
    return seen / length**2


def masked_share(workload: Workload, effort: Effort) -> dict[str, Any]:
    """Time with the mask by time without it, in turns: the median of the rounds' ratios, by the
    share of the pairs that the mask shows (``value``), and what it is made of."""
    q, k, v = workload.inputs()
    options = workload.options
    share = visible_share(options["mask_mod"], workload.length)
    with torch.inference_mode():

        def masked() -> object:
            return tilewright.attention(q, k, v, **options)

        def dense() -> object:
            return tilewright.attention(q, k, v)

        rounds = in_rounds((masked, dense), effort)
    ratio = statistics.median(a / b for a, b in rounds)
    sides = [summary(list(seconds)) for seconds in zip(*rounds, strict=True)]
    return {
        "value": ratio / share,
        "visible_share": share,
        "time_ratio": ratio,
        "masked_seconds": sides[0].median,
        "dense_seconds": sides[1].median,
        "of_the_fastest": sides[0].least / sides[1].least / share,
        "rounds": len(rounds),
    }


def compare_flex(workload: Workload, effort: Effort) -> tuple[Comparison, dict[str, float]]:
    """tilewright.attention beside torch.compile(flex_attention), compiled beforehand, with the
    block size that it is fastest with; and how long its compiling took, by block size."""
    q, k, v = workload.inputs()
    options = workload.options
    with torch.inference_mode():
        theirs, compiling = compiled_flex(workload, q, k, v)

        def ours() -> Any:
            return tilewright.attention(q, k, v, **options)

        exact = exact_attention(q, k, v, **options)
        errors = [float((side() - exact).abs().max()) for side in (ours, theirs)]
        times = interleaved(ours, theirs, effort)
    return _row(workload, "torch.compile(flex_attention)", times, errors), compiling


def compare_sdpa(workload: Workload, effort: Effort) -> Comparison:
    """The causal workload beside scaled_dot_product_attention(is_causal=True), not compiled."""
    q, k, v = workload.inputs()
    options = workload.options
    with torch.inference_mode():

        def ours() -> Any:
            return tilewright.attention(q, k, v, **options)

        def theirs() -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        exact = exact_attention(q, k, v, **options)
        errors = [float((side() - exact).abs().max()) for side in (ours, theirs)]
        times = interleaved(ours, theirs, effort)
    return _row(replace(workload, goal=NO_GOAL), "torch SDPA, eager", times, errors)


def _row(
    workload: Workload, peer: str, times: tuple[Timing, Timing], errors: list[float]
) -> Comparison:
    return Comparison(
        workload.name, peer, *times, workload.goal, our_error=errors[0], their_error=errors[1]
    )


def compiled_flex(
    workload: Workload, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Callable[[], Any], dict[str, float]]:
    """A call of flex_attention, compiled; its mask's blocks are found here, outside of the call.

    Nothing compiled before is left: Dynamo gives up after a few forms of one function, and a
    compilation found in Inductor's cache would not be one.
    """
    from torch._inductor.utils import fresh_cache
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    options, length = workload.options, workload.length
    torch._dynamo.reset()
    flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    if workload.score:
        arguments: dict[str, dict[str, Any]] = {"score": options}
    else:
        arguments = {
            f"block {size}": {
                "block_mask": create_block_mask(
                    options["mask_mod"], None, None, length, length, "cpu", BLOCK_SIZE=size
                )
            }
            for size in BLOCKS
        }
    compiling, calls = {}, {}
    for form, given in arguments.items():

        def call(given: dict[str, Any] = given) -> Any:
            return flex(q, k, v, **given)

        with fresh_cache():
            compiling[form] = timed(call)
        calls[form] = call
    fastest = min(calls, key=lambda form: min(timed(calls[form]) for _ in range(3)))
    return calls[fastest], {
        f"{form} (taken)" if form == fastest else form: seconds
        for form, seconds in compiling.items()
    }


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_mod: Function | None = None,
    score_mod: Function | None = None,
) -> Tensor:
    """The definition in float64, a head at a time: the matrix of all of them is large."""
    rows, columns = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    heads = []
    for h in range(q.shape[1]):
        scores = q[0, h].double() @ k[0, h].double().T / math.sqrt(q.shape[-1])
        at = torch.tensor(0), torch.tensor(h), rows, columns
        if score_mod is not None:
            scores = score_mod(scores, *at)
        if mask_mod is not None:
            scores = scores.masked_fill(~mask_mod(*at), -math.inf)
        heads.append(scores.softmax(-1) @ v[0, h].double())
    return torch.stack(heads)[None]
