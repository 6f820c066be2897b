"""Cores of pointwise work on tensors so large that torch would walk through memory once for each
operation: one kernel walks through it once for all of them.

Small tensors stay with torch, whose operations cost less than a call of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.fx import Node

from tilewright.frontend.classify import Analysis
from tilewright.frontend.op_map.registry import Kind
from tilewright.frontend.symbols import hint
from tilewright.frontend.translate import fake_of, operand_nodes

# numbers of a result: half a MB of f32 (a Zen 4, two threads; silu(a) * b in 0.88 of torch's time
# with half as many, 0.76 with so many, 0.64 with twice as many; a * 2 + b in 1.05, 0.98, 0.93)
LEAST = 1 << 17
SHORTEST = 64  # numbers of a row: a kernel begins every row with a vector of its own
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def pointwise_cores(
    analysis: Analysis, used: set[Node], whole: Callable[[set[Node]], bool]
) -> Iterator[set[Node]]:
    """Connected pointwise nodes of one shape outside ``used``, two or more, that are ``whole``: no
    path leads out of them and back in."""
    group: dict[Node, set[Node]] = {}
    for node in analysis.nodes:
        if node in used or analysis.kind(node) is not Kind.POINTWISE or not is_large(node):
            continue
        members = {node}
        for operand in operand_nodes(node):
            joined = members | group.get(operand, set())
            if _shape(operand) == _shape(node) and whole(joined):
                members = joined
        for member in members:
            group[member] = members
    for members in distinct(group.values()):
        if len(members) > 1:
            yield members


def distinct(groups: Iterable[set[Node]]) -> Iterable[set[Node]]:
    """Sets that several nodes share, each once."""
    return {id(group): group for group in groups}.values()


def is_large(node: Node) -> bool:
    """Whether a node makes a matrix, or more, of many numbers on the CPU."""
    fake = fake_of(node)
    if not isinstance(fake, torch.Tensor) or fake.dim() < 2 or fake.device.type != "cpu":
        return False
    if hint(fake.shape[-1]) < SHORTEST or math.prod(map(hint, fake.shape)) < LEAST:
        return False
    return fake.dtype in _FLOATS or fake.dtype == torch.bool


def _shape(node: Node) -> torch.Size | None:
    fake = fake_of(node)
    return fake.shape if isinstance(fake, torch.Tensor) else None
