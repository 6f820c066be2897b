"""Plain attention calls of a form that was called before: straight to their kernel.

What ``api.py`` checks one by one, in words, is here one condition; whatever it does not cover, and
every call that is wrong, goes back there. A call costs a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C import _functorch

from tilewright.frontend.attention.form import DENSE
from tilewright.frontend.attention.plans import Interpreted, closure_of, known_plan
from tilewright.ir.errors import BindError, UnsupportedError

Function = Callable[..., Any]
_Tensor = torch.Tensor
_gradients = torch.is_grad_enabled
_transformed = _functorch.maybe_current_level
_ORDER = ("q", "k", "v")
# Form's other fields: one batch, page, used, table, sinks, mask, bias, heads last, keys, values
_REST = (False, 0, None, None, None, None, None, False, None, None)


def called_again(
    q: Any,
    k: Any,
    v: Any,
    score_mod: Function | None,
    mask_mod: Function | None,
    options: tuple[bool, float | None, bool, bool, bool],
) -> Sequence[torch.Tensor] | None:
    """The results for q [B, H, N, D], k [B, K, M, D], v [B, K, M, E]; None where something has to
    be made, checked, or refused first. ``options``: causal, scale, grouped heads allowed, and
    whether logarithms and maxima are asked for."""
    if not (type(q) is type(k) is type(v) is _Tensor) or _transformed() is not None:
        return None
    causal, scale, grouped, lse, largest = options
    try:
        batch, heads, _, width = q.shape
        key_batch, key_heads, keys, key_width = k.shape
        beside = v.shape
        wide = beside[3]
    except (ValueError, IndexError):
        return None
    dtype = q.dtype
    fits = key_width == width and key_batch == batch and beside == (batch, key_heads, keys, wide)
    if not fits or k.dtype is not dtype or v.dtype is not dtype:
        return None
    groups = 1
    if heads != key_heads:
        if not grouped or not key_heads or heads % key_heads:
            return None
        groups = heads // key_heads
    if _gradients() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return None
    if scale is not None and type(scale) is not float:
        return None
    facts = DENSE, dtype, groups, (width, wide), scale, causal, lse, largest, *_REST
    return _results(facts, (q, k, v), score_mod, mask_mod)


def _results(
    facts: tuple[object, ...],
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    score_mod: Function | None,
    mask_mod: Function | None,
) -> Sequence[torch.Tensor] | None:
    more: Sequence[torch.Tensor] = ()
    if score_mod is None and mask_mod is None:
        plan = known_plan(facts)
    else:
        closure = closure_of(score_mod, mask_mod)
        plan = known_plan(facts, closure)
        tensors = closure.tensors
        if tensors and plan is not None:
            for x in tensors:
                if type(x) is not _Tensor or x.requires_grad:
                    return None
            more = plan.recipe.inputs(tensors)
    if plan is None or plan.given != _ORDER or isinstance(plan.program, Interpreted):
        return None
    try:
        results: Sequence[torch.Tensor] = plan.program(*given, *more)
    except (BindError, UnsupportedError):  # said again, with what to do
        return None
    return results
