"""Cores of regions besides attention: products with weights, and work on rows (normalisations).

A product with a weight takes along the pointwise work that only it feeds, and other products of the
same input that meet it there: ``silu(x @ g') * (x @ u')`` is one core. A reduction along the last
dimension takes the pointwise work on the rows it reads and on the rows that come out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

from tilewright.frontend.classify import LAST, Analysis, is_weight, reduced_axes
from tilewright.frontend.op_map.registry import Kind
from tilewright.frontend.symbols import expression
from tilewright.frontend.translate import fake_of, operand_nodes


def weight_cores(analysis: Analysis, taken: set[Node]) -> Iterator[set[Node]]:
    """Products with weights in f32, each with the pointwise work that follows from them alone.

    (torch's 16-bit products with weights use the machine's dot instructions already.)
    """
    group: dict[Node, set[Node]] = {}
    for node in analysis.nodes:
        if node in taken:
            continue
        if is_weight_product(analysis, node):
            group[node] = {node}
        elif analysis.kind(node) is Kind.POINTWISE:
            _join(analysis, node, group)
    seen: set[int] = set()
    for members in group.values():
        if id(members) not in seen:
            seen.add(id(members))
            yield members


def is_weight_product(analysis: Analysis, node: Node) -> bool:
    """Whether a node multiplies activations in f32 with a matrix of weights."""
    if analysis.kind(node) is not Kind.CONTRACTION or analysis.multiplies(node):
        return False
    fake = fake_of(node)
    operands = operand_nodes(node)
    plain = fake.dtype == torch.float32 and len(operands) >= 2 and not is_weight(operands[0])
    return plain and is_weight(operands[1]) and len(fake_of(operands[1]).shape) == 2


def _join(analysis: Analysis, node: Node, group: dict[Node, set[Node]]) -> None:
    """Adds a pointwise node to the products it works on, if nothing else needs what it reads."""
    operands = operand_nodes(node)
    if not operands or any(o not in group for o in operands):
        return
    merged = set().union(*(group[o] for o in operands))
    inputs = {operand_nodes(n)[0] for n in merged if analysis.kind(n) is Kind.CONTRACTION}
    private = all(set(o.users) == {node} or o in _inner(merged, node) for o in operands)
    if len(inputs) != 1 or not private or fake_of(node).shape != fake_of(operands[0]).shape:
        return
    merged.add(node)
    for member in merged:
        group[member] = merged


def _inner(members: set[Node], node: Node) -> set[Node]:
    """Members all of whose users are members or ``node``."""
    inside = members | {node}
    return {n for n in members if set(n.users) <= inside}


def row_cores(analysis: Analysis, taken: set[Node]) -> Iterator[set[Node]]:
    """Reductions along the last dimension with the pointwise work before and after them."""
    taken = set(taken)
    for node in analysis.nodes:
        if node in taken or analysis.kind(node) is not Kind.REDUCTION:
            continue
        if reduced_axes(node) != {LAST} or not _keeps_rank(node):
            continue
        core = {node} | _before(analysis, node, taken)
        core = _after(analysis, core, taken)
        if len(core) > 1:
            taken |= core
            yield core


def _keeps_rank(node: Node) -> bool:
    """Whether a reduction leaves its rows as one number, and their length is known: by itself,
    or since a product with a weight fixed it."""
    source = fake_of(operand_nodes(node)[0])
    known = bool(source.shape) and isinstance(expression(source.shape[-1]), int)
    return known and len(fake_of(node).shape) == len(source.shape)


def _before(analysis: Analysis, node: Node, taken: set[Node]) -> set[Node]:
    """Pointwise work on whole rows that the reduction reads."""
    found: set[Node] = set()
    stack = list(operand_nodes(node))
    shape = fake_of(operand_nodes(node)[0]).shape
    while stack:
        at = stack.pop()
        rows = isinstance(fake_of(at), torch.Tensor) and fake_of(at).shape == shape
        if at in taken or not rows or analysis.kind(at) is not Kind.POINTWISE:
            continue
        found.add(at)
        stack.extend(operand_nodes(at))
    return found


def _after(analysis: Analysis, core: set[Node], taken: set[Node]) -> set[Node]:
    """Pointwise work on results of the core, the rows it reads, and weights."""
    core = set(core)
    rows = {o for n in core for o in operand_nodes(n)}
    width = fake_of(next(iter(operand_nodes(next(iter(core)))))).shape[-1]
    for node in analysis.nodes:
        if node in taken or node in core or analysis.kind(node) is not Kind.POINTWISE:
            continue
        operands = operand_nodes(node)
        follows = any(o in core for o in operands)
        known = all(o in core or o in rows or is_weight(o) for o in operands)
        if follows and known and fake_of(node).shape[-1] in (1, width):
            core.add(node)
    return core
