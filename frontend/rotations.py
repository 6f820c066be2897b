"""Rotary position embeddings that only an attention reads: they become part of its kernel.

``q * cos + cat((-q[..., d/2:], q[..., :d/2]), -1) * sin``

A concatenation along the last dimension, of a size that is a number, whose parts are pointwise
functions of slices of whole tensors of that size, needs constant depth (``passes/halves.py``). All
other slices and concatenations stay with torch.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from tilewright.frontend.classify import Analysis
from tilewright.frontend.hazards import Hazards
from tilewright.frontend.op_map.kept import operation_name
from tilewright.frontend.op_map.parts import CAT, CHUNK, chunks_entry, slice_entry
from tilewright.frontend.op_map.registry import ENTRY, Entry, Kind
from tilewright.frontend.symbols import Dim, hint, make_static
from tilewright.frontend.translate import fake_of, operand_nodes

_CALLS = ("call_function", "call_method")
_JOINS = ("cat", "concat", "concatenate")
_SPLITS = ("chunk", "split", "tensor_split")


@dataclass
class Rotation:
    """Nodes that compute it, with the entries of those that the op map lacks, the tensors that
    are cut apart in it, and the sizes and ends that it relies on."""

    nodes: set[Node] = field(default_factory=set)
    entries: dict[Node, Entry] = field(default_factory=dict)
    sources: set[Node] = field(default_factory=set)
    numbers: list[Dim] = field(default_factory=list)

    def add(self, other: Rotation) -> None:
        self.nodes |= other.nodes
        self.entries |= other.entries
        self.sources |= other.sources
        self.numbers += other.numbers

    def settle(self) -> None:
        """Lets the op map know the slices and concatenations, and guards their sizes."""
        for number in self.numbers:
            make_static(number)
        for node, entry in self.entries.items():
            node.meta[ENTRY] = entry


def find_rotation(
    analysis: Analysis,
    hazards: Hazards,
    inside: Iterable[Node],
    others: Iterable[Node],
    place: int,
) -> Rotation:
    """All rotations that a region's nodes read and nothing else does, and that can be moved to
    ``place``; none of ``others``, the cores of other regions."""
    inside, forbidden = set(inside), set(others)
    found = Rotation()
    made = fake_of(analysis.nodes[place])
    if not isinstance(made, torch.Tensor) or made.dim() < 2:  # no rows of heads
        return found
    rows = made.shape[-2]
    for top in dict.fromkeys(o for n in inside for o in operand_nodes(n) if o not in inside):
        rotation = _above(analysis, top, {}) if _pays(top, inside, rows) else None
        if rotation is None or rotation.nodes & (forbidden | rotation.sources):
            continue
        _add_products(analysis, rotation)
        private = all(set(n.users) <= rotation.nodes | inside for n in rotation.nodes)
        moved = any(hazards.block(n, analysis.position[n], place) for n in rotation.nodes)
        if private and not moved:
            found.add(rotation)
    return found


def _pays(top: Node, inside: set[Node], rows: Dim) -> bool:
    """Whether a kernel is faster with the rotation than after it.

    One row: always. Of more, keys are rotated for every block of rows, which is cheap against
    products in f32 only; and products in bf16 want both of their operands as they lie in memory.
    """
    dtype = fake_of(top).dtype if isinstance(fake_of(top), torch.Tensor) else None
    if dtype in (torch.float32, torch.float64) or (isinstance(rows, int) and rows == 1):
        return True
    read = [operand_nodes(u) for u in top.users if u in inside]
    is_query = all(operands[0] is top for operands in read if operands)
    return dtype == torch.float16 and is_query


def _above(analysis: Analysis, node: Node, seen: dict[Node, Rotation | None]) -> Rotation | None:
    """The rotation that ``node`` is the end of, through pointwise work and changes of shape."""
    if node in seen:
        return seen[node]
    seen[node] = None
    if operation_name(node) in _JOINS:
        seen[node] = _join(analysis, node)
    elif analysis.kind(node) in (Kind.POINTWISE, Kind.SHAPE):
        whole = Rotation({node})
        for operand in operand_nodes(node):
            whole.add(_above(analysis, operand, seen) or Rotation())
        seen[node] = whole if whole.entries else None
    return seen[node]


def _add_products(analysis: Analysis, rotation: Rotation) -> None:
    """``q * cos``, which goes with the product of the other halves."""
    for node in list(rotation.nodes):
        for operand in operand_nodes(node):
            if operand in rotation.nodes | rotation.sources:
                continue
            reads = set(operand_nodes(operand)) & rotation.sources
            if reads and analysis.kind(operand) is Kind.POINTWISE:
                rotation.nodes.add(operand)


def _join(analysis: Analysis, node: Node) -> Rotation | None:
    """A concatenation whose parts are functions of slices of tensors as long as all of it."""
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    fake = fake_of(node)
    if not isinstance(given, tuple | list) or not isinstance(fake, torch.Tensor) or not fake.dim():
        return None
    if dim not in (-1, fake.dim() - 1):
        return None
    whole = Rotation({node}, {node: CAT}, numbers=[fake.shape[-1]])
    for part in given:
        found = _part(analysis, part, hint(fake.shape[-1])) if isinstance(part, Node) else None
        if found is None:
            return None
        whole.add(found)
    return whole


def _part(analysis: Analysis, node: Node, total: int) -> Rotation | None:
    """A slice, or a pointwise function of slices and of what is the same all along."""
    cut = _slice(node, total)
    if cut is not None or analysis.kind(node) is not Kind.POINTWISE:
        return cut
    whole = Rotation({node})
    for operand in operand_nodes(node):
        found = _part(analysis, operand, total)
        if found is not None:
            whole.add(found)
        elif not _is_constant_along(operand):
            return None
    return whole if whole.entries else None


def _is_constant_along(node: Node) -> bool:
    fake = fake_of(node)
    return isinstance(fake, torch.Tensor) and (not fake.dim() or fake.shape[-1] == 1)


def _slice(node: Node, total: int) -> Rotation | None:
    """Consecutive elements of the last dimension of a tensor of size ``total``."""
    if node.op not in _CALLS or not node.args or not isinstance(node.args[0], Node):
        return None
    source, name = node.args[0], operation_name(node)
    if node.target is operator.getitem and operation_name(source) in _SPLITS:
        return _of_chunks(node, source, total)
    fake = fake_of(source)
    if not isinstance(fake, torch.Tensor) or not fake.dim() or hint(fake.shape[-1]) != total:
        return None
    given: tuple[Any, ...] | None = None
    if name == "narrow":
        given = _narrowed(node, fake.dim(), total)
    elif name in ("getitem", "__getitem__") and len(node.args) == 2:
        given = _indexed(node.args[1], fake.dim())
    if given is None:
        return None
    numbers = [fake_of(n) if isinstance(n, Node) else n for n in given]
    if not all(n is None or isinstance(n, int | torch.SymInt) for n in numbers):
        return None
    start, stop, step = slice(*(None if n is None else hint(n) for n in numbers)).indices(total)
    if step != 1 or start > stop:
        return None
    known = [fake.shape[-1], *(n for n in numbers if n is not None)]
    return Rotation({node}, {node: slice_entry(start, stop)}, {source}, known)


def _indexed(index: Any, rank: int) -> tuple[Any, Any, Any] | None:
    """Start, stop and step of the slice of the last dimension, if the others are taken whole."""
    *before, last = index if isinstance(index, tuple) else (index,)
    whole = all(e is Ellipsis or e == slice(None) for e in before)
    if not whole or not isinstance(last, slice):
        return None
    if len(before) != rank - 1 and Ellipsis not in before:
        return None
    return last.start, last.stop, last.step


def _narrowed(node: Node, rank: int, total: int) -> tuple[Any, Any, Any] | None:
    """Start and stop of ``narrow(dim, start, length)`` of the last dimension."""
    names = ("dim", "start", "length")
    given: list[Any] = [*node.args[1:], *(node.kwargs[n] for n in names if n in node.kwargs)]
    numbers = [hint(fake_of(n) if isinstance(n, Node) else n) for n in given]
    if len(numbers) != 3 or numbers[0] not in (-1, rank - 1):
        return None
    start = numbers[1] % max(total, 1)
    return start, start + numbers[2], None


def _of_chunks(node: Node, chunks: Node, total: int) -> Rotation | None:
    """One of several parts that ``chunk`` or ``split`` made of the last dimension."""
    source, parts = chunks.args[0], fake_of(chunks)
    if not isinstance(source, Node) or not isinstance(parts, tuple):
        return None
    lengths = [hint(part.shape[-1]) for part in parts]
    if hint(fake_of(source).shape[-1]) != total or sum(lengths) != total:
        return None
    entries = {node: CHUNK, chunks: chunks_entry(lengths)}
    return Rotation({node, chunks}, entries, {source}, [fake_of(source).shape[-1]])
