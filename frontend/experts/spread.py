"""A Hugging Face mixture-of-experts model with its experts spread over the ranks of a group.

Each rank keeps all of the model but only its own experts, and runs its own batch; the experts'
modules are replaced by two all-to-alls around what this rank holds. Attention stays where its
tokens are, so this is the exchange of ``ExchangeExperts``: context coherence needs a model whose
attention follows its tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tilewright.frontend.experts.find import experts_of
from tilewright.frontend.experts.parallel import ExchangeExperts
from tilewright.frontend.experts.wire import Wire
from tilewright.ir.errors import DataError, UnsupportedError
from tilewright.runtime.placement.file import Placement


class SpreadExperts(nn.Module):
    """Stands where the experts of a layer stood: the same call, with this rank's share inside."""

    def __init__(self, module: nn.Module, placement: Placement, layer: int, wire: Wire) -> None:
        super().__init__()
        here = torch.from_numpy(placement.local(layer, wire.rank))
        self.local = _share(module, placement.experts, here)
        devices = placement.devices[layer].tolist()
        self.exchange = ExchangeExperts(devices, self.local, wire, _call)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [T, H], ids and weights [T, k] of this rank's batch -> [T, H]."""
        return self.exchange(x, ids, weights)


def spread_experts(model: nn.Module, placement: Placement, wire: Wire) -> None:
    """Replaces every layer's experts in place; what other ranks hold is freed here.

    All ranks have to run the same number of forward passes, of any sizes. Raises DataError if the
    placement is one of another model or group, UnsupportedError for quantised experts (spread
    first, quantise the shares then); the model is unchanged.
    """
    found = list(experts_of(model))
    if len(found) != placement.layers or placement.topology.gpus != wire.size:
        raise DataError(
            f"a placement of {placement.layers} layers on {placement.topology.gpus} devices, but "
            f"the model has {len(found)} layers of experts and the group {wire.size} ranks"
        )
    shares = []
    for layer, (name, module) in enumerate(found):
        count = getattr(module, "num_experts", None)
        if count != placement.experts:
            raise DataError(f"{name} has {count} experts, the placement {placement.experts}")
        if any(True for child in module.children() for _ in child.state_dict()):
            raise UnsupportedError(f"{name}: its experts are quantised; spread them first")
        shares.append((name, SpreadExperts(module, placement, layer, wire)))
    for name, share in shares:
        model.set_submodule(name, share)


def _share(module: nn.Module, experts: int, here: torch.Tensor) -> nn.Module:
    """The module with only some of its experts, in the order of ``here`` int64 [n]."""
    own: Any = copy.copy(module)
    own._parameters = {
        name: nn.Parameter(p.detach()[here.to(p.device)], requires_grad=False)
        if p is not None and p.shape[0] == experts
        else p
        for name, p in module.named_parameters(recurse=False)
    }
    own.num_experts = len(here)
    return own  # type: ignore[no-any-return]


def _call(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, local: Any) -> torch.Tensor:
    """The module's own forward, whichever implementation of transformers is set: an id equal to the
    number of experts is one of another rank there, too."""
    found: torch.Tensor = local(x, ids, weights.to(x.dtype))
    return found
