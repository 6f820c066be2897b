"""Models of transformers: ``experts_implementation="tilewright"``.

``register_experts()`` makes the name known. A layer without gradients is one call of
``runtime.experts.experts_forward`` (under torch.compile the op ``tilewright::experts``); with them
it is the ops of grouped.py, whose gradients are exact and recompute nothing.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from tilewright.frontend.experts.find import columns_of
from tilewright.frontend.experts.gates import after_of, gate_of, plain_gate, scalars
from tilewright.frontend.experts.grouped import experts_op, grouped_linear_op, route_op
from tilewright.frontend.experts.parts import Stack, kept, product_from, stack_of
from tilewright.frontend.quantize.linear import transformed
from tilewright.runtime.experts import ExpertsForm, experts_forward
from tilewright.runtime.experts.segments import combine

NAME = "tilewright"


def experts_layer(
    self: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """transformers' experts function: [T, H] and the router's [T, k] twice -> [T, H].

    ``self._tilewright_bank``, if it is there, says which ids and weights really count.
    """
    given, rerouting = None, None
    bank: Any = getattr(self, "_tilewright_bank", None)
    if bank is not None:
        given, rerouting = bank.weights, bank.rerouting(top_k_index)
    first = stack_of(self, "gate_up_proj" if self.has_gate else "up_proj", given)
    down = stack_of(self, "down_proj", given)
    tensors = [*first[0], *down[0]]
    graph, ids = torch.compiler.is_compiling(), top_k_index
    gradients = _needs_gradients(hidden_states, top_k_weights, *tensors)
    if not (gradients or graph or transformed(hidden_states)):
        form = form_of(self, first, down)
        return experts_forward(form, hidden_states, ids, top_k_weights, rerouting)
    if rerouting is not None:
        ids = rerouting.apply(ids)
    function = plain_gate(self) if graph and not gradients else None
    if function is None:
        return differentiable(self, hidden_states, ids, top_k_weights, first, down)
    result: torch.Tensor = experts_op(
        hidden_states, ids, top_k_weights, *first, *down, function, columns_of(self), skips(self)
    )
    return result


def _needs_gradients(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def skips(module: nn.Module) -> bool:
    """Whether ids from E on stand for experts on other devices."""
    return bool(getattr(module, "_is_expert_parallel", False))


def differentiable(
    module: nn.Module,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    first: Stack,
    down: Stack,
) -> torch.Tensor:
    """The layer as ops with gradients; what the module does between the products is its own."""
    columns = columns_of(module)
    experts = _experts(down)
    order, counts = route_op(ids, experts, skips(module))
    y = grouped_linear_op(x[order // ids.shape[1]], counts, *first, columns)
    own: Any = module
    y = own._apply_gate(y) if module.has_gate else own.act_fn(y)
    y = grouped_linear_op(y.to(x.dtype), counts, *down, columns)
    if getattr(module, "has_post_expert_norm", False):
        y = own.post_expert_norm(y)
    if skips(module):
        weights = weights.masked_fill(ids >= experts, 0.0)
    return combine(y, order, weights, x.dtype)


def _experts(stack: Stack) -> int:
    tensors, text = stack
    return len(text.split("\n")) - 1 if text.startswith("each") else tensors[-1].shape[0]


def form_of(module: nn.Module, first: Stack, down: Stack) -> ExpertsForm:
    """What the module computes; the same object until its tensors or settings are others."""

    def make(parts: list[torch.Tensor]) -> ExpertsForm:
        count = len(first[0])
        return ExpertsForm(
            (product_from(parts[:count], first[1]),),
            product_from(parts[count:], down[1]),
            gate_of(module),
            columns_of(module),
            after_of(module),
            skips(module),
        )

    # the module, too: another one with the same tensors has functions of its own
    key = weakref.ref(module), first[1], down[1], *scalars(module)
    with torch.inference_mode(False):
        return kept([*first[0], *down[0]], key, make)


def register_experts(name: str = NAME) -> None:
    """Makes ``experts_implementation=name`` known to transformers. Call it once before
    ``from_pretrained(…, experts_implementation="tilewright")`` or
    ``model.set_experts_implementation("tilewright")``."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(name, experts_layer)
