"""In-place work on scores of attentions and routers made functional: ``scores += mask``,
``torch.zeros_like(scores).scatter_(1, ids, 1)``.

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
_SCORES = (Kind.CONTRACTION, Kind.POINTWISE, Kind.SOFTMAX)
_ROUTED = (*_SCORES, Kind.REDUCTION, Kind.GENERATOR, Kind.ROUTING)


def functionalise_scores(gm: GraphModule) -> None:
    """Rewrites in-place pointwise nodes on fresh results of contractions and pointwise work, and
    what routers write in place."""
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
        if _is_private(node, sharing[storage], order):
            _replace(gm, node, sharing[storage], order)


def _is_private(node: Node, sharing: list[Node], order: dict[Node, int]) -> bool:
    """All nodes on this memory: one fresh score tensor, in-place work on it, and views of what
    that leaves."""
    origin, *others = sharing
    last = max(order[n] for n in sharing if writes_in_place(n))
    others = [n for n in others if order[n] <= last]
    known = all(writes_in_place(n) or n.meta.get("functional") for n in others)
    if not known or _functional_spelling(node) is None:
        return False
    if _is_routing(node):
        return _is_fresh(origin, _ROUTED)
    if not _is_routing(origin) and not (_is_fresh(origin, _SCORES) and _from_contraction(origin)):
        return False
    target, result = fake_of(node.all_input_nodes[0]), fake_of(node)
    operands = [fake_of(n) for n in node.all_input_nodes[1:]]
    floats = [o for o in operands if isinstance(o, torch.Tensor) and o.dtype != torch.bool]
    return target.dtype == result.dtype and all(o.dtype == target.dtype for o in floats)


def _is_fresh(origin: Node, kinds: tuple[Kind, ...]) -> bool:
    """Whether a tensor is an operation's new memory."""
    entry = lookup(_whole(origin))
    return entry is not None and entry.kind in kinds


def _is_routing(node: Node) -> bool:
    """Whether this is a choice or a look-up, or writes in place at computed positions."""
    entry = lookup(_whole(node))
    if entry is None and writes_in_place(node) and node.op == "call_method":
        entry = method_entry(str(node.target)[:-1])
    return entry is not None and entry.kind is Kind.ROUTING


def _whole(node: Node) -> Node:
    """The operation of whose results this is one."""
    source = node.args[0] if node.target is operator.getitem and node.args else None
    several = isinstance(source, Node) and isinstance(fake_of(source), tuple)
    return source if several and isinstance(source, Node) else node


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
    known = entry is not None and entry.kind in (Kind.POINTWISE, Kind.ROUTING)
    return ("call_method", name) if known else None


def _replace(gm: GraphModule, node: Node, sharing: list[Node], order: dict[Node, int]) -> None:
    spelling = _functional_spelling(node)
    assert spelling is not None
    with gm.graph.inserting_before(node):
        new = gm.graph.create_node(spelling[0], spelling[1], node.args, node.kwargs)  # type: ignore[arg-type]
    new.meta = {**node.meta, "functional": True}
    for alias in (n for n in sharing if order[n] <= order[node]):
        for user in list(alias.users):
            if alias is node or (user is not new and order[user] > order[node]):
                user.replace_input_with(alias, new)
    order[new] = order[node]
    sharing[sharing.index(node)] = new
    gm.graph.erase_node(node)
