"""Which tiles of a program are needed as rows, which as terms of a product's right side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.matrix_units import MatrixUnit, fours, matrix_unit
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.to_threads.layouts import FOURS, ROWS, terms_of

Families = dict[Value, set[str]]
Made = Callable[[Value], Op | None]


def unit_of(op: t.Product, made: Made) -> MatrixUnit:
    """The matrix unit that makes a product; ``made`` gives the op that made a value. Raises
    UnsupportedError if there is none."""
    a, acc = op.a.type, op.acc.type
    assert isinstance(a, RegisterType) and isinstance(acc, RegisterType)
    unit = matrix_unit(a.dtype, acc.dtype)
    return fours(unit) if _unpacked(op.a, made) else unit


def _unpacked(value: Value, made: Made) -> bool:
    """True for what comes from words of two numbers each, seen as those."""
    op = made(value)
    if op is None or not isinstance(value.type, RegisterType):
        return False
    if isinstance(op, View) and halves(op):
        return True
    below = [op.offsets] if isinstance(op, t.Gather) else []
    below = list(op.operands) if "pointwise" in op.traits or isinstance(op, View) else below
    return any(_unpacked(v, made) for v in below if _shape(v) == value.type.shape)


def left_of(unit: str) -> str:
    """The family of the left operands of a unit."""
    return FOURS if unit.endswith("_fours") else ROWS


def operand_family(op: Op, family: str) -> str:
    """The family of the operands of an operation whose result is in one."""
    return ROWS if isinstance(op, View) and halves(op) else family


def halves(op: View) -> bool:
    """True for a view of words as two numbers each."""
    assert isinstance(op.x.type, RegisterType)
    return op.x.type.dtype.bits == 2 * op.dtype.bits


def _shape(value: Value) -> tuple[int, ...]:
    return value.type.shape if isinstance(value.type, RegisterType) else ()


def find_families(graph: Graph, made: Made) -> Families:
    """For every tile the families of layouts that something needs it in; none: nothing needs it.
    ``made`` gives the op that made a value."""
    found: Families = {}
    _region(graph.body, found, made)
    return found


def _region(region: Region, found: Families, made: Made) -> None:
    _need(region.yields, ROWS, found)
    for op in reversed(region.ops):
        for inner in op.regions:
            _region(inner, found, made)
        _operands(op, found, made)


def _operands(op: Op, found: Families, made: Made) -> None:
    if isinstance(op, t.Product):
        unit = unit_of(op, made).name
        _need((op.acc,), ROWS, found)
        _need((op.a,), left_of(unit), found)
        _need((op.b,), terms_of(unit), found)
    elif isinstance(op, t.Gather | View) or "pointwise" in op.traits:
        for family in sorted(found.get(op.results[0], ())):
            _need(op.operands, operand_family(op, family), found)
    else:
        _need(op.operands, ROWS, found)


def _need(values: Iterable[Value], family: str, found: Families) -> None:
    for value in values:
        if isinstance(value.type, RegisterType):
            found.setdefault(value, set()).add(family)
