"""What each operation becomes on a target, per physical register."""

from __future__ import annotations

import math
from functools import lru_cache

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import REGISTRY, Graph, Op, Region, Value
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import Lookup, LookupBytes, LookupHalves, View
from tilewright.ir.target import Target
from tilewright.ir.types import RegisterType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.expand_math import PARTS, expand_math_graph
from tilewright.passes.to_tile.cost.counts import NOTHING, Counts
from tilewright.passes.to_tile.lowbit.cost import dot_slots, slots

FMA, ADD, ALU = Counts(fma=1), Counts(add=1), Counts(alu=1)
_FLOATING: dict[type[Op], Counts] = {
    m.Add: ADD,
    m.Sub: ADD,
    m.Mul: FMA,
    m.Fma: FMA,
    m.Div: Counts(divide=1),
    m.Sqrt: Counts(divide=1),
    m.Max: Counts(alu=3),  # NaN is passed on by a comparison of its own
    m.Min: Counts(alu=3),
    m.Pow: Counts(fma=40, alu=20, divide=1),  # a call of a function of the C library, about
}
_FREE = (m.Const, m.SizeValue, View, t.Take, t.Stack, t.SplitPairs, t.Splat, t.Coordinate, t.Alloc)


def pointwise(op: Op, operand: DType | None, target: Target) -> Counts:
    """Of a pointwise operation for one register of its result; ``operand``: dtype of its first."""
    if isinstance(op, _FREE):
        return NOTHING
    if isinstance(op, m.Cast):
        return conversion(operand, op.dtype, target)
    if isinstance(op, m.Fraction | m.Scale2) and target.named != "avx512":
        return Counts(alu=6, add=1) if isinstance(op, m.Fraction) else Counts(alu=10, fma=2)
    if isinstance(op, Lookup):
        return Counts(shuffle=slots(op, target))
    if isinstance(op, LookupBytes | LookupHalves):
        return Counts(shuffle=1)
    floating = operand is None or operand.is_float
    if floating and type(op) in PARTS:
        return expanded(op.name, target)
    return _FLOATING.get(type(op), ALU) if floating else ALU


@lru_cache(maxsize=256)
def expanded(name: str, target: Target) -> Counts:
    """Of a function that is written out (passes/expand_math.py); of an exponential as of a weight,
    a difference's: such are those that schedules hang on."""
    type_ = RegisterType(F32, Layout(2).spatial(1, max(2, target.lanes)))
    x, y = Value(type_, "x"), Value(type_, "y")
    difference = m.Sub(x, y)
    function = REGISTRY[name](difference.result)
    body = Region((x, y), (difference, function), (function.result,))
    found = NOTHING
    for op in canonicalise_graph(expand_math_graph(Graph("tile", "f", (), body))).body.ops:
        if not isinstance(op, m.Sub):
            found = found + pointwise(op, F32, target)
    return found


def conversion(source: DType | None, into: DType, target: Target) -> Counts:
    """Of a cast of one register."""
    if source is None or source == into:
        return NOTHING
    if BF16 in (source, into) and F32 in (source, into):
        return Counts(alu=2) if source == BF16 else narrowing(target)
    return ALU


def narrowing(target: Target) -> Counts:
    """f32 to bf16: one instruction, or arithmetic on bits."""
    return ALU if target.bf16_dot else Counts(alu=8)


def combining(kind: str, floating: bool = True) -> Counts:
    """Of two partial results of a reduction."""
    return ADD if kind == "sum" and floating else ALU


def uniform(layout: Layout) -> bool:
    """True if all lanes hold the same elements: they are computed once."""
    return all(kind != "spatial" for kind, _, _ in layout.steps)


def packed(type_: RegisterType) -> int:
    """Elements side by side in one lane's 32-bit word."""
    count = 32 // type_.dtype.bits if type_.dtype.bits in (8, 16) else 1
    last = type_.layout.steps[-1] if type_.layout.steps else ("", 0, 0)
    innermost = type_.layout.rank > 1 and last == ("local", type_.layout.rank - 1, count)
    return count if (innermost and type_.dtype in (BF16, F16)) or (count == 4 and innermost) else 1


def registers(type_: RegisterType) -> int:
    """Physical registers of a tile."""
    return type_.layout.registers // packed(type_)


def products(op: t.Dot, target: Target) -> Counts:
    """Of a tile's dot product."""
    acc, b = op.acc.type, op.b.type
    assert isinstance(acc, RegisterType) and isinstance(b, RegisterType)
    many = registers(acc)
    if acc.dtype != F32:
        return Counts(dot=many * dot_slots(op.b_bits, target))
    return Counts(dot=many) if packed(b) > 1 else Counts(fma=many)


def reduction(op: t.Reduce, target: Target) -> Counts:
    """Registers as a tree, then lanes by exchanging halves."""
    given, made = op.x.type, op.result.type
    assert isinstance(given, RegisterType) and isinstance(made, RegisterType)
    if uniform(given.layout):
        return Counts(scalar=registers(given) - registers(made))
    one = combining(op.kind, given.dtype.is_float)
    steps = exchanges(given.layout, op.dim)
    inside = one * float(registers(given) - registers(made))
    return inside + (one + Counts(shuffle=1)) * float(steps * registers(made))


def exchanges(layout: Layout, dim: int) -> int:
    """How often halves of lanes are exchanged to reduce ``dim``."""
    sizes = [size for kind, d, size in layout.steps if kind == "spatial" and d == dim]
    return sum(int(math.log2(size)) for size in sizes)


def butterfly(lanes: int) -> Counts:
    """As many sums across lanes as there are lanes, one into each lane."""
    return Counts(shuffle=2 * (lanes - 1), add=lanes - 1)


def transposition(lanes: int) -> Counts:
    """Of a square of registers."""
    return Counts(shuffle=lanes * int(math.log2(lanes)))


def weaving(rows: int, columns: int, converts: bool, target: Target) -> Counts:
    """Pairs of rows into the words of lanes: ``rows`` x ``columns`` registers."""
    made = Counts(shuffle=rows * columns / 2)
    return made + narrowing(target) * float(rows * columns) if converts else made


def latency(op: Op) -> float:
    """Cycles until an operation's result can be used, about."""
    if isinstance(op, m.Const | View | t.Take | t.Stack):
        return 0.0
    if isinstance(op, m.Larger | m.Smaller | m.Select | m.Compare | m.Max | m.Min):
        return 2.0
    return 13.0 if isinstance(op, m.Div | m.Sqrt) else 4.0
