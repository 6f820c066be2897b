"""A layer's experts on a GPU: plan, gate and up, down, sum; nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
    rows_class,
    rows_of_block,
)
from tilewright.passes.to_tile.whole_blocks.experts.products import product_program
from tilewright.passes.to_tile.whole_blocks.experts.sums import sum_program
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.experts import gpu_packed
from tilewright.runtime.experts.between import gate_function
from tilewright.runtime.experts.floating import Matrices, float_form, together, why_not_products
from tilewright.runtime.experts.form import ALL, ExpertsForm, Product
from tilewright.runtime.experts.gpu_plan import BlockPlan, Planner, Step, is_few, planner
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.family import Call
from tilewright.runtime.gpu_backend import gpu_call, on_gpu
from tilewright.runtime.gpu_targets import (
    BY_TRITON,
    chosen_by_caller,
    device_target,
    forced_schedule,
    pretended,
)
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
    packed = partial(gpu_packed.why_not, device=x.device, target=target)
    return why_not_products(form, x.device, packed)


@dataclass(frozen=True)
class Layer:
    """The kernels of a layer for calls that are alike."""

    planner: Planner
    first: Step
    down: Step
    total: Call

    def fresh(self) -> bool:
        """Whether weights lie where they did."""
        return self.first.fresh() and self.down.fresh()

    def __call__(
        self,
        form: ExpertsForm,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        rerouting: Rerouting | None,
    ) -> torch.Tensor:
        """x [T, H], ids and weights [T, k] -> [T, H] in x's dtype. Tokens with ids that name no
        expert become NaN."""
        made = self.planner(ids, weights, rerouting)
        x = x if x.stride(1) == 1 else x.contiguous()
        y = self.down.call(form, made, self.first.call(form, made, x))
        if form.after is not None:
            y = form.after(y.to(x.dtype)).float() * made.scales[:, None]
        return self.total(y, made.places)[0]


def layer_for(
    form: ExpertsForm,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    rerouting: Rerouting | None = None,
) -> Layer | None:
    """What runs a call, T * k not 0, kept for those like it: all that decides its kernels is looked
    up once. None where ``why_not`` says why."""
    count = ids.numel()
    base = 0 if rerouting is None else int(rerouting.map.shape[1])
    each = -(-count // max(1, min(base or form.experts, count)))
    sizes = ids.shape[1], base, rows_class(each), is_few(ids)
    given = x.dtype, x.device, ids.dtype, weights.dtype
    key = given, sizes, chosen_by_caller(), pretended.on
    layer: Layer | None = form.prepared.get(key)
    if layer is None or not layer.fresh():
        if layer is not None:
            form.prepared.clear()  # all of it has weights where they were
        if why_not(form, x):
            return None
        layer = form.prepared[key] = _layer(form, x, ids, weights, rerouting, each)
    return layer


def _layer(
    form: ExpertsForm,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    rerouting: Rerouting | None,
    each: int,
) -> Layer:
    """For experts with about ``each`` rows."""
    target, inner = device_target(x.device.index), _inner_dtype(form.down, x)
    rows = _rows(form, x, inner, each)
    plans = planner(ids, weights, form.experts, rows, target, form.skip, rerouting)
    first = _first(form, x, rows, inner, target)
    # what an expert's results are kept in before they are added up: x's dtype, as models do. In f32
    # writing and reading them would take as long as an eighth of both products
    y = FLOATS[x.dtype] if form.after is None else F32
    down = _down(form, TORCH_DTYPES[inner.name], x.device, rows, y, target)
    key = int(ids.shape[1]), form.down.rows, y, FLOATS[x.dtype], target
    return Layer(plans, first, down, _SUMS[key, pretended.backend])


def _rows(form: ExpertsForm, x: torch.Tensor, inner: DType, each: int) -> int:
    """Rows of a block, by how many rows an expert has, about."""
    forced = forced_schedule()
    if forced is not None:
        return forced.rows
    products = [product.weight for product in (*form.first, form.down)]
    dtypes = {x.dtype, TORCH_DTYPES[inner.name], *(w.dtype for w in _tensors(products))}
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


def _first(form: ExpertsForm, x: torch.Tensor, rows: int, out: DType, target: Target) -> Step:
    """What the second product takes, of dtype ``out``: rows like x [T, H] -> [P, I]."""
    if form.first[0].quantised:
        return gpu_packed.packed_first(form, x, rows, out, target)
    parts = [Matrices.of(p, form.columns if len(form.first) == 1 else ALL) for p in form.first]
    where, function, whole = _where(form.first), gate_function(form.gate), together(parts)
    if function is not None and whole is not None:
        given = x.dtype, whole, rows, target
        return Step(_product(*given, gate=function, chosen=True, out=out), where)
    each = [
        Step(_product(x.dtype, one, rows, target, chosen=True), where)
        for part in parts
        for one in part.each()
    ]
    return gpu_packed.gated_step(each, out)


def _down(
    form: ExpertsForm,
    h: torch.dtype,
    device: torch.device,
    rows: int,
    out: DType,
    target: Target,
) -> Step:
    """The second product: h [P, I] -> [P, N] of dtype ``out``, scaled if nothing comes after it."""
    product, scaled = form.down, form.after is None
    if product.quantised:
        given = product, h, device, rows, target
        return gpu_packed.packed_product(*given, scaled=scaled, out=out)
    made = _product(h, Matrices.of(product), rows, target, scaled=scaled, out=out)
    return Step(made, _where([product]))


def _where(products: Sequence[Product]) -> Callable[[], bool]:
    """Whether tensors lie where they do now, and have the same dtypes."""
    tensors = [
        tensor
        for product in products
        for tensor in (product.weight, product.bias)
        if isinstance(tensor, torch.Tensor)
    ]

    def facts() -> list[tuple[int, torch.dtype]]:
        return [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]

    before = facts()
    return lambda: facts() == before


def _product(
    x: torch.dtype,
    matrices: Matrices,
    rows: int,
    target: Target,
    *,
    gate: GateFunction = PLAIN,
    chosen: bool = False,
    scaled: bool = False,
    out: DType = F32,
) -> Callable[[ExpertsForm, BlockPlan, torch.Tensor], torch.Tensor]:
    """``gate(x @ w0[e].T + b0[e], x @ w1[e].T + b1[e]) * scale``: x [P, K], or not yet sorted
    (``chosen``) [T, K] -> [P, N] of dtype ``out``, in blocks of ``rows``."""
    form = float_form(x, matrices, gate, chosen, scaled, out)
    kernel = _PRODUCTS[(form, _blocks(form, target, rows), target), pretended.backend]
    own = *matrices.weights, *matrices.biases

    def call(_: ExpertsForm, made: BlockPlan, x: torch.Tensor) -> torch.Tensor:
        if chosen:
            return kernel(made.blocks, made.tokens, x, *own)[0]
        more = (made.scales,) if scaled else ()
        return kernel(made.blocks, x, *own, *more)[0]

    return call


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
