"""``simulate``: a stream program on the machine; cycles, throughput, occupancy, results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import Array
from tilewright.ir.errors import BindError, SettingError
from tilewright.passes.channels.nodes import Edge, Node, find_nodes
from tilewright.runtime.simulator import layout as at
from tilewright.runtime.simulator.build import Plan, build_tables, grown, result_of
from tilewright.runtime.simulator.machine import Machine


@dataclass(frozen=True)
class NodeResult:
    """What a node did: firings, the cycles of its first and its last, and how long it waited
    between them."""

    node: Node
    firings: int
    first: int
    last: int
    waited: int

    @property
    def throughput(self) -> float:
        """Firings per cycle from the first to the last; 0 if it never fired."""
        return self.firings / (self.last - self.first + 1) if self.firings else 0.0


@dataclass(frozen=True)
class ChannelResult:
    """What a channel held. A place is taken from when it is sent into until the sender knows that
    it is free again; ``mean`` is over all cycles. ``sent`` counts tokens, ``capacity`` places."""

    edge: Edge
    capacity: int | None
    sent: int
    read: int
    peak: int
    mean: float
    numbers: int  # in one token

    @property
    def name(self) -> str:
        return self.edge.name

    @property
    def full(self) -> bool:
        return self.capacity is not None and self.sent - self.read >= self.capacity


@dataclass(frozen=True)
class Wait:
    """A node that cannot go on: for a token of ``edge``, or (``full``) for room in it."""

    node: Node
    edge: Edge
    full: bool


@dataclass(frozen=True)
class Simulation:
    """The outcome of a run. ``cycles`` is when the last node is free again.

    ``waits`` is empty unless the program is stuck; then it has all nodes that wait.
    ``outputs`` are the graph's results in f64, if it had inputs and ended.
    """

    plan: Plan
    cycles: int
    nodes: tuple[NodeResult, ...]
    channels: tuple[ChannelResult, ...]
    waits: tuple[Wait, ...]
    outputs: tuple[Array, ...]
    occupancy: Any = None  # [channels, bins]: mean in each bin
    bin_width: int = 0  # cycles
    spans: Any = None
    spans_lost: bool = False

    @property
    def stuck(self) -> bool:
        return bool(self.waits)

    @property
    def firings(self) -> int:
        return sum(node.firings for node in self.nodes)

    def channel(self, name: str) -> ChannelResult:
        """A channel by its name, ``value->node``; KeyError."""
        return {c.name: c for c in self.channels}[name]

    def node(self, name: str) -> NodeResult:
        """A node by its name; KeyError."""
        return {n.node.name: n for n in self.nodes}[name]


def simulate(
    graph: Graph,
    *inputs: Any,
    sizes: Mapping[str, int] | None = None,
    depths: Mapping[str, int | None] | None = None,
    machine: Machine | None = None,
    bins: int = 0,
    spans: int = 0,
) -> Simulation:
    """Runs a stream graph on the machine.

    ``sizes`` are values of the size names that do not follow from the inputs. ``depths`` are
    capacities by channel name (``value->node``), in tokens; None and a name that is missing are
    without limit. Without ``inputs`` only times are found, faster; with them the results are
    computed from what goes through the channels. A program that gets stuck is no
    error: see ``Simulation.waits``. Raises BindError, UnsupportedError, SettingError.
    """
    machine = machine or Machine()
    nodes = find_nodes(graph, machine.rules)
    machine.check_names(nodes)
    arrays = tuple(np.asarray(x) for x in inputs) if inputs else None
    known = dict(sizes or {})
    if arrays is not None:
        known = bind_sizes(graph, [x.shape for x in arrays], known)
    elif missing := [name for name in graph.sizes if name not in known]:
        raise BindError(f"{graph.name}: size {missing[0]} is not given")
    plan = Plan(nodes, machine, known, arrays, bins, spans)
    given = dict(depths or {})
    names = {edge.name for edge in nodes.edges}
    if unknown := [name for name in given if name not in names]:
        listed = ", ".join(sorted(names))
        raise SettingError(f"there is no channel {unknown[0]!r}; channels: {listed}")
    return run_plan(plan, {edge: given.get(edge.name) for edge in nodes.edges})


def run_plan(plan: Plan, capacities: Mapping[Edge, int | None]) -> Simulation:
    """``simulate`` for what is known already."""
    from tilewright.runtime.simulator.engine import run

    tables, functions = build_tables(plan, capacities)
    while (outcome := run(tables)) == at.GROW:
        tables = grown(tables)
    cycles = int((tables.nodes[:, at.CLOCK]).max(initial=0))
    waits = _waits(plan, tables) if outcome == at.STUCK else ()
    outputs: tuple[Array, ...] = ()
    if plan.inputs is not None and not waits:
        outputs = tuple(result_of(tables, functions, v) for v in plan.nodes.graph.results)
    occupancy, width = _occupancy(tables)
    used = int(tables.control[at.SPANS_USED])
    return Simulation(
        plan,
        cycles,
        tuple(_node_result(*pair) for pair in zip(plan.nodes.nodes, tables.nodes, strict=True)),
        tuple(
            _channel_result(edge, capacities[edge], row, cycles)
            for edge, row in zip(plan.nodes.edges, tables.channels, strict=True)
        ),
        waits,
        outputs,
        occupancy,
        width,
        _all_spans(tables, used) if plan.spans else None,
        bool(plan.spans) and used + 2 > plan.spans,
    )


def _node_result(node: Node, row: Any) -> NodeResult:
    firings, first = int(row[at.DONE]), int(row[at.STARTED])
    last = int(row[at.CLOCK] - row[at.INTERVAL]) if firings else 0
    return NodeResult(node, firings, first, last, int(row[at.WAITED]))


def _channel_result(edge: Edge, capacity: int | None, row: Any, cycles: int) -> ChannelResult:
    sent, read = int(row[at.SENT]), int(row[at.READ])
    return ChannelResult(
        edge,
        capacity,
        sent,
        read,
        max(int(row[at.PEAK]), sent - read),
        float(row[at.HELD]) / cycles if cycles else 0.0,
        int(row[at.WIDTH]),
    )


def _waits(plan: Plan, tables: at.Tables) -> tuple[Wait, ...]:
    """For every node that is not done, the one channel that it waits for."""
    edges = plan.nodes.edges
    out = []
    for node, row in zip(plan.nodes.nodes, tables.nodes, strict=True):
        if row[at.DONE] == row[at.TOTAL]:
            continue
        reading = row[at.READS] + row[at.STAGE]
        if reading < row[at.READS_END]:
            out.append(Wait(node, edges[int(tables.reads[reading, at.CHANNEL])], False))
            continue
        for write in tables.writes[row[at.WRITES] : row[at.WRITES_END]]:
            channel = tables.channels[write[at.CHANNEL]]
            full = channel[at.SENT] - channel[at.READ] >= channel[at.CAPACITY]
            if write[at.LEFT] == 1 and full:
                out.append(Wait(node, edges[int(write[at.CHANNEL])], True))
                break
    return tuple(out)


def _occupancy(tables: at.Tables) -> tuple[Any, int]:
    """The mean number of places taken in each bin, from the changes in it and before it."""
    width = int(tables.control[at.BIN_WIDTH])
    if not width:
        return None, 0
    before = np.cumsum(tables.changes, axis=1) - tables.changes
    return tables.bins / width + before, width


def _all_spans(tables: at.Tables, used: int) -> Any:
    """The spans of the trace, closed by what every node did last."""
    last = [
        (n, row[at.SPAN], row[at.CLOCK], at.BUSY)
        for n, row in enumerate(tables.nodes)
        if row[at.DONE]
    ]
    return np.concatenate([tables.spans[:used], np.array(last, np.int64).reshape(len(last), 4)])
