"""One expert after the other: kernels of linear layers for quantised weights, torch for floats.

Slow with many experts, and clear: what grouped kernels are compared with.
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F

from tilewright.ir.errors import BackendMissingError, BindError, TargetError, UnsupportedError
from tilewright.runtime.experts.form import ALL, PAIRS, ExpertsForm, Product
from tilewright.runtime.experts.segments import combine, route
from tilewright.runtime.lowbit import EPILOGUES, gated_kernel, linear_kernel
from tilewright.runtime.lowbit.reference import reference_linear
from tilewright.runtime.quantized.tensor import QuantizedTensor

FALLBACKS: Counter[str] = Counter()  # why a product ran in torch instead, and how often
_REFUSALS = (UnsupportedError, BackendMissingError, TargetError)  # of a kernel


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
    return gate.call(merged(left, right, form.columns))


def merged(left: torch.Tensor, right: torch.Tensor, columns: str) -> torch.Tensor:
    """gate and up [S, I] as the columns [S, 2I] of one product."""
    if columns == PAIRS:
        return torch.stack((left, right), dim=-1).flatten(-2)
    return torch.cat((left, right), dim=-1)


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
    except (*_REFUSALS, BindError):
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
        left, right = (_quantised(x, w, b, product.activation) for w, b in both)
        return merged(left, right, columns)
    return _quantised(x, product.each[e], product.biases[e], product.activation)


def _quantised(
    x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """By a kernel, or in torch where there is none; ``FALLBACKS`` says why."""
    if x.device.type != "cpu":
        reason = f"there is no kernel for quantised weights on {x.device.type}"
    else:
        try:
            return linear_kernel(x.contiguous(), weight, bias, activation)
        except _REFUSALS as error:
            reason = error.message
    FALLBACKS[reason] += 1
    return reference_linear(x, weight, bias, activation)
