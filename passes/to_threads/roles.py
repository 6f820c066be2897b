"""A program of threads with roles: a warp that asks for copies, and warps that multiply.

    for block {                              roles {
      copy k, v ahead; wait; barrier   ->      for block { await empty; expect full; copy k, v }
      products with k, v                       for block { await full; products; arrive empty }
    }                                        }

Both loops come from the program on whole blocks: the first is what says where its blocks lie, the
second everything else. Blocks go through rings (rings.py), each slot with two barriers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.matrix_units import GROUP_WARPS
from tilewright.ir.ops_tile_roles import Arrive, Await, Barriers, CopyBulk, Expect, Roles
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import IndexType, RegisterType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_threads.families import unit_of
from tilewright.passes.to_threads.layouts import LANES, ROWS, left_of, terms_of
from tilewright.passes.to_threads.lines import in_lines
from tilewright.passes.to_threads.lower import SHARED_BYTES, Lowering, threads_program
from tilewright.passes.to_threads.order import ordered
from tilewright.passes.to_threads.overlap import overlapped
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_threads.registers import estimate
from tilewright.passes.to_threads.rings import Ring, Rings, find_rings, slice_for

FULL, EMPTY = "full", "empty"


@dataclass(frozen=True)
class Share:
    """How blocks share a multiprocessor's registers: ``at_once`` of them, with so many for a thread
    that multiplies, and for one of the group that copies."""

    at_once: int
    multiplies: int
    copies: int


# by warp groups that multiply; blocks of one group take turns, one multiplies while the other takes
# exponentials (measured for Triton, whole_blocks/schedule.py)
SHARES = {1: Share(2, 216, 40), 2: Share(1, 240, 24), 3: Share(1, 160, 32)}
# By registers.estimate, which counts some twice (tests/backends/cuda/corpus.json): up to the first,
# blocks whose turns do not overlap fit two at once as they are; up to the second, with shares and
# without spills; up to the others turns overlap without, with left sides in registers or (True) in
# shared memory
AS_THEY_ARE, TWO_AT_ONCE, OVERLAPPED = 170, 278, {False: 306, True: 330}
MOST_SUMS = 128  # columns of a product in blocks that start with 128 registers a thread


def roles_program(graph: Graph, target: Target) -> Graph:
    """``lower_roles``, with its shared memories placed in what the target has, and its registers
    shared out."""
    most = SHARED_BYTES[target.cpu]
    return _shared_out(plan_shared(lower_roles(graph), most), most)


def best_program(graph: Graph, target: Target) -> tuple[Graph, str]:
    """The program of threads for calls whose memory allows bulk copies, and why it has none ("": it
    has). Raises UnsupportedError where there is no program of threads at all."""
    try:
        return roles_program(graph, target), ""
    except UnsupportedError as error:
        return threads_program(graph, target), error.message


def lower_roles(graph: Graph) -> Graph:
    """The program of threads for a program on whole blocks with a warp that copies in bulk.

    Raises UnsupportedError with the reason where a block cannot be copied so, and for what no
    layout or instruction covers.
    """
    if named_target(str(graph.attrs["target"])).cpu != "sm_90":
        raise UnsupportedError(f"{graph.name}: no bulk copies: the target has no warp groups")
    try:
        plain = {park: canonicalise_graph(_split(graph, park)) for park in (False, True)}
        for park, split in plain.items():
            later = ordered(canonicalise_graph(overlapped(split)))
            if estimate(later) <= OVERLAPPED[park] and (turns_overlap(later) or not park):
                return later
        return ordered(plain[False])
    except VerifyError as error:
        raise UnsupportedError(f"no form for threads: {error.message}", error.location) from error


def turns_overlap(graph: Graph) -> bool:
    """Whether products of a program of threads go on beside its arithmetic."""
    return any(isinstance(op, t.GroupBegin) for op in graph.body.walk())


def _split(graph: Graph, park: bool) -> Graph:
    """Both roles of a program on whole blocks; ``park``: left sides before loops are read in shared
    memory."""
    consumers = _Consumers(in_lines(graph), park)
    warps = consumers.layouts.warps
    before, ops, known = consumers.split()
    producer = _Producer(consumers.graph, consumers, known)
    both = Region((), tuple(ops)), Region((), tuple(producer.split()))
    roles = Roles(regions=both, warps=(warps, 1))
    body = Region(graph.params, (*before, roles))
    return replace(graph, body=body, attrs={**graph.attrs, "warps": warps + 1})


def _shared_out(graph: Graph, most: int) -> Graph:
    """The program whose warp that copies has the registers of a group of its own to give to those
    that multiply (attribute ``at_once``: blocks on a multiprocessor), where that helps."""
    *before, roles = graph.body.ops
    assert isinstance(roles, Roles)
    warps = roles.warps[0]
    share = SHARES.get(warps // GROUP_WARPS)
    made_there = [v for op in roles.regions[1].walk() for v in op.results]
    if share is None or any(isinstance(v.type, RegisterType) for v in made_there):
        return graph  # what the warp computes takes more than is left to it
    needed, fits = estimate(graph), 0 if turns_overlap(graph) else AS_THEY_ARE
    small = fits < needed <= TWO_AT_ONCE and 2 * int(graph.attrs["shared_bytes"]) <= most
    small = small and not any(_is_wide(op) for op in roles.regions[0].walk())
    if share.at_once > 1 and not small:
        return graph
    made = Roles(
        regions=roles.regions,
        warps=roles.warps,
        idle=(0, GROUP_WARPS - 1),
        registers=(share.multiplies, share.copies),
    )
    attrs = {**graph.attrs, "warps": warps + GROUP_WARPS, "at_once": share.at_once}
    return replace(graph, body=Region(graph.params, (*before, made)), attrs=attrs)


def _is_wide(op: Op) -> bool:
    """True for products whose sums leave no room in the registers that a block starts with."""
    return isinstance(op, t.GroupProduct) and getattr(op.acc.type, "shape", (0, 0))[1] > MOST_SUMS


class _Role(Lowering):
    """What both roles have in common: turns of the rings, from loop to loop."""

    rings: Rings
    full: Value
    empty: Value
    turns: dict[Ring, tuple[Value, Value]]  # the slot that comes next, and its phase

    def start(self) -> None:
        """Every ring begins with its first slot in its first phase."""
        zero = self.build.index(0)
        self.turns = {ring: (zero, zero) for ring in self.rings.every}

    def number(self, ring: Ring, slot: Value) -> Value:
        """The number of a slot's barriers."""
        return self.build.add(slot, ring.first) if ring.first else slot

    def advance(self, ring: Ring) -> None:
        """The ring's next slot; after the last one the first in the next phase."""
        b, (slot, phase) = self.build, self.turns[ring]
        later = b.add(slot, 1)
        stays = b(t.Less, later, b.index(ring.slots), hint="stays")
        wraps = b.sub(b.index(1), stays)
        after = b.mod(b.add(phase, wraps), 2)
        self.turns[ring] = b.mul(later, stays), after

    def walk(self, op: t.For, numbers: list[int]) -> None:
        """A loop with some of its carried values (by number), and the turns of its rings."""
        build, region = self.build, op.regions[0]
        rings = self.rings.inside(region)
        inits = [self._carried(self.at(op.inits[n])) for n in numbers]
        lo, hi = self.at(op.lo), self.at(op.hi)
        carried = [*inits, *(v for ring in rings for v in self.turns[ring])]
        with build.loop(lo, hi, op.step, carried, region.params[0].hint) as loop:
            self.values[region.params[0], ROWS] = loop.counter
            for n, new in zip(numbers, loop.carried, strict=False):
                self.values[region.params[1 + n], ROWS] = new
            self._resume(rings, loop.carried[len(inits) :])
            for inner in region.ops:
                self._op(inner)
            after = [self._carried(self.at(region.yields[n])) for n in numbers]
            loop.next = (*after, *(v for ring in rings for v in self.turns[ring]))
        self._resume(rings, loop.results[len(inits) :])
        for n, new in zip(numbers, loop.results, strict=False):
            self.values[op.results[n], ROWS] = new

    def _resume(self, rings: list[Ring], values: tuple[Value, ...]) -> None:
        for at, ring in enumerate(rings):
            slot, phase = values[2 * at], values[2 * at + 1]
            slot.hint, phase.hint = "slot", "phase"
            self.turns[ring] = slot, phase


class _Consumers(_Role):
    """Warps that multiply."""

    def __init__(self, graph: Graph, park: bool) -> None:
        super().__init__(graph, park=park)
        sides = {v for v, needed in self.families.items() if needed - {ROWS, LANES}}
        wanted, self.parked = sorted(self.parked, key=list(self.made).index), set()
        self.rings = find_rings(self.graph, self.grouped, sides, self._slots, wanted)
        self.places: dict[Value, tuple[Value, Value]] = {}  # of a load: its slot and phase

    def split(self) -> tuple[list[Op], list[Op], dict[Value, Value]]:
        """What comes before the roles, what this one does, and what has been computed before: run-
        time integers that follow from the position and the sizes."""
        top, warps = self.build.top, self.layouts.warps
        for ring in self.rings.every:
            staged = self.staging.place(ring.loads[0], ring.slots, ring.grouped)
            assert staged is not None
            ring.memory = staged.memory
        count = self.rings.count
        self.full = self.build(Barriers, count=count, arrivals=1, hint=FULL)
        self.empty = self.build(Barriers, count=count, arrivals=warps, hint=EMPTY)
        before = list(top.ops)
        self.start()
        for op in self.graph.body.ops:
            self._op(op)
        early = {v for op in before for v in op.results} | set(self.graph.params)
        rest: list[Op] = []
        for op in top.ops[len(before) :]:
            whole = all(isinstance(v.type, IndexType) for v in op.results)
            if whole and "pure" in op.traits and early >= set(op.operands):
                early |= set(op.results)
                before.append(op)
            else:
                rest.append(op)
        known = {
            old: new
            for (old, family), new in self.values.items()
            if family == ROWS and new in early and isinstance(new.type, IndexType)
        }
        return before, rest, known

    def _for(self, op: t.For) -> None:
        self.walk(op, list(range(len(op.inits))))

    def _tile(self, op: Op, result: Value) -> None:
        ring = self.rings.of.get(result)
        if ring is None:
            super()._tile(op, result)
            return
        self.places[result] = slot, phase = self.turns[ring]
        if ring.once:
            self.build.effect(Await, self.full, self.number(ring, slot), phase)
        else:
            self.advance(ring)

    def _product(self, op: t.Product) -> Value:
        ring, made = self.rings.of.get(op.b), self.made.get(op.b)
        if ring is None or not isinstance(made, t.Load):
            return super()._product(op)
        b, (slot, phase) = self.build, self.places[op.b]
        number, staged = self.number(ring, slot), ring.staged(made)
        b.effect(Await, self.full, number, phase)
        unit = unit_of(op, self.made.get, self.run_length).name
        if ring.grouped:
            stays, acc = self.rings.of.get(op.a), self.at(op.acc)
            a = self._left(op.a, left_of(unit)) if stays is None else stays.memory
            assert a is not None
            out = self.staging.group_product(acc, a, staged, slot, op.result.hint)
        else:
            family = terms_of(unit)
            self.values[op.b, family] = self.staging.load(staged, slot, family)
            out = super()._product(op)
        b.effect(Arrive, self.empty, number)
        return out


class _Producer(_Role):
    """The warp that copies: all that says where the rings' blocks lie."""

    def __init__(self, graph: Graph, other: _Consumers, known: Mapping[Value, Value]) -> None:
        super().__init__(graph, warps=1)
        self.rings, self.full, self.empty = other.rings, other.full, other.empty
        self.needed = slice_for(self.graph, self.rings)
        self.known = known
        for old, new in known.items():
            self.values[old, ROWS] = new

    def split(self) -> list[Op]:
        """What this role does."""
        self.start()
        for op in self.graph.body.ops:
            self._op(op)
        return list(self.build.top.ops)

    def _op(self, op: Op) -> None:
        inside = [v for region in op.regions for i in region.walk() for v in i.results]
        fresh = [v for v in op.results if v not in self.known]
        if self.needed & {*fresh, *inside}:
            super()._op(op)

    def _for(self, op: t.For) -> None:
        pairs = zip(op.results, op.regions[0].params[1:], strict=True)
        self.walk(op, [n for n, pair in enumerate(pairs) if self.needed & set(pair)])

    def _tile(self, op: Op, result: Value) -> None:
        ring = self.rings.of.get(result)
        if ring is None:
            super()._tile(op, result)
            return
        assert isinstance(op, t.Load)
        b, staged, (slot, phase) = self.build, ring.staged(op), self.turns[ring]
        number = self.number(ring, slot)
        b.effect(Await, self.empty, number, b.mod(b.add(phase, 1), 2))
        rank, (_, rows, columns) = len(op.dims), staged.type.shape
        size = staged.parts * rows * columns * staged.type.dtype.bits // 8
        b.effect(Expect, self.full, number, bytes=size)
        first = b.mul(slot, staged.parts) if staged.parts > 1 else slot
        dims = tuple(-1 if d < 0 else staged.order.index(d) for d in op.dims)
        for part in range(staged.parts):
            at = [self.at(v) for v in op.rest[:rank]]
            at[rank - 1] = b.add(at[rank - 1], part * columns) if part else at[rank - 1]
            place = b.add(first, part) if part else first
            given = self.full, number, op.source, staged.memory, place, *at
            b.effect(CopyBulk, *given, dims=dims)
        if not ring.once:
            self.advance(ring)
