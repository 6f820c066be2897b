"""In-place work on attention scores made functional: ``scores += mask``, ``scores.mul_(2)``.

Only where nothing else can see the written memory; everything else is left as it is written.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from tilewright.frontend.classify import is_kernel_contraction
from tilewright.frontend.hazards import IN_PLACE, storage_of, writes_in_place
from tilewright.frontend.op_map.registry import Kind, lookup, method_entry
from tilewright.frontend.translate import fake_of

_FUNCTIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}


def functionalise_scores(gm: GraphModule) -> None:
    """Rewrites in-place pointwise nodes on fresh results of contractions and pointwise work."""
    sharing: dict[int, list[Node]] = {}
    order = {node: at for at, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        storage = storage_of(node)
        if storage is not None:
            sharing.setdefault(storage, []).append(node)
    for node in list(gm.graph.nodes):
        storage = storage_of(node)
        if storage is None or not writes_in_place(node):
            continue
        if _is_private(node, sharing[storage]):
            _replace(gm, node, sharing[storage], order)


def _is_private(node: Node, sharing: list[Node]) -> bool:
    """All nodes on this memory: one fresh score tensor and in-place work on it."""
    origin, *others = sharing
    entry = lookup(origin)
    fresh = entry is not None and entry.kind in (Kind.CONTRACTION, Kind.POINTWISE, Kind.SOFTMAX)
    if not fresh or not all(writes_in_place(n) or n.meta.get("functional") for n in others):
        return False
    if not _from_contraction(origin) or _functional_spelling(node) is None:
        return False
    target, result = fake_of(node.all_input_nodes[0]), fake_of(node)
    operands = [fake_of(n) for n in node.all_input_nodes[1:]]
    floats = [o for o in operands if isinstance(o, torch.Tensor) and o.dtype != torch.bool]
    return target.dtype == result.dtype and all(o.dtype == target.dtype for o in floats)


def _from_contraction(node: Node) -> bool:
    """Whether a tensor comes from a product of activations by operations of the op map."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        if is_kernel_contraction(at):
            return True
        if at not in seen and lookup(at) is not None:
            seen.add(at)
            stack.extend(at.all_input_nodes)
    return False


def _functional_spelling(node: Node) -> tuple[str, object] | None:
    """The node operation and target that compute the same without writing."""
    if node.op == "call_function":
        name = IN_PLACE.get(node.target)  # type: ignore[arg-type]
        return None if name is None else ("call_function", _FUNCTIONS[name])
    name = str(node.target)[:-1]
    entry = method_entry(name)
    known = entry is not None and entry.kind is Kind.POINTWISE
    return ("call_method", name) if known else None


def _replace(gm: GraphModule, node: Node, sharing: list[Node], order: dict[Node, int]) -> None:
    spelling = _functional_spelling(node)
    assert spelling is not None
    with gm.graph.inserting_before(node):
        new = gm.graph.create_node(spelling[0], spelling[1], node.args, node.kwargs)  # type: ignore[arg-type]
    new.meta = {**node.meta, "functional": True}
    for alias in sharing:
        for user in list(alias.users):
            if alias is node or (user is not new and order[user] > order[node]):
                user.replace_input_with(alias, new)
    order[new] = order[node]
    sharing[sharing.index(node)] = new
    gm.graph.erase_node(node)
