"""Grouped products with experts' quantised weights: one kernel for each product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import PLAIN
from tilewright.passes.to_tile.experts.packed import CLASSES, packed_program, reads_unsorted
from tilewright.passes.to_tile.experts.packed_form import PackedForm
from tilewright.passes.to_tile.schedule import row_class
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.determinism import in_force
from tilewright.runtime.experts.between import gated
from tilewright.runtime.experts.form import ALL, ExpertsForm, Product
from tilewright.runtime.experts.packed_first import PackedFirst, Tensors, check_biases, first_calls
from tilewright.runtime.experts.packed_weights import CPU, PackedWeights, prepare
from tilewright.runtime.experts.plan import Plan
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS, TORCH_DTYPES
from tilewright.runtime.locks import Guard
from tilewright.runtime.lowbit.fallback import REFUSALS
from tilewright.runtime.lowbit.programs import ROUNDING
from tilewright.runtime.once import Once, kept_fresh
from tilewright.runtime.tile_kernel import own_tile_kernel

V = TypeVar("V")


@dataclass(frozen=True)
class _Ask:
    """What of a call decides its kernel, besides the weights: a class of rows, ``narrow`` x, the
    function, whether results are ``scaled``, their dtype, and whether x has yet to be sorted."""

    rows: int
    narrow: bool
    gate: GateFunction
    scaled: bool
    out: DType
    sort: bool


@dataclass(eq=False)
class PackedCalls:
    """Weights with their biases [E, N], and the kernels that read them."""

    weights: PackedWeights
    biases: Tensors
    kernels: dict[_Ask, tuple[Call, bool]] = field(default_factory=dict)

    def read(self, x: torch.Tensor) -> Tensors:
        """What kernels read of x [R, K]: itself, in f32 or bf16, and its bytes in each size of
        groups."""
        weights = self.weights
        if weights.order is not None:
            x = x[:, weights.order]
        x = x if x.is_contiguous() else x.contiguous()
        found: Tensors = ()
        if weights.floats:
            keep = x.dtype == torch.float32 or (weights.narrow and x.dtype == torch.bfloat16)
            found = (x if keep else x.float(),)
        for group in weights.byte_groups:
            codes, steps, sums = ROUNDING[(weights.length, group, FLOATS[x.dtype]), in_force()](x)
            found = (*found, codes.view(torch.int32), steps, sums)
        return found

    def __call__(
        self,
        plan: Plan,
        read: Tensors,
        *,
        gate: GateFunction = PLAIN,
        scale: torch.Tensor | None = None,
        out: DType = F32,
        sort: bool = False,
    ) -> torch.Tensor:
        """What was ``read`` of x [R, K] -> [P, N] of ``out``; with ``sort``, rows of x are not yet
        those of the plan."""
        weights = self.weights
        narrow = weights.floats and read[0].dtype == torch.bfloat16
        rows = row_class(CLASSES, plan.rows_each)
        ask = _Ask(rows, narrow, gate, scale is not None, out, sort)
        kernel, unsorted = self.kernels.get(ask) or self._kernel(ask)
        before: Tensors = (plan.active, plan.starts)
        if unsorted:
            before = (*before, plan.tokens)
        elif sort:
            read = tuple(part.index_select(0, plan.tokens) for part in read)
        after = self.biases if scale is None else (*self.biases, scale)
        return kernel(*before, *weights.lookup, *read, *weights.own, *after)[0]

    def _kernel(self, ask: _Ask) -> tuple[Call, bool]:
        weights = self.weights
        form = PackedForm(
            weights.length,
            weights.columns,
            weights.kinds,
            BF16 if ask.narrow else F32,
            ask.gate,
            FLOATS[self.biases[0].dtype] if self.biases else None,
            ask.scaled,
            ask.out,
            ask.sort,
        )
        unsorted = reads_unsorted(kernel_target(), form, ask.rows)
        made = self.kernels[ask] = KERNELS[form, ask.rows], unsorted
        return made


def _make(key: tuple[PackedForm, int]) -> Call:
    return own_tile_kernel(lambda target: packed_program(key[0], target, key[1]))


KERNELS: Once[tuple[PackedForm, int], Call] = Once(_make)  # by form and class of rows


def applies(what: ExpertsForm | Product) -> str:
    """Why no kernel multiplies with these weights ('': one does): of a form's first product, gate
    and up, or of a product."""
    found = _first_of(what) if isinstance(what, ExpertsForm) else _product_of(what)
    return found if isinstance(found, str) else ""


def packed_first(form: ExpertsForm, plan: Plan, x: torch.Tensor, out: DType = F32) -> torch.Tensor:
    """What the second product takes of x [T, H]: [P, I] of ``out``, the plan's rows of no expert
    not written. Raises UnsupportedError if ``applies`` says why."""
    first = _first_of(form)
    if isinstance(first, str):
        raise UnsupportedError(f"no grouped kernel: {first}")
    if first.whole is not None:
        read = first.whole.read(x)
        return first.whole(plan, read, gate=first.function, out=out, sort=True)
    read = first.each[0].read(x)
    sides = [side(plan, read, sort=True) for side in first.each]
    return gated(form, sides, x.dtype).to(TORCH_DTYPES[out.name])


def packed_product(
    product: Product, plan: Plan, h: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """``(h @ weight[e].T + bias[e]) * weight``, each of the plan's rows with its expert e: h [P, K]
    floats, weight f32 [P] -> f32 [P, N]; rows of no expert are not written.

    Raises UnsupportedError if ``applies`` says why.
    """
    calls = _product_of(product)
    if isinstance(calls, str):
        raise UnsupportedError(f"no grouped kernel: {calls}")
    return calls(plan, calls.read(h), scale=weight)


# ---- what is kept for weights

_firsts: WeakKeyDictionary[ExpertsForm, PackedFirst[PackedCalls] | str] = WeakKeyDictionary()
_products: WeakKeyDictionary[Product, PackedCalls | str] = WeakKeyDictionary()
_preparing = Guard()


def _first_of(form: ExpertsForm) -> PackedFirst[PackedCalls] | str:
    made = partial(_or_why, partial(_prepare_first, form))
    return kept_fresh(_firsts, form, made, _is_fresh, _preparing)


def _product_of(product: Product) -> PackedCalls | str:
    made = partial(_or_why, partial(_prepare_product, product))
    return kept_fresh(_products, product, made, _is_fresh, _preparing)


def _is_fresh(found: PackedFirst[PackedCalls] | PackedCalls | str) -> bool:
    return isinstance(found, str) or found.weights.fresh


def _or_why(make: Callable[[], V]) -> V | str:
    try:
        return make()
    except REFUSALS as error:
        return error.message


def _prepare_product(product: Product) -> PackedCalls:
    biases = () if product.bias is None else (product.bias.detach(),)
    return _checked(PackedCalls(prepare((product,), ALL), biases))


def _prepare_first(form: ExpertsForm) -> PackedFirst[PackedCalls]:
    weights = prepare(form.first, form.columns)
    return first_calls(form, weights, lambda *parts: _checked(PackedCalls(*parts)))


def _checked(calls: PackedCalls) -> PackedCalls:
    """Raises UnsupportedError if no kernel multiplies so."""
    check_biases(calls.biases, CPU.device)
    w = calls.weights
    form = PackedForm(w.length, w.columns, w.kinds, F32, PLAIN, None, False, F32, False)
    reason = _why_no_program(form, kernel_target())
    if reason:
        raise UnsupportedError(reason)
    return calls


@lru_cache(maxsize=256)
def _why_no_program(form: PackedForm, target: Target) -> str:
    """Found out by writing one, of the plainest of calls; once for all layers of a model."""
    try:
        packed_program(form, target, 1)
    except UnsupportedError as error:
        return error.message
    return ""


def read_as_bf16(product: Product, x: torch.Tensor) -> bool:
    """Whether a product with activations of x's dtype multiplies with bf16 as it is."""
    if x.dtype != torch.bfloat16:
        return False
    found = _product_of(product)
    return not isinstance(found, str) and found.weights.floats and found.weights.narrow
