"""Drops what nothing uses from a captured graph: a region has a result, and torch need not compute
what the function throws away."""

from __future__ import annotations

from torch.fx import GraphModule

from tilewright.frontend.classify import Analysis
from tilewright.frontend.hazards import writes_in_place


def drop_unused(gm: GraphModule) -> None:
    """Erases unused operations that a kernel could compute.

    These give new tensors and do nothing else. Others stay, even if they only look like it: what
    writes in place, draws random numbers (dropout in an attention) or asserts has an effect.
    """
    analysis = Analysis(gm.graph)
    for node in reversed(analysis.nodes):
        if not node.users and analysis.usable(node) and not writes_in_place(node):
            gm.graph.erase_node(node)
