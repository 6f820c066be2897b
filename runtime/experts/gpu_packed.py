"""Grouped products with experts' quantised weights on a GPU: one kernel for each product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch

from tilewright.ir.dtypes import F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import PLAIN
from tilewright.passes.to_tile.experts.packed_form import PackedForm
from tilewright.passes.to_tile.whole_blocks.experts.packed import (
    packed_blocks,
    packed_product_program,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.experts.between import gated
from tilewright.runtime.experts.form import ALL, ExpertsForm, Product
from tilewright.runtime.experts.gpu_plan import BlockPlan, Step
from tilewright.runtime.experts.packed_first import (
    PackedFirst,
    Tensors,
    check_biases,
    first_calls,
)
from tilewright.runtime.experts.packed_weights import PackedWeights, Readers, prepare
from tilewright.runtime.gpu_backend import gpu_call
from tilewright.runtime.gpu_targets import forced_schedule, pretended
from tilewright.runtime.kernel import FLOATS, TORCH_DTYPES
from tilewright.runtime.locks import Guard
from tilewright.runtime.lowbit.fallback import REFUSALS
from tilewright.runtime.lowbit.gpu import for_gpu
from tilewright.runtime.lowbit.gpu_products import forced_product, table_on
from tilewright.runtime.once import Once, kept_fresh

MOST_ROWS = {1: 128, 2: 64}  # of a plan's blocks, by matrices of the first product


def most_rows(form: ExpertsForm) -> int:
    """Rows that a block of the plan may have: sums of gate and up of more would not fit into the
    registers beside what codes become."""
    quantised = any(product.quantised for product in form.first)
    gated_ = form.columns != ALL or len(form.first) > 1
    return MOST_ROWS[2 if quantised and gated_ else 1]


@dataclass(eq=False)
class PackedCalls:
    """Weights with their biases [E, N], for one GPU."""

    weights: PackedWeights
    biases: Tensors
    target: Target

    def step(
        self,
        rows: int,
        x: torch.dtype,
        *,
        gate: GateFunction = PLAIN,
        chosen: bool = False,
        scaled: bool = False,
        out: DType = F32,
    ) -> Step:
        """Rows of x [P, K], or not yet sorted (``chosen``) [T, K] -> [P, N] of dtype ``out``, in
        blocks of ``rows``; rows of no expert are not written."""
        form = self._form(FLOATS[x], gate, scaled, out, chosen)
        key = form, rows, self.target, forced_product(forced_schedule())
        kernel, w, biases = _PRODUCTS[key, pretended.backend], self.weights, self.biases

        def call(_: ExpertsForm, plan: BlockPlan, x: torch.Tensor) -> torch.Tensor:
            x = x if w.order is None else x[:, w.order]
            x = x if x.stride(1) == 1 else x.contiguous()
            tokens = (plan.tokens,) if chosen else ()
            more = (plan.scales,) if scaled else ()
            return kernel(plan.blocks, *tokens, *w.lookup, x, *w.own, *biases, *more)

        return Step(call, lambda: w.fresh)

    def _form(
        self, x: DType, gate: GateFunction, scaled: bool, out: DType, chosen: bool
    ) -> PackedForm:
        w = self.weights
        bias = FLOATS[self.biases[0].dtype] if self.biases else None
        return PackedForm(w.length, w.columns, w.kinds, x, gate, bias, scaled, out, chosen)

    def check(self) -> None:
        """Raises UnsupportedError if no kernel multiplies so: found out by writing one, of the
        plainest of calls."""
        check_biases(self.biases, self.weights.own[0].device)
        form = self._form(F32, PLAIN, False, F32, False)
        packed_product_program(form, packed_blocks(form, self.target, 16), self.target)


def why_not(what: ExpertsForm | Product, device: torch.device, target: Target) -> str:
    """Why no kernel multiplies with these weights ('': one does): of a form's first product, gate
    and up, or of a product."""
    where = device, target
    found = _first_of(what, *where) if isinstance(what, ExpertsForm) else _product_of(what, *where)
    return found if isinstance(found, str) else ""


def packed_first(form: ExpertsForm, x: torch.Tensor, rows: int, out: DType, target: Target) -> Step:
    """What the second product takes of rows like x [T, H]: [P, I] of ``out``. Raises
    UnsupportedError if ``why_not`` says why."""
    first, dtype = _first_of(form, x.device, target), x.dtype
    if isinstance(first, str):
        raise UnsupportedError(f"no grouped kernel: {first}")
    if first.whole is not None:
        return first.whole.step(rows, dtype, gate=first.function, chosen=True, out=out)
    return gated_step([side.step(rows, dtype, chosen=True) for side in first.each], out)


def packed_product(
    product: Product,
    h: torch.dtype,
    device: torch.device,
    rows: int,
    target: Target,
    *,
    scaled: bool,
    out: DType,
) -> Step:
    """``h @ weight[e].T + bias[e]``, ``scaled`` by the plan's scales, each row with its expert e: h
    [P, K] -> [P, N] of ``out``. Raises UnsupportedError if ``why_not`` says why."""
    calls = _product_of(product, device, target)
    if isinstance(calls, str):
        raise UnsupportedError(f"no grouped kernel: {calls}")
    return calls.step(rows, h, scaled=scaled, out=out)


def gated_step(sides: Sequence[Step], out: DType) -> Step:
    """A function that no kernel has, after a product of each side."""

    def call(form: ExpertsForm, plan: BlockPlan, x: torch.Tensor) -> torch.Tensor:
        made = [side.call(form, plan, x) for side in sides]
        return gated(form, made, x.dtype).to(TORCH_DTYPES[out.name])

    return Step(call, lambda: all(side.fresh() for side in sides))


# ---- what is kept for weights


@dataclass
class _Kept:
    """What was made for a GPU, or why nothing was."""

    target: Target
    found: PackedFirst[PackedCalls] | PackedCalls | str

    def fresh(self, target: Target) -> bool:
        same = self.target == target
        return same and (isinstance(self.found, str) or self.found.weights.fresh)


_kept: WeakKeyDictionary[ExpertsForm | Product, _Kept] = WeakKeyDictionary()
_preparing = Guard()


def _first_of(
    form: ExpertsForm, device: torch.device, target: Target
) -> PackedFirst[PackedCalls] | str:
    def make() -> PackedFirst[PackedCalls]:
        weights = prepare(form.first, form.columns, Readers(device, for_gpu, False))
        return first_calls(form, weights, partial(_checked, target))

    found = _of(form, target, make)
    assert not isinstance(found, PackedCalls)
    return found


def _product_of(product: Product, device: torch.device, target: Target) -> PackedCalls | str:
    def make() -> PackedCalls:
        biases = () if product.bias is None else (product.bias.detach(),)
        weights = prepare((product,), ALL, Readers(device, for_gpu, False))
        return _checked(target, weights, biases)

    found = _of(product, target, make)
    assert not isinstance(found, PackedFirst)
    return found


def _of(
    key: ExpertsForm | Product,
    target: Target,
    make: Callable[[], PackedFirst[PackedCalls] | PackedCalls],
) -> PackedFirst[PackedCalls] | PackedCalls | str:
    def made() -> _Kept:
        refuse_capture("packed_experts")
        try:
            return _Kept(target, make())
        except REFUSALS as error:
            return _Kept(target, error.message)

    return kept_fresh(_kept, key, made, lambda kept: kept.fresh(target), _preparing).found


def _checked(target: Target, weights: PackedWeights, biases: Tensors) -> PackedCalls:
    calls = PackedCalls(weights, biases, target)
    calls.check()
    return calls


_Key = tuple[PackedForm, int, Target, ProductSchedule | None]


def _made(wanted: tuple[_Key, str]) -> Callable[..., torch.Tensor]:
    (form, rows, target, forced), backend = wanted
    refuse_capture("packed_experts")
    schedule = forced or packed_blocks(form, target, rows)
    made = packed_product_program(form, schedule, target)
    kernel = gpu_call(made.program, target, backend)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        tables = [table_on(table, tensors[0].device) for table in made.tables]
        return kernel(*tensors, *tables)[0]

    return call


_PRODUCTS: Once[tuple[_Key, str], Callable[..., torch.Tensor]] = Once(_made)
