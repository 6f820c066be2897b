"""Slices of rows move before the layer that makes them: ``head(x)[:, :-1]`` -> ``head(x[:, :-1])``.

Losses of next tokens leave out the last row of the logits. As it is written that is a part of a
tensor that has to be in memory; of the layer's input it is a view, and the head and its loss are
one kernel (``Analysis.opens``).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from tilewright.frontend.hazards import writes_in_place
from tilewright.frontend.op_map.registry import Kind, lookup
from tilewright.frontend.translate import fake_of, operand_nodes

_FOLLOWING = (Kind.POINTWISE, Kind.SHAPE, Kind.SOFTMAX, Kind.REDUCTION, Kind.ROUTING)


def slice_rows_first(gm: GraphModule) -> None:
    """Rewrites slices along leading dimensions of what layers and conversions alone made, if
    nothing else reads that and nothing writes into the slice."""
    for node in list(gm.graph.nodes):
        index = _index_of_rows(node)
        made = _made_of_rows(node) if index is not None else []
        if made and all(map(_only_reads, node.users)):
            _move(gm.graph, node, index, made)


def _index_of_rows(node: Node) -> tuple[slice, ...] | None:
    """The index with an entry for each dimension but the last, which must be whole."""
    if node.target is not operator.getitem:
        return None
    source = fake_of(node.all_input_nodes[0])
    if not isinstance(source, torch.Tensor):
        return None
    index: Any = node.args[1]
    entries = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        fill = (whole,) * (source.dim() - len(entries) + 1)
        entries = (*entries[:at], *fill, *entries[at + 1 :])
    known = all(isinstance(x, slice) and _is_constant(x) for x in entries)
    if not known or len(entries) > source.dim():
        return None
    rows, last = entries[: source.dim() - 1], entries[source.dim() - 1 :]
    return rows if all(x == whole for x in last) else None


def _is_constant(entry: slice) -> bool:
    return all(x is None or isinstance(x, int) for x in (entry.start, entry.stop, entry.step))


def _made_of_rows(node: Node) -> list[Node]:
    """A layer and the conversions after it that lead to a slice, the layer first; none if something
    else reads one of them."""
    made: list[Node] = []
    at = node.args[0]
    while isinstance(at, Node) and len(at.users) == 1:
        entry = lookup(at)
        if entry is None or entry.name not in ("linear", "cast"):
            break
        made.insert(0, at)
        if entry.name == "linear":
            return made
        at = at.args[0]
    return []


def _only_reads(user: Node) -> bool:
    entry = lookup(user)
    return entry is not None and entry.kind in _FOLLOWING and not writes_in_place(user)


def _move(graph: Graph, node: Node, index: Any, made: list[Node]) -> None:
    source = operand_nodes(made[0])[0]
    with graph.inserting_before(made[0]):
        fewer = graph.call_function(operator.getitem, (source, index))
    fewer.meta = {**node.meta, "example_value": fake_of(source)[index]}
    made[0].replace_input_with(source, fewer)
    for op in made:
        op.meta = {**op.meta, "example_value": _result(op)}
    node.replace_all_uses_with(made[-1])
    graph.erase_node(node)


def _result(node: Node) -> torch.Tensor:
    """What torch's own rules give for a node's fake operands."""
    args = [fake_of(a) if isinstance(a, Node) else a for a in node.args]
    kwargs = {k: fake_of(v) if isinstance(v, Node) else v for k, v in node.kwargs.items()}
    if node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    assert isinstance(result, torch.Tensor)
    return result
