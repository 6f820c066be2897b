"""Cores of regions that route tokens: what makes scores of experts, and what is made of a choice.

A core is all that hangs together around a choice (topk, argmax): gate product, scores, groups and
their masks, look-ups in an adapter's map, counts. What has more numbers for a token than there are
scores (hidden states) is left outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.fx import Node

from tilewright.frontend.classify import Analysis
from tilewright.frontend.op_map.registry import POSITIONS, Kind
from tilewright.frontend.symbols import hint, same
from tilewright.frontend.translate import fake_of, operand_nodes
from tilewright.frontend.weight_cores import is_weight_product

CHOICES = ("topk", "argmax", "argmin", f"max{POSITIONS}", f"min{POSITIONS}")
MOST = 1024  # scores of a token: more are no router's, but a vocabulary's
_SORTS = ("sort", "argsort")  # need all of an axis: they stay with torch
_ALONG = (Kind.ROUTING, Kind.POINTWISE, Kind.SHAPE, Kind.SOFTMAX, Kind.REDUCTION, Kind.GENERATOR)


def routing_cores(analysis: Analysis, taken: set[Node]) -> Iterator[set[Node]]:
    """For every choice what hangs together with it, once."""
    taken = set(taken)
    for node in analysis.nodes:
        if node not in taken and _chooses(analysis, node):
            core = _grown(analysis, node, taken)
            taken |= core
            yield core


def _chooses(analysis: Analysis, node: Node) -> bool:
    entry = analysis.entry(node)
    if entry is None or entry.name not in CHOICES or not analysis.usable(node):
        return False
    count = _places(operand_nodes(node)[0])
    return count is not None and count <= MOST


def _grown(analysis: Analysis, choice: Node, taken: set[Node]) -> set[Node]:
    scores = operand_nodes(choice)[0]
    most, tokens = _places(scores) or 0, fake_of(scores).shape[0]
    core, stack = {choice}, [choice]
    while stack:
        node = stack.pop()
        for other in (*operand_nodes(node), *node.users):
            known = other in core or other in taken
            if not known and _belongs(analysis, other, most, tokens):
                core.add(other)
                stack.append(other)
    return core


def _belongs(analysis: Analysis, node: Node, most: int, tokens: int | torch.SymInt) -> bool:
    """Whether a node works on tokens' scores, or on what was chosen, counted or looked up."""
    entry = analysis.entry(node)
    if entry is None or not analysis.usable(node) or entry.name in _SORTS:
        return False
    if entry.kind is Kind.CONTRACTION:
        return is_weight_product(analysis, node) and _small(node, most, tokens)
    if entry.kind not in _ALONG:
        return False
    counts = entry.kind is Kind.ROUTING and bool(operand_nodes(node))  # of all tokens
    return counts or _small(node, most, tokens)


def _small(node: Node, most: int, tokens: int | torch.SymInt) -> bool:
    """Whether every result has a few numbers for each token."""
    fake = fake_of(node)
    results = fake if isinstance(fake, tuple) else (fake,)
    places = [_places_of(x) for x in results]
    first = [x.shape[0] for x in results if isinstance(x, torch.Tensor) and x.shape]
    return all(p is not None and p <= most for p in places) and all(same(n, tokens) for n in first)


def _places(node: Node) -> int | None:
    return _places_of(fake_of(node))


def _places_of(fake: object) -> int | None:
    """Numbers for each place of the first dimension, in the call that was captured."""
    if not isinstance(fake, torch.Tensor) or not fake.shape:
        return None
    return math.prod(hint(size) for size in fake.shape[1:])
