"""Hugging Face models without torch.compile: ``attn_implementation="tilewright"``.

``register_attention()`` adds attention and, under the same name, masks to transformers (without the
second a mask would be None, and causality lost). Each attention then calls a kernel directly, with
transformers' own mask function traced into it. transformers is imported only there.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.form import DENSE, Form, Given
from tilewright.frontend.attention.function_mask import NO_FUNCTIONS, FunctionMask
from tilewright.frontend.attention.plans import plan_for
from tilewright.frontend.huggingface_options import (
    added,
    causal_mask,
    of_dtype,
    own_attention,
    with_chosen_keys,
)
from tilewright.frontend.region_call import refusal
from tilewright.frontend.torch_dtypes import has_ir_dtype
from tilewright.ir.errors import BackendMissingError, UnsupportedError
from tilewright.runtime.determinism import in_force, refuse_unordered

FALLBACKS: Counter[str] = Counter()  # why attention ran in torch instead, and how often
_NO_WEIGHTS = (
    "tilewright's attention does not keep its weights, so there are no attentions in the output; "
    'for those use model.set_attn_implementation("eager")'
)
_TENSORS = {"s_aux": "sinks", "position_bias": "bias"}  # transformers' name -> ours


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: [b, h, n, d] in, [b, n, h, e] out.

    ``attention_mask`` is None, a FunctionMask or a tensor; soft caps, sinks, position biases and
    chosen keys are known. What we have no kernel for runs in torch; ``FALLBACKS`` counts the
    reasons.
    """
    causal = query.shape[2] > 1 and _is_causal(module, options)
    mask = with_chosen_keys(module, query, key, attention_mask, causal, options)
    if torch.compiler.is_compiling():
        return in_torch(module, query, key, value, mask, **options)
    if options.get("output_attentions"):
        warnings.warn(_NO_WEIGHTS, stacklevel=2)
    given = {"q": query, "k": key, "v": value}
    given |= {
        ours: options[name] for name, ours in _TENSORS.items() if options.get(name) is not None
    }
    function = mask if isinstance(mask, FunctionMask) else None
    if function is None and mask is not None:
        given["mask"] = mask
    closure = NO_FUNCTIONS if function is None else function.closure
    reason = _other(module, given, function, options) or refusal(
        (*given.values(), *closure.tensors)
    )
    if reason is None:
        try:
            return _run(given, function, mask is None and causal, closure, options), None
        except UnsupportedError as error:
            reason = error.message
    refuse_unordered(in_force(), UnsupportedError(reason))
    FALLBACKS[reason] += 1
    return in_torch(module, query, key, value, mask, **options)


def _run(
    given: dict[str, torch.Tensor],
    mask: FunctionMask | None,
    causal: bool,
    closure: Closure,
    options: dict[str, Any],
) -> torch.Tensor:
    """The kernel's result. Raises UnsupportedError if there is none."""
    query, key, value = given["q"], given["k"], given["v"]
    softcap = options.get("softcap")
    sinks, bias, tensor = (given.get(name) for name in ("sinks", "bias", "mask"))
    if mask is not None and mask.causal:  # kernels have that one built in
        mask, causal = None, True
    facts = (
        query.dtype,
        query.shape[1] // key.shape[1],
        (query.shape[3], value.shape[3]),
        options.get("scaling"),
        causal,
        key.shape[0] == 1 and query.shape[0] != 1,
        None if sinks is None else sinks.dtype,
        None if tensor is None else _given(tensor),
        None if bias is None else _given(bias),
        softcap,
    )
    score_mod = None if softcap is None else _soft_cap(softcap)
    function = None if mask is None else mask.function
    plan = plan_for(facts, lambda: _form(facts), score_mod, function, closure, check=False)
    return plan(given, closure.tensors, interpret=False)[0]  # torch is faster than the interpreter


def _form(facts: tuple[Any, ...]) -> Form:
    dtype, groups, widths, scale, causal, one_batch, sinks, mask, bias, _ = facts
    return Form(
        DENSE,
        dtype,
        groups,
        widths,
        scale,
        causal,
        one_batch=one_batch,
        sinks=sinks,
        mask=mask,
        bias=bias,
        heads_last=True,
    )


def _given(tensor: torch.Tensor) -> Given:
    return tensor.dtype, tuple(size == 1 for size in tensor.shape)


def _soft_cap(limit: float) -> Callable[..., Any]:
    """limit * tanh(score / limit)"""
    return lambda score, b, h, q_idx, kv_idx: limit * torch.tanh(score / limit)


def _is_causal(module: torch.nn.Module, options: dict[str, Any]) -> bool:
    """What no mask means. A module that does not say is not causal, as in eager: causal masks are
    never None (function_mask), so there is none where all keys may be seen."""
    causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", False) if causal is None else causal)


def _other(
    module: torch.nn.Module,
    given: dict[str, torch.Tensor],
    mask: FunctionMask | None,
    options: dict[str, Any],
) -> str | None:
    """Why our kernel must not be used; None if it may."""
    own = own_attention(module, options)
    if own is not None:
        return own[0]
    if options.get("dropout"):
        return "dropout while training stays with torch; call .eval()"
    if options.get("cache") is not None:
        return "a paged cache of transformers stays with torch"
    if not all(has_ir_dtype(x.dtype) for x in given.values()):
        return "inputs must have a dtype that the IR knows"
    query, key = given["q"], given["k"]
    four = [x for name, x in given.items() if name != "sinks"]
    if any(x.dim() != 4 for x in four):
        return "inputs must have four dimensions"
    if len({given[name].dtype for name in "qkv"}) > 1 or query.shape[1] % key.shape[1]:
        return "query, key and value must have one dtype, and query a multiple of key's heads"
    lengths = (query.shape[2], key.shape[2])
    if mask is not None and mask.lengths != lengths:
        return f"the mask is for lengths {mask.lengths}, not {lengths}"
    return None


def in_torch(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The same by transformers' sdpa function, or spelled out where that cannot do it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = query.shape[2] > 1 and _is_causal(module, options)
    if isinstance(attention_mask, FunctionMask):
        if attention_mask.causal and attention_mask.lengths == (query.shape[2], key.shape[2]):
            attention_mask, causal = None, True  # no tensor in memory
        else:
            attention_mask = attention_mask.allowed()
    own = own_attention(module, options)
    if own is not None:
        mask = added(query, key, attention_mask, causal)
        return own[1](module, query, key, value, mask, **options)[0], None
    options["is_causal"] = causal  # which transformers' function would assume
    if options.get("softcap") is None and options.get("s_aux") is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, of_dtype(attention_mask, query.dtype), **options
        )
        return result
    return _spelled_out(module, query, key, value, attention_mask, options), None


def _spelled_out(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scaling, softcap, sinks = (options.get(name) for name in ("scaling", "softcap", "s_aux"))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    if mask is None and query.shape[2] > 1 and _is_causal(module, options):
        mask = causal_mask(query, key)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = weights if sinks is None else weights[..., :-1]
    weights = F.dropout(weights, options.get("dropout") or 0.0, module.training)
    return (weights @ value).transpose(1, 2).contiguous()


def register_attention(name: str = "tilewright") -> None:
    """Makes ``attn_implementation=name`` known to transformers: attention and, under the same name,
    its masks. Call it once before ``from_pretrained(…, attn_implementation="tilewright")`` or
    ``model.set_attn_implementation("tilewright")``. Raises BackendMissingError without
    transformers."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ModuleNotFoundError as error:
        message = "register_attention needs transformers: pip install 'tilewright[huggingface]'"
        raise BackendMissingError(message) from error

    from tilewright.frontend.huggingface_mask import function_mask

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, function_mask)
