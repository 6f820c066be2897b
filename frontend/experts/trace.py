"""Records what the routers of a Hugging Face mixture-of-experts model choose, as a trace.

The experts' modules of transformers are called with (hidden states, ids, weights): that call is
watched, so any model of that interface will do, whatever its router computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tilewright.frontend.experts.find import experts_of, heard
from tilewright.ir.errors import DataError, UnsupportedError
from tilewright.runtime.placement.trace import Trace

_NAMES = ("top_k_index", "router_indices", "selected_experts")


class RoutingRecorder:
    """Collects the ids of every layer, call by call; ``trace()`` puts them together."""

    def __init__(self, names: list[str], experts: int) -> None:
        self.experts = experts
        self._ids: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}

    def hear(self, name: str, args: Any, kwargs: Any) -> None:
        """One call of the experts ``name``. Raises UnsupportedError if its ids cannot be seen."""
        given = args[1] if len(args) > 1 else next((kwargs[n] for n in _NAMES if n in kwargs), None)
        if not isinstance(given, torch.Tensor) or given.is_floating_point():
            raise UnsupportedError(
                f"{name}: its experts are not called with (x, ids, weights), "
                "so what its router chose cannot be seen"
            )
        ids = given.detach().to(device="cpu", dtype=torch.int32)
        self._ids[name].append(ids.reshape(-1, ids.shape[-1]).numpy())

    def trace(self) -> Trace:
        """ids [tokens, layers, k] of all calls so far. Raises DataError if there were none, or if
        layers saw different tokens."""
        silent = [name for name, ids in self._ids.items() if not ids]
        if silent:
            raise DataError(f"nothing was recorded for {silent[0]}: call the model in the block")
        layers = [np.concatenate(ids) for ids in self._ids.values()]
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
    with heard(model, recorder.hear):
        yield recorder
