"""What feeds a region and is better redone inside it than read from memory.

Shape changes, masks built from positions and constants, casts to more bits, and scale factors. Work
on whole keys or values (rotary embedding) stays with torch: a kernel would redo it for every block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from tilewright.frontend.classify import Analysis
from tilewright.frontend.hazards import Hazards, storage_of
from tilewright.frontend.op_map.registry import Kind, lookup
from tilewright.frontend.symbols import hint
from tilewright.frontend.translate import fake_of, operand_nodes


def absorb_inputs(
    analysis: Analysis,
    hazards: Hazards,
    core: Iterable[Node],
    others: Iterable[Node],
    place: int,
) -> set[Node]:
    """Nodes upstream of ``core`` to take along when it moves to position ``place``; none of
    ``others``, the cores of other regions."""
    core, forbidden = set(core), set(others)
    absorbed: set[Node] = set()
    stack = [o for n in core for o in operand_nodes(n) if o not in core]
    while stack:
        node = stack.pop()
        if node in absorbed or node in forbidden or not _worth_it(analysis, node):
            continue
        if hazards.block(node, analysis.position[node], place):
            continue
        absorbed.add(node)
        stack.extend(o for o in operand_nodes(node) if o not in core)
    return absorbed


def _worth_it(analysis: Analysis, node: Node) -> bool:
    entry = lookup(node)
    if entry is None or not analysis.usable(node):
        return False
    if analysis.generated(node):
        return True
    if entry.kind is Kind.SHAPE and any(isinstance(fake_of(o), tuple) for o in operand_nodes(node)):
        return False  # one result of several, which are made together
    if entry.kind is Kind.SHAPE:
        return entry.name not in ("reshape", "identity") or _copies(node) or _widened(node)
    return entry.kind is Kind.POINTWISE and (
        _is_scaling(node, entry.name) or _reads_less(analysis, node)
    )


def _copies(node: Node) -> bool:
    """Whether torch would copy here (a reshape of a transposed tensor, contiguous)."""
    source = operand_nodes(node)[0]
    adds_ones = _shape(node) != _shape(source) and _without_ones(node) == _without_ones(source)
    return adds_ones or storage_of(node) != storage_of(source)


def _widened(node: Node) -> bool:
    """Whether a shape change works on an expanded tensor: repeated keys seen as one."""
    while True:
        entry = lookup(node)
        if entry is None or entry.kind is not Kind.SHAPE:
            return False
        if entry.name in ("expand", "repeat_interleave"):
            return True
        node = operand_nodes(node)[0]


def _is_scaling(node: Node, name: str) -> bool:
    """A product or quotient with a Python number, as in ``(q * scale) @ k``."""
    return name in ("mul", "div") and len(operand_nodes(node)) == 1


def _reads_less(analysis: Analysis, node: Node) -> bool:
    """Whether the operands together are smaller than the result (no larger, for masks of bool).

    Positions and constants cost nothing. ``where(mask, 0, -inf)`` reads a quarter of what it
    writes; ``slopes[:, None, None] * distance`` nearly nothing.
    """
    operands = [o for o in operand_nodes(node) if not analysis.generated(o)]
    read, written = sum(map(_bytes, operands)), _bytes(node)
    return read < written or (read == written and not fake_of(node).dtype.is_floating_point)


def _shape(node: Node) -> list[int]:
    return [hint(d) for d in fake_of(node).shape]


def _without_ones(node: Node) -> list[int]:
    return [d for d in _shape(node) if d != 1]


def _bytes(node: Node) -> int:
    fake = fake_of(node)
    if not isinstance(fake, torch.Tensor):
        return 0
    count = fake.element_size()
    for size in _shape(node):
        count *= size
    return count
