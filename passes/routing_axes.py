"""Which axes of routing operations lie inside elements, and which have to be loops.

An operation works along axes of an element wherever their sizes are numbers (experts, groups, the k
chosen): a token's scores are one element, of which k numbers are kept. What is counted or ranked
over tokens walks a loop.
"""

from __future__ import annotations

from tilewright.ir import ops_routing as r
from tilewright.ir.core import Op
from tilewright.passes.axes import AxisMap

OPS = (r.TopK, r.TakeAlong, r.Scatter, r.SegmentCount, r.PrefixSum, r.SegmentRank)
WALKS = (r.SegmentCount, r.SegmentRank)  # along the first axis of their ids


def elements(axes: AxisMap) -> frozenset[int]:
    """Axes of routing operations that lie inside elements: all of known length but what tokens are
    walked along."""
    inside: set[int] = set()
    outside: set[int] = set()
    for op in _routing(axes):
        views = [axes.views[op, i] for i in range(len(op.operands))]
        dims = [v.dims for v in views] + [axes.dims[x] for x in op.results]
        inside |= {x for d in dims for x in axes.flat(d)}
        first = axes.resolve(dims[0][0])
        works = op.axis % len(dims[0]) if hasattr(op, "axis") else len(dims[0]) - 1
        if isinstance(op, WALKS):
            outside |= set(first[:1])
        elif works > 0:
            outside |= set(first)
    return frozenset(x for x in inside - outside if axes.size[x].constant is not None)


def walked(axes: AxisMap) -> list[int]:
    """Axes that have to be loops, whatever else runs along them: what is counted, ranked or summed
    up along, and has no known length."""
    found: dict[int, None] = {}
    for op in _routing(axes):
        dims = axes.views[op, 0].dims
        if isinstance(op, WALKS):
            found.update(dict.fromkeys([x for d in axes.resolved(dims) for x in d][:1]))
        elif isinstance(op, r.PrefixSum):
            flat = axes.resolve(dims[op.axis])
            found.update(dict.fromkeys(x for x in flat if axes.size[x].constant is None))
    return list(found)


def chosen_from(axes: AxisMap, op: Op) -> frozenset[int]:
    """The axes of which a top_k leaves k numbers."""
    return axes.flat(axes.views[op, 0].dims[-1:]) if isinstance(op, r.TopK) else frozenset()


def _routing(axes: AxisMap) -> list[Op]:
    return [op for op in axes.graph.body.ops if isinstance(op, OPS)]
