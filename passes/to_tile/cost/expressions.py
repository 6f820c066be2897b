"""Instructions of the expressions of a stream graph, sorted by what they are repeated for.

every register of [position, row]     scores, exponentials
every register of rows                running maxima, rescaling: once a block
every position                        one number for all rows, such as a bias
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BOOL, F32, DType
from tilewright.ir.target import Target
from tilewright.passes.to_tile.block import BlockLowering
from tilewright.passes.to_tile.cost.counts import NOTHING, Counts
from tilewright.passes.to_tile.cost.operations import conversion, pointwise
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.rows import strip_repeat


@dataclass
class RowValues:
    """What is computed once for a block of positions and all its rows: each value once."""

    lowering: BlockLowering
    target: Target
    seen: set[Value] = field(default_factory=set)
    each: Counts = NOTHING  # per register of rows
    loads: int = 0  # registers of rows read

    def covers(self, value: Value) -> bool:
        """True if a value is the same for all positions of a block: it changes along the inner axis
        only as running statistics do."""
        info = self.lowering.info
        value = strip_repeat(info.made, value)
        op = info.made.get(value)
        if not info.varies(value) or isinstance(op, m.Const):
            return True
        whole = op is not None and "pointwise" in op.traits and bool(op.operands)
        return whole and op is not None and all(self.covers(v) for v in op.operands)

    def add(self, value: Value) -> None:
        """A value that does not change within a block."""
        info = self.lowering.info
        value = strip_repeat(info.made, value)
        if value in self.seen:
            return
        self.seen.add(value)
        op = info.made.get(value)
        if info.is_row_scalar(value):
            self.loads += 1
            return
        if op is None or isinstance(op, s.Scan | m.Const | m.SizeValue):
            return
        for operand in op.operands:
            self.add(operand)
        if "pointwise" in op.traits:
            self.each = self.each + pointwise(op, _dtype(op), self.target)


@dataclass
class Phase:
    """One phase of a block. ``products`` are formed in it; ``full`` is per register of positions
    and rows beside them; ``scalar`` and ``broadcasts`` per position; ``selects`` are the
    statistics' inputs, which masks go over."""

    products: list[s.Contract] = field(default_factory=list)
    full: Counts = NOTHING
    scalar: float = 0.0
    broadcasts: int = 0
    statistics: list[s.Scan | s.Reduce] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)
    forms_product: bool = False


class PhaseReader:
    """Reads one phase off the stream graph the way it is lowered (block.py)."""

    def __init__(
        self, lowering: BlockLowering, rows: RowValues, target: Target, masked: bool
    ) -> None:
        self.lowering, self.rows, self.target, self.masked = lowering, rows, target, masked
        self.info = lowering.info

    def read(self, number: int) -> Phase:
        """The work of phase ``number``."""
        low, info = self.lowering, self.info
        kept = low._needed(number)
        scans = [op for op in low.scans if info.phase[op.x] == number]
        sums = [op for op in low.reduces if op not in low.weights and low._phase_of(op) == number]
        found = Phase(kept=kept, statistics=[*scans, *sums])
        seen: set[Value] = set()
        roots = [v if self._is_kept(v) else strip_casts(info, v)[0] for v in kept]
        for value in [*roots, *(op.x for op in found.statistics)]:
            self._add(found, value, number, seen)
        for op in found.statistics:
            if isinstance(op, s.Reduce) and op.rescale:
                self.rows.add(op.rescale[0])
        found.forms_product = bool(found.products)
        return found

    def _add(self, found: Phase, value: Value, number: int, seen: set[Value]) -> None:
        info, low = self.info, self.lowering
        base = strip_repeat(info.made, value)
        op = info.made.get(base)
        if base in seen or op is None or isinstance(op, m.Const):
            return
        seen.add(base)
        if self.rows.covers(base):
            self.rows.add(base)
        elif info.phase[value] < number and self._is_kept(value):
            found.full = found.full + Counts(load=1)
        elif isinstance(op, s.Contract):
            found.products.append(op)
        elif value in low.mask.conditions and not self.masked:
            return
        elif base in low.turned.kept:
            test = info.element(base) == () and low.state.dtype(base) == BOOL
            found.full = found.full + Counts(load=1, alu=float(test))
        elif isinstance(op, s.Source):
            self._source(found, base)
        elif isinstance(op, s.Index):
            found.scalar += 1
        else:
            self._pointwise(found, op, number, seen)

    def _is_kept(self, value: Value) -> bool:
        return ("numbers", value) in self.lowering.scratch

    def _is_turned(self, value: Value) -> bool:
        return strip_repeat(self.info.made, value) in self.lowering.turned.kept

    def _source(self, found: Phase, value: Value) -> None:
        if self.info.on_rows(value):
            self.rows.loads += 1
            found.full = found.full + Counts(gather=1, alu=2)
        else:
            found.broadcasts += 1

    def _pointwise(self, found: Phase, op: Op, number: int, seen: set[Value]) -> None:
        operands = list(op.operands)
        hidden = isinstance(op, m.Select) and not self.masked
        if hidden and op.operands[0] in self.lowering.mask.conditions:
            self._add(found, operands[1], number, seen)  # what it chooses from is known
            return
        for operand in op.indices if isinstance(op, s.Gather) else operands:
            self._add(found, operand, number, seen)
        if isinstance(op, s.Gather):
            found.full = found.full + Counts(gather=1, alu=5.0 * len(op.indices))
            return
        if isinstance(op, m.Cast) and self._is_turned(op.x) and op.dtype == F32:
            return  # converted where its block was turned
        one = pointwise(op, _dtype(op), self.target)
        if self.info.on_rows(op.result):
            found.full = found.full + one
        else:
            found.scalar += one.vector


def _dtype(op: Op) -> DType | None:
    operand = op.lhs if isinstance(op, m.Select) else op.operands[0] if op.operands else None
    found = getattr(operand.type, "dtype", None) if operand is not None else None
    return found if isinstance(found, DType) else None


def element_expression(
    lowering: BlockLowering, value: Value, target: Target, seen: set[Value] | None = None
) -> Counts:
    """Per register of an element whose axis lies on lanes: loads and arithmetic. What is one number
    for the row is not counted."""
    info, seen = lowering.info, set() if seen is None else seen
    value = strip_repeat(info.made, value)
    op = info.made.get(value)
    if value in seen or op is None or isinstance(op, m.Const) or not info.element(value):
        return NOTHING
    seen.add(value)
    if isinstance(op, s.Source | s.Gather | s.Reduce):
        return Counts(load=1)
    if isinstance(op, s.Roll):
        return element_expression(lowering, op.x, target, seen)
    found = NOTHING
    for operand in op.operands:
        found = found + element_expression(lowering, operand, target, seen)
    if isinstance(op, m.Cast):
        source = getattr(op.x.type, "dtype", None)
        return found + conversion(source, op.dtype, target)
    return found + pointwise(op, _dtype(op), target) if "pointwise" in op.traits else found
