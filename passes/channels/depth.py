"""How deep every channel of a stream program has to be, symbolic in the sizes.

The machine is that of the streaming SDPA paper (arXiv 2404.16629): ``nodes.py`` says what its
nodes are, ``throughput.py``, ``tightened.py`` and ``deadlock.py`` how deep a channel has to be for
the full rate and for ending at all, and why; the simulator (``runtime/simulator``) is what both are
tested against. A depth that contains the size of a loop is *deep*: it has to be kept in memory, a
border between kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis
from tilewright.passes.channels.compare import Depth, Regime
from tilewright.passes.channels.deadlock import Barriers
from tilewright.passes.channels.nodes import Edge, NodeGraph, find_nodes
from tilewright.passes.channels.schedule import Schedule
from tilewright.passes.channels.throughput import Times, Timing
from tilewright.passes.channels.tightened import tightened

SEND_AND_RESPONSE = 2
MOST_FIRINGS = 1 << 15  # that are looked at one by one: a tenth of a second each time
_LONG = "long "  # prefix of the names that stand for a loop's size while looking for deep channels


@dataclass(frozen=True, eq=False)
class Channel:
    """From ``value`` to operand ``at`` of ``consumer``.

    ``depth`` is a polynomial in the sizes, in elements of the stream: enough for full throughput.
    ``full`` is the least such depth, ``least`` the least with which the program ends at all; each
    is the least while all other channels have theirs.
    """

    value: Value
    consumer: Op
    at: int
    depth: Size
    deep: bool
    name: str
    full: Depth
    least: Depth

    def __str__(self) -> str:
        mark = "  deep: has to be kept in memory" if self.deep else ""
        return f"%{self.value.hint} -> {self.consumer.name}[{self.at}]: depth {self.depth}{mark}"


def find_channels(graph: Graph) -> list[Channel]:
    """All channels between nodes of a stream graph with their depths, symbolic in the sizes."""
    return channel_depths(find_nodes(graph))


def channel_depths(
    nodes: NodeGraph, sizes: Mapping[str, int] | None = None, times: Times | None = None
) -> list[Channel]:
    """The channels of a machine's nodes, which fire once a cycle (``times``: else all is 1).

    Without ``sizes`` the depths are expressions that are right where loops are long against the
    number of nodes (``_regime``). With them they are numbers for loops of any length: where loops
    are short, or nests deeper than two, those of the program's own schedule (``_at_sizes``).
    """
    # a loop without steps asks for no more than one with a step
    known = {name: Size.of(max(1, n)) for name, n in (sizes or {}).items()}
    times = times or Times()
    full, barriers = _depths(nodes, lambda axis: axis.size.substitute(known), times)
    least = {edge: Depth(places) for edge, places in barriers.least().items()}
    if sizes and 0 in sizes.values():  # they may end at once
        full = {edge: Depth(depth.tokens) for edge, depth in full.items()}
    if sizes is not None:
        full = _at_sizes(nodes, full, sizes, times)
    deep = _deep_edges(nodes, times)
    return [_channel(e, full[e], least[e], e in deep) for e in nodes.edges]


def _at_sizes(
    nodes: NodeGraph, full: dict[Edge, Depth], sizes: Mapping[str, int], times: Times
) -> dict[Edge, Depth]:
    """The depths for full throughput at given sizes, from those that a steady state needs.

    These are exact for two loops in one another, both long. Short loops end before there is a
    steady state, and a node of a middle loop may go in bursts: then the program's firings decide.
    Where these are too many, they are looked at for smaller sizes; a channel that proves too small
    there gets places for all of its stream.
    """
    loops = {axis: axis.size.evaluate(dict(sizes)) for node in nodes.nodes for axis in node.loops}
    long = _regime(nodes, times).least
    if len(_levels(nodes)) <= 2 and all(extent >= long for extent in loops.values()):
        return full
    small = _with_few_firings(nodes, loops)
    schedule = Schedule(nodes, small, times)
    if small == loops:
        found = schedule.least({edge: d.evaluate(dict(sizes)) for edge, d in full.items()})
        return {edge: Depth(Size.of(depth)) for edge, depth in found.items()}
    steady, _ = _depths(nodes, lambda axis: Size.of(max(1, small[axis])), times)
    first = {edge: depth.evaluate({}) for edge, depth in steady.items()}
    mended = schedule.mended(first)
    raised = [edge for edge, depth in mended.items() if depth > first[edge]]
    return full | {e: Depth(Size.of(math.prod(loops[a] for a in e.loops))) for e in raised}


def _with_few_firings(nodes: NodeGraph, loops: Mapping[Axis, int]) -> dict[Axis, int]:
    """The loops, the longest halved until the nodes fire no more than ``MOST_FIRINGS`` times."""
    found = dict(loops)
    while sum(math.prod(found[a] for a in node.loops) for node in nodes.nodes) > MOST_FIRINGS:
        longest = max(found, key=found.__getitem__)
        found[longest] //= 2
    return found


def deep_inputs(graph: Graph) -> set[tuple[Op, int]]:
    """The operands that come through deep channels, without the depths of the others."""
    return {(edge.op, edge.at) for edge in _deep_edges(find_nodes(graph), Times())}


def _deep_edges(nodes: NodeGraph, times: Times) -> set[Edge]:
    """The channels whose depth for full throughput contains the size of a loop of theirs."""
    long, _ = _depths(nodes, lambda axis: Size.of(_LONG + axis.name), times)

    def is_deep(edge: Edge) -> bool:
        return bool({_LONG + axis.name for axis in edge.loops} & long[edge].bound.names)

    return {edge for edge in nodes.edges if is_deep(edge)}


def _channel(edge: Edge, full: Depth, least: Depth, deep: bool) -> Channel:
    return Channel(edge.value, edge.op, edge.at, full.bound, deep, edge.name, full, least)


def _depths(
    nodes: NodeGraph, extent: Callable[[Axis], Size], times: Times
) -> tuple[dict[Edge, Depth], Barriers]:
    """For every channel the depth for full throughput, and what has to be held at any rate."""
    regime = _regime(nodes, times)
    barriers = Barriers(nodes, extent, regime)
    apart = len(_levels(nodes)) > 2
    timing = Timing(nodes, extent, regime, times, apart=apart)
    timing.delay()
    full = tightened(timing, {edge: timing.depth(edge) for edge in nodes.edges})
    for level in timing.bursts():
        faster = Timing(nodes, _only_outer(nodes, extent, level), regime, times, apart=apart)
        for edge in nodes.edges:
            if len(edge.loops) == level:
                least = faster.depth(edge).bound
                full[edge] = Depth(regime.latest([full[edge].bound, least]))
    for edge, depth in full.items():
        full[edge] = _at_most_all(edge, depth, barriers, timing)
    return full, barriers


def _levels(nodes: NodeGraph) -> set[int]:
    """How deep the loops are that nodes run in."""
    return {len(node.loops) for node in nodes.nodes if node.loops}


def _regime(nodes: NodeGraph, times: Times) -> Regime:
    """Loops longer than any path through the nodes."""
    path = sum(1 + times.forward(node) for node in nodes.nodes)
    return Regime(path + times.response + 3)


def _only_outer(
    nodes: NodeGraph, extent: Callable[[Axis], Size], level: int
) -> Callable[[Axis], Size]:
    """The sizes as if loops deeper than ``level`` had one step."""
    inner = {axis for node in nodes.nodes for axis in node.loops[level:]}
    return lambda axis: Size.of(1) if axis in inner else extent(axis)


def _at_most_all(edge: Edge, depth: Depth, barriers: Barriers, timing: Timing) -> Depth:
    """A channel never holds more than all elements of its stream; one less if its consumer takes
    the first so early that its place is there again for the last."""
    everything, regime = barriers.count(edge.loops), barriers.regime
    early = barriers.early[edge] and barriers.places[edge] == everything - 1
    last = timing.sent(edge) + (everything - 1) * timing.rounds(edge)
    early = early and regime.at_least(last, timing.first_read(edge) + timing.times.response)
    most = everything - 1 if early else everything
    if depth.tokens != most and regime.at_least(depth.tokens, most * depth.per):
        return Depth(most)
    return depth
