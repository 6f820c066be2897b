"""Full-throughput depths: least places with which no node ever waits longer than without limits.

All nodes fire once a cycle when nothing holds them up (latency L, sending and response a cycle).
Take one nest of loops, say N rows of M elements. At full rate an element's node fires at

    row * M + element + x        x: the node's offset

since it has N*M firings in N*M cycles and a constant; a node that runs once per row at row * M + x.
The smallest offsets with which every token is there in time are the longest paths

    x(consumer) = max over what it reads of
        x(producer) + L                      per element, or a row's value for its whole row
        x(producer) + (M - 1) + L            a row's value that is known after its last element

A sender may fill a place again one cycle (the response) after it was read. Token k + depth follows
token k by depth * period cycles (period 1 for elements, M for a value per row), so that it never
waits if and only if depth * period + x(write) >= x(read) + response:

    depth = ceil((x(read) - x(write) + response) / period)

A consumer takes its inputs one after the other, outer loops first: it may take the first early,
while it waits for the second, but not before it is done with the firing before; that is x(read).

Offsets may be larger than the smallest, as long as the last node ends no later. A tensor that is
read for a late consumer only starts late: as long as the value of a channel comes too early, its
producer is delayed, with all before it and all that waits for these (``_delay``). What cannot be
delayed any more is held up by a cycle of paths that part and meet again (or by the end of the
run), so that one place less costs a cycle per row (at the end of the run, one in all).

Where loops lie deeper than two, a node of a middle loop may run in bursts (a value repeated): such
a channel gets the places that a burst needs, which can be more than the least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir.sizes import Size, product
from tilewright.ir.types import Axis
from tilewright.passes.channels.compare import Depth, Regime
from tilewright.passes.channels.nodes import Edge, Node, NodeGraph

Loops = Sequence[Axis]
MOST_DELAYS = 10_000


@dataclass(frozen=True)
class Times:
    """What a machine takes, in cycles: a node's latency (by its name, else ``latency``), sending,
    and the response to the sender. A node fires once a cycle at most."""

    latency: int = 1
    send: int = 1
    response: int = 1
    latencies: Mapping[str, int] = field(default_factory=dict)

    def forward(self, node: Node) -> int:
        """Cycles from a firing until its results can be read."""
        return max(self.latencies.get(node.name, self.latency), self.send)


@dataclass
class Timing:
    """Offsets of all nodes; ``extent`` gives an axis's size."""

    graph: NodeGraph
    extent: Callable[[Axis], Size]
    regime: Regime
    times: Times = field(default_factory=Times)
    offset: dict[Node, Size] = field(default_factory=dict)
    into: dict[Node, list[Edge]] = field(default_factory=dict)
    out_of: dict[Node, list[Edge]] = field(default_factory=dict)
    periods: dict[Node, Size] = field(default_factory=dict)
    round_ends: dict[Edge, tuple[Size, Size]] = field(default_factory=dict)  # sent, ready
    apart: bool = False  # parts that no channel connects go at their own pace

    def __post_init__(self) -> None:
        self.into = {n: [] for n in self.graph.nodes}
        self.out_of = {n: [] for n in self.graph.nodes}
        for edge in self.graph.edges:
            self.into[edge.consumer].append(edge)
            self.out_of[edge.producer].append(edge)
        self.parts = self._parts()
        for part in self.parts:
            nests = {node.loops for node in part}
            for loops in nests:
                inner = [nest[len(loops) :] for nest in nests if nest[: len(loops)] == loops]
                period = self.regime.latest(self.count(rest) for rest in inner)
                self.periods.update({n: period for n in part if n.loops == loops})
        for node in self.graph.nodes:
            ready = [self.ready(e) for e in self.into[node]]
            self.offset[node] = self.regime.latest([Size(), *ready])
        self.end = self.regime.latest(self.ended(n) for n in self.graph.nodes)

    def count(self, loops: Loops) -> Size:
        return product(self.extent(axis) for axis in loops)

    def rounds(self, edge: Edge) -> Size:
        """The period of the tokens of a channel, as its producer's nest has it."""
        inside = edge.producer.loops[len(edge.loops) :]
        return self.periods[edge.producer] * self.count(inside)

    def sent(self, edge: Edge) -> Size:
        """The offset at which a token is sent: after the last of its round."""
        if edge not in self.round_ends:
            own = self.periods[edge.producer]
            end = self.rounds(edge) - own
            self.round_ends[edge] = end, end + self.times.forward(edge.producer)
        return self.offset[edge.producer] + self.round_ends[edge][0]

    def ready(self, edge: Edge) -> Size:
        """The offset at which its consumer can take it."""
        if edge not in self.round_ends:
            self.sent(edge)
        return self.offset[edge.producer] + self.round_ends[edge][1]

    def read(self, edge: Edge) -> Size:
        """The offset at which its consumer takes a token: after those that it reads before, and
        not before it is free."""
        node = edge.consumer
        free = self.offset[node] - self.periods[node] + 1
        return self.regime.latest([free, self.first_read(edge)])

    def first_read(self, edge: Edge) -> Size:
        """When the very first token is taken."""
        inputs = self.into[edge.consumer]
        return self.regime.latest(self.ready(e) for e in inputs[: inputs.index(edge) + 1])

    def ended(self, node: Node) -> Size:
        """When a node is done, but for what is the same for all."""
        return self.ended_at(node, self.offset[node])

    def ended_at(self, node: Node, offset: Size) -> Size:
        """The same, had it another offset."""
        return offset - self.periods[node]

    def depth(self, edge: Edge) -> Depth:
        return Depth(self.read(edge) - self.sent(edge) + self.times.response, self.shortest(edge))

    def shortest(self, edge: Edge) -> Size:
        """The least period of the tokens of a channel, whichever nest of its part they are in."""
        loops = edge.loops
        part = next(part for part in self.parts if edge.producer in part)
        nests = {node.loops[len(loops) :] for node in part if node.loops[: len(loops)] == loops}
        return self.regime.earliest(self.count(rest) for rest in self._longest(nests))

    def _parts(self) -> list[set[Node]]:
        """The nodes, or those of each part that hangs together."""
        if not self.apart:
            return [set(self.graph.nodes)]
        parts: list[set[Node]] = []
        for node in self.graph.nodes:
            near = {e.producer for e in self.into[node]}
            joined = [part for part in parts if part & near]
            parts = [part for part in parts if not part & near]
            parts.append(set().union({node}, *joined))
        return parts

    def _longest(self, nests: set[tuple[Axis, ...]]) -> list[tuple[Axis, ...]]:
        """Without those that others go on from."""
        return [a for a in nests if not any(a != b and b[: len(a)] == a for b in nests)]

    def bursts(self) -> set[int]:
        """How deep the middle loops are in which a value of an outer loop is repeated."""
        return {
            len(edge.consumer.loops)
            for edge in self.graph.edges
            if len(edge.loops) < len(edge.consumer.loops)
            and self.periods[edge.consumer].constant != 1
        }

    def delay(self) -> None:
        """Starts late what comes too early, until no channel gets shallower by it."""
        for _ in range(MOST_DELAYS):
            if not any(self._delay(edge) for edge in self.graph.edges):
                return

    def _delay(self, edge: Edge) -> bool:
        """Delays the producer of a channel as far as possible; False if it cannot be."""
        if not self.regime.positive(self.slack(edge)):
            return False
        moved = self._moves_with(edge.producer)
        if edge.consumer in moved:
            return False
        room = [self.end - self.ended(n) for n in moved]
        for node in moved:
            room += [self.slack(e) for e in self.out_of[node] if e.consumer not in moved]
            room += [self.spare(e) for e in self.into[node] if e.producer not in moved]
        least = self.regime.earliest(room)
        if not self.regime.positive(least):
            return False
        for node in moved:
            self.offset[node] = self.offset[node] + least
        return True

    def slack(self, edge: Edge) -> Size:
        """How much later the producer could be without delaying the consumer."""
        return self.offset[edge.consumer] - self.ready(edge)

    def spare(self, edge: Edge) -> Size:
        """How much later the consumer could be without another place in the channel."""
        per = self.rounds(edge)
        if per.constant == 1:
            return Size()
        wait = self.read(edge) - self.sent(edge) + self.times.response
        whole = self.places(wait, per)
        return whole * per - wait

    def places(self, wait: Size, per: Size) -> Size:
        """wait / per, rounded up, where that is certain; else as if nothing was to spare. One where
        nothing passes: an axis has no elements."""
        if per.constant == 0:
            return Size.of(1)
        if wait.constant is not None and per.constant is not None:
            return Size.of(max(1, -(-wait.constant // per.constant)))
        for count in range(1, 8):
            if self.regime.at_least(per * count, wait):
                return Size.of(count)
        return Size()

    def _moves_with(self, start: Node) -> set[Node]:
        """All nodes that have to be delayed with ``start``: those that feed it, and those for which
        it would be too late."""
        found, stack = {start}, [start]
        while stack:
            node = stack.pop()
            for edge in self.into[node]:
                if edge.producer not in found and not self.regime.positive(self.spare(edge)):
                    found.add(edge.producer)
                    stack.append(edge.producer)
            for edge in self.out_of[node]:
                if edge.consumer not in found and not self.regime.positive(self.slack(edge)):
                    found.add(edge.consumer)
                    stack.append(edge.consumer)
        return found
