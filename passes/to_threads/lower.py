"""A program on whole blocks as the program of a block's threads.

Tiles get the layouts of their family (layouts.py), products become a matrix unit's, and blocks that
products read come through shared memory, ahead of their turn in loops (staging.py). The result is
an ordinary tile program: ``evaluate(…, lanes=True)`` runs it thread by thread and refuses races.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_tile_memory import Barrier
from tilewright.ir.target import Target
from tilewright.ir.types import RegisterType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_threads.ahead import CopiesAhead
from tilewright.passes.to_threads.copied import CopiedBlocks
from tilewright.passes.to_threads.families import (
    Families,
    Vectors,
    block_layouts,
    find_families,
    left_family,
    made_together,
    operand_family,
    run_of,
    unit_of,
)
from tilewright.passes.to_threads.layouts import (
    ROWS,
    is_moved,
    loads_itself,
    terms_of,
    words_of,
)
from tilewright.passes.to_threads.lines import in_lines
from tilewright.passes.to_threads.order import ordered
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_threads.registers import estimate, short_of_registers
from tilewright.passes.to_threads.slices import Turns
from tilewright.passes.to_threads.staging import Staged, Staging, block_of
from tilewright.passes.to_threads.words import WordsAhead
from tilewright.passes.to_tile.emitter import TileBuilder

OWN_LOADS = 32  # registers of a right side that a thread reads for itself
# of a block, at most (CUDA C++ Programming Guide, "Compute Capabilities")
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


def threads_program(graph: Graph, target: Target) -> Graph:
    """``lower_threads``, with its shared memories placed in what the target has. Where registers
    are short (attribute ``short``), left sides stay in shared memory, too, and loops compute
    addresses again in every turn."""
    most = SHARED_BYTES[target.cpu]
    program = plan_shared(lower_threads(graph), most)
    if not short_of_registers(program):
        return program
    found = [_recomputing(program)]
    with suppress(UnsupportedError):  # too much shared memory
        found.append(_recomputing(plan_shared(lower_threads(graph, park=True), most)))
    return min(found, key=estimate)


def _recomputing(program: Graph) -> Graph:
    return replace(program, attrs={**program.attrs, "short": True})


def lower_threads(graph: Graph, park: bool = False, warps: int = 0) -> Graph:
    """The program of threads for a program on whole blocks (attributes: ``warps``, ``stages``).

    ``park``: left sides that loops read stay in shared memory; ``warps``: so many instead of those
    that share out rows. Raises UnsupportedError for what no layout or instruction covers.
    """
    try:
        lowering = Lowering(in_lines(graph), warps, park)
        return ordered(canonicalise_graph(lowering.run()))
    except VerifyError as error:
        raise UnsupportedError(f"no form for threads: {error.message}", error.location) from error


class Lowering(CopiesAhead, WordsAhead):
    """Builds the program of a block's threads from that on whole blocks."""

    def __init__(self, graph: Graph, warps: int = 0, park: bool = False) -> None:
        """``warps``: as many instead of those that share out the program's rows; ``park``: left
        sides stay in shared memory."""
        self.graph = graph
        self.made = {v: op for op in graph.body.walk() for v in op.results}
        self.build = TileBuilder()
        self.run_length = run_of(graph, self.made.get)
        self.layouts = block_layouts(graph, self.made.get, warps, self.run_length)
        self.blocks = CopiedBlocks(graph, self.layouts.warps, park and not self.run_length)
        self.vectors = Vectors(self.made.get)
        self.families = find_families(
            graph, self.made.get, self.vectors, self.blocks.family, self.run_length
        )
        self.grouped = {v for v in self.made if self.blocks.grouped(v, self.families.get(v, set()))}
        self.staging = Staging(self.build, self.layouts, bool(self.grouped))
        self.values: dict[tuple[Value, str], Value] = {}
        self.parked = {v for v in self.blocks.parked if self.families.get(v) == {ROWS}}
        self.feeds = _feeds(graph, self.families)
        self.slots: dict[Value, tuple[Staged, Value]] = {}  # loads that are ahead: memory and slot
        self.fetched: set[Value] = set()  # words that are read ahead
        for param in graph.params:
            self.values[param, ROWS] = param

    def run(self) -> Graph:
        for op in self.graph.body.ops:
            self._op(op)
        body = Region(self.graph.params, tuple(self.build.top.ops))
        attrs = {**self.graph.attrs, "warps": self.layouts.warps}
        return replace(self.graph, body=body, attrs=attrs)

    # ---- values

    def at(self, value: Value, family: str = ROWS) -> Value:
        """What stands for a value of the old program."""
        type_ = value.type
        if not isinstance(type_, RegisterType) or type_.shape == (1, 1):
            family = ROWS
        found = self.values.get((value, family))
        if found is None:
            op = self.made.get(value)
            name = op.name if op else "a carried value"
            loc = op.loc if op else None
            raise UnsupportedError(f"{name} as {family} in a program of threads", loc)
        return found

    def _keep(self, op: Op, results: tuple[Value, ...], family: str = ROWS) -> None:
        for old, new in zip(op.results, results, strict=True):
            self.values[old, family] = new

    # ---- operations

    def _op(self, op: Op) -> None:
        self.build.top.loc = op.loc
        tiles = [v for v in op.results if isinstance(v.type, RegisterType)]
        if isinstance(op, t.For):
            self._for(op)
        elif isinstance(op, t.If):
            with self.build.when_less(self.at(op.lo), self.at(op.hi)):
                for inner in op.regions[0].ops:
                    self._op(inner)
        elif op.regions:
            raise UnsupportedError(f"{op.name} in a program of threads", op.loc)
        elif tiles:
            if tiles[0] not in self.fetched:
                self._tile(op, tiles[0])
        else:
            made = op.rebuilt([self.at(v) for v in op.operands], ())  # anew: slices come again
            self.build.top.add(made)
            self._keep(op, made.results)

    def _tile(self, op: Op, result: Value) -> None:
        assert isinstance(result.type, RegisterType)
        families = self.families.get(result, set())
        if result.type.shape == (1, 1):
            families = {ROWS} if families else families
        if result in self.grouped or result in self.parked:
            assert isinstance(op, t.Load | t.LoadLines)
            if result not in self.slots:
                self.slots[result] = self._at_once(op)
            return  # products read it where it lies
        for family in sorted(families):
            self._keep(op, (self._made(op, result.type, family),), family)

    def _made(self, op: Op, type_: RegisterType, family: str) -> Value:
        build, hint = self.build, op.results[0].hint
        layout = self.layouts.of(family, type_.shape)
        if isinstance(op, m.Const):
            return build(m.Const, value=op.value, type=replace(type_, layout=layout), hint=hint)
        if isinstance(op, t.Load | t.LoadLines):
            return self._load(op, layout, family)
        if is_moved(family):
            made = self.values.get((op.results[0], ROWS)) or self._made(op, type_, ROWS)
            return build(t.Rearrange, made, layout=layout, hint=hint)
        if isinstance(op, t.Product):
            return self._product(op)
        if isinstance(op, t.Reduce | t.Scatter):
            operand = self.vectors.family(op.operands)
        elif isinstance(op, t.Unpack):
            operand = words_of(family, op.form.chunk, op.dim)
        else:
            operand = operand_family(op, family)
        operands = [self.at(v, operand) for v in op.operands]
        if "pointwise" in op.traits:
            operands = self._widened(operands, type_.shape, layout)
        attrs = dict(op.attrs)
        if isinstance(op, View):
            attrs["layout"] = _seen(operands[0], op)
        elif "layout" in attrs:
            attrs["layout"] = layout
        return build(type(op), *operands, hint=hint, **attrs)

    def _widened(self, operands: list[Value], shape: tuple[int, ...], layout: Any) -> list[Value]:
        """Operands of which one has the result's shape."""
        shapes = [v.type.shape for v in operands if isinstance(v.type, RegisterType)]
        if shape in shapes:
            return operands
        first = operands[0]
        assert isinstance(first.type, RegisterType)
        zero = self.build.filled(0, first.type.dtype, layout)
        kind = m.Or if first.type.dtype == BOOL else m.Add
        return [self.build(kind, first, zero, hint=first.hint), *operands[1:]]

    def _product(self, op: t.Product) -> Value:
        unit = unit_of(op, self.made.get, self.run_length).name
        acc, a = self.at(op.acc), self._left(op.a, left_family(op, unit, self.made.get))
        if op.b in self.slots and op.b in self.grouped:
            staged, slot = self.slots[op.b]
            return self.staging.group_product(acc, a, staged, slot, op.result.hint)
        together = made_together(op, self.made.get, self.run_length)
        if together is None:
            b = self.at(op.b, terms_of(unit))
        else:
            b = self.staging.made(self.at(op.b, together.family), together, terms_of(unit))
        return self.build(t.MatrixProduct, acc, a, b, unit=unit, hint=op.result.hint)

    def _left(self, value: Value, family: str) -> Value:
        """The left side of a product; one that is parked comes from shared memory every time."""
        if value in self.parked:
            return self.staging.load(*self.slots[value], family)
        return self.at(value, family)

    def _load(self, op: t.Load | t.LoadLines, layout: Any, family: str) -> Value:
        """A tile from memory: through shared memory where a product reads it."""
        if op.result in self.slots or self._is_staged(op, layout, family):
            staged, slot = self.slots.get(op.result) or self._at_once(op)
            return self.staging.load(staged, slot, family)
        attrs, hint = {**op.attrs, "layout": layout}, op.result.hint
        rest = [self.at(v) for v in op.rest]
        if isinstance(op, t.Load):
            return self.build(t.Load, op.source, *rest, hint=hint, **attrs)
        where = op.source, self.at(op.offset), self.at(op.offsets, family)
        return self.build(t.LoadLines, *where, *rest, hint=hint, **attrs)

    def _is_staged(self, op: t.Load | t.LoadLines, layout: Any, family: str) -> bool:
        """True for a block that threads copy into shared memory, though not ahead of its turn."""
        if isinstance(op, t.LoadLines):
            return self.blocks.family(op, self.families[op.result]) is not None
        along = [d for d in op.dims if d >= 0]
        long = along == [0, 1] or layout.registers > OWN_LOADS  # threads' own loads would be short
        staged = op.result in self.feeds and not loads_itself(family) and long
        return staged and block_of(op, False) is not None

    def _at_once(self, op: t.Load | t.LoadLines) -> tuple[Staged, Value]:
        """A block in shared memory that is waited for; where it lies."""
        found, slot = self.staging.place(op, 1, op.result in self.grouped), self.build.index(0)
        assert found is not None
        self.build.effect(Barrier)
        self._copy(found, slot)
        self.staging.commit()
        self.staging.wait(0)
        return found, slot

    def _copy(self, staged: Staged, slot: Value, coming: Value | None = None) -> None:
        """Begins a block's copy from where its load says; ``coming``: 1, or 0 for nothing."""
        load, b = staged.load, self.build
        rest = [self.at(v) for v in load.rest]
        if isinstance(load, t.LoadLines):
            family = self.blocks.family(load, self.families[load.result])
            assert family is not None
            if coming is not None:
                end = rest[0] if rest else b.index(load.layout.shape[load.dim])
                rest = [b.mul(coming, end)]
            where = self.at(load.offset), self.at(load.offsets, family)
            self.staging.copy_lines(staged, *where, rest, slot)
            return
        rank, ends = len(load.dims), {}
        if coming is not None and load.bounds:
            rest[rank] = b.mul(coming, rest[rank])
        elif coming is not None:
            at, rows = load.dims.index(staged.order[0]), staged.type.shape[1]
            ends = {staged.order[0]: b.mul(coming, b.add(rest[at], rows))}
        self.staging.copy(staged, rest, slot, ends)

    # ---- loops

    def _for(self, op: t.For) -> None:
        build, region = self.build, op.regions[0]
        inits = [self._carried(self.at(v)) for v in op.inits]
        lo, hi = self.at(op.lo), self.at(op.hi)
        ahead, slots = self._ahead(op), self._slots
        turns = Turns(region.params[0], lo, hi, op.step)
        with build.when_less(lo, hi) if ahead.sliced else nullcontext():
            for turn in range(slots - 1 if ahead.some else 0):
                self._copy_ahead(ahead, turns, build.add(lo, turn * op.step), build.index(turn))
        fetched = self._fetched(op) if self.run_length else []
        carried = [*inits, *self._first_words(fetched, turns)]
        carried += [build.index(0)] if ahead.some else []
        hint = region.params[0].hint
        with build.loop(lo, hi, op.step, carried, hint) as loop:
            slot = loop.carried[-1] if ahead.some else None
            inside = loop.carried[: len(inits)]
            for old, new in zip(region.params, (loop.counter, *inside), strict=True):
                self.values[old, ROWS] = new
            if slot is not None:
                slot.hint = "slot"
                self.staging.wait(slots - 2)
                later = build.add(loop.counter, (slots - 1) * op.step)
                free = build.mod(build.add(slot, slots - 1), slots)
                self._copy_ahead(ahead, turns, later, free)
                self.slots |= {staged.load.result: (staged, slot) for staged in ahead.every}
            words = loop.carried[len(inits) : len(inits) + len(fetched)]
            later_words = self._with_words(region, fetched, words, turns, loop.counter)
            after = [self._carried(self.at(v)) for v in region.yields]
            after += later_words
            if slot is not None:
                after.append(build.mod(build.add(slot, 1), slots))
            loop.next = tuple(after)
        if ahead.some:
            self.staging.wait(0)
        self._keep(op, loop.results[: len(inits)])

    def _carried(self, value: Value) -> Value:
        """What a loop carries: a single number in every thread, as reductions leave it."""
        type_ = value.type
        if not isinstance(type_, RegisterType) or type_.shape != (1, 1) or type_.layout.lanes > 1:
            return value
        return self._widened([value], (), Layout(2).replicate(self.layouts.threads))[0]


def _seen(x: Value, op: View) -> Layout:
    """The layout of a view: a register of more bits becomes neighbouring columns."""
    assert isinstance(x.type, RegisterType)
    ratio, rest = divmod(x.type.dtype.bits, op.dtype.bits)
    if rest or x.type.layout.local(1, ratio).shape != op.layout.shape:
        raise UnsupportedError(f"{x.type} seen as {op.dtype} by threads", op.loc)
    return x.type.layout.local(1, ratio)


def _feeds(graph: Graph, families: Families) -> set[Value]:
    """The matrices that products read: as their left side, or for their right side."""
    products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
    shared = {v for v, needed in families.items() if needed and not any(map(loads_itself, needed))}
    return {v for op in products for v in (op.a, op.b)} | shared
