"""One expert after the other: kernels of linear layers for quantised weights, torch for floats.

Slow with many experts, and clear: what grouped kernels are compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tilewright.ir.errors import BindError
from tilewright.runtime.experts.form import ALL, ExpertsForm, Product, merge_columns
from tilewright.runtime.experts.segments import combine, route
from tilewright.runtime.lowbit import EPILOGUES, gated_kernel
from tilewright.runtime.lowbit.fallback import REFUSALS, linear_somehow


def run(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """x [T, H], ids and weights [T, k] -> [T, H] in x's dtype. What is passed has been checked."""
    order, counts = route(ids, form.experts)
    rows = x[order // ids.shape[1]]
    ends = counts.cumsum(0).tolist()
    found = []
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end:
            found.append(_expert(form, e, rows[start:end]))
    if ends[-1] < len(rows):  # of those no expert is here
        dtype = found[0].dtype if found else x.dtype
        found.append(rows.new_zeros(len(rows) - ends[-1], form.down.rows, dtype=dtype))
    return combine(torch.cat(found), order, weights, x.dtype)


def _expert(form: ExpertsForm, e: int, x: torch.Tensor) -> torch.Tensor:
    """Expert e of its rows x [S, H]: [S, H]"""
    y = linear(form.down, e, _first(form, e, x))
    return y if form.after is None else form.after(y)


def _first(form: ExpertsForm, e: int, x: torch.Tensor) -> torch.Tensor:
    """Both products' middle [S, I]."""
    gate = form.gate
    if len(form.first) == 1:
        first = form.first[0]
        if first.quantised and first.apart and gate.plain and gate.function in EPILOGUES:
            found = _gated(form, e, x)
            if found is not None:
                return found
        return gate.between(linear(first, e, x, form.columns), form.columns)
    left, right = (linear(product, e, x) for product in form.first)
    if gate.call is None:
        return gate.apply(left, right)
    return gate.call(merge_columns(left, right, form.columns))


def _gated(form: ExpertsForm, e: int, x: torch.Tensor) -> torch.Tensor | None:
    """``function(x @ gate.T) * (x @ up.T)`` in one kernel; None if there is none."""
    first = form.first[0]
    if x.device.type != "cpu":
        return None
    left, right = first.bias_halves(form.columns)[e]
    try:
        return gated_kernel(
            x,
            *first.halves[e],
            (left, right),
            first.activation,
            epilogue=form.gate.function,
        )
    except (*REFUSALS, BindError):
        return None


def linear(product: Product, e: int, x: torch.Tensor, columns: str = ALL) -> torch.Tensor:
    """x [S, K] times expert e's weight, plus its bias: [S, N], in x's dtype if the weight is
    quantised, else in the weight's. Gate and up that lie apart become ``columns``."""
    if isinstance(product.weight, torch.Tensor):
        weight = product.weight[e].T if product.transposed else product.weight[e]
        bias = product.biases[e]
        return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    if product.apart:
        both = zip(product.halves[e], product.bias_halves(columns)[e], strict=True)
        left, right = (linear_somehow(x, w, b, product.activation) for w, b in both)
        return merge_columns(left, right, columns)
    return linear_somehow(x, product.each[e], product.biases[e], product.activation)
