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
from tilewright.frontend.attention.low_bit import cached_inputs, side_of
from tilewright.frontend.attention.plans import (
    STARTS,
    Interpreted,
    Start,
    closure_of,
    known_plan,
)
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.runtime.determinism import in_force
from tilewright.runtime.kv_cache.cache import KVCache
from tilewright.runtime.kv_cache.tokens import CachedTokens

Function = Callable[..., Any]
_Tensor = torch.Tensor
_gradients = torch.is_grad_enabled
_transformed = _functorch.maybe_current_level
_ORDER = ("q", "k", "v")
# Form's other fields: one batch, page, used, table, sinks, mask, bias, heads last, keys, values
_REST = (False, 0, None, None, None, None, None, False, None, None)
_MOST = 1024  # kinds of calls that are remembered
_FEW = 4  # and those that are tried one after the other, without a look-up
# torch's own check that tensors are like others: type, dtype, device, sizes, strides, gradients,
# and how operations on them are dispatched; in C++, and no part of its interface
_Guards: Any = getattr(getattr(torch._C._dynamo, "guards", None), "TensorGuards", None)


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
    plain = score_mod is mask_mod is None and _for_gpu(q)
    beside = _beside(options) if plain else None
    if beside is None:
        return _by_plan(q, k, v, score_mod, mask_mod, options)
    for fits, others, start in STARTS.recent:
        if fits(q, k, v) and others == beside:
            return _started(start, q, k, v)
    try:
        kind = sys.modules[_RUNTIME].kinds(3)(q, k, v)
    except RuntimeError:  # no strides
        return None
    key = kind, beside
    known = STARTS.known.get(key)
    if known is None:
        return _by_plan(q, k, v, None, None, options, key)
    _keep(beside, known, q, k, v)
    return _started(known, q, k, v)


_RUNTIME = "tilewright.runtime.program"  # imported for the first program


def _for_gpu(x: torch.Tensor) -> bool:
    runtime = sys.modules.get(_RUNTIME)
    return runtime is not None and (x.is_cuda or runtime.pretended.on)


def _beside(options: Hashable) -> tuple[Hashable, ...] | None:
    """What starts a kernel besides tensors; None while calls are recorded."""
    runtime: Any = sys.modules[_RUNTIME]
    if runtime.now.recorder is not None:
        return None
    return options, in_force().rank, runtime.depends_on()


def _started(start: Start, *tensors: torch.Tensor) -> Sequence[torch.Tensor] | None:
    try:
        return start(*tensors)
    except (BindError, UnsupportedError):  # said again, with what to do
        return None


def _keep(beside: Hashable, start: Start, *tensors: torch.Tensor) -> None:
    """Calls of a few kinds that come again and again are found by their guards. A guard holds in
    one mode of torch (inference_mode or not), and for no tensor that is there twice."""
    if start not in STARTS.latest:
        STARTS.latest = (start, *STARTS.latest[: _FEW - 1])
    elif _Guards is not None and len(set(map(id, tensors))) == len(tensors):
        guards = _Guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        STARTS.recent = ((guards.check, beside, start), *STARTS.recent[: _FEW - 1])


def _by_plan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score_mod: Function | None,
    mask_mod: Function | None,
    options: tuple[bool, float | None, bool, bool, bool],
    key: tuple[Hashable, Any] | None = None,
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


def cached_again(
    q: Any,
    k: Any,
    v: Any,
    score_mod: Function | None,
    mask_mod: Function | None,
    options: tuple[bool, float | None, bool, bool, bool],
) -> Sequence[torch.Tensor] | None:
    """``called_again`` for q [B, H, N, D] over a ``KVCache``, or its keys and values, without
    functions."""
    if type(q) is not _Tensor or _transformed() is not None or not score_mod is mask_mod is None:
        return None
    if type(k) is KVCache and v is None:
        k, v = k.view()
    if not (type(k) is type(v) is CachedTokens) or (_gradients() and q.requires_grad):
        return None
    causal, scale, grouped, lse, largest = options
    keys, values, (batch, key_heads, *_) = k.form, v.form, k.words.shape
    fits = q.dim() == 4 and q.shape[0] == batch and q.shape[3] == keys.width and keys.keys
    if not fits or v.words.shape[:2] != (batch, key_heads) or v.length != k.length:
        return None
    heads = q.shape[1]
    if values.keys or heads % key_heads or (heads != key_heads and not grouped):
        return None
    if scale is not None and type(scale) is not float:
        return None
    groups, widths = heads // key_heads or 1, (keys.width, values.width)
    fields = DENSE, q.dtype, groups, widths, scale, causal, lse, largest, *_REST[:-2]
    plan = known_plan((*fields, side_of(k), side_of(v, k)))
    if plan is None or isinstance(plan.program, Interpreted):
        return None
    given = {"q": q, **cached_inputs("k", k), **cached_inputs("v", v)}
    try:
        results: Sequence[torch.Tensor] = plan.program(*map(given.__getitem__, plan.given))
    except (BindError, UnsupportedError):  # said again, with what to do
        return None
    return results


def _results(
    facts: tuple[object, ...],
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    score_mod: Function | None,
    mask_mod: Function | None,
    key: tuple[Hashable, Any] | None,
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
    if key is not None:
        _remember(key, plan.program)
    return results


def _remember(key: tuple[Hashable, Any], program: Any) -> None:
    """Keeps what starts calls of a kind, once the program has it."""
    kind, (_, _, others) = key
    start = program.repeats((kind, others))
    if start is not None:
        if len(STARTS.known) >= _MOST:
            STARTS.clear()
        STARTS.known[key] = start
