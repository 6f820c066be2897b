"""What ``strict=True`` refuses: unknown operations, and operations that break an attention apart.

Work that stays with torch by design (``op_map/kept.py``, products with parameters, pointwise work
outside regions) is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from tilewright.frontend.classify import Analysis, is_kernel_contraction
from tilewright.frontend.op_map.kept import kept_reason, operation_name
from tilewright.frontend.op_map.registry import Kind, lookup
from tilewright.frontend.provenance import location_of
from tilewright.ir.errors import FallbackError

_BY_DESIGN = "a contraction with a parameter stays with torch"
Offence = tuple[Node, str]


def offences(analysis: Analysis, taken: Iterable[Node]) -> list[Offence]:
    """Nodes that strict compilation must not leave with torch, with reasons, in graph order."""
    inside = set(taken)
    found: dict[Node, str] = {}
    for node in analysis.nodes:
        if node.op not in ("call_function", "call_method", "call_module") or node in inside:
            continue
        entry = lookup(node)
        if entry is None and kept_reason(node) is None and not is_bookkeeping(node):
            found[node] = "not in the op map"
        elif entry is not None and entry.kind is Kind.ATTENTION and not analysis.usable(node):
            found[node] = analysis.reason(node) or ""
    for node in _interrupting(analysis, inside):
        reason = analysis.reason(node) or kept_reason(node) or ""
        found.setdefault(node, f"interrupts an attention: {reason}")
    return sorted(found.items(), key=lambda item: analysis.position[item[0]])


def is_bookkeeping(node: Node) -> bool:
    """Arithmetic on sizes and Python numbers."""
    value = node.meta.get("example_value")
    if isinstance(value, tuple | list):
        return bool(value) and not any(isinstance(v, torch.Tensor) for v in value)
    return value is not None and not isinstance(value, torch.Tensor)


def _interrupting(analysis: Analysis, inside: set[Node]) -> set[Node]:
    """Untranslatable nodes on a path between two products of activations that became no kernel."""
    ends = {n for n in analysis.nodes if is_kernel_contraction(n) and n not in inside}
    softmaxes = {n for n in analysis.nodes if _is_softmax(n) and n not in inside}
    found: set[Node] = set()
    for start in ends | softmaxes:
        below = _reach(start, inside, forward=True)
        for end in (ends & below) - {start}:
            path = (below & _reach(end, inside, forward=False)) | {start, end}
            found.update(n for n in path if _breaks(analysis, n))
    return found


def _breaks(analysis: Analysis, node: Node) -> bool:
    """Whether no region of an attention goes through a node."""
    entry = lookup(node)
    return not analysis.usable(node) or (entry is not None and entry.kind is Kind.ROUTING)


def _is_softmax(node: Node) -> bool:
    entry = lookup(node)
    return entry is not None and entry.kind is Kind.SOFTMAX


def _reach(node: Node, inside: set[Node], forward: bool) -> set[Node]:
    """What depends on a node (or what it depends on), not through products with parameters."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        for near in at.users if forward else at.all_input_nodes:
            if near not in found and near not in inside and not _is_border(near):
                found.add(near)
                stack.append(near)
    return found


def _is_border(node: Node) -> bool:
    entry = lookup(node)
    if entry is not None:
        return entry.kind is Kind.CONTRACTION and not is_kernel_contraction(node)
    return node.op in ("placeholder", "output") or kept_reason(node) == _BY_DESIGN


def refuse(found: list[Offence]) -> None:
    """Raises FallbackError naming every operation and its source line, if there are any."""
    if not found:
        return
    lines = [f"  {operation_name(n)} at {location_of(n)}: {_text(n)}{why}" for n, why in found]
    message = "strict=True, but these operations would stay with torch:\n" + "\n".join(lines)
    advice = "\nWrite them with operations of the op map, or compile without strict=True."
    first = location_of(found[0][0])
    raise FallbackError(f"{operation_name(found[0][0])}: {message}{advice}", first)


def _text(node: Node) -> str:
    text = location_of(node).text
    return f"`{text}`: " if text else ""
