"""Which tiles of a program are needed as rows, which as terms of a product's right side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.matrix_units import (
    GROUP_UNIT,
    GROUP_WARPS,
    RUNS,
    UNITS,
    MatrixUnit,
    fours,
    matrix_unit,
    turned,
)
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.to_threads.layouts import (
    LANES,
    ROWS,
    BlockLayouts,
    Made,
    is_moved,
    left_of,
    moved_to,
    power_of_two,
    terms_of,
    words_of,
)

Families = dict[Value, set[str]]
MadeBy = Callable[[Value], Op | None]
# the family of a block's copies, if threads copy it into shared memory when it is needed in others
Copied = Callable[[t.LoadLines, set[str]], str | None]


def unit_of(op: t.Product, made: MadeBy, run: int = 0) -> MatrixUnit:
    """The matrix unit that makes a product; ``made`` gives the op that made a value, ``run`` how
    many neighbours of k threads have (``run_of``). Raises UnsupportedError if there is none."""
    a, acc = op.a.type, op.acc.type
    assert isinstance(a, RegisterType) and isinstance(acc, RegisterType)
    unit = matrix_unit(a.dtype, acc.dtype)
    if run:
        return turned(unit, run)
    return fours(unit) if _unpacked(op.a, made) else unit


def run_of(graph: Graph, made: MadeBy) -> int:
    """How many neighbours of k a thread has in the products of a program; 0 where they are not
    counted so.

    Where one warp has all of a work item and every right side is unpacked from words, threads read
    the words of their own part of it, whole chunks, from memory (``m16n8k16_turned8``): codes go
    through no shared memory, and nothing waits for other warps.
    """
    products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
    unpacked = [_unpacks(op, made) for op in products]
    if not products or int(graph.attrs.get("warps", 0)) != 1:
        return 0
    if not all(op is not None and op.dim == 0 for op in unpacked):
        return 0
    run = max(RUNS[0], *(op.form.chunk for op in unpacked if op is not None))
    return run if run in RUNS and all(_counts_in(op, run) for op in products) else 0


def _counts_in(op: t.Product, run: int) -> bool:
    a, b = op.a.type, op.b.type
    assert isinstance(a, RegisterType) and isinstance(b, RegisterType)
    unit = turned(UNITS[GROUP_UNIT], run)
    whole = a.shape[0] % unit.m == 0 and all(n % unit.n == 0 for n in b.shape)
    return whole and a.dtype in unit.terms


def _unpacked(value: Value, made: MadeBy) -> bool:
    """True for what comes from words of two numbers each, seen as those."""
    op = made(value)
    if op is None or not isinstance(value.type, RegisterType):
        return False
    if isinstance(op, View) and halves(op):
        return True
    below = [op.offsets] if isinstance(op, t.Gather) else []
    below = list(op.operands) if "pointwise" in op.traits or isinstance(op, View) else below
    return any(_unpacked(v, made) for v in below if _shape(v) == value.type.shape)


def left_family(op: t.Product, unit: str, made: MadeBy) -> str:
    """The family of a product's left side: of what comes from memory that of the unit, other tiles
    may have to be moved there."""
    family = left_of(unit)
    return family if isinstance(made(op.a), t.Load | t.LoadLines) else moved_to(family)


def operand_family(op: Op, family: str) -> str:
    """The family of the operands of an operation whose result is in one."""
    return ROWS if is_moved(family) or (isinstance(op, View) and halves(op)) else family


def halves(op: View) -> bool:
    """True for a view of words as two numbers each."""
    assert isinstance(op.x.type, RegisterType)
    return op.x.type.dtype.bits == 2 * op.dtype.bits


def _shape(value: Value) -> tuple[int, ...]:
    return value.type.shape if isinstance(value.type, RegisterType) else ()


def find_families(
    graph: Graph, made: MadeBy, vectors: Vectors, copied: Copied, run: int = 0
) -> Families:
    """For every tile the families of layouts that something needs it in; none: nothing needs it.
    ``made`` gives the op that made a value."""
    finder = _Finder(made, vectors, copied, run)
    finder.region(graph.body)
    return finder.found


def made_together(op: t.Product, made: MadeBy, run: int = 0) -> Made | None:
    """How threads make a product's right side together, if it is unpacked from words: every warp
    needs all of it, but no code is to be unpacked in every warp. One warp (``run_of``) makes none.
    """
    found = None if run else _unpacks(op, made)
    if found is None:
        return None
    rows, columns = _shape(op.b)
    return Made((rows, columns), found.dim, found.form.chunk)


def _unpacks(op: t.Product, made: MadeBy) -> t.Unpack | None:
    """What unpacks the words that a product's right side is made from."""
    rest, seen = [op.b], set[Value]()
    while rest:
        value = rest.pop()
        below = made(value)
        if below is None or value in seen or len(_shape(value)) != 2:
            continue
        seen.add(value)
        if isinstance(below, t.Unpack):
            return below
        if "pointwise" in below.traits or isinstance(below, View):
            rest += [v for v in below.operands if _shape(v) == _shape(op.b)]
    return None


class Vectors:
    """Which tiles are vectors that meet no matrix on their way."""

    def __init__(self, made: MadeBy) -> None:
        self.made = made
        self.known: dict[Value, bool] = {}

    def family(self, operands: Iterable[Value]) -> str:
        """The family in which an operation of threads together takes its operands: lanes for
        vectors that come from no matrix, else rows."""
        tiles = [v for v in operands if isinstance(v.type, RegisterType)]
        return LANES if tiles and all(map(self._spreads, tiles)) else ROWS

    def _spreads(self, value: Value) -> bool:
        """True for a vector (or one number) that can be made on any lanes."""
        if value not in self.known:
            self.known[value] = self._found(value)
        return self.known[value]

    def _found(self, value: Value) -> bool:
        shape, op = _shape(value), self.made(value)
        if shape == (1, 1):
            return True
        if op is None or len(shape) != 2 or 1 not in shape or not power_of_two(max(shape)):
            return False
        if isinstance(op, t.Coordinate | t.Load):
            return True
        if not ("pointwise" in op.traits or isinstance(op, t.Gather | t.Scan)):
            return False
        return all(self._spreads(v) for v in op.operands if isinstance(v.type, RegisterType))


class _Finder:
    """Walks a program from its end, so that all users of a tile come before it."""

    def __init__(self, made: MadeBy, vectors: Vectors, copied: Copied, run: int) -> None:
        self.made, self.vectors, self.copied, self.run = made, vectors, copied, run
        self.found: Families = {}

    def region(self, region: Region) -> None:
        self._need(region.yields, ROWS)
        for op in reversed(region.ops):
            for inner in op.regions:
                self.region(inner)
            self._operands(op)

    def _operands(self, op: Op) -> None:
        if isinstance(op, t.Product):
            unit = unit_of(op, self.made, self.run).name
            self._need((op.acc,), ROWS)
            self._need((op.a,), left_family(op, unit, self.made))
            made = made_together(op, self.made, self.run)
            self._need((op.b,), terms_of(unit) if made is None else made.family)
        elif isinstance(op, t.Unpack):
            for family in sorted(self.found.get(op.result, ())):
                self._need(op.words, words_of(family, op.form.chunk, op.dim))
        elif isinstance(op, t.LoadLines):
            families = self.found.get(op.result, set())
            copied = self.copied(op, families)
            for family in sorted(families) if copied is None else [copied]:
                self._need((op.offsets,), family)
        elif isinstance(op, t.Gather | t.Scan | View) or "pointwise" in op.traits:
            for family in sorted(self.found.get(op.results[0], ())):
                self._need(op.operands, operand_family(op, family))
        elif isinstance(op, t.StoreLines):
            self._need((op.value, op.offsets), ROWS)
        elif isinstance(op, t.Reduce | t.Scatter):
            self._need(op.operands, self.vectors.family(op.operands))
        else:
            self._need(op.operands, ROWS)

    def _need(self, values: Iterable[Value], family: str) -> None:
        for value in values:
            if isinstance(value.type, RegisterType):
                self.found.setdefault(value, set()).add(family)


def block_layouts(graph: Graph, made: MadeBy, wanted: int = 0, run: int = 0) -> BlockLayouts:
    """Warps share out the rows of the tiles that products make. Where there are few rows, and right
    sides are only read, some warps compute the same: they copy more at once, and every quarter of a
    multiprocessor has matrix units of its own. ``wanted``: so many warps, whatever their rows."""
    warps = wanted or int(graph.attrs.get("warps", 4))
    products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
    if run:
        return BlockLayouts(warps, turned(UNITS[GROUP_UNIT], run).c)
    coded = any(unit_of(op, made).name.endswith("_fours") for op in products)
    least = wanted or (1 if coded else min(warps, GROUP_WARPS))
    for op in products:
        unit, acc = unit_of(op, made), op.acc.type
        assert isinstance(acc, RegisterType)
        if not _feeds_itself(unit):
            raise UnsupportedError(f"{graph.name}: {unit.name} takes its left side in its own way")
        while warps > least and acc.shape[0] % (warps * unit.m):
            warps //= 2
    return BlockLayouts(warps)


def _feeds_itself(unit: MatrixUnit) -> bool:
    """True if sums side by side lie as the left side of the unit."""
    columns = unit.k // unit.n
    sums = Layout(2).local(1, columns) @ unit.c
    return sums.same_map(unit.a) or unit.a.packed == columns * unit.c.packed
