"""A layer's experts by one kernel for each product: every weight that is needed is read once."""

from __future__ import annotations

from functools import lru_cache

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.runtime.experts.floating import combine, grouped_product
from tilewright.runtime.experts.form import (
    ALL,
    ExpertsForm,
    Gate,
    Product,
    merge_columns,
    split_columns,
)
from tilewright.runtime.experts.plan import Plan, plan
from tilewright.runtime.kernel import FLOATS

Pair = tuple[torch.Tensor, ...]


def why_not(form: ExpertsForm, x: torch.Tensor) -> str:
    """Why no grouped kernel covers a call ('': one does)."""
    if not x.is_cpu or x.dtype not in FLOATS:
        return f"activations of {x.dtype} on {x.device.type}"
    for product in (*form.first, form.down):
        reason = _why_not_product(product)
        if reason:
            return reason
    return ""


def _why_not_product(product: Product) -> str:
    weight = product.weight
    if not isinstance(weight, torch.Tensor):
        return "quantised weights"
    if not weight.is_cpu or weight.dtype not in FLOATS:
        return f"weights of {weight.dtype} on {weight.device.type}"
    if product.transposed or weight.stride(2) != 1:
        return "weights whose elements of a row do not lie side by side"
    if product.bias is not None and product.bias.dtype not in FLOATS:
        return f"biases of {product.bias.dtype}"
    return ""


def run(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """x [T, H], ids and weights [T, k], T * k not 0 -> [T, H] in x's dtype.

    Raises BindError for ids that name no expert.
    """
    made = plan(ids, weights, form.experts, form.skip)
    single = len(x) == 1
    h = _first(form, made, x.index_select(0, made.tokens), single)
    scale = made.scales if form.after is None else None
    y = _down(form, made, h, scale, single)
    if form.after is not None:
        y = form.after(y.to(x.dtype)).float() * made.scales[:, None]
    return combine(made, y, x.dtype)


def _first(form: ExpertsForm, made: Plan, x: torch.Tensor, single: bool) -> torch.Tensor:
    """What the second product takes, f32 [P, I]."""
    columns = form.columns if len(form.first) == 1 else ALL
    weights = tuple(w for p in form.first for w in _split(p, columns))
    biases = tuple(b for p in form.first for b in _split_bias(p, columns))
    function = _function(form.gate)
    if function is not None:
        return grouped_product(made, x, weights, biases, gate=function, single=single)
    # a function that no kernel has: of both products in memory
    each = [
        grouped_product(made, x, weights[i : i + 1], biases[i : i + 1], single=single)
        for i in range(len(weights))
    ]
    if form.gate.call is None and len(each) > 1:
        return form.gate.apply(each[0], each[1])
    whole = each[0] if len(each) == 1 else merge_columns(each[0], each[1], form.columns)
    return form.gate.between(whole.to(x.dtype), form.columns).float()


def _down(
    form: ExpertsForm, made: Plan, h: torch.Tensor, scale: torch.Tensor | None, single: bool
) -> torch.Tensor:
    weights, biases = _split(form.down, ALL), _split_bias(form.down, ALL)
    return grouped_product(made, h, weights, biases, scale=scale, single=single)


def _split(product: Product, columns: str) -> Pair:
    """gate and up of a weight [E, N, K] as views; or the weight."""
    weight = product.weight
    assert isinstance(weight, torch.Tensor)
    weight = weight.detach()
    return split_columns(weight, columns, dim=1)


def _split_bias(product: Product, columns: str) -> Pair:
    if product.bias is None:
        return ()
    parts = split_columns(product.bias.detach(), columns, dim=1)
    return tuple(b if b.stride(1) == 1 else b.contiguous() for b in parts)  # as kernels read them


@lru_cache(maxsize=64)
def _function(gate: Gate) -> GateFunction | None:
    """The function as kernels have it; None if they have not."""
    if gate.call is not None:
        return None
    try:
        return GateFunction(gate.function, gate.alpha, gate.limit, gate.shift)
    except UnsupportedError:
        return None
