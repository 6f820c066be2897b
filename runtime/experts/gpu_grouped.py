"""A layer's experts on a GPU: plan, gate and up, down, sum; nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.backends.triton.build import triton_module
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.errors import BackendMissingError, TargetError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import PLAIN, FloatForm
from tilewright.passes.to_tile.whole_blocks.experts.blocks import (
    ProductBlocks,
    product_blocks,
    rows_of_block,
)
from tilewright.passes.to_tile.whole_blocks.experts.products import product_program
from tilewright.passes.to_tile.whole_blocks.experts.sums import sum_program
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.experts import gpu_packed
from tilewright.runtime.experts.between import gate_function, gated
from tilewright.runtime.experts.floating import Matrices, float_form, together, why_not_matrices
from tilewright.runtime.experts.form import ALL, ExpertsForm, Product
from tilewright.runtime.experts.gpu_plan import BlockPlan, block_plan
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.family import Call
from tilewright.runtime.gpu_backend import gpu_call, on_gpu
from tilewright.runtime.gpu_targets import BY_TRITON, device_target, forced_schedule, pretended
from tilewright.runtime.kernel import FLOATS, TORCH_DTYPES
from tilewright.runtime.once import Once


def why_not(form: ExpertsForm, x: torch.Tensor) -> str:
    """Why no grouped kernel covers a call ('': one does)."""
    if not on_gpu(x) or x.dtype not in FLOATS:
        return f"activations of {x.dtype} on {x.device.type}"
    try:
        if pretended.backend in BY_TRITON:
            triton_module()
        target = device_target(x.device.index)
    except (BackendMissingError, TargetError) as error:
        return str(error)
    if any(product.quantised for product in form.first):
        reason, others = gpu_packed.why_not(form, x.device, target), [form.down]
    else:
        reason, others = "", [*form.first, form.down]
    reasons = (_why_not_product(product, x.device, target) for product in others)
    return reason or next(filter(None, reasons), "")


def _why_not_product(product: Product, device: torch.device, target: Target) -> str:
    if isinstance(product.weight, torch.Tensor):
        return why_not_matrices(product, product.weight, device)
    return gpu_packed.why_not(product, device, target)


def run(
    form: ExpertsForm,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    rerouting: Rerouting | None = None,
) -> torch.Tensor:
    """x [T, H], ids and weights [T, k], T * k not 0 -> [T, H] in x's dtype. Tokens with ids that
    name no expert become NaN."""
    target, inner = device_target(x.device.index), _inner_dtype(form.down, x)
    rows = _rows(form, x, ids.numel(), inner, rerouting)
    made = block_plan(ids, weights, form.experts, rows, target, form.skip, rerouting)
    x = x if x.stride(1) == 1 else x.contiguous()
    h = _first(form, made, x, inner, target)
    if form.after is None:
        y = _down(form, made, h, target, scale=made.scales, out=_outer_dtype(x))
    else:
        y = form.after(_down(form, made, h, target).to(x.dtype)).float()
        y = y * made.scales[:, None]
    width = int(y.shape[1])
    key = int(ids.shape[1]), width, FLOATS[y.dtype], FLOATS[x.dtype], target
    return _SUMS[(key, pretended.backend)](y, made.places)[0]


def _rows(
    form: ExpertsForm, x: torch.Tensor, choices: int, inner: DType, rerouting: Rerouting | None
) -> int:
    """Rows of a block, by how many rows an expert has, about."""
    forced = forced_schedule()
    if forced is not None:
        return forced.rows
    products = [product.weight for product in (*form.first, form.down)]
    dtypes = {x.dtype, TORCH_DTYPES[inner.name], *(w.dtype for w in _tensors(products))}
    experts = form.experts if rerouting is None else int(rerouting.map.shape[1])
    each = -(-choices // max(1, min(experts, choices)))
    rows = rows_of_block(each, torch.float32 in dtypes or len(dtypes) > 1)
    return min(rows, gpu_packed.most_rows(form))


def _tensors(weights: Sequence[object]) -> list[torch.Tensor]:
    return [w for w in weights if isinstance(w, torch.Tensor)]


def _inner_dtype(down: Product, x: torch.Tensor) -> DType:
    """What the rows between the products are kept in: x's 16 bits if the second weight has them, as
    models do, or is quantised."""
    weight = down.weight
    same = not isinstance(weight, torch.Tensor) or weight.dtype == x.dtype
    return FLOATS[x.dtype] if same else F32


def _outer_dtype(x: torch.Tensor) -> DType:
    """What an expert's results are kept in before they are added up: x's, as models do. In f32
    writing and reading them would take as long as an eighth of both products."""
    return FLOATS[x.dtype]


def _first(
    form: ExpertsForm, made: BlockPlan, x: torch.Tensor, out: DType, target: Target
) -> torch.Tensor:
    """What the second product takes, of dtype ``out``: x [T, H] -> [P, I]."""
    if form.first[0].quantised:
        return gpu_packed.packed_first(form, made, x, out, target)
    parts = [Matrices.of(p, form.columns if len(form.first) == 1 else ALL) for p in form.first]
    function, whole = gate_function(form.gate), together(parts)
    if function is not None and whole is not None:
        return _product(made, x, whole, target, gate=function, chosen=True, out=out)
    each = [_product(made, x, one, target, chosen=True) for part in parts for one in part.each()]
    return gated(form, each, x.dtype).to(TORCH_DTYPES[out.name])


def _down(
    form: ExpertsForm,
    made: BlockPlan,
    h: torch.Tensor,
    target: Target,
    *,
    scale: torch.Tensor | None = None,
    out: DType = F32,
) -> torch.Tensor:
    """The second product: h [P, I] -> [P, N] of dtype ``out``."""
    if form.down.quantised:
        return gpu_packed.packed_product(form.down, made, h, target, scale=scale, out=out)
    return _product(made, h, Matrices.of(form.down), target, scale=scale, out=out)


def _product(
    made: BlockPlan,
    x: torch.Tensor,
    matrices: Matrices,
    target: Target,
    *,
    gate: GateFunction = PLAIN,
    chosen: bool = False,
    scale: torch.Tensor | None = None,
    out: DType = F32,
) -> torch.Tensor:
    """``gate(x @ w0[e].T + b0[e], x @ w1[e].T + b1[e]) * scale``: x [P, K], or not yet sorted
    (``chosen``) [T, K] -> [P, N] of dtype ``out``. ``scale`` f32 [P]."""
    form = float_form(x, matrices, gate, chosen, scale is not None, out)
    tokens = (made.tokens,) if chosen else ()
    more = () if scale is None else (scale,)
    kernel = _PRODUCTS[(form, _blocks(form, target, made.rows), target), pretended.backend]
    return kernel(made.blocks, *tokens, x, *matrices.weights, *matrices.biases, *more)[0]


def _blocks(form: FloatForm, target: Target, rows: int) -> ProductBlocks:
    blocks, forced = product_blocks(form, target, rows), forced_schedule()
    if forced is None:
        return blocks
    return ProductBlocks(rows, forced.inner, blocks.terms, forced.warps, forced.stages)


_ProductKey = tuple[FloatForm, ProductBlocks, Target]
_SumKey = tuple[int, int, DType, DType, Target]


def _made(wanted: tuple[_ProductKey, str]) -> Call:
    key, backend = wanted
    refuse_capture("grouped_product")
    return gpu_call(product_program(*key), key[-1], backend)


def _sum(wanted: tuple[_SumKey, str]) -> Call:
    key, backend = wanted
    refuse_capture("sum_experts")
    return gpu_call(sum_program(*key), key[-1], backend)


_PRODUCTS: Once[tuple[_ProductKey, str], Call] = Once(_made)
_SUMS: Once[tuple[_SumKey, str], Call] = Once(_sum)
