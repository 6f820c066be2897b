"""Grouped products with experts' weights as a model keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.ir.dtypes import DType
from tilewright.passes.to_tile.experts.combine import combine_program
from tilewright.passes.to_tile.experts.floating import FloatForm, grouped_program, tile_rows
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.experts.plan import Plan
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.once import Once
from tilewright.runtime.tile_kernel import own_tile_kernel

PLAIN = GateFunction()


def grouped_product(
    plan: Plan,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] = (),
    *,
    gate: GateFunction = PLAIN,
    scale: torch.Tensor | None = None,
    single: bool = False,
) -> torch.Tensor:
    """``gate(x @ w0[e].T + b0[e], x @ w1[e].T + b1[e]) * scale``, each sorted row with the weights
    of its expert e: x [P, K] -> f32 [P, N].

    ``weights``: one or two [E, N, K], any strides with neighbours along K side by side; ``biases``:
    as many [E, N], or none; ``scale`` f32 [P]. ``single``: each expert has one row.
    """
    form = FloatForm(
        int(x.shape[1]),
        FLOATS[weights[0].dtype],
        FLOATS[x.dtype],
        len(weights),
        gate,
        FLOATS[biases[0].dtype] if biases else None,
        scale is not None,
    )
    rows = tile_rows(kernel_target(), 1 if single else max(2, plan.rows_each))
    more = () if scale is None else (scale,)
    kernel = _PRODUCTS[form, rows]
    return kernel(plan.active, plan.starts, x, *weights, *biases, *more)[0]


def combine(plan: Plan, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``out[t] = sum over j of y[places[t, j]]``, from j = 0 on: y f32 [P, N] -> [T, N]"""
    kernel = _SUMS[int(plan.places.shape[1]), int(y.shape[1]), FLOATS[dtype]]
    return kernel(y, plan.places, plan.starts)[0]


def _product(key: tuple[FloatForm, int]) -> Call:
    form, rows = key
    return own_tile_kernel(lambda target: grouped_program(form, target, rows))


def _sum(key: tuple[int, int, DType]) -> Call:
    return own_tile_kernel(lambda target: combine_program(*key, target))


_PRODUCTS: Once[tuple[FloatForm, int], Call] = Once(_product)
_SUMS: Once[tuple[int, int, DType], Call] = Once(_sum)  # by choices, width and dtype of results
