"""Kernels that route tokens on a GPU: one program, or one that counts and one that ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tilewright.ir.core import Graph
from tilewright.runtime.family import Call


def routing_call(programs: tuple[Graph, ...], made: Callable[[Graph], Call]) -> Call:
    """The call of a kernel's ``programs``, of which a second takes what the first gives behind the
    kernel's inputs."""
    *first, last = map(made, programs)
    if not first:
        return last
    count = first[0]

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return last(*tensors, *count(*tensors))

    return call
