"""Blocks that a warp of its own brings by the bulk copy engine, and the slots that they go through.

A ring is shared memory with several slots that blocks of one kind fill in turn. Its turns go on
from one loop to the next: the warp that copies runs ahead by as many blocks as there are slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_tile_roles import bulk_problem
from tilewright.ir.types import BufferType
from tilewright.passes.to_threads.staging import Staged, block_of, shared_type


@dataclass(eq=False)
class Ring:
    """Slots for blocks of one kind: the loads that go through it, in the program's order; whether
    warp groups read them (``grouped``: rows are lines of at most 128 bytes then); whether it is
    filled just once, before the loops (``once``); its first barrier among all rings', and, once it
    has been placed, its memory."""

    loads: list[t.Load]
    grouped: bool
    once: bool = False
    slots: int = 0
    first: int = 0
    memory: Value | None = None

    def staged(self, load: t.Load) -> Staged:
        """A load as one that lies in the ring."""
        block = block_of(load, self.grouped)
        assert block is not None and self.memory is not None
        return Staged(load, block.order, self.memory, block.parts)


@dataclass
class Rings:
    """The rings of a program; ``of``: by the load's result."""

    every: list[Ring] = field(default_factory=list)
    of: dict[Value, Ring] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Slots of all rings: every one has a barrier that says it is full and one that says it is
        empty."""
        return sum(ring.slots for ring in self.every)

    def inside(self, region: Region) -> list[Ring]:
        """The rings that blocks of a region go through."""
        loads = [v for op in region.walk() for v in op.results if v in self.of]
        return [ring for ring in self.every if any(self.of[v] is ring for v in loads)]


def find_rings(
    graph: Graph,
    grouped: Iterable[Value],
    sides: Iterable[Value],
    stages: int,
    parked: Iterable[Value] = (),
) -> Rings:
    """The rings of a program on whole blocks. ``grouped``: loads of right sides that warp groups
    read; ``sides``: what is held as a side of a product; ``stages``: turns that are under way at
    once; ``parked``: loads of left sides before loops, which come so where they can.

    Raises UnsupportedError with the reason where not all of a loop's blocks can come so.
    """
    rings, wanted, read = Rings(), set(grouped), set(sides)
    made = {v: op for op in graph.body.walk() for v in op.results}
    conditional = {
        inner for op in graph.body.walk() if isinstance(op, t.If) for inner in op.regions[0].walk()
    }
    repeated = {inner for op in graph.body.walk() for r in op.regions for inner in r.walk()}
    kinds: dict[object, Ring] = {}
    for op in graph.body.walk():
        if isinstance(op, t.While):
            raise _no(op, "a loop of unknown length")
        if not isinstance(op, t.Load | t.LoadLines | t.Gather):
            continue
        if op.result not in read or op not in repeated:
            continue
        problem = _problem(graph, op, made, op.result in wanted)
        if problem is None and op in conditional:
            problem = "it is read under a condition"
        if problem is not None:
            raise _no(op, problem)
        assert isinstance(op, t.Load)
        key = op.source, op.result.type, op.dims
        kinds.setdefault(key, Ring([], op.result in wanted)).loads.append(op)
        rings.of[op.result] = kinds[key]
    for value in parked:
        load = made[value]
        if _stays(graph, load, made, wanted & rings.of.keys()):
            assert isinstance(load, t.Load)
            rings.of[value] = kinds[value] = Ring([load], True, once=True)
    for ring in kinds.values():
        turns = 1 if ring.once else stages
        ring.slots, ring.first = turns * _most_at_once(graph, ring), rings.count
        rings.every.append(ring)
    if all(ring.once for ring in rings.every):
        raise UnsupportedError(f"{graph.name}: no bulk copies: products read no blocks in loops")
    return rings


def _stays(graph: Graph, op: Op, made: Mapping[Value, Op], grouped: set[Value]) -> bool:
    """True for a left side that the copy engine can bring, and that warp groups read where it lies:
    all its products' right sides are ``grouped`` and come through rings."""
    users = [user for user in graph.body.walk() if op.results[0] in user.operands]
    products = [x for x in users if isinstance(x, t.Product) and x.a is op.results[0]]
    if len(products) < len(users) or not all(x.b in grouped for x in products):
        return False
    return _box_problem(graph, op, made, True) is None


def _most_at_once(graph: Graph, ring: Ring) -> int:
    """How many blocks of a ring a turn of a loop reads, at most."""
    if ring.once:
        return 1
    loops = [region for op in graph.body.walk() for region in op.regions]
    return max(sum(load in region.ops for load in ring.loads) for region in loops)


def _no(op: Op, why: str) -> UnsupportedError:
    what = f"%{op.results[0].hint}" if op.results else op.name
    return UnsupportedError(f"no bulk copies: {what}: {why}", op.loc)


def _problem(graph: Graph, op: Op, made: Mapping[Value, Op], grouped: bool) -> str | None:
    """Why the copy engine cannot bring a right side; None if it can."""
    problem = _box_problem(graph, op, made, grouped)
    users = [
        user for user in graph.body.walk() for value in user.operands if value is op.results[0]
    ]  # twice for a product of a block with itself
    if problem is None and (
        len(users) != 1 or not isinstance(users[0], t.Product) or users[0].b is not op.results[0]
    ):
        return "it is not just the right side of one product"
    return problem


def _box_problem(graph: Graph, op: Op, made: Mapping[Value, Op], grouped: bool) -> str | None:
    """Why the copy engine cannot bring a block; None if it can."""
    if not isinstance(op, t.Load):
        return "its rows lie anywhere (pages, tables)"
    source, block = op.source.type, block_of(op, grouped)
    if op.source not in graph.params or not isinstance(source, BufferType) or block is None:
        return "it is no matrix of a buffer"
    rank = len(source.shape)
    if source.unit != rank - 1 or op.dims[source.unit] != block.order[1]:
        return "its rows do not lie along the last dimension of the buffer"
    for limit, (dim, _) in zip(op.rest[rank:], op.bounds, strict=True):
        end, size = made.get(limit), source.shape[op.dims.index(dim)]
        if isinstance(end, m.Const) and size.constant == end.value:
            continue
        if not isinstance(end, t.SizeOf) or end.size != size:
            return "it is cut before the buffer ends"
    return bulk_problem(rank, shared_type(op, block, 1))


def slice_for(graph: Graph, rings: Rings) -> set[Value]:
    """The values that say when and where the rings' blocks lie, results of loops among them.

    Raises UnsupportedError if what products make takes part.
    """
    made = {v: op for op in graph.body.walk() for v in op.results}
    loops = {p: (op, i) for op in _loops(graph) for i, p in enumerate(op.regions[0].params)}
    around: dict[Value, list[Value]] = {}  # bounds of the loops around what makes a value
    for loop in _loops(graph):
        for inner in loop.regions[0].walk():
            for value in inner.results:
                around.setdefault(value, []).extend(loop.operands[:2])
    needed: set[Value] = set()
    rest = [v for ring in rings.every for load in ring.loads for v in (load.result, *load.rest)]
    while rest:
        value = rest.pop()
        if value in needed:
            continue
        needed.add(value)
        if value in loops:
            loop, number = loops[value]
            rest += _carried(loop, number - 1) if number else loop.operands[:2]
            continue
        op = made.get(value)
        if op is None:
            continue
        if isinstance(op, t.Product):
            raise _no(op, "where blocks lie follows from it")
        rest += around.get(value, [])
        if isinstance(op, t.For):
            rest += _carried(op, op.results.index(value))
            rest += op.operands[:2]
        elif value not in rings.of:
            rest += op.operands
    return needed


def _loops(graph: Graph) -> list[t.For]:
    """Loops, inner ones after those around them."""
    return [op for op in graph.body.walk() if isinstance(op, t.For)]


def _carried(loop: t.For, number: int) -> list[Value]:
    """What a carried value follows from."""
    region = loop.regions[0]
    return [region.params[1 + number], loop.inits[number], region.yields[number]]
