"""What multiplies with quantised gate and up, on any device: one kernel for both, or one each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import PLAIN
from tilewright.runtime.experts.between import gate_function
from tilewright.runtime.experts.form import ALL, ExpertsForm, split_columns
from tilewright.runtime.experts.packed_weights import PackedWeights
from tilewright.runtime.kernel import FLOATS

Tensors = tuple[torch.Tensor, ...]


class HasWeights(Protocol):
    @property
    def weights(self) -> PackedWeights: ...


C = TypeVar("C", bound=HasWeights)


@dataclass(eq=False)
class PackedFirst(Generic[C]):
    """The first product, of gate and up: in one kernel (``whole``), or each in its own (``each``)
    with a function after them that no kernel has; without a gate ``each`` is one."""

    whole: C | None
    function: GateFunction
    each: tuple[C, ...]

    @property
    def weights(self) -> PackedWeights:
        return self.each[0].weights if self.whole is None else self.whole.weights


def first_calls(
    form: ExpertsForm, weights: PackedWeights, calls: Callable[[PackedWeights, Tensors], C]
) -> PackedFirst[C]:
    """``calls`` makes what multiplies with weights and their biases [E, N]. Raises UnsupportedError
    for biases that no kernel adds."""
    biases = _biases(form)
    function = gate_function(form.gate)
    if function is not None:
        return PackedFirst(calls(weights, biases), function, ())
    if form.columns == ALL:
        return PackedFirst(None, PLAIN, (calls(weights, biases),))
    each = tuple(calls(w, biases[i : i + 1]) for i, w in enumerate(weights.sides))
    return PackedFirst(None, PLAIN, each)


def _biases(form: ExpertsForm) -> Tensors:
    """Of gate and up, views [E, I] each: what changes in them counts."""
    if len({product.bias is None for product in form.first}) > 1:
        raise UnsupportedError("a bias of gate or up alone")
    columns = form.columns if len(form.first) == 1 else ALL
    found = [product.bias.detach() for product in form.first if product.bias is not None]
    return tuple(side for bias in found for side in split_columns(bias, columns, dim=1))


def check_biases(biases: Tensors, device: torch.device) -> None:
    """Raises UnsupportedError for biases that kernels of a device do not read."""
    for bias in biases:
        if bias.dtype not in FLOATS or bias.device != device:
            raise UnsupportedError(f"biases of {bias.dtype} on {bias.device}")
    if len({bias.dtype for bias in biases}) > 1:
        raise UnsupportedError("biases of several dtypes")
