"""``tilewright.attention`` inside torch.compile and torch.export: one operator of torch's.

Graphs hold ``torch.ops.tilewright.attention`` with the call's tensors and options; score and mask
functions are kept here and named by a number, since a graph cannot hold them. What they close over
is read when the graph runs, as in a call outside of one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.locks import Guard

Function = Callable[..., Any]
Pair = tuple[Function | None, Function | None]

_guard = Guard()
_numbers: dict[Pair, int] = {(None, None): 0}
_functions: dict[int, Pair] = {0: (None, None)}
# Torch keeps compiled graphs on disk, with the numbers in them: another process's must not fit.
_counter = itertools.count(random.SystemRandom().randrange(1 << 40, 1 << 62))


def number_of(score_mod: Function | None, mask_mod: Function | None) -> int:
    """The number of two functions, kept from now on: how graphs name them."""
    with _guard.lock:
        pair = score_mod, mask_mod
        if pair not in _numbers:
            number = _numbers[pair] = next(_counter)
            _functions[number] = pair
        return _numbers[pair]


number_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # called while tracing


@torch.library.custom_op("tilewright::attention", mutates_args=())
def attention_op(  # noqa: PLR0913, PLR0917  (attention's own arguments)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    block_table: torch.Tensor | None,
    seqused_k: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
    return_max: bool,
    functions: int,
) -> list[torch.Tensor]:
    """``tilewright.attention`` with its functions by number, and always a list of results."""
    from tilewright.frontend.attention.api import attention

    if functions not in _functions:
        raise UnsupportedError(
            "a graph with tilewright.attention whose score_mod or mask_mod belongs to another "
            "process: compile or export it again here"
        )
    score_mod, mask_mod = _functions[functions]
    found = attention(
        q,
        k,
        v,
        score_mod=score_mod,
        mask_mod=mask_mod,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        return_lse=return_lse,
        return_max=return_max,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        block_table=block_table,
        seqused_k=seqused_k,
    )
    return [found] if isinstance(found, torch.Tensor) else list(found)


@attention_op.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    """[B, H, N, E] or [total, H, E] in q's dtype; logarithms and maxima [B, H, N] or [H, total]."""
    cu_seqlens_q, return_lse, return_max = others[0], others[7], others[8]
    results = [q.new_empty((*q.shape[:-1], v.shape[-1]))]
    rows = q.shape[:-1] if cu_seqlens_q is None else (q.shape[1], q.shape[0])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    results += [q.new_empty(rows, dtype=wide) for asked in (return_lse, return_max) if asked]
    return results


def _no_gradients(ctx: Any, *gradients: Any) -> None:
    raise UnsupportedError(
        "tilewright.attention has no backward yet: call compiled functions with it under "
        "torch.no_grad(), or train with torch.nn.functional.scaled_dot_product_attention"
    )


attention_op.register_autograd(_no_gradients)


def attention_in_graph(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    functions: Pair,
    lengths: tuple[torch.Tensor | None, ...],
    options: tuple[bool, float | None, bool, bool, bool],
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """One call as an operator. ``lengths``: offsets of queries and keys, block table, keys used;
    ``options``: causal, scale, grouped heads, whether logarithms and maxima are wanted."""
    causal, scale, grouped, lse, largest = options
    scale = None if scale is None else float(scale)
    number = number_of(*functions)
    found: list[torch.Tensor] = torch.ops.tilewright.attention(
        q, k, v, *lengths, bool(causal), scale, bool(grouped), bool(lse), bool(largest), number
    )
    return found[0] if len(found) == 1 else tuple(found)
