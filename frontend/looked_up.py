"""Positions that a region looks up by, looked at before its kernel runs.

For a position outside torch raises, where a kernel would read the nearest element. Which positions
those are, and which are known to lie inside, is found with the operations (op_map/positions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.runtime.calls import sizes_function


@dataclass(frozen=True)
class Positions:
    """A node of a region with positions of a dimension of ``size``. ``from_end``: negative ones
    count from its end; ``passed_over``: a number that is no position."""

    node: Node
    size: Size
    from_end: bool
    passed_over: int | None


class LookUps:
    """The positions of a region at run time: ``module`` computes them from the region's arguments,
    of which those of ``graph`` come first and give the sizes."""

    def __init__(self, module: GraphModule, positions: Iterable[Positions], graph: Graph) -> None:
        self.module = module
        self.bounds = [(p.size, p.from_end, p.passed_over) for p in positions]
        self.graph = graph

    @cached_property
    def _sizes(self) -> Callable[..., dict[str, int]] | None:
        named = any(size.constant is None for size, *_ in self.bounds)
        return sizes_function(self.graph) if named else None

    def outside(self, args: tuple[Any, ...]) -> bool:
        """Whether a position lies outside. On a GPU nothing is looked at, since the call would have
        to wait for it."""
        inputs = args[: len(self.graph.params)]
        if inputs[0].is_cuda:
            return False
        values = {} if self._sizes is None else self._sizes(*inputs)
        for bounds, ids in zip(self.bounds, self.module.forward(*args), strict=True):
            given, from_end, passed_over = bounds
            size = given.evaluate(values)
            low, high = -size if from_end else 0, size - 1
            inside = _between(ids, low, high)
            if not inside and passed_over is not None:
                inside = _between(ids[ids != passed_over], low, high)
            if not inside:
                return True
        return False


def _between(ids: torch.Tensor, low: int, high: int) -> bool:
    if not ids.numel():
        return True
    least, most = torch.aminmax(ids)
    return low <= int(least) and int(most) <= high
