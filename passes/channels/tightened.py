"""Fewer places for values that come once a round, where some other schedule does with them.

``throughput.py`` finds one schedule, and places enough for it. A value of a round may find its
channel full for a while without any harm: its node has a whole round until the next one. Whether a
place less costs time is a question about all nodes: an offset for each (x), and one for each read
(r), with

    r >= x(producer) + what a round takes + L    a token is read when it is there
    r >= the reads before it, x >= r             one after the other, then the node fires
    r >= x - period + 1                          not before the firing before
    r <= x(producer) + what a round takes + places * period - response       a place is free
    0 <= x <= the end                            nothing ends later

All but the last are lower bounds, so that relaxing them from 0 gives the least offsets of all
(Bellman and Ford), or ends nowhere."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir.sizes import Size
from tilewright.passes.channels.compare import Depth
from tilewright.passes.channels.nodes import Edge, Node
from tilewright.passes.channels.throughput import Timing


class _Undecided(Exception):
    """Which of two symbolic times is later depends on the sizes."""


def tightened(timing: Timing, depths: Mapping[Edge, Depth]) -> dict[Edge, Depth]:
    """The depths with a place less wherever the others' are enough all the same."""
    found = dict(depths)
    for edge in timing.graph.edges:
        while (fewer := _one_less(timing, found[edge])) is not None:
            tried = {**found, edge: fewer}
            if not _is_enough(timing, tried):
                break
            found = tried
    return found


def _one_less(timing: Timing, depth: Depth) -> Depth | None:
    """None for a single place, for an unknown number, and where tokens come in every cycle."""
    if depth.per.constant == 1:
        return None
    count = timing.places(depth.tokens, depth.per).constant
    return Depth(depth.per * (count - 1), depth.per) if count is not None and count > 1 else None


def _is_enough(timing: Timing, depths: Mapping[Edge, Depth]) -> bool:
    """Whether no node has to wait longer than without limits; False if that is not certain."""
    room = {edge: _room(timing, depth) for edge, depth in depths.items()}
    offset: dict[Node, Size] = {node: Size() for node in timing.graph.nodes}
    reads: dict[Edge, Size] = {edge: Size() for edge in timing.graph.edges}
    try:
        for _ in range(len(offset) + len(reads)):
            if not _relaxed(timing, room, offset, reads):
                return True
    except _Undecided:
        return False
    return False


def _room(timing: Timing, depth: Depth) -> Size:
    """Cycles between a token and the one that takes its place."""
    count = timing.places(depth.tokens, depth.per)
    return depth.per * count if count.terms else depth.tokens


def _relaxed(
    timing: Timing, room: Mapping[Edge, Size], offset: dict[Node, Size], reads: dict[Edge, Size]
) -> bool:
    """Raises all offsets to what they have to be beside each other: whether any was raised.
    _Undecided if one had to be later than the end."""
    raised = False

    def later(known: Size, bound: Size) -> Size:
        nonlocal raised
        if timing.regime.at_least(known, bound):
            return known
        if not timing.regime.at_least(bound, known):
            raise _Undecided
        raised = True
        return bound

    for node in timing.graph.nodes:
        before = offset[node] - timing.periods[node] + 1
        for edge in timing.into[node]:
            ready = offset[edge.producer] + timing.round_ends[edge][1]
            before = reads[edge] = later(later(reads[edge], ready), before)
        offset[node] = later(offset[node], before)
        if not timing.regime.at_least(timing.end, timing.ended_at(node, offset[node])):
            raise _Undecided
    for edge in timing.graph.edges:
        sent = reads[edge] + timing.times.response - room[edge] - timing.round_ends[edge][0]
        offset[edge.producer] = later(offset[edge.producer], sent)
    return raised
