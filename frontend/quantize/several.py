"""Calls of several products with quantised weights at once, as nodes of graphs that we run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from tilewright.frontend.quantize.direct import QuantizedLinearCall
from tilewright.frontend.quantize.linear import through_op
from tilewright.ir.errors import BindError
from tilewright.runtime.determinism import in_force, refuse_level
from tilewright.runtime.lowbit import FUNCTIONS, gated_kernel, linears_kernel
from tilewright.runtime.lowbit.fallback import REFUSALS
from tilewright.runtime.quantized.tensor import QuantizedTensor

Product = Sequence[Any]  # what follows x in the arguments of tilewright::linear
NAMES = (
    *("x", "words", "scales", "zeros", "order", "bias", "residual"),
    *("names", "sizes", "tensor_scale", "activation", "epilogue"),
)


def linear_arguments(node: Node) -> list[Any]:
    """All arguments of a ``tilewright::linear`` node, in order."""
    return [*node.args, *(node.kwargs[name] for name in NAMES[len(node.args) :])]


class _Several:
    """Keeps quantised tensors from call to call; falls back to one product after the other."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel
        self._calls: list[QuantizedLinearCall] = []

    def calls(self, products: Sequence[Product]) -> list[QuantizedLinearCall]:
        """A call for each product, which keeps its weight."""
        if len(self._calls) != len(products):
            self._calls = [QuantizedLinearCall() for _ in products]
        return self._calls

    def weights(self, products: Sequence[Product]) -> list[QuantizedTensor]:
        """The weights of products, made anew when their tensors are others."""
        each = zip(self.calls(products), products, strict=True)
        return [call.weight((p[0], p[1], p[2], p[3]), *p[6:9]) for call, p in each]

    def together(
        self, x: torch.Tensor, products: Sequence[Product], *more: Any, **options: Any
    ) -> Any:
        """The kernel's results, or None where each product has to go its own way."""
        biases = tuple(p[4] for p in products)
        if x.device.type not in ("cpu", "cuda") or any(through_op(x, bias) for bias in biases):
            return None
        if x.is_cuda:
            refuse_level(in_force(), "batch", f"products with quantised weights on {x.device}")
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        try:
            return self.kernel(flat, *more, biases, products[0][-2], **options)
        except (*REFUSALS, BindError):
            return None

    def apart(self, x: torch.Tensor, products: Sequence[Product]) -> list[torch.Tensor]:
        """Each product by itself."""
        return [call(x, *p) for call, p in zip(self.calls(products), products, strict=True)]


class GatedCall(_Several):
    """``f(x @ gate.T) * (x @ up.T)``; the function f is the epilogue of ``gate``."""

    __name__ = "quantized_gated_linear"

    def __init__(self) -> None:
        super().__init__(gated_kernel)

    def __call__(self, x: torch.Tensor, gate: Product, up: Product) -> torch.Tensor:
        found = self.together(x, (gate, up), *self.weights((gate, up)), epilogue=gate[-1])
        if found is None:
            left, right = self.apart(x, ((*gate[:-1], ""), up))
            product: torch.Tensor = FUNCTIONS[gate[-1]](left) * right
            return product
        result: torch.Tensor = found.reshape(*x.shape[:-1], found.shape[-1])
        return result


class LinearsCall(_Several):
    """``x @ w.T`` for several weights."""

    __name__ = "quantized_linears"

    def __init__(self) -> None:
        super().__init__(linears_kernel)

    def __call__(self, x: torch.Tensor, products: Sequence[Product]) -> tuple[torch.Tensor, ...]:
        found = self.together(x, products, self.weights(products))
        if found is None:
            return tuple(self.apart(x, products))
        return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in found)
