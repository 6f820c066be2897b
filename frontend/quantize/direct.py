"""In graphs that we run ourselves, products with quantised weights without torch's dispatcher.

A custom op written in Python costs more than a small product. What Dynamo captured for our back end
is run as it is, so each op there may be a call that keeps the quantised tensor from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from tilewright.frontend.experts.grouped import ExpertsCall
from tilewright.frontend.quantize.form import Parts, parts_of
from tilewright.frontend.quantize.linear import through_op, transformed
from tilewright.frontend.quantize.product import (
    embedding_op,
    linear_op,
    look_up,
    product,
    weight_of,
)
from tilewright.runtime.quantized.tensor import QuantizedTensor


class _Kept:
    """The quantised tensor of the last call; another one is made when other tensors come."""

    def __init__(self) -> None:
        self._tensor: QuantizedTensor | None = None

    def weight(self, parts: Parts, names: str, sizes: Sequence[int], scale: float) -> Any:
        made = self._tensor
        if made is None or any(a is not b for a, b in zip(parts_of(made), parts, strict=True)):
            made = self._tensor = weight_of(*parts, names, sizes, scale)
        return made


class QuantizedLinearCall(_Kept):
    """``tilewright::linear`` for one node of a graph."""

    __name__ = "quantized_linear"

    def __call__(
        self,
        x: torch.Tensor,
        words: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        order: torch.Tensor | None,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        *facts: Any,
    ) -> torch.Tensor:
        *form, activation, epilogue = facts
        parts = words, scales, zeros, order
        if through_op(x, bias, residual):
            result: torch.Tensor = linear_op(x, *parts, bias, residual, *facts)
            return result
        return product(x, self.weight(parts, *form), bias, residual, activation, epilogue)


class QuantizedEmbeddingCall(_Kept):
    """``tilewright::embedding`` for one node of a graph."""

    __name__ = "quantized_embedding"

    def __call__(
        self,
        indices: torch.Tensor,
        words: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        order: torch.Tensor | None,
        *facts: Any,
    ) -> torch.Tensor:
        *form, dtype = facts
        parts = words, scales, zeros, order
        if torch.compiler.is_compiling() or transformed(indices):
            result: torch.Tensor = embedding_op(indices, *parts, *facts)
            return result
        return look_up(indices, self.weight(parts, *form), dtype)


_DIRECT: dict[Any, Callable[[], Callable[..., torch.Tensor]]] = {
    torch.ops.tilewright.linear.default: QuantizedLinearCall,
    torch.ops.tilewright.embedding.default: QuantizedEmbeddingCall,
    torch.ops.tilewright.experts.default: ExpertsCall,
}


def call_directly(gm: GraphModule) -> None:
    """tilewright::linear(x, …) -> QuantizedLinearCall()(x, …), embeddings and experts likewise."""
    for node in gm.graph.nodes:
        make = _DIRECT.get(node.target) if node.op == "call_function" else None
        if make is not None:
            node.target = make()
