"""``tilewright.merge_attention``: attention over all keys from attention over parts of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from tilewright.frontend.attention.api import keep_dynamo_out, refuse_unfit
from tilewright.frontend.attention.plans import make_program
from tilewright.frontend.op_map.emitter import ONE, Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Module, Region, Value, size_names
from tilewright.ir.errors import BindError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

Part = tuple[torch.Tensor, torch.Tensor]


def merge_attention(*parts: Part) -> Part:
    """The result over all keys from results over disjoint parts of them, in one pass.

    Each part is ``(o, lse)`` as ``tilewright.attention(…, return_lse=True)`` gives them: o [B, H,
    N, E] with lse [B, H, N], or ragged o [total_q, H, E] with lse [H, total_q]; o in f32, bf16, f16
    or f64, lse in f32 (f64), natural logarithms. Returns one such pair. A part whose lse is -inf
    counts for nothing; where all are, the result is 0 and its lse -inf. The order of the parts
    decides the order of the sums and nothing else.

    Raises BindError if the parts do not fit together, UnsupportedError if one requires gradients.

    Source: Dao et al., "FlashAttention" (2022), section 3.1; Ye et al., "Cascade Inference" (2024).
    """
    if not parts:
        raise BindError("merge_attention needs at least one (o, lse)")
    flat: list[torch.Tensor] = []
    for at, part in enumerate(parts):
        flat += _checked(part, parts[0], at)
    refuse_unfit(flat)
    output, lse = flat[:2]
    program = _program(len(parts), output.dim(), output.shape[-1], output.dtype, lse.dtype)
    merged, logarithm = program(*flat)
    return merged, logarithm


def _checked(part: Part, first: Part, at: int) -> Part:
    """The part, if it is one and looks like the first."""
    pair = isinstance(part, tuple | list) and len(part) == 2
    if not pair or not all(isinstance(x, torch.Tensor) for x in part):
        raise BindError(f"part {at} of merge_attention must be (o, lse), two tensors")
    output, lse = part
    shape = output.shape
    wanted = {3: (shape[1], shape[0]), 4: shape[:3]}.get(len(shape)) if len(shape) > 2 else None
    if wanted is None or tuple(lse.shape) != tuple(wanted):
        rule = "o [B, H, N, E] and lse [B, H, N], or o [total_q, H, E] and lse [H, total_q]"
        raise BindError(f"part {at} has o {tuple(shape)} and lse {tuple(lse.shape)}: pass {rule}")
    if lse.dtype not in (torch.float32, torch.float64):
        raise BindError(f"part {at}: lse is {lse.dtype}; it must be float32 (float64)")
    if shape != first[0].shape or (output.dtype, lse.dtype) != (first[0].dtype, first[1].dtype):
        raise BindError(
            f"part {at} is {tuple(shape)} of {output.dtype} and {lse.dtype}, part 0 is "
            f"{tuple(first[0].shape)} of {first[0].dtype} and {first[1].dtype}"
        )
    return output, lse


@functools.lru_cache(maxsize=256)
def _program(
    count: int, rank: int, width: int, dtype: torch.dtype, lse_dtype: torch.dtype
) -> Callable[..., Any]:
    return make_program(merge_module(count, rank, width, dtype, lse_dtype))


def merge_module(
    count: int, rank: int, width: int, dtype: torch.dtype, lse_dtype: torch.dtype
) -> Module:
    """o = sum_i exp(lse_i - top) o_i / sum_i exp(lse_i - top), lse = top + log of that sum."""
    e = Emitter()
    rows = tuple(map(Size.of, ("B", "H", "N") if rank == 4 else ("N", "H")))
    lse_shape = rows if rank == 4 else rows[::-1]
    outputs = [
        Value(TensorType((*rows, ONE * width), ir_dtype(dtype)), f"o{i}") for i in range(count)
    ]
    lses = [Value(TensorType(lse_shape, ir_dtype(lse_dtype)), f"lse{i}") for i in range(count)]
    wide = ir_dtype(lse_dtype)
    top = functools.reduce(lambda a, b: e.op(m.Max, a, b), lses)
    empty = e.compare(top, e.const(-math.inf, wide), "eq")
    top = e.op(m.Select, empty, e.const(0.0, wide), top, hint="top")
    weights = [e.op(m.Exp, e.op(m.Sub, x, top), hint="weight") for x in lses]
    total = functools.reduce(lambda a, b: e.op(m.Add, a, b), weights)
    none = e.compare(total, e.const(0.0, wide), "eq")
    divisor = e.op(m.Select, none, e.const(1.0, wide), total)
    scaled = [_times(e, o, e.op(m.Div, w, divisor)) for o, w in zip(outputs, weights, strict=True)]
    output = e.cast(functools.reduce(lambda a, b: e.op(m.Add, a, b), scaled), ir_dtype(dtype))
    lse = e.op(m.Add, e.op(m.Log, total), top, hint="lse")
    params = tuple(x for pair in zip(outputs, lses, strict=True) for x in pair)
    body = Region(params, tuple(e.builder.ops), (output, lse))
    return Module((Graph("graph", "merge_attention", size_names(rows), body),))


def _times(e: Emitter, output: Value, weight: Value) -> Value:
    """A part times its weight per row; nothing of a part without weight, even if it is NaN."""
    dtype = arithmetic_dtype(tensor_type(output).dtype)
    if len(tensor_type(weight).shape) == 2:
        weight = e.transpose(weight, (1, 0))
    column = e.cast(e.reshape(weight, (*tensor_type(weight).shape, ONE)), dtype)
    zero = e.const(0.0, dtype)
    product = e.op(m.Mul, e.cast(output, dtype), column)
    return e.op(m.Select, e.compare(column, zero, "eq"), zero, product)


keep_dynamo_out(merge_attention)
