"""Grouped products with experts' weights as a model keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.passes.to_tile.experts.combine import combine_program
from tilewright.passes.to_tile.experts.floating import grouped_program
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, Tiling, Way, tiling
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.experts.between import gate_function, gated
from tilewright.runtime.experts.form import ALL, PAIRS, ExpertsForm, Product, split_columns
from tilewright.runtime.experts.plan import Plan
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS, TORCH_DTYPES
from tilewright.runtime.once import Once
from tilewright.runtime.tile_kernel import own_tile_kernel

PLAIN = GateFunction()


@dataclass(frozen=True, eq=False)
class Matrices:
    """What rows are multiplied with: one or two [E, N, K], or gate and up ``woven``, one [E, 2N, K]
    with their rows in turns; as many biases [E, N] (woven [E, 2N]), or none.

    Neighbours along K lie side by side, or those along N; other strides are any.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...] = ()
    woven: bool = False

    @staticmethod
    def of(product: Product, columns: str = ALL) -> Matrices:
        """A product's, as views: gate and up apart if they are ``columns`` of it."""
        weight = product.weight
        assert isinstance(weight, torch.Tensor)
        weight = weight.detach().mT if product.transposed else weight.detach()
        woven = columns == PAIRS and is_turned(weight)
        split = ALL if woven else columns
        biases: tuple[torch.Tensor, ...] = ()
        if product.bias is not None:
            biases = split_columns(product.bias.detach(), split, dim=1)
        return Matrices(split_columns(weight, split, dim=1), _readable(biases), woven)

    def each(self) -> list[Matrices]:
        """Every matrix by itself."""
        count = range(len(self.weights))
        return [Matrices(self.weights[i : i + 1], self.biases[i : i + 1]) for i in count]

    def block(self, columns: slice) -> Matrices:
        """Those of some columns of the product."""
        weights, biases = (
            tuple(part[:, columns] for part in parts) for parts in (self.weights, self.biases)
        )
        return Matrices(weights, _readable(biases))


def why_not_matrices(product: Product, weight: torch.Tensor, device: torch.device) -> str:
    """Why no grouped kernel on ``device`` takes a product with weights as a model keeps them
    ('': one does)."""
    if weight.device != device or weight.dtype not in FLOATS:
        return f"weights of {weight.dtype} on {weight.device}"
    if 1 not in weight.stride()[1:]:
        return "weights of whose elements no neighbours lie side by side"
    if product.bias is not None and product.bias.dtype not in FLOATS:
        return f"biases of {product.bias.dtype}"
    return ""


def why_not_products(
    form: ExpertsForm, device: torch.device, packed: Callable[[ExpertsForm | Product], str]
) -> str:
    """The same of all products of a form; ``packed`` says it of quantised ones: of a form's first
    product, gate and up, or of a product."""

    def why_not(product: Product) -> str:
        if isinstance(product.weight, torch.Tensor):
            return why_not_matrices(product, product.weight, device)
        return packed(product)

    quantised = any(product.quantised for product in form.first)
    reason = packed(form) if quantised else ""
    others = [form.down] if quantised else [*form.first, form.down]
    return reason or next(filter(None, map(why_not, others)), "")


def float_first(form: ExpertsForm, plan: Plan, x: torch.Tensor, out: DType) -> torch.Tensor:
    """What the second product takes, of dtype ``out``: x [T, H] -> [P, I]."""
    parts = [Matrices.of(p, form.columns if len(form.first) == 1 else ALL) for p in form.first]
    function, whole = gate_function(form.gate), together(parts)
    if function is not None and whole is not None:
        return grouped_product(plan, x, whole, gate=function, chosen=True, out=out)
    each = [grouped_product(plan, x, one, chosen=True) for part in parts for one in part.each()]
    return gated(form, each, x.dtype).to(TORCH_DTYPES[out.name])


def together(parts: Sequence[Matrices]) -> Matrices | None:
    """What one kernel takes; None if they are of different kinds."""
    weights = tuple(w for part in parts for w in part.weights)
    biases = tuple(b for part in parts for b in part.biases)
    kinds = {(w.dtype, is_turned(w)) for w in weights}
    alike = len(kinds) == 1 and len({b.dtype for b in biases}) <= 1
    if not alike or len(biases) not in (0, len(weights)):
        return None
    return Matrices(weights, biases, parts[0].woven)


def float_product(
    product: Product,
    plan: Plan,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    columns: slice = slice(None),
) -> torch.Tensor:
    """The second product's ``columns``: sorted rows x [P, I] -> f32 [P, N]."""
    return grouped_product(plan, x, Matrices.of(product).block(columns), scale=scale)


def grouped_product(
    plan: Plan,
    x: torch.Tensor,
    matrices: Matrices,
    *,
    gate: GateFunction = PLAIN,
    chosen: bool = False,
    scale: torch.Tensor | None = None,
    out: DType = F32,
) -> torch.Tensor:
    """``gate(x @ w0[e].T + b0[e], x @ w1[e].T + b1[e]) * scale``, each sorted row with the weights
    of its expert e: x [P, K] -> [P, N] of dtype ``out``. ``chosen``: x is [T, K], not yet sorted;
    ``scale`` f32 [P]."""
    weights, biases = matrices.weights, matrices.biases
    form = float_form(x.dtype, matrices, gate, chosen, scale is not None, out)
    target = kernel_target()
    how = tiling(form, target, 1 if len(plan.places) == 1 else max(2, plan.rows_each))
    if how.way == Way.PANEL and form.x != F32 and not form.pairs(target):
        x, form = x.float(), replace(form, x=F32)  # once, not in the loops over all columns
    tokens = (plan.tokens,) if chosen else ()
    more = () if scale is None else (scale,)
    kernel = _PRODUCTS[form, how]
    return kernel(plan.active, plan.starts, *tokens, x, *weights, *biases, *more)[0]


def float_form(
    x: torch.dtype,
    matrices: Matrices,
    gate: GateFunction,
    chosen: bool,
    scaled: bool,
    out: DType,
) -> FloatForm:
    """What a product with x [P, K] (``chosen``: [T, K]) of a dtype is to kernels."""
    weight, biases, woven = matrices.weights[0], matrices.biases, matrices.woven
    return FloatForm(
        int(weight.shape[2]),
        int(weight.shape[1]) // (2 if woven else 1),
        FLOATS[weight.dtype],
        FLOATS[x],
        2 if woven else len(matrices.weights),
        gate,
        FLOATS[biases[0].dtype] if biases else None,
        scaled,
        is_turned(weight),
        woven,
        chosen,
        out,
    )


def inner_dtype(x: torch.Tensor, weight: torch.Tensor) -> DType:
    """What rows between two products are kept in: bf16 if x is and the second ``weight``, whose
    pairs of bf16 one instruction then multiplies."""
    bf16 = x.dtype == weight.dtype == torch.bfloat16
    return BF16 if bf16 and kernel_target().bf16_dot else F32


def combine(plan: Plan, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``out[t] = sum over j of y[places[t, j]]``, from j = 0 on: y f32 [P, N] -> [T, N]"""
    kernel = _SUMS[int(plan.places.shape[1]), int(y.shape[1]), FLOATS[dtype]]
    return kernel(y, plan.places, plan.starts)[0]


def is_turned(weight: torch.Tensor) -> bool:
    """Whether in [E, N, K] neighbours along N lie side by side, and those along K do not."""
    return weight.stride(2) != 1


def _readable(biases: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """As kernels read them: numbers side by side."""
    return tuple(b if b.stride(1) == 1 else b.contiguous() for b in biases)


def _product(key: tuple[FloatForm, Tiling]) -> Call:
    form, how = key
    return own_tile_kernel(lambda target: grouped_program(form, target, how))


def _sum(key: tuple[int, int, DType]) -> Call:
    return own_tile_kernel(lambda target: combine_program(*key, target))


_PRODUCTS: Once[tuple[FloatForm, Tiling], Call] = Once(_product)
_SUMS: Once[tuple[int, int, DType], Call] = Once(_sum)  # by choices, width and dtype of results
