"""torch's scaled_dot_product_attention as contraction, mask, softmax, contraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.fx import Node

from tilewright.frontend import symbols
from tilewright.frontend.op_map.contractions import leading_letters
from tilewright.frontend.op_map.emitter import ONE, Emitter, Shape, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.registry import Kind, handles
from tilewright.frontend.op_map.shape import settle_ratios_above
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, BOOL, I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size


def settle_attention(node: Node) -> None:
    """Guards what torch checks only when it runs: keys and values of one length, heads that are a
    multiple of key heads; and fixes the head sizes, which kernels are compiled for."""
    settle_ratios_above(node)
    query, key, value = (_argument(node, at, name) for at, name in enumerate(_NAMES))
    symbols.make_static(query.shape[-1])
    symbols.make_static(value.shape[-1])
    symbols.must_equal(query.shape[-1], key.shape[-1])
    symbols.must_equal(key.shape[-2], value.shape[-2])
    if node.kwargs.get("enable_gqa") and len(query.shape) > 2:
        symbols.must_equal(key.shape[-3], value.shape[-3])
        symbols.must_be_multiple(query.shape[-3], key.shape[-3])


_NAMES = ("query", "key", "value")


def _argument(node: Node, at: int, name: str) -> torch.Tensor:
    given = node.args[at] if len(node.args) > at else node.kwargs[name]
    assert isinstance(given, Node)
    tensor: torch.Tensor = given.meta["example_value"]
    return tensor


@handles(
    "scaled_dot_product_attention",
    Kind.ATTENTION,
    [F.scaled_dot_product_attention],
    settle=settle_attention,
)
def scaled_dot_product_attention(  # noqa: PLR0913, PLR0917  (torch's signature)
    e: Emitter,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """F.scaled_dot_product_attention without dropout"""
    if dropout_p != 0:
        raise UnsupportedError("attention with dropout stays with torch; set dropout_p=0")
    if is_causal and attn_mask is not None:
        raise UnsupportedError("attn_mask together with is_causal=True; torch refuses it too")
    query, key, value = (e.cast(x, e.dtype) for x in (query, key, value))  # autocast may narrow
    return attend(e, query, key, value, attn_mask, causal=is_causal, scale=scale)


def attend(
    e: Emitter,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Value:
    """softmax(query key^T * scale, masked) value with scores and softmax in f32 (f64).

    query [..., H, N, D], key [..., K, M, D], value [..., K, M, E], where H is K or a multiple of it
    (grouped heads); mask broadcasts to [..., H, N, M], bool (True: take part) or added. Result
    [..., H, N, E] of query's dtype. Rows with everything masked give 0.
    """
    dtype = tensor_type(query).dtype
    whole = (*tensor_type(query).shape[:-1], tensor_type(value).shape[-1])
    groups = _groups(query, key)
    if groups is not None:
        query = e.reshape(query, _split_heads(tensor_type(query).shape, groups))
        mask = mask if mask is None else _split_mask(e, mask, groups)
    q, k, v = _letters(query, key, grouped=groups is not None)
    lead = max(q, k, key=len)[:-2]
    scores = e.contract(f"{q},{k}->{lead}nm", query, key)
    scores = scaled(e, scores, scale, tensor_type(query).shape[-1])
    scores = _masked(e, scores, mask, causal)
    weights = e.op(t.Softmax, scores, axis=len(lead) + 1, safe=True, hint="weights")
    output = weighted(e, weights, value, f"{lead}nm,{v}->{lead}ne")
    return e.cast(output if groups is None else e.reshape(output, whole), dtype)


def weighted(e: Emitter, weights: Value, value: Value, equation: str) -> Value:
    """weights times value of a narrower dtype, summed in the wide one.

    For bf16 as in torch's flash kernel: weights are rounded, so that bf16 dot products serve.
    """
    dtype = tensor_type(value).dtype
    if dtype == BF16:
        weights = e.cast(e.cast(weights, dtype), arithmetic_dtype(dtype))
    return e.contract(equation, weights, e.cast(value, arithmetic_dtype(dtype)))


@dataclass(frozen=True)
class Softmax:
    """A softmax with its statistics: per row (last dimension kept as 1) the largest score and the
    natural logarithm of the sum of exponentials; -inf for both where everything is masked."""

    weights: Value
    largest: Value
    logarithm: Value


def safe_softmax(e: Emitter, scores: Value, sinks: Value | None = None) -> Softmax:
    """The parts of tensor.softmax {safe} over the last dimension, for those who need them.

    ``sinks`` is a score per row that takes part in the sum but has no value (gpt-oss); it counts in
    neither statistic.
    """
    dtype, axis = tensor_type(scores).dtype, len(tensor_type(scores).shape) - 1
    largest = e.op(t.Reduce, scores, kind="max", axis=axis, keep=True, hint="max")
    empty = e.compare(largest, e.const(-math.inf, dtype), "eq")
    top = e.op(m.Select, empty, e.const(0.0, dtype), largest, hint="top")
    exponentials = e.op(m.Exp, e.op(m.Sub, scores, top), hint="e")
    total = e.op(t.Reduce, exponentials, kind="sum", axis=axis, keep=True, hint="sum")
    logarithm = e.op(m.Add, e.op(m.Log, total), top, hint="lse")
    if sinks is not None:
        total = e.op(m.Add, total, e.op(m.Exp, e.op(m.Sub, sinks, top)), hint="sum")
    none = e.compare(total, e.const(0.0, dtype), "eq")
    total = e.op(m.Select, none, e.const(1.0, dtype), total, hint="sum")
    weights = e.op(m.Div, exponentials, total, hint="weights")
    return Softmax(weights, largest, logarithm)


def _groups(query: Value, key: Value) -> tuple[Size, Size] | None:
    """(key heads, query heads per key head) if several query heads share one key head."""
    q, k = tensor_type(query).shape, tensor_type(key).shape
    if len(q) < 3 or q[-3] == k[-3] or ONE in (q[-3], k[-3]):
        return None
    heads, shared = q[-3], k[-3]
    for monomial, coefficient in shared.terms[:1]:
        (top,) = [c for m_, c in heads.terms if m_ == monomial] or [0]
        if coefficient and top % coefficient == 0 and shared * (top // coefficient) == heads:
            return shared, Size.of(top // coefficient)
    raise UnsupportedError(f"{heads} query heads are no known multiple of {shared} key heads")


def _split_heads(shape: Shape, groups: tuple[Size, Size]) -> Shape:
    return (*shape[:-3], *groups, *shape[-2:])


def _split_mask(e: Emitter, mask: Value, groups: tuple[Size, Size]) -> Value:
    shape = tensor_type(mask).shape
    if len(shape) < 3:
        return mask
    heads = (ONE, ONE) if shape[-3] == ONE else groups
    return e.reshape(mask, _split_heads(shape, heads))


def _letters(query: Value, key: Value, grouped: bool) -> tuple[str, str, str]:
    """Letters of query, key and value: bhnd, bhmd, bhme; grouped: bkgnd, bkmd, bkme."""
    ranks = [len(tensor_type(x).shape) - 2 for x in (query, key)]
    if not grouped:
        names = leading_letters(max(ranks))
        q, k = (names[len(names) - r :] for r in ranks)
        return q + "nd", k + "md", k + "me"
    shared = leading_letters(ranks[1])[:-1] + "k"
    return f"{shared}gnd", f"{shared}md", f"{shared}me"


def scaled(e: Emitter, scores: Value, scale: float | None, width: Size) -> Value:
    """scores * scale, which is 1/sqrt(width) if not given"""
    if scale is None:
        if width.constant is None:
            raise UnsupportedError("attention whose head size is not known; pass scale=")
        scale = 1 / math.sqrt(width.constant) if width.constant else 1.0
    if scale == 1:
        return scores
    return e.op(m.Mul, scores, e.const(scale, tensor_type(scores).dtype))


def _masked(e: Emitter, scores: Value, mask: Value | None, causal: bool) -> Value:
    dtype = tensor_type(scores).dtype
    if mask is None and not causal:
        return scores
    if mask is not None and tensor_type(mask).dtype != BOOL:
        return e.op(m.Add, scores, e.cast(mask, dtype))
    outside = e.const(-math.inf, dtype)
    if mask is None:
        shape: Sequence[Size] = tensor_type(scores).shape
        rows, columns = e.iota((shape[-2], ONE), 0, I64), e.iota((ONE, shape[-1]), 1, I64)
        mask = e.compare(rows, columns, "ge")
    return e.op(m.Select, mask, scores, outside)
