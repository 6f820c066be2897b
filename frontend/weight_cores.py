"""Cores of regions besides attention: products with weights, and work on rows (normalisations).

A product with a weight takes along the pointwise work that only it feeds, and other products of the
same input that meet it there: ``silu(x @ g') * (x @ u')`` is one core. A reduction along the last
dimension takes the pointwise work on the rows it reads and on the rows that come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.fx import Node

from tilewright.frontend.classify import LAST, Analysis, factors, is_given, is_weight, reduced_axes
from tilewright.frontend.op_map.registry import Kind
from tilewright.frontend.pointwise_cores import distinct, is_large
from tilewright.frontend.symbols import Dim, same
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
    for members in distinct(group.values()):
        if _worth_it(analysis, members):
            yield members


def is_weight_product(analysis: Analysis, node: Node) -> bool:
    """Whether a node multiplies activations in f32 with a matrix: of weights, or one that the
    function is given."""
    if analysis.kind(node) is not Kind.CONTRACTION:
        return False
    fake = fake_of(node)
    operands = factors(node)
    if fake.dtype != torch.float32 or len(operands) < 2 or is_weight(operands[0]):
        return False
    matrix = fake_of(operands[1])
    if len(matrix.shape) != 2:
        return False
    return is_weight(operands[1]) or (is_given(operands[1]) and matrix.device.type == "cpu")


def _worth_it(analysis: Analysis, members: set[Node]) -> bool:
    """Whether there are weights, or more than one product of two tensors that are given."""
    (first, *more) = members
    entry = analysis.entry(first)
    layer = entry is not None and entry.name == "linear"
    plain = is_given(factors(first)[0]) and analysis.multiplies(first)
    return bool(more) or layer or not plain


def _join(analysis: Analysis, node: Node, group: dict[Node, set[Node]]) -> None:
    """Adds a pointwise node to the products it works on, if nothing else needs what it reads."""
    operands = operand_nodes(node)
    if not operands or any(o not in group for o in operands):
        return
    merged = set().union(*(group[o] for o in operands))
    inputs = {factors(n)[0] for n in merged if analysis.kind(n) is Kind.CONTRACTION}
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
        if node in taken or not _reduces_rows(analysis, node):
            continue
        core = {node} | _before(analysis, node, taken)
        core = _after(analysis, core, taken, fake_of(operand_nodes(node)[0]).shape)
        if len(core) > 1 or _gains_alone(analysis, node):
            taken |= core
            yield core


_SEVERAL_PASSES = (
    "cosine_similarity",
    "cross_entropy",
    "logsumexp",
    "std",
    "var",
)  # of torch's own


def _gains_alone(analysis: Analysis, node: Node) -> bool:
    """Whether torch's own operation is slower than a kernel: rms_norm, which is several; others
    where rows are so many that a call costs nothing beside them."""
    entry = analysis.entry(node)
    if entry is None:
        return False
    passes = entry.name in _SEVERAL_PASSES and is_large(operand_nodes(node)[0])
    return passes or is_large(node) or entry.name == "rms_norm"


def _reduces_rows(analysis: Analysis, node: Node) -> bool:
    """Whether a node works along the last dimension and leaves its rows, or of each one number."""
    if analysis.kind(node) not in (Kind.REDUCTION, Kind.SOFTMAX) or reduced_axes(node) != {LAST}:
        return False
    source, result = fake_of(operand_nodes(node)[0]), fake_of(node)
    if not isinstance(result, torch.Tensor) or not _in_floats(analysis, node):
        return False  # positions of a maximum, and integers, whose sums kernels of rows have not
    entry = analysis.entry(node)
    loss = entry is not None and entry.name == "cross_entropy"  # or the mean of all rows'
    return loss or len(source.shape) - len(result.shape) in range(min(2, len(source.shape)))


def _in_floats(analysis: Analysis, node: Node) -> bool:
    entry = analysis.entry(node)
    truth = entry is not None and entry.name in ("any", "all")
    return truth or bool(fake_of(node).dtype.is_floating_point)


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


def _after(
    analysis: Analysis, core: set[Node], taken: set[Node], shape: Sequence[Dim]
) -> set[Node]:
    """The core, on rows of this shape, with work on its results, pointwise or along the rows, and
    with what else that reads and nothing else does: ``log_softmax(a) - log_softmax(b)``. Other
    tensors are inputs, if they do not depend on the core themselves."""
    core, rows, width = set(core), shape[:-1], shape[-1]
    behind = {n for n in core if _reduces_rows(analysis, n) and _drops_rows(n)}
    for node in analysis.nodes:
        if node in core or not any(n in core or n in behind for n in node.all_input_nodes):
            continue
        reduces = _reduces_rows(analysis, node)
        ends = reduces and _drops_rows(node)  # what follows has no rows
        along = reduces or analysis.kind(node) is Kind.POINTWISE
        operands = operand_nodes(node)
        others = [o for o in operands if o not in core]
        follows = len(others) < len(operands) and not behind.intersection(node.all_input_nodes)
        known = all(_belongs(o, node, width) for o in others)
        along = along and follows and known and node not in taken
        if along and _of_rows(node, rows, width, ends):
            core |= {node}.union(
                *(_with_its_own(analysis, o, {node}, taken, width) for o in others)
            )
        else:
            behind.add(node)
        if ends:
            behind.add(node)
    return core


def _drops_rows(node: Node) -> bool:
    """Whether a reduction's result has a dimension less."""
    return bool(fake_of(node).dim() < fake_of(operand_nodes(node)[0]).dim())


def _is_row(node: Node, width: Dim) -> bool:
    """Whether a tensor has rows of a width, or one number for each."""
    fake = fake_of(node)
    return isinstance(fake, torch.Tensor) and fake.dim() > 0 and fake.shape[-1] in (1, width)


def _of_rows(node: Node, rows: Sequence[Dim], width: Dim, ends: bool) -> bool:
    """Whether a node makes something of each of these rows: a row, or a number (``ends``: without
    a dimension)."""
    shape = fake_of(node).shape
    return (ends or _is_row(node, width)) and (shape if ends else shape[:-1]) == rows


def _belongs(operand: Node, node: Node, width: Dim) -> bool:
    """Whether an operand is a weight, or has rows or columns of those that a node works on."""
    return is_weight(operand) or _along(operand, width) or _is_row(operand, width)


def _with_its_own(
    analysis: Analysis, node: Node, users: set[Node], taken: set[Node], width: Dim
) -> set[Node]:
    """A node on rows that only ``users`` need, with those that only it needs; none if it is not."""
    reduces = _reduces_rows(analysis, node) and not _drops_rows(node)
    whole = (
        (reduces or analysis.kind(node) is Kind.POINTWISE)
        and _is_row(node, width)
        and not is_weight(node)
        and node not in taken
    )
    if not whole or not set(node.users) <= users or not _has_rows_of(node, users):
        return set()
    found = {node}
    for operand in operand_nodes(node):
        found |= _with_its_own(analysis, operand, users | found, taken, width)
    return found


def _has_rows_of(node: Node, users: set[Node]) -> bool:
    """Whether a tensor has as many rows as what is made of it: it is computed for each of them."""
    return all(fake_of(u).shape[:-1] == fake_of(node).shape[:-1] for u in users)


def _along(node: Node, width: Dim) -> bool:
    """Whether a tensor has one number for each column, such as the weight of a norm."""
    fake = fake_of(node)
    return isinstance(fake, torch.Tensor) and fake.dim() == 1 and same(fake.shape[0], width)
