"""A layer's experts by one kernel for each product: every weight that is needed is read once."""

from __future__ import annotations

import torch

from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.runtime.experts import packed
from tilewright.runtime.experts.floating import (
    combine,
    float_first,
    float_product,
    inner_dtype,
    why_not_products,
)
from tilewright.runtime.experts.form import ExpertsForm, Product
from tilewright.runtime.experts.plan import Plan, plan
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.kernel import FLOATS

HELD = 1 << 22  # results of the second product that are made at a time
NARROW = 128  # columns that a block has at least


def why_not(form: ExpertsForm, x: torch.Tensor) -> str:
    """Why no grouped kernel covers a call ('': one does)."""
    if not x.is_cpu or x.dtype not in FLOATS:
        return f"activations of {x.dtype} on {x.device.type}"
    return why_not_products(form, x.device, packed.applies)


def run(
    form: ExpertsForm,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    rerouting: Rerouting | None = None,
) -> torch.Tensor:
    """x [T, H], ids and weights [T, k], T * k not 0 -> [T, H] in x's dtype.

    Raises BindError for ids that name no expert, ExpertError for those of no base expert.
    """
    made = plan(ids, weights, form.experts, form.skip, rerouting)
    h = _first(form, made, x if x.stride(1) == 1 else x.contiguous())
    if form.after is not None:
        y = form.after(_down(form, made, h, None).to(x.dtype))
        return combine(made, y.float() * made.scales[:, None], x.dtype)
    blocks = [
        combine(made, _down(form, made, h, made.scales, block), x.dtype)
        for block in _blocks(form.down, len(h))
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _blocks(product: Product, rows: int) -> list[slice]:
    """Columns of the second product, so many at a time as a cache holds the results of: new memory
    for all of them would cost more than to fill it. Of packed weights all."""
    columns = product.rows
    if product.quantised:
        return [slice(columns)]
    count = min(-(-rows * columns // HELD), -(-columns // NARROW))
    width = -(-columns // (count * NARROW)) * NARROW
    return [slice(start, start + width) for start in range(0, columns, width)]


def _first(form: ExpertsForm, made: Plan, x: torch.Tensor) -> torch.Tensor:
    """What the second product takes, f32 or bf16 [P, I]."""
    out = _inner_dtype(form.down, x)
    if form.first[0].quantised:
        return packed.packed_first(form, made, x, out)
    return float_first(form, made, x, out)


def _inner_dtype(down: Product, x: torch.Tensor) -> DType:
    """What the rows between the two products are kept in."""
    if isinstance(down.weight, torch.Tensor):
        return inner_dtype(x, down.weight)
    return BF16 if packed.read_as_bf16(down, x) else F32


def _down(
    form: ExpertsForm,
    made: Plan,
    h: torch.Tensor,
    scale: torch.Tensor | None,
    block: slice = slice(None),
) -> torch.Tensor:
    """The second product's columns ``block``, f32 [P, N]; of packed weights all columns."""
    if form.down.quantised:
        return packed.packed_product(form.down, made, h, scale)
    return float_product(form.down, made, h, scale, block)
