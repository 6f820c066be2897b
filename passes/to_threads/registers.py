"""How many registers of 32 bits a thread of a program needs, from what is live at once.

An estimate: the compiler keeps addresses and what does not change in a loop beside the tiles, and
sees chains of pointwise operations as one. It is there to choose between schedules, and to say
where a program should compute something again instead of keeping it.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.types import IndexType, RegisterType, SharedType

MOST = 255  # of a thread, on every CUDA device
BESIDE = 54  # addresses, swizzles, operands on their way; read off machine code
UNPACKED = 16  # more where codes are cut out of words (is_coded)
STREAMED = 8  # of a right side that products read from shared memory as they go


def words(value: Value) -> int:
    """Registers of 32 bits that a value takes in a thread; a truth value takes one."""
    type_ = value.type
    if isinstance(type_, IndexType):
        return 2
    if not isinstance(type_, RegisterType):
        return 0
    return -(-type_.layout.registers * max(type_.dtype.bits, 16) // 32)


def short_of_registers(graph: Graph) -> bool:
    """True if a thread's values and what the compiler keeps beside them may not fit."""
    return estimate(graph) + BESIDE + UNPACKED * is_coded(graph) > MOST


def is_coded(graph: Graph) -> bool:
    """True if threads cut codes out of words, which takes registers on the way."""
    return any(isinstance(op, t.Unpack) for op in graph.body.walk())


def estimate(graph: Graph) -> int:
    """The most registers that values of a program of threads take at once."""
    return _Peak(graph).most


class _Peak:
    def __init__(self, graph: Graph) -> None:
        self.sizes: dict[Value, int] = {}
        made = {v: op for op in graph.body.walk() for v in op.results}
        whole = {op.a for op in graph.body.walk() if isinstance(op, t.GroupProduct)}
        for op in graph.body.walk():
            for value in op.results:
                self.sizes[value] = _held(op, value, made, whole)
        self.most, self.short = 0, bool(graph.attrs.get("short"))
        self._region(graph.body, set())

    def _region(self, region: Region, after: set[Value]) -> set[Value]:
        """What is live before a region, and a new maximum; ``after``: what is live behind it."""
        live = after | set(region.yields)
        self._count(live)
        for op in reversed(region.ops):
            live -= set(op.results)
            for inner in op.regions:
                # what the loop reads from outside stays for its next turn
                live |= _outside(inner)
                if not self.short and isinstance(op, t.For):
                    live |= _hoisted(inner)
                live |= self._region(inner, set(live)) - set(inner.params)
            live |= set(op.operands)
            self._count(live)
        return live

    def _count(self, live: set[Value]) -> None:
        total = sum(self.sizes.get(v, 0) if v in self.sizes else words(v) for v in live)
        self.most = max(self.most, total)


def _held(op: Op, value: Value, made: dict[Value, Op], whole: set[Value]) -> int:
    """Registers of a result: constants and what is read where it is used take next to none."""
    if isinstance(op, m.Const | t.SizeOf | t.StrideOf):
        return 0
    if isinstance(op, m.Add | m.Or) and words(op.lhs) < words(value):
        constant = made.get(op.rhs)
        if isinstance(constant, m.Const) and constant.value == 0:  # the same number, several times
            return words(op.lhs)
    if isinstance(op, t.Load) and isinstance(op.source.type, SharedType) and value not in whole:
        return min(STREAMED, words(value))
    return words(value)


def _outside(region: Region) -> set[Value]:
    """What a region uses and does not make."""
    inside = set(region.params) | {v for op in region.ops for v in op.results}
    used = {v for op in region.ops for v in op.operands} | set(region.yields)
    for op in region.ops:
        for inner in op.regions:
            used |= _outside(inner)
    return used - inside


def _hoisted(region: Region) -> set[Value]:
    """What a loop's body computes in every turn anew to the same end, and uses: compilers move it
    before the loop and keep it."""
    changing = set(region.params)
    still: set[Value] = set()
    used: set[Value] = set()
    for op in region.ops:
        pure = "pointwise" in op.traits or isinstance(op, t.Coordinate | t.Splat)
        if pure and changing.isdisjoint(op.operands):
            still.update(op.results)
            continue
        changing.update(op.results)
        used.update(v for v in op.operands if v in still)
    return used
