"""Depths for given sizes, exactly: every firing's time on the machine, channels of any depths.

The times of all firings are the least that satisfy, for firing i of a node (DAM's rules, see
``runtime/simulator/engine.py``; w: when it fires, r: when it has taken an input)

    r_j(i)  >=  w(i-1) + 1,  r_(j-1)(i),  w of what sent the token + forward
    w(i)    >=  r_last(i)                                            its inputs, one after the other
    w(i)    >=  r of the token that was ``depth`` earlier in the channel + response          (room)

Without the last line, that is without limits, they follow node after node in the order of the data
(``_earliest``), and the program ends at some cycle. Going back from this the same lines give the
latest time for every firing (``_latest``). So depths are enough if no firing is later than that
when all lines count (``enough``): a node goes on as long as what it waits for is known, and where
one is too late, or none can go on, the depths are too small, whatever comes after it.

More places never make anything later, so that the least depth of one channel, while the others
have theirs, is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.types import Axis
from tilewright.passes.channels.nodes import Edge, Node, NodeGraph
from tilewright.passes.channels.throughput import Times

Firings = Any  # int64 [firings of a node], or of those at which a channel is read or written


@dataclass(frozen=True)
class Port:
    """A channel at one of its ends: the node there reads or writes it once in ``round`` firings, at
    the first or at the last."""

    edge: Edge
    round: int
    last: bool

    @property
    def at(self) -> slice:
        """The firings of the node at which it does."""
        return slice(self.round - 1 if self.last else 0, None, self.round)


@dataclass(frozen=True)
class Firing:
    """What a node does at given sizes: how often it fires, and what it reads and writes."""

    count: int
    reads: tuple[Port, ...]
    writes: tuple[Port, ...]


@dataclass
class Schedule:
    """A program's firings with loops of given lengths. ``cycles`` is when it ends without limits;
    ``sent`` and ``freed`` are the times of every token then, ``latest`` those of every firing with
    which it still ends so."""

    graph: NodeGraph
    loops: Mapping[Axis, int]
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        self.plans = {node: self._plan(node) for node in self.graph.nodes}
        self.sent: dict[Edge, Firings] = {}
        self.freed: dict[Edge, Firings] = {}
        self.cycles = self._earliest()
        self.latest = self._latest()

    def enough(self, depths: Mapping[Edge, int]) -> bool:
        """Whether the program takes no cycle more with channels of these depths."""
        run = _Run(self, depths)
        going = {node: run.goes(node) for node in self.plans}
        while going:
            moved = False
            for node in list(going):
                state = next(going[node], None)
                moved = moved or state is not False
                if state is None:
                    del going[node]
            if run.late or not moved:
                return False
        return True

    def unlimited(self) -> dict[Edge, int]:
        """Depths with which no firing is later than without limits: the most places that are taken
        at one time then."""
        most = dict.fromkeys(self.graph.edges, 1)
        for edge, sent in self.sent.items():
            gone = np.searchsorted(self.freed[edge], sent, side="right")
            most[edge] = max(1, int((np.arange(len(sent)) - gone).max(initial=0)) + 1)
        return most

    def least(self, first: Mapping[Edge, int]) -> dict[Edge, int]:
        """Depths that are enough, each the least while the others are as they are; from ``first``,
        which are kept where nothing asks for others."""
        now = self.mended(first)
        for edge in now:
            low, high = 0, now[edge]
            middle = high - 1  # most are the least already
            while high - low > 1:
                if self.enough({**now, edge: middle}):
                    high = middle
                else:
                    low = middle
                middle = (low + high) // 2
            now[edge] = high
        return now

    def mended(self, first: Mapping[Edge, int]) -> dict[Edge, int]:
        """``first`` if these are enough; else with as few of them raised as one after the other
        shows, to all that is under way without limits."""
        if self.enough(first):
            return dict(first)
        now = {e: max(depth, first[e]) for e, depth in self.unlimited().items()}
        for edge, depth in first.items():
            if depth < now[edge] and self.enough({**now, edge: depth}):
                now[edge] = depth
        return now

    def _plan(self, node: Node) -> Firing:
        """Loops inside one without steps do not happen; then what is left is to take what comes
        once per round of the loops around it, and to give what goes out so (neutral sums)."""
        extents = [self.loops[axis] for axis in node.loops]
        run = extents.index(0) if 0 in extents else len(extents)

        def ports(edges: list[Edge], last: bool) -> tuple[Port, ...]:
            there = [e for e in edges if len(e.loops) <= run]
            return tuple(Port(e, math.prod(extents[len(e.loops) : run]), last) for e in there)

        reads = ports(self.graph.reads_of(node), last=False)
        writes = ports(self.graph.writes_of(node), last=True)
        idle = run < len(extents) and not reads and not writes
        return Firing(0 if idle else math.prod(extents[:run]), reads, writes)

    def _earliest(self) -> int:
        """All firings without limits: when tokens are sent and their places free, and the end."""
        end = 0
        for plan in self.plans.values():
            steps = np.arange(plan.count)
            due = np.zeros(plan.count, np.int64)
            ready = {p: self.sent[p.edge] + self.times.forward(p.edge.producer) for p in plan.reads}
            for port in plan.reads:
                due[port.at] = np.maximum(due[port.at], ready[port])
            fires = np.maximum.accumulate(due - steps) + steps
            clock = np.concatenate([[0], fires[:-1] + 1])[: plan.count]
            for port in plan.reads:
                clock[port.at] = np.maximum(clock[port.at], ready[port])
                self.freed[port.edge] = clock[port.at] + self.times.response
            self.sent.update({port.edge: fires[port.at] for port in plan.writes})
            end = max(end, int(fires.max(initial=-1)) + 1)
        return end

    def _latest(self) -> dict[Node, Firings]:
        """The latest that every firing can be for the program to end as it does without limits."""
        latest: dict[Node, Firings] = {}
        takes: dict[Edge, Firings] = {}
        for node, plan in reversed(self.plans.items()):
            steps = np.arange(plan.count)
            last = np.full(plan.count, self.cycles - 1)
            for port in plan.writes:
                send = takes[port.edge] - self.times.forward(node)
                last[port.at] = np.minimum(last[port.at], send)
            backwards = np.minimum.accumulate((last - steps)[::-1])
            latest[node] = backwards[::-1] + steps
            takes.update({port.edge: latest[node][port.at] for port in plan.reads})
        return latest


class _Run:
    """One run with channels of given depths, in plain numbers; ``late``: it is known to be too
    slow."""

    def __init__(self, schedule: Schedule, depths: Mapping[Edge, int]) -> None:
        self.plans, self.depths, self.times = schedule.plans, depths, schedule.times
        self.latest = schedule.latest
        self.ready: dict[Edge, list[int]] = {edge: [] for edge in depths}
        self.freed: dict[Edge, list[int]] = {edge: [] for edge in depths}
        self.late = False

    def goes(self, node: Node) -> Iterator[bool]:
        """Fires as long as it can; at every wait, whether it did anything since the last one."""
        plan, latest = self.plans[node], self.latest[node].tolist()
        forward, response = self.times.forward(node), self.times.response
        reads = [(p.round, self.ready[p.edge], self.freed[p.edge]) for p in plan.reads]
        writes = [
            (p.round, self.ready[p.edge], self.freed[p.edge], self.depths[p.edge])
            for p in plan.writes
        ]
        clock, moved = 0, True
        for step in range(plan.count):
            for round_, ready, freed in reads:
                token, rest = divmod(step, round_)
                if rest:
                    continue
                while token == len(ready):
                    yield moved
                    moved = False
                clock = max(clock, ready[token])
                freed.append(clock + response)
                moved = True
            for round_, _, freed, depth in writes:
                token, rest = divmod(step + 1, round_)
                token -= 1 + depth
                if rest or token < 0:
                    continue
                while token >= len(freed):
                    yield moved
                    moved = False
                clock = max(clock, freed[token])
            if clock > latest[step]:
                self.late = True
                return
            for round_, ready, _, _ in writes:
                if (step + 1) % round_ == 0:
                    ready.append(clock + forward)
            clock += 1
            moved = True
