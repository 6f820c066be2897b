"""Custom ops of experts: what torch.compile and autograd see of a layer.

- ``tilewright::route_experts``: checks ids, sorts them by expert, counts.
- ``tilewright::grouped_linear``: one product of all experts, with gradients.
- ``tilewright::experts``: a whole layer, for graphs that need no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tilewright.frontend.experts.parts import kept, product_from
from tilewright.frontend.quantize.linear import through_op
from tilewright.runtime.experts import ExpertsForm, Gate, Product, experts_forward
from tilewright.runtime.experts.by_expert import linear
from tilewright.runtime.experts.form import merge_columns
from tilewright.runtime.experts.segments import check_ids, route


@torch.library.custom_op("tilewright::route_experts", mutates_args=())
def route_op(ids: torch.Tensor, experts: int, skip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``segments.route`` after ``segments.check_ids``."""
    check_ids(ids, experts, skip)
    return route(ids, experts)


@route_op.register_fake
def _(ids: torch.Tensor, experts: int, skip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    long = torch.int64
    return ids.new_empty(ids.numel(), dtype=long), ids.new_empty(experts, dtype=long)


@torch.library.custom_op("tilewright::grouped_linear", mutates_args=())
def grouped_linear_op(
    x: torch.Tensor,
    counts: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    text: str,
    columns: str,
) -> torch.Tensor:
    """Rows x [S, K], sorted by expert, times their experts' weights: [S, N] in x's dtype.

    ``counts`` [E] says how many rows each expert has; rows behind those become 0. ``columns`` is
    the order of the columns of gate and up that lie apart.
    """
    product = kept(tensors, text, lambda parts: product_from(parts, text))
    found = [
        linear(product, e, x[start:end], columns).to(x.dtype)
        for e, (start, end) in enumerate(_segments(counts))
        if start < end
    ]
    found.append(x.new_zeros(len(x) - sum(map(len, found)), product.rows))
    return torch.cat(found)


@grouped_linear_op.register_fake
def _(x: torch.Tensor, counts: torch.Tensor, tensors: Any, text: str, columns: str) -> torch.Tensor:
    return x.new_empty(x.shape[0], product_from(tensors, text).rows)


def _segments(counts: torch.Tensor) -> list[tuple[int, int]]:
    ends = counts.cumsum(0).tolist()
    return list(zip([0, *ends], ends, strict=False))


@torch.library.custom_op("tilewright::grouped_linear_gradients", mutates_args=())
def gradients_op(
    grad: torch.Tensor,
    x: torch.Tensor,
    counts: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    text: str,
    columns: str,
    wanted: Sequence[bool],
) -> list[torch.Tensor]:
    """Of x, bias and float weights, those that are ``wanted``. Rounding x to 8 bits counts as the
    identity."""
    product = kept(tensors, text, lambda parts: product_from(parts, text))
    of_x, of_bias, of_weight = wanted
    bias, weight = product.bias, product.weight
    found: list[torch.Tensor] = [torch.zeros_like(x)] if of_x else []
    if of_bias and bias is not None:
        found.append(torch.zeros_like(bias))
    if of_weight and isinstance(weight, torch.Tensor):
        found.append(torch.zeros_like(weight))
    for e, (start, end) in enumerate(_segments(counts)):
        if start == end:
            continue
        targets = iter(found)
        g = grad[start:end]
        if of_x:
            next(targets)[start:end] = _of_x(product, e, g, columns)
        if of_bias:
            next(targets)[e] = g.sum(0)
        if of_weight:
            outer = g.to(x.dtype).T @ x[start:end]
            next(targets)[e] = outer.T if product.transposed else outer
    return found


@gradients_op.register_fake
def _(
    grad: Any, x: Any, counts: Any, tensors: Any, text: str, columns: str, wanted: Any
) -> list[torch.Tensor]:
    product = product_from(tensors, text)
    each = zip(wanted, (x, product.bias, product.weight), strict=True)
    return [torch.empty_like(tensor) for want, tensor in each if want]


def _of_x(product: Product, e: int, grad: torch.Tensor, columns: str) -> torch.Tensor:
    """grad [S, N] -> [S, K]"""
    weight = product.weight
    if isinstance(weight, torch.Tensor):
        matrix = weight[e].T if product.transposed else weight[e]
    else:
        matrix = product.each[e].dequantize()
        if product.apart:
            left, right = matrix.mT
            matrix = merge_columns(left, right, columns).mT
    return grad.to(matrix.dtype) @ matrix


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, counts, tensors, ctx.text, ctx.columns = inputs
    ctx.save_for_backward(x, counts, *tensors)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, counts, *tensors = ctx.saved_tensors
    kind, _, biased, _ = ctx.text.split("\n")[0].split()
    needed = list(ctx.needs_input_grad[2])
    of_bias = needed[0] if biased == "x" else False
    of_weight = needed[-1] if kind == "floats" else False
    wanted = [ctx.needs_input_grad[0], of_bias, of_weight]
    found = gradients_op(grad, x, counts, tensors, ctx.text, ctx.columns, wanted)
    rest = iter(found)
    of_x = next(rest) if wanted[0] else None
    of_tensors: list[torch.Tensor | None] = [None] * len(tensors)
    if of_bias:
        of_tensors[0] = next(rest)
    if of_weight:
        of_tensors[-1] = next(rest)
    return of_x, None, of_tensors, None, None


grouped_linear_op.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("tilewright::experts", mutates_args=())
def experts_op(  # noqa: PLR0913, PLR0917  (an op takes weights as their parts)
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    first: Sequence[torch.Tensor],
    first_text: str,
    down: Sequence[torch.Tensor],
    down_text: str,
    function: str,
    columns: str,
    skip: bool,
) -> torch.Tensor:
    """``experts_forward`` with ``function`` between the products."""
    form = _form(first, first_text, down, down_text, function, columns, skip)
    return experts_forward(form, x, ids, weights)


def _form(
    first: Sequence[torch.Tensor],
    first_text: str,
    down: Sequence[torch.Tensor],
    down_text: str,
    function: str,
    columns: str,
    skip: bool,
) -> ExpertsForm:
    def make(parts: list[torch.Tensor]) -> ExpertsForm:
        return ExpertsForm(
            (product_from(parts[: len(first)], first_text),),
            product_from(parts[len(first) :], down_text),
            Gate(function),
            columns,
            skip=skip,
        )

    key = first_text, down_text, function, columns, skip
    return kept([*first, *down], key, make)


@experts_op.register_fake
def _(x: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(x)


class ExpertsCall:
    """``tilewright::experts`` for a node of a graph that we run: without torch's dispatcher."""

    __name__ = "experts_layer"

    def __call__(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *facts: Any
    ) -> torch.Tensor:
        if through_op(x):
            result: torch.Tensor = experts_op(x, ids, weights, *facts)
            return result
        return experts_forward(_form(*facts), x, ids, weights)
