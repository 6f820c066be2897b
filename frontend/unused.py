"""Drops what nothing uses from a captured graph, and conversions that convert nothing: a region has
a result, and torch need not compute what the function throws away."""

from __future__ import annotations

from torch.fx import GraphModule

from tilewright.frontend.classify import Analysis
from tilewright.frontend.hazards import storage_of, writes_in_place
from tilewright.frontend.op_map.registry import lookup
from tilewright.frontend.translate import fake_of


def drop_unused(gm: GraphModule) -> None:
    """Erases unused operations that a kernel could compute.

    These give new tensors and do nothing else. Others stay, even if they only look like it: what
    writes in place, draws random numbers (dropout in an attention) or asserts has an effect.
    """
    analysis = Analysis(gm.graph)
    for node in reversed(analysis.nodes):
        if not node.users and analysis.usable(node) and not writes_in_place(node):
            gm.graph.erase_node(node)


def drop_conversions(gm: GraphModule) -> None:
    """Erases ``x.to(dtype)`` of an x that has the dtype: torch gives x itself, which a kernel would
    copy."""
    for node in gm.graph.nodes:
        entry = lookup(node)
        if entry is None or entry.name != "cast" or storage_of(node) is None:
            continue
        source = node.all_input_nodes[0]
        same = storage_of(source) == storage_of(node)
        if same and fake_of(source).dtype == fake_of(node).dtype:
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
