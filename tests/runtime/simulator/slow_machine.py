"""The machine's rules again, as plainly as possible: lists of events, no rings, no tables.

Times only. A node is a generator that yields when it cannot go on; nodes run in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tilewright.passes.channels.nodes import Edge, Node
from tilewright.runtime.simulator.build import Plan


@dataclass
class SlowChannel:
    """Every token that was ever sent."""

    capacity: int | None
    sent: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The most places taken at one time; a place freed at a cycle can be taken in it again."""
        changes = sorted([(t, 1) for t in self.sent] + [(t, 0) for t in self.freed])
        taken = most = 0
        for _, sent in changes:
            taken += 1 if sent else -1
            most = max(most, taken)
        return most

    def mean(self, cycles: int) -> float:
        held = sum(b - a for a, b in zip(self.sent, self.freed, strict=True))
        return held / cycles


def run_slowly(
    plan: Plan, capacities: Mapping[Edge, int | None]
) -> tuple[int, dict[Edge, SlowChannel], bool]:
    """The cycles, what went through the channels, and whether the program got stuck."""
    channels = {edge: SlowChannel(capacities[edge]) for edge in plan.nodes.edges}
    clocks = dict.fromkeys(plan.nodes.nodes, 0)
    running = {node: _node(plan, node, channels, clocks) for node in plan.nodes.nodes}
    moved = True
    while running and moved:
        moved = False
        for node in list(running):
            try:
                while next(running[node]):
                    moved = True
            except StopIteration:
                del running[node]
                moved = True
    return max(clocks.values()), channels, bool(running)


def _node(
    plan: Plan, node: Node, channels: dict[Edge, SlowChannel], clocks: dict[Node, int]
) -> Iterator[bool]:
    """Yields True after each step, False where it has to wait for another node."""
    machine = plan.machine
    extents = [axis.size.evaluate(plan.sizes) for axis in node.loops]
    reads, writes = plan.nodes.reads_of(node), plan.nodes.writes_of(node)
    forward = max(machine.latency_of(node), machine.send)
    clock = 0
    for firing in range(math.prod(extents)):
        for edge in reads:
            if firing % math.prod(extents[len(edge.loops) :]) == 0:
                channel = channels[edge]
                token = len(channel.freed)
                while len(channel.ready) == token:
                    yield False
                clock = max(clock, channel.ready[token])
                channel.freed.append(clock + machine.response)
                yield True
        due = [e for e in writes if (firing + 1) % math.prod(extents[len(e.loops) :]) == 0]
        for edge in due:
            channel = channels[edge]
            if channel.capacity is not None and len(channel.sent) >= channel.capacity:
                token = len(channel.sent) - channel.capacity
                while len(channel.freed) <= token:
                    yield False
                clock = max(clock, channel.freed[token])
        for edge in due:
            channels[edge].sent.append(clock)
            channels[edge].ready.append(clock + forward)
        clock += machine.interval_of(node)
        clocks[node] = clock
        yield True
