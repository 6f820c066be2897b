"""Positions that a region looks up by, looked at before its kernel runs.

For a position outside torch raises, where a kernel would read the nearest element. Which positions
those are, and which are known to lie inside, is found with the operations (op_map/positions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule

from tilewright.frontend.op_map.emitter import LookUp
from tilewright.ir.core import Graph
from tilewright.runtime.calls import sizes_function


class LookUps:
    """The positions of a region at run time: ``module`` computes them from the region's arguments,
    of which those of ``graph`` come first and give the sizes."""

    def __init__(self, module: GraphModule, look_ups: Sequence[LookUp], graph: Graph) -> None:
        self.module, self.look_ups, self.graph = module, look_ups, graph

    @cached_property
    def _sizes(self) -> Callable[..., dict[str, int]] | None:
        named = any(one.size.constant is None for one in self.look_ups)
        return sizes_function(self.graph) if named else None

    def outside(self, args: tuple[Any, ...]) -> bool:
        """Whether a position lies outside. On a GPU nothing is looked at, since the call would have
        to wait for it."""
        inputs = args[: len(self.graph.params)]
        if inputs[0].is_cuda:
            return False
        values = {} if self._sizes is None else self._sizes(*inputs)
        for one, ids in zip(self.look_ups, self.module.forward(*args), strict=True):
            size = one.size.evaluate(values)
            low, high = -size if one.from_end else 0, size - 1
            inside = _between(ids, low, high)
            if not inside and one.passed_over is not None:
                inside = _between(ids[ids != one.passed_over], low, high)
            if not inside:
                return True
        return False


def _between(ids: torch.Tensor, low: int, high: int) -> bool:
    if not ids.numel():
        return True
    least, most = torch.aminmax(ids)
    return low <= int(least) and int(most) <= high
