"""Deadlock-free depths: least places with which the program ends, at whatever rate.

Rows need not overlap here, so that time does not matter, only what has to be there before what. A
*barrier* is a channel that brings a value of a whole round of some loop (a row's maximum) to a node
inside that loop: the node cannot fire before all nodes that the value depends on have done the
whole round. Until then

    the node and all after it              fire nothing in this round
    the nodes that the value depends on    have done all B elements of the round
    any other node                         has fired h - c - 1 times if one at h sends to it
                                           through a channel of c places, and as often as its
                                           consumers

(c elements lie in the channel, and one may be read and not sent on.) A channel from a node at h to
one that fires nothing has to hold h elements; one less if its consumer takes this input before the
one that is late, since then it holds the first. Barriers open one after the other, first those for
which fewer channels have to hold a round, each with those before it open. Another order may do with
fewer places in a channel, the others being as they are: then it has these. All other channels need
one place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tilewright.ir.sizes import Size, product
from tilewright.ir.types import Axis
from tilewright.passes.channels.compare import Regime
from tilewright.passes.channels.nodes import Edge, Node, NodeGraph

Held = dict[Edge, tuple[Size, bool]]  # how many places, and whether the consumer holds one more


@dataclass(frozen=True)
class Level:
    """Barriers that wait for whole rounds of the loops inside the first ``depth``, in the order of
    their nodes, and what has to have done the round for each."""

    depth: int
    barriers: tuple[Edge, ...]
    needs: dict[Edge, set[Node]]


class Barriers:
    """The barriers of a graph at every depth of loops, and what channels have to hold for them."""

    def __init__(self, graph: NodeGraph, extent: Callable[[Axis], Size], regime: Regime) -> None:
        self.graph, self.extent, self.regime = graph, extent, regime
        self.into: dict[Node, list[Edge]] = {n: [] for n in graph.nodes}
        self.out_of: dict[Node, list[Edge]] = {n: [] for n in graph.nodes}
        for edge in graph.edges:
            self.into[edge.consumer].append(edge)
            self.out_of[edge.producer].append(edge)
        self.places: dict[Edge, Size] = {edge: Size.of(1) for edge in graph.edges}
        self.early: dict[Edge, bool] = dict.fromkeys(graph.edges, False)
        self.levels: list[Level] = []
        for depth in range(max((len(n.loops) for n in graph.nodes), default=0)):
            self.levels.append(self._at(depth))
            self._open_all(self.levels[-1])

    def count(self, loops: Sequence[Axis]) -> Size:
        return product(self.extent(axis) for axis in loops)

    def _at(self, depth: int) -> Level:
        """Barriers that wait for whole rounds of the loops inside the first ``depth``."""
        before = self._whole_rounds(depth)
        late = {
            edge
            for edge in self.graph.edges
            if len(edge.loops) <= depth < len(edge.consumer.loops)
            and before[edge.consumer] & self._needed(edge, before, depth)
        }
        needs = {edge: self._needed(edge, before, depth) for edge in late}
        place = {node: at for at, node in enumerate(self.graph.nodes)}
        ordered = sorted(late, key=lambda edge: (place[edge.consumer], place[edge.producer]))
        return Level(depth, tuple(ordered), needs)

    def _open_all(self, level: Level) -> None:
        """Gives channels the places that they have to have."""
        closed, done = list(level.barriers), set[Node]()
        while closed:
            best: tuple[Edge, Held] | None = None
            fewest = Size()
            for barrier, held in self._could_open(level, closed, done):
                total = sum((size for size, _ in held.values()), Size())
                if best is None or not self.regime.at_least(total, fewest):
                    best, fewest = (barrier, held), total
            assert best is not None, "the first barrier in the order of the data can open"
            barrier, held = best
            closed.remove(barrier)
            done |= level.needs[barrier]
            for edge, (size, early) in held.items():
                self.places[edge], self.early[edge] = size, early

    def _could_open(
        self, level: Level, closed: list[Edge], done: set[Node]
    ) -> Iterator[tuple[Edge, Held]]:
        """The barriers that can open next, and what has to be held for each beyond the places that
        there are."""
        waits = self._after({edge.consumer for edge in closed})
        for barrier in closed:
            needs = level.needs[barrier]
            if not needs & waits:
                yield barrier, self._held(level.depth, waits, done | needs, set(closed))

    def least(self) -> dict[Edge, Size]:
        """The places of all channels, with fewer wherever another order of barriers does with
        fewer."""
        for edge in self.graph.edges:
            if self.places[edge].constant != 1:
                self._lower(edge)
        return self.places

    def _lower(self, edge: Edge) -> None:
        """The fewest places of a channel with which all barriers can open: a number, or a few less
        than it had."""
        most, long = self.places[edge], self.regime.least

        def places(at: int) -> Size:
            return Size.of(at + 1) if most.constant or at < long else most + (at - 2 * long)

        def enough(at: int) -> bool:
            self.places[edge] = places(at)
            return all(self._opens(level) for level in self.levels)

        fewest = bisect_left(range(most.constant or 2 * long), True, key=enough)
        self.places[edge] = places(fewest)

    def _opens(self, level: Level) -> bool:
        """Whether all barriers can open with the places that there are. More that is open never
        hinders what is not, so that any that can may be next."""
        closed, done = list(level.barriers), set[Node]()
        while closed:
            able = (b for b, held in self._could_open(level, closed, done) if not held)
            barrier = next(able, None)
            if barrier is None:
                return False
            closed.remove(barrier)
            done |= level.needs[barrier]
        return True

    def _whole_rounds(self, depth: int) -> dict[Node, set[Node]]:
        """For every node those that have to do a whole round before it does anything in it."""
        found: dict[Node, set[Node]] = {}
        for node in self.graph.nodes:
            found[node] = set()
            for edge in self.into[node]:
                found[node] |= self._needed(edge, found, depth)
        return found

    def _needed(self, edge: Edge, before: dict[Node, set[Node]], depth: int) -> set[Node]:
        needed = set(before[edge.producer])
        if len(edge.loops) == depth < len(edge.producer.loops):
            needed |= {edge.producer, *self._all_before(edge.producer)}
        return needed

    def _all_before(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        stack = [node]
        while stack:
            new = {e.producer for e in self.into[stack.pop()]} - found
            found |= new
            stack.extend(new)
        return found

    def _after(self, nodes: set[Node]) -> set[Node]:
        found, stack = set(nodes), list(nodes)
        while stack:
            new = {e.consumer for e in self.out_of[stack.pop()]} - found
            found |= new
            stack.extend(new)
        return found

    def _held(self, depth: int, waits: set[Node], done: set[Node], late: set[Edge]) -> Held:
        """The channels into nodes that wait which need more places than they have, when the others
        have gone on: how many, and whether the consumer holds one more."""
        fired = self._fired(depth, waits, done)
        held: Held = {}
        for edge in self.graph.edges:
            count = fired.get(edge.producer, Size())
            if edge.consumer not in waits or len(edge.loops) <= depth or not count.terms:
                continue
            if len(edge.loops) != len(edge.producer.loops):
                count = self.count(edge.loops[depth:])
            early = self._taken_early(edge, waits, late)
            count = count - 1 if early else count
            if not self.regime.at_least(self.places[edge], count):
                held[edge] = self.regime.latest([self.places[edge], count]), early
        return held

    def _fired(self, depth: int, waits: set[Node], done: set[Node]) -> dict[Node, Size]:
        """How often each node that does not wait has fired in the round, at the least."""
        fired = {
            node: self.count(node.loops[depth:]) if node in done else Size()
            for node in self.graph.nodes
            if node not in waits and len(node.loops) > depth
        }
        for _ in self.graph.nodes:
            before = dict(fired)
            for node in fired:
                self._push(node, depth, fired)
            if fired == before:
                break
        return fired

    def _push(self, node: Node, depth: int, fired: dict[Node, Size]) -> None:
        """A node makes room for what its producers send, for which it needs its other inputs."""
        least = fired[node]
        inputs = [e for e in self.into[node] if len(e.loops) > depth and e.producer in fired]
        taken: list[Size] = [Size()] * len(inputs)
        for at, edge in enumerate(inputs):
            sent = fired[edge.producer]
            if not len(edge.loops) == len(node.loops) == len(edge.producer.loops):
                sent = self.count(node.loops[depth:]) if sent.terms else Size()
            room = sent - self.places[edge]
            least = self.regime.latest([least, room - 1])
            for earlier in range(at):  # what is read before this one
                taken[earlier] = self.regime.latest([taken[earlier], room])
        fired[node] = least
        for edge, more in zip(inputs, taken, strict=True):
            producer = edge.producer
            if len(edge.loops) == len(node.loops) == len(producer.loops):
                fired[producer] = self.regime.latest([fired[producer], least, more])
            elif self.regime.positive(least):
                fired[producer] = self.count(producer.loops[depth:])

    def _taken_early(self, edge: Edge, waits: set[Node], late: set[Edge]) -> bool:
        """Whether its consumer reads this channel before any that is late."""
        for other in self.into[edge.consumer]:
            if other is edge:
                return True
            if other in late or other.producer in waits:
                return False
        raise AssertionError("a channel is among those that its consumer reads")
