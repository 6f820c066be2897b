"""The nodes and channels that a stream graph makes on the machine of the streaming SDPA paper.

A node fires once for every step of its loops. It reads a channel whose stream runs in an outer part
of those loops once per round of the others, before their first step (``repeat`` is nothing else),
and writes such a stream after their last step (``reduce``). In between everything is per step:

    loops (n, m):     n0m0  n0m1  n0m2  n1m0  n1m1  n1m2  …
    reads  (n)        ^                 ^                      outer streams first, then in order
    reads  (n, m)     ^     ^     ^     ^     ^     ^
    writes (n, m)     ^     ^     ^     ^     ^     ^
    writes (n)                    ^                 ^

Which operations make one node is the machine's business (``NodeRules``). Constants cost nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.types import Axis, StreamType


@dataclass(frozen=True)
class NodeRules:
    """Which operations are nodes.

    ``paper``: the node kinds of arXiv 2404.16629, whose functions may be several operations.
    A contraction reads its inputs from memory itself (Matmul), a sum of products is one
    multiply-accumulate, and maps of nothing but what a scan reads and gives are part of the scan.
    Else each operation is a node. ``repeat_nodes``: a repeat is a node; else it is wiring, and its
    consumer reads the outer stream itself, once per row.
    """

    paper: bool = False
    repeat_nodes: bool = True


@dataclass(frozen=True, eq=False)
class Node:
    """One node: the operations it runs at every step of ``loops``, in order."""

    name: str
    kind: str
    ops: tuple[Op, ...]
    loops: tuple[Axis, ...]
    reads: tuple[Value, ...]  # in the order in which they are read
    writes: tuple[Value, ...]  # values that leave it


@dataclass(frozen=True, eq=False)
class Edge:
    """A channel from the node that makes ``value`` to operand ``at`` of ``op`` of ``consumer``.

    Called ``value->node``, a node by the first result of the operation that gives it its kind.
    """

    value: Value
    producer: Node
    consumer: Node
    op: Op
    at: int

    name: str

    @property
    def loops(self) -> tuple[Axis, ...]:
        return loops_of(self.value)


@dataclass(frozen=True, eq=False)
class NodeGraph:
    """Nodes in an order in which data flows, and the channels between them."""

    graph: Graph
    rules: NodeRules
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    constants: frozenset[Value]
    wired: dict[Value, Value] = field(default_factory=dict)  # a wire to what it repeats

    def reads_of(self, node: Node) -> list[Edge]:
        """The channels into a node in the order in which it reads them."""
        return [e for e in self.edges if e.consumer is node]

    def writes_of(self, node: Node) -> list[Edge]:
        return [e for e in self.edges if e.producer is node]

    def source_of(self, value: Value) -> Value:
        """The value that the channel carries: that before the wires."""
        while value in self.wired:
            value = self.wired[value]
        return value


def loops_of(value: Value) -> tuple[Axis, ...]:
    assert isinstance(value.type, StreamType), "only streams have loops"
    return value.type.loops


def stream_operands(op: Op) -> Iterator[tuple[int, Value]]:
    """Position and value of the operands that come through channels, constants included."""
    for at, value in enumerate(op.operands):
        if isinstance(value.type, StreamType):
            yield at, value


def find_nodes(graph: Graph, rules: NodeRules | None = None) -> NodeGraph:
    """The nodes of a stream graph."""
    rules = rules or NodeRules()
    constants = _constants(graph)
    ops = [op for op in graph.body.ops if not set(op.results) <= constants]
    wired: dict[Value, Value] = {}
    if not rules.repeat_nodes:
        wired = {op.results[0]: op.operands[0] for op in ops if isinstance(op, s.Repeat)}
    groups = _Groups(ops, constants, wired, rules.paper)
    return _build(graph, rules, groups, constants, wired)


def value_names(graph: Graph) -> dict[Value, str]:
    """A name of its own for every value: its hint, with a number where that is taken."""
    names: dict[Value, str] = {}
    taken: set[str] = set()
    for value in (*graph.params, *(r for op in graph.body.ops for r in op.results)):
        stem = name = value.hint or "v"
        number = 0
        while name in taken:
            number += 1
            name = f"{stem}{number}"
        taken.add(name)
        names[value] = name
    return names


def _constants(graph: Graph) -> frozenset[Value]:
    """Values that no stream has any part in: they cost nothing."""
    known: set[Value] = set()
    for op in graph.body.ops:
        fixed = "pointwise" in op.traits and all(v in known for v in op.operands)
        if fixed and all(isinstance(v.type, StreamType) and not v.type.loops for v in op.results):
            known.update(op.results)
    return frozenset(known)


class _Groups:
    """Which node each operation belongs to, by the operation after which the node is called."""

    def __init__(
        self,
        ops: list[Op],
        constants: frozenset[Value],
        wired: dict[Value, Value],
        paper: bool,
    ) -> None:
        self.ops = [op for op in ops if op.results[0] not in wired]
        self.constants, self.wired = constants, wired
        self.made = {r: op for op in ops for r in op.results}
        self.uses: dict[Value, list[Op]] = {}
        for op in ops:
            for _, value in stream_operands(op):
                self.uses.setdefault(value, []).append(op)
        self.main: dict[Op, Op] = {op: op for op in self.ops}
        if paper:
            for op in self.ops:
                self._read_from_memory(op)
                self._accumulate(op)
                self._scan_function(op)

    def _read_from_memory(self, op: Op) -> None:
        """contract(source, source) -> Matmul, which reads both from memory."""
        if not isinstance(op, s.Contract):
            return
        parts = [part for value in op.operands for part in self._memory_read(value)]
        if parts and all(self._memory_read(value) for value in op.operands):
            for part in parts:
                self.main[part] = op

    def _memory_read(self, value: Value) -> list[Op]:
        """The source and the repeats behind ``value`` if nobody else reads them, else nothing."""
        found: list[Op] = []
        op = self.made.get(value)
        while op is not None and len(self.uses[value]) == 1:
            if value not in self.wired:
                found.append(op)
            if isinstance(op, s.Source):
                return found
            if not isinstance(op, s.Repeat):
                return []
            value = op.operands[0]
            op = self.made.get(value)
        return []

    def _accumulate(self, op: Op) -> None:
        """sum(x * y) -> one multiply-accumulate."""
        if isinstance(op, s.Reduce) and op.kind == "sum":
            product = self.made.get(op.x)
            alone = len(self.uses[op.x]) == 1
            if isinstance(product, m.Mul) and alone and self.main[product] is product:
                self.main[product] = op

    def _scan_function(self, op: Op) -> None:
        """A map of nothing but what a scan reads and gives -> part of the scan."""
        if "pointwise" not in op.traits or self.main[op] is not op:
            return
        given = [v for _, v in stream_operands(op) if v not in self.constants]
        owners = {self.main[self.made[v]] for v in given if v in self.made and v not in self.wired}
        for owner in owners:
            if isinstance(owner, s.Scan) and all(
                v is owner.x or (v not in self.wired and self.main[self.made[v]] is owner)
                for v in given
            ):
                self.main[op] = owner
                return


def _build(
    graph: Graph,
    rules: NodeRules,
    groups: _Groups,
    constants: frozenset[Value],
    wired: dict[Value, Value],
) -> NodeGraph:
    members: dict[Op, list[Op]] = {}
    for op in groups.ops:
        members.setdefault(groups.main[op], []).append(op)
    names = value_names(graph)
    nodes = {main: _node(names, main, ops, groups) for main, ops in members.items()}
    owner = {r: nodes[groups.main[op]] for op in groups.ops for r in op.results}
    ordered = _ordered(list(nodes.values()), owner)
    edges = []
    for node in ordered:
        place = _places(node, constants, wired)
        for value in node.reads:
            op, at = place[value]
            edges.append(Edge(value, owner[value], node, op, at, f"{names[value]}->{node.name}"))
    return NodeGraph(graph, rules, tuple(ordered), tuple(edges), constants, wired)


def _places(
    node: Node, constants: frozenset[Value], wired: dict[Value, Value]
) -> dict[Value, tuple[Op, int]]:
    """For every value from outside, the first operand of the node that it is."""
    inside = {r for op in node.ops for r in op.results}
    found: dict[Value, tuple[Op, int]] = {}
    for op in node.ops:
        for at, value in stream_operands(op):
            carried = value
            while carried in wired:
                carried = wired[carried]
            if carried not in inside and carried not in constants:
                found.setdefault(carried, (op, at))
    return found


def _node(names: dict[Value, str], main: Op, ops: list[Op], groups: _Groups) -> Node:
    inside = {r for op in ops for r in op.results}
    loops: tuple[Axis, ...] = ()
    for op in ops:
        for value in (*op.operands, *op.results):
            if isinstance(value.type, StreamType) and len(value.type.loops) > len(loops):
                loops = value.type.loops
    node = Node(names[main.results[0]], _kind(main, ops), tuple(ops), loops, (), ())
    given = _places(node, groups.constants, groups.wired)
    reads = sorted(given, key=lambda v: len(loops_of(v)))  # stable: then by operand
    writes = tuple(v for v in _made_by(ops) if _leaves(v, inside, ops, groups))
    return Node(node.name, node.kind, node.ops, loops, tuple(reads), writes)


def _made_by(ops: Iterable[Op]) -> Iterator[Value]:
    for op in ops:
        yield from (v for v in op.results if isinstance(v.type, StreamType))


def _leaves(value: Value, inside: set[Value], ops: list[Op], groups: _Groups) -> bool:
    """Whether another node reads ``value``, directly or through wires."""
    for op in groups.uses.get(value, []):
        if op.results[0] in groups.wired:
            if _leaves(op.results[0], inside, ops, groups):
                return True
        elif op not in ops:
            return True
    return False


def _kind(main: Op, ops: list[Op]) -> str:
    if isinstance(main, s.Contract) and len(ops) > 1:
        return "matmul"
    if isinstance(main, s.Reduce) and len(ops) > 1:
        return "multiply-accumulate"
    kind = main.name.partition(".")[2]
    return "map" if "pointwise" in main.traits else kind


def _ordered(nodes: list[Node], owner: dict[Value, Node]) -> list[Node]:
    """Producers before consumers, else as written."""
    place = {node: at for at, node in enumerate(nodes)}
    waits = {node: {owner[v] for v in node.reads} for node in nodes}
    ready = [place[node] for node in nodes if not waits[node]]
    heapq.heapify(ready)
    out: list[Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        out.append(node)
        for other in nodes:
            if node in waits[other]:
                waits[other].discard(node)
                if not waits[other]:
                    heapq.heappush(ready, place[other])
    assert len(out) == len(nodes), "nodes of a graph in SSA form have an order"
    return out
