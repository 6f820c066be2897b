"""Plain attention calls of a form that was called before: straight to their kernel.

What ``api.py`` checks one by one, in words, is here one condition; whatever it does not cover, and
every call that is wrong, goes back there. A call costs a few microseconds. On a GPU, one without
functions whose tensors have dtypes, shapes, strides and device of calls before is one look-up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch._C import _functorch

from tilewright.frontend.attention.form import DENSE
from tilewright.frontend.attention.plans import STARTS, Interpreted, closure_of, known_plan
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.runtime.determinism import in_force

Function = Callable[..., Any]
_Tensor = torch.Tensor
_gradients = torch.is_grad_enabled
_transformed = _functorch.maybe_current_level
_ORDER = ("q", "k", "v")
# Form's other fields: one batch, page, used, table, sinks, mask, bias, heads last, keys, values
_REST = (False, 0, None, None, None, None, None, False, None, None)
_MOST = 1024  # kinds of calls that are remembered


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
    if _gradients() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return None
    kind = _kind(q, k, v) if score_mod is mask_mod is None else None
    if kind is None:
        return _by_plan(q, k, v, score_mod, mask_mod, options)
    key = kind, options, in_force().rank
    start = STARTS.get(key)
    if start is None:
        return _by_plan(q, k, v, None, None, options, key)
    try:
        return start(q, k, v)
    except (BindError, UnsupportedError):  # said again, with what to do
        return None


def _kind(*tensors: torch.Tensor) -> Hashable | None:
    """All that decides a launch but addresses, of a call on a GPU; None where nothing repeats."""
    runtime = sys.modules.get("tilewright.runtime.program")  # imported for the first program
    if runtime is None or runtime.now.recorder is not None:
        return None
    if not (tensors[0].is_cuda or runtime.pretended.on):
        return None
    try:
        return runtime.kinds(3)(*tensors), runtime.depends_on()
    except RuntimeError:  # no strides
        return None


def _by_plan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score_mod: Function | None,
    mask_mod: Function | None,
    options: tuple[bool, float | None, bool, bool, bool],
    key: tuple[Any, ...] | None = None,
) -> Sequence[torch.Tensor] | None:
    """By the plan of the call's form; what starts its kernel is kept under ``key``."""
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
    if scale is not None and type(scale) is not float:
        return None
    facts = DENSE, dtype, groups, (width, wide), scale, causal, lse, largest, *_REST
    return _results(facts, (q, k, v), score_mod, mask_mod, key)


def _results(
    facts: tuple[object, ...],
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    score_mod: Function | None,
    mask_mod: Function | None,
    key: tuple[Any, ...] | None,
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
    start = plan.program.repeats(key[0]) if key is not None else None
    if start is not None:
        if len(STARTS) >= _MOST:
            STARTS.clear()
        STARTS[key] = start
    return results
