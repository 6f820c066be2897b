"""A program on whole blocks as the program of a block's threads.

Tiles get the layouts of their family (layouts.py), products become a matrix unit's, and blocks that
products read come through shared memory, ahead of their turn in loops (staging.py). The result is
an ordinary tile program: ``evaluate(…, lanes=True)`` runs it thread by thread and refuses races.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.layout import Layout
from tilewright.ir.matrix_units import (
    GROUP_TERMS,
    GROUP_UNIT,
    GROUP_WARPS,
    MOST_COLUMNS,
    MatrixUnit,
)
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_tile_memory import Barrier
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import RegisterType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_threads.families import (
    Families,
    Made,
    find_families,
    left_of,
    operand_family,
    unit_of,
)
from tilewright.passes.to_threads.layouts import ROWS, BlockLayouts, terms_of
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_threads.staging import Ahead, Counted, Staged, Staging, counted_index
from tilewright.passes.to_tile.emitter import TileBuilder

OWN_LOADS = 32  # registers of a right side that a thread reads for itself
# of a block, at most (CUDA C++ Programming Guide, "Compute Capabilities")
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


def threads_program(graph: Graph, target: Target) -> Graph:
    """``lower_threads``, with its shared memories placed in what the target has."""
    return plan_shared(lower_threads(graph), SHARED_BYTES[target.cpu])


def lower_threads(graph: Graph) -> Graph:
    """The program of threads for a program on whole blocks (attributes: ``warps``, ``stages``).

    Raises UnsupportedError for what no layout or instruction covers.
    """
    try:
        return canonicalise_graph(_Lowering(graph).run())
    except VerifyError as error:
        raise UnsupportedError(f"no form for threads: {error.message}", error.location) from error


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made = {v: op for op in graph.body.walk() for v in op.results}
        self.families = find_families(graph, self.made.get)
        self.build = TileBuilder()
        self.layouts = _layouts(graph, self.made.get)
        self.grouped = _grouped(graph, self.families, self.made.get, self.layouts.warps)
        self.staging = Staging(self.build, self.layouts, bool(self.grouped))
        self.values: dict[tuple[Value, str], Value] = {}
        self.feeds = _feeds(graph, self.families)
        self.slots: dict[Value, tuple[Staged, Value]] = {}  # loads that are ahead: memory and slot
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
            self._tile(op, tiles[0])
        else:
            made = op.rebuilt([self.at(v) for v in op.operands])
            self.build.top.add(made)
            self._keep(op, made.results)

    def _tile(self, op: Op, result: Value) -> None:
        assert isinstance(result.type, RegisterType)
        families = self.families.get(result, set())
        if result.type.shape == (1, 1):
            families = {ROWS} if families else families
        if result in self.grouped and result in self.slots:
            return  # warp groups read it where it lies
        for family in sorted(families):
            self._keep(op, (self._made(op, result.type, family),), family)

    def _made(self, op: Op, type_: RegisterType, family: str) -> Value:
        build, hint = self.build, op.results[0].hint
        layout = self.layouts.of(family, type_.shape)
        if isinstance(op, m.Const):
            return build(m.Const, value=op.value, type=replace(type_, layout=layout), hint=hint)
        if isinstance(op, t.Load):
            return self._load(op, layout, family)
        if isinstance(op, t.Product):
            return self._product(op)
        operands = [self.at(v, operand_family(op, family)) for v in op.operands]
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
        unit = unit_of(op, self.made.get).name
        acc, a = self.at(op.acc), self.at(op.a, left_of(unit))
        if op.b in self.slots and op.b in self.grouped:
            staged, slot = self.slots[op.b]
            return self.staging.group_product(acc, a, staged, slot, op.result.hint)
        b = self.at(op.b, terms_of(unit))
        return self.build(t.MatrixProduct, acc, a, b, unit=unit, hint=op.result.hint)

    def _load(self, op: t.Load, layout: Any, family: str) -> Value:
        """A tile from memory: through shared memory where a product reads it."""
        if op.result in self.slots:
            staged, slot = self.slots[op.result]
            return self.staging.load(staged, slot, family)
        rest = [self.at(v) for v in op.rest]
        along = [d for d in op.dims if d >= 0]
        long = along == [0, 1] or layout.registers > OWN_LOADS  # threads' own loads would be short
        if op.result in self.feeds and family != ROWS and long:
            found = self.staging.place(op, 1)
            if found is not None:
                self.build.effect(Barrier)
                self.staging.copy(found, rest, self.build.index(0), {})
                self.staging.commit()
                self.staging.wait(0)
                return self.staging.load(found, self.build.index(0), family)
        attrs = {**op.attrs, "layout": layout}
        return self.build(t.Load, op.source, *rest, hint=op.result.hint, **attrs)

    # ---- loops

    def _for(self, op: t.For) -> None:
        build, region = self.build, op.regions[0]
        inits = [self._carried(self.at(v)) for v in op.inits]
        lo, hi = self.at(op.lo), self.at(op.hi)
        ahead, slots = self._ahead(op), self._slots
        for turn in range(slots - 1 if ahead.staged else 0):
            self._copy_ahead(ahead, build.add(lo, turn * op.step), hi, build.index(turn))
        carried = [*inits, build.index(0)] if ahead.staged else inits
        hint = region.params[0].hint
        with build.loop(lo, hi, op.step, carried, hint) as loop:
            slot = loop.carried[-1] if ahead.staged else None
            inside = loop.carried[: len(inits)]
            for old, new in zip(region.params, (loop.counter, *inside), strict=True):
                self.values[old, ROWS] = new
            if slot is not None:
                slot.hint = "slot"
                self.staging.wait(slots - 2)
                later = build.add(loop.counter, (slots - 1) * op.step)
                free = build.mod(build.add(slot, slots - 1), slots)
                self._copy_ahead(ahead, later, hi, free)
                self.slots |= {staged.load.result: (staged, slot) for staged in ahead.staged}
            for inner in region.ops:
                self._op(inner)
            after = [self._carried(self.at(v)) for v in region.yields]
            if slot is not None:
                after.append(build.mod(build.add(slot, 1), slots))
            loop.next = tuple(after)
        if ahead.staged:
            self.staging.wait(0)
        self._keep(op, loop.results[: len(inits)])

    def _carried(self, value: Value) -> Value:
        """What a loop carries: a single number in every thread, as reductions leave it."""
        type_ = value.type
        if not isinstance(type_, RegisterType) or type_.shape != (1, 1) or type_.layout.lanes > 1:
            return value
        return self._widened([value], (), Layout(2).replicate(self.layouts.threads))[0]

    @property
    def _slots(self) -> int:
        return max(2, int(self.graph.attrs.get("stages", 2)))

    def _ahead(self, op: t.For) -> Ahead:
        """The loads of a loop that products read and whose place is known ahead."""
        region, found = op.regions[0], Ahead()
        inside = {v: inner for inner in region.ops for v in inner.results}

        def made(value: Value) -> Op | None:
            """What made a value of the loop; constants are known everywhere."""
            everywhere = self.made.get(value)
            return everywhere if isinstance(everywhere, m.Const) else inside.get(value)

        for inner in region.ops:
            if not isinstance(inner, t.Load) or inner.result not in self.feeds:
                continue
            counted = counted_index(inner, region.params[0], made)
            if counted is None or not self._is_block(inner):
                continue
            staged = self.staging.place(inner, self._slots, inner.result in self.grouped)
            if staged is not None:
                found.staged.append(staged)
                found.counted.append(counted)
        return found

    def _is_block(self, load: t.Load) -> bool:
        """True for loads in one family, that of a side of a product."""
        return len(self.families.get(load.result, ())) == 1

    def _linear(self, counter: Value, counted: Counted) -> Value:
        """The place in memory at a turn of a loop."""
        at = counter if counted.factor == 1 else self.build.mul(counter, counted.factor)
        return at if counted.offset is None else self.build.add(at, self._outside(counted.offset))

    def _outside(self, value: Value) -> Value:
        """What stands for a value that does not change in a loop, before it and in it."""
        op = self.made.get(value)
        return self.build.index(int(op.value)) if isinstance(op, m.Const) else self.at(value)

    def _copy_ahead(self, ahead: Ahead, at: Value, end: Value, slot: Value) -> None:
        """Begins the copies of a turn; those of turns that will not come read nothing."""
        for staged, counted in zip(ahead.staged, ahead.counted, strict=True):
            load = staged.load
            there, limit = self._linear(at, counted), self._linear(end, counted)
            rest = [
                there if number == counted.index else self._outside(v)
                for number, v in enumerate(load.rest)
            ]
            along = load.dims[counted.index]
            bounded = any(d == along for d, _ in load.bounds)
            self.staging.copy(staged, rest, slot, {} if bounded else {along: limit})
        self.staging.commit()


def _seen(x: Value, op: View) -> Layout:
    """The layout of a view: a register of more bits becomes neighbouring columns."""
    assert isinstance(x.type, RegisterType)
    ratio, rest = divmod(x.type.dtype.bits, op.dtype.bits)
    if rest or x.type.layout.local(1, ratio).shape != op.layout.shape:
        raise UnsupportedError(f"{x.type} seen as {op.dtype} by threads", op.loc)
    return x.type.layout.local(1, ratio)


def _grouped(graph: Graph, families: Families, made: Made, warps: int) -> set[Value]:
    """The loads of right sides that warp groups may read from shared memory: 16-bit floats that
    nothing else needs, on targets that have such groups."""
    if named_target(str(graph.attrs["target"])).cpu != "sm_90" or warps % GROUP_WARPS:
        return set()
    found: set[Value] = set()
    for op in graph.body.walk():
        if isinstance(op, t.Product) and isinstance(made(op.b), t.Load):
            type_ = op.b.type
            assert isinstance(type_, RegisterType)
            alone = families[op.b] == {terms_of(GROUP_UNIT)}
            if alone and type_.dtype in GROUP_TERMS and type_.shape[1] <= MOST_COLUMNS:
                found.add(op.b)
    return found


def _feeds(graph: Graph, families: Families) -> set[Value]:
    """The matrices that products read: as their left side, or for their right side."""
    products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
    shared = {v for v, needed in families.items() if needed and ROWS not in needed}
    return {v for op in products for v in (op.a, op.b)} | shared


def _layouts(graph: Graph, made: Made) -> BlockLayouts:
    """Warps share out the rows of the tiles that products make."""
    warps = int(graph.attrs.get("warps", 4))
    products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
    for op in products:
        unit, acc = unit_of(op, made), op.acc.type
        assert isinstance(acc, RegisterType)
        if not _feeds_itself(unit):
            raise UnsupportedError(f"{graph.name}: {unit.name} takes its left side in its own way")
        while warps > 1 and acc.shape[0] % (warps * unit.m):
            warps //= 2
    return BlockLayouts(warps)


def _feeds_itself(unit: MatrixUnit) -> bool:
    """True if sums side by side lie as the left side of the unit."""
    columns = unit.k // unit.n
    sums = Layout(2).local(1, columns) @ unit.c
    return sums.same_map(unit.a) or unit.a.packed == columns * unit.c.packed
