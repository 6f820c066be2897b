"""From nodes, sizes, capacities and inputs to the tables of the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.core import Value
from tilewright.ir.dtypes import Array
from tilewright.ir.types import Axis, TensorType
from tilewright.passes.channels.nodes import Edge, Node, NodeGraph, loops_of
from tilewright.runtime.simulator import layout as at
from tilewright.runtime.simulator.functions import FIELDS, Functions, NodeFunction
from tilewright.runtime.simulator.machine import Machine

FIRST_SLOTS = 16  # of a ring; it doubles when more tokens are under way


@dataclass(frozen=True)
class Plan:
    """What to simulate: a graph's nodes on a machine, the values of its sizes, its inputs.

    Without ``inputs`` only times are found. ``bins`` of occupancy over time, ``spans`` of a trace.
    """

    nodes: NodeGraph
    machine: Machine
    sizes: Mapping[str, int]
    inputs: tuple[Array, ...] | None = None
    bins: int = 0
    spans: int = 0


def build_tables(plan: Plan, capacities: Mapping[Edge, int | None]) -> tuple[at.Tables, Functions]:
    """The tables before the first cycle. A capacity of None is without limit."""
    build = _Build(plan, capacities)
    return build.tables(), build.functions


class _Build:
    def __init__(self, plan: Plan, capacities: Mapping[Edge, int | None]) -> None:
        self.plan, self.capacities = plan, capacities
        self.graph = plan.nodes
        self.functions = Functions(self.graph, plan.sizes)
        for param in self.graph.graph.params:
            self.functions.tensor(param)
        self.channel = {edge: c for c, edge in enumerate(self.graph.edges)}
        self.nodes = np.zeros((len(self.graph.nodes), at.NODE_FIELDS), np.int64)
        self.reads: list[list[int]] = []
        self.writes: list[list[int]] = []
        self.extent: list[int] = []
        self.steps: list[list[int]] = []
        self.starts: list[int] = []

    def tables(self) -> at.Tables:
        for n, node in enumerate(self.graph.nodes):
            self.node(n, node)
        channels = self.channels()
        slots = FIRST_SLOTS * len(channels)
        width = int(channels[:, at.WIDTH].sum()) * FIRST_SLOTS if len(channels) else 0
        functions, plan = self.functions, self.plan
        control = np.zeros(4, np.int64)
        control[at.WITH_VALUES] = plan.inputs is not None
        control[at.BIN_WIDTH] = 1 if plan.bins else 0
        return at.Tables(
            nodes=self.nodes,
            reads=_table(self.reads, at.PORT_FIELDS),
            writes=_table(self.writes, at.PORT_FIELDS),
            channels=channels,
            ready=np.zeros(slots, np.int64),
            free=np.zeros(slots, np.int64),
            values=np.zeros(width if plan.inputs is not None else 0),
            registers=np.array(functions.initial, np.float64),
            rows=_table(functions.rows, FIELDS),
            lists=np.array(functions.lists, np.int64),
            memory=self.memory(),
            address=np.array(self.starts, np.int64),
            steps=self.padded_steps(),
            index=np.zeros(len(self.extent), np.int64),
            extent=np.array(self.extent, np.int64),
            bins=np.zeros((len(channels), plan.bins)),
            changes=np.zeros((len(channels), plan.bins), np.int64),
            spans=np.zeros((plan.spans, 4), np.int64),
            control=control,
        )

    def node(self, n: int, node: Node) -> None:
        sizes = self.functions.extent(node.loops)
        run = sizes.index(0) if 0 in sizes else len(sizes)  # loops of which every step happens
        sizes = sizes[:run]
        reads = [e for e in self.graph.reads_of(node) if len(e.loops) <= run]
        writes = [e for e in self.graph.writes_of(node) if len(e.loops) <= run]
        function = NodeFunction(self.functions, node)
        first = len(self.reads), len(self.writes)
        for edge in reads:
            register = function.registers[edge.value]
            period = math.prod(sizes[len(edge.loops) :])
            self.reads.append([self.channel[edge], period, 0, register])
        for edge in writes:
            period = math.prod(sizes[len(edge.loops) :])
            register = function.registers[edge.value]
            self.writes.append([self.channel[edge], period, period, register])
        row = self.nodes[n]
        whole = run == len(node.loops)
        row[at.TOTAL] = math.prod(sizes) if whole or reads or writes else 0
        row[at.INTERVAL] = self.plan.machine.interval_of(node)
        row[at.READS], row[at.READS_END] = first[0], len(self.reads)
        row[at.WRITES], row[at.WRITES_END] = first[1], len(self.writes)
        if whole:  # else all that is left is to take rows without elements, and give neutral sums
            row[at.ROWS], row[at.ROWS_END] = function.first_row, function.last_row
        row[at.LOOPS], row[at.DEPTH] = len(self.extent), max(1, run)
        row[at.PLACES], row[at.PLACES_END] = function.first_address, function.last_address
        self.extent.extend(sizes or [1])
        self.addresses(function, node.loops[:run], sizes)

    def addresses(
        self, function: NodeFunction, loops: Sequence[Axis], sizes: Sequence[int]
    ) -> None:
        """How each address moves when the odometer's last change is at a level."""
        for start, steps in self.functions.addresses[function.first_address :]:
            inner = 0
            moves = []
            for axis, size in zip(reversed(loops), reversed(sizes), strict=True):
                step = steps.get(axis.name, 0)
                moves.append(step - inner)
                inner += (size - 1) * step
            self.starts.append(start)
            self.steps.append(moves[::-1])

    def padded_steps(self) -> Any:
        levels = max([1, *map(len, self.steps)])
        out = np.zeros((len(self.steps), levels), np.int64)
        for row, steps in zip(out, self.steps, strict=True):
            row[: len(steps)] = steps
        return out

    def channels(self) -> Any:
        out = np.zeros((len(self.channel), at.CHANNEL_FIELDS), np.int64)
        machine = self.plan.machine
        values = 0
        for edge, c in self.channel.items():
            capacity = self.capacities[edge]
            out[c, at.CAPACITY] = at.UNLIMITED if capacity is None else capacity
            out[c, at.START], out[c, at.MASK] = c * FIRST_SLOTS, FIRST_SLOTS - 1
            out[c, at.WIDTH] = self.functions.places(edge.value)
            out[c, at.VALUES] = values
            values += FIRST_SLOTS * int(out[c, at.WIDTH])
            out[c, at.FORWARD] = max(machine.latency_of(edge.producer), machine.send)
            out[c, at.RESPONSE] = machine.response
        return out

    def memory(self) -> Any:
        if self.plan.inputs is None:
            return np.zeros(0)
        out = np.zeros(self.functions.memory_size)
        for param, array in zip(self.graph.graph.params, self.plan.inputs, strict=True):
            start = self.functions.memory[param]
            out[start : start + array.size] = np.asarray(array, np.float64).reshape(-1)
        return out


def _table(rows: Sequence[Sequence[int]], fields: int) -> Any:
    return np.array(rows, np.int64).reshape(len(rows), fields)


def result_of(tables: at.Tables, functions: Functions, value: Value) -> Array:
    """A result of the graph: what its sink wrote, or an input passed on."""
    assert isinstance(value.type, TensorType)
    shape = functions.shape(value)
    start = functions.memory[value]
    found: Array = tables.memory[start : start + math.prod(shape)].reshape(shape)
    return found


def grown(tables: at.Tables) -> at.Tables:
    """The same tables with twice the slots for the channel that the engine named."""
    c = int(tables.control[at.GROWN])
    row = tables.channels[c]
    old, width = int(row[at.MASK]) + 1, int(row[at.WIDTH])
    tokens = np.arange(row[at.FREED], row[at.SENT])
    there, new = tokens & (old - 1), tokens & (2 * old - 1)
    ready, free = (np.zeros(2 * old, np.int64) for _ in range(2))
    ready[new] = tables.ready[row[at.START] + there]
    free[new] = tables.free[row[at.START] + there]
    out = tables._replace(
        ready=np.concatenate([tables.ready, ready]), free=np.concatenate([tables.free, free])
    )
    if len(tables.values):
        values = np.zeros((2 * old, width))
        values[new] = tables.values[row[at.VALUES] :][: old * width].reshape(old, width)[there]
        row[at.VALUES] = len(tables.values)
        out = out._replace(values=np.concatenate([tables.values, values.reshape(-1)]))
    row[at.START], row[at.MASK] = len(tables.ready), 2 * old - 1
    return out


def loops_text(edge: Edge) -> str:
    """``n=N, m=M`` of a channel's stream."""
    return ", ".join(map(str, loops_of(edge.value))) or "one element"
