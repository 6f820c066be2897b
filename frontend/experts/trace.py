"""Records what the routers of a Hugging Face mixture-of-experts model choose, as a trace.

The experts' modules of transformers are called with (hidden states, ids, weights): that call is
watched, so any model of that interface will do, whatever its router computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tilewright.frontend.experts.find import experts_of
from tilewright.ir.errors import DataError, UnsupportedError
from tilewright.runtime.placement.trace import Trace

_NAMES = ("top_k_index", "router_indices", "selected_experts")


class RoutingRecorder:
    """Collects the ids of every layer, call by call; ``trace()`` puts them together."""

    def __init__(self, names: list[str], experts: int) -> None:
        self.names = names
        self.experts = experts
        self._ids: list[list[np.ndarray[Any, Any]]] = [[] for _ in names]

    def _hear(self, layer: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[1] if len(args) > 1 else next((kwargs[n] for n in _NAMES if n in kwargs), None)
        if not isinstance(given, torch.Tensor) or given.is_floating_point():
            raise UnsupportedError(
                f"{self.names[layer]}: its experts are not called with (x, ids, weights), "
                "so what its router chose cannot be seen"
            )
        ids = given.detach().to(device="cpu", dtype=torch.int32)
        self._ids[layer].append(ids.reshape(-1, ids.shape[-1]).numpy())

    def trace(self) -> Trace:
        """ids [tokens, layers, k] of all calls so far. Raises DataError if there were none, or if
        layers saw different tokens."""
        if not all(self._ids):
            silent = [name for name, ids in zip(self.names, self._ids, strict=True) if not ids]
            raise DataError(f"nothing was recorded for {silent[0]}: call the model in the block")
        layers = [np.concatenate(ids) for ids in self._ids]
        shapes = {ids.shape for ids in layers}
        if len(shapes) > 1:
            raise DataError(f"layers saw different numbers of tokens or choices: {sorted(shapes)}")
        return Trace(np.stack(layers, axis=1), self.experts)


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecorder]:
    """Within the block, every forward pass of the model is recorded, all tokens of all batches.

    Padding is recorded as any token: leave it out of what you trace. Raises UnsupportedError for a
    model without experts of transformers' interface, or with different numbers of them.
    """
    found = list(experts_of(model))
    counts = {int(getattr(module, "num_experts", 0)) for _, module in found}
    if not found or len(counts) > 1 or 0 in counts:
        raise UnsupportedError(
            "a routing trace needs layers of equally many experts, as transformers has them; "
            f"this model has {len(found)} such layers, with {sorted(counts)} experts"
        )
    recorder = RoutingRecorder([name for name, _ in found], counts.pop())
    hooks = [
        module.register_forward_pre_hook(partial(recorder._hear, layer), with_kwargs=True)
        for layer, (_, module) in enumerate(found)
    ]
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()
