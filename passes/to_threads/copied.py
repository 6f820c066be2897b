"""Which blocks threads copy into shared memory, and which of them warp groups read there."""

from __future__ import annotations

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.matrix_units import GROUP_TERMS, GROUP_UNIT, GROUP_WARPS, MOST_COLUMNS, UNITS
from tilewright.ir.target import named_target
from tilewright.ir.types import RegisterType
from tilewright.passes.to_threads.layouts import FOURS, LANES, loads_itself, terms_of
from tilewright.passes.to_threads.staging import block_of


class CopiedBlocks:
    """What a program on whole blocks and its number of warps say of its blocks."""

    def __init__(self, graph: Graph, warps: int, park: bool) -> None:
        """``park``: left sides that are made before loops stay in shared memory, not registers."""
        target = named_target(str(graph.attrs["target"]))
        self.groups = target.cpu == "sm_90" and warps % GROUP_WARPS == 0
        products = [op for op in graph.body.walk() if isinstance(op, t.Product)]
        rows = [x.shape[0] for op in products if isinstance(x := op.acc.type, RegisterType)]
        self.tall = all(n % (warps * UNITS[GROUP_UNIT].m) == 0 for n in rows)
        self.left, self.right = {op.a for op in products}, {op.b for op in products}
        self.others = {
            v
            for op in graph.body.walk()
            for v in (op.operands if not isinstance(op, t.Product) else (op.acc, op.b))
        }
        self.made = {v: op for op in graph.body.walk() for v in op.results}
        self.repeated = {v for op in graph.body.ops for r in op.regions for v in _made(r)}
        inside = {op.a for op in products if op.result in self.repeated}
        self.parked = {v for v in inside - self.repeated if park and self._can_be_parked(v)}

    def _can_be_parked(self, value: Value) -> bool:
        """True for loads of 16-bit floats that nothing but products takes as left sides."""
        op, type_ = self.made.get(value), value.type
        if not isinstance(op, t.Load | t.LoadLines) or not isinstance(type_, RegisterType):
            return False
        narrow = type_.dtype in GROUP_TERMS and value not in self.others
        return narrow and block_of(op, False) is not None

    def grouped(self, value: Value, families: set[str]) -> bool:
        """True for loads of right sides that warp groups may read from shared memory: 16-bit floats
        that nothing else needs, on targets that have such groups."""
        type_ = value.type
        if not self.groups or value not in self.right or not isinstance(type_, RegisterType):
            return False
        if not isinstance(self.made.get(value), t.Load | t.LoadLines):
            return False
        alone = families == {terms_of(GROUP_UNIT)} and self.tall
        return alone and type_.dtype in GROUP_TERMS and type_.shape[1] <= MOST_COLUMNS

    def family(self, op: t.LoadLines, families: set[str]) -> str | None:
        """The family of a block's copies if threads copy it: right sides, and left sides in loops;
        None if every thread loads what it needs."""
        terms = not families & {FOURS, LANES} and not any(map(loads_itself, families))
        left = op.result in self.left and op.result in self.repeated | self.parked
        if len(families) != 1 or not (terms or left):
            return None
        block = block_of(op, self.grouped(op.result, families))
        return block.family if block is not None else None


def _made(region: Region) -> set[Value]:
    return {v for op in region.walk() for v in op.results}
