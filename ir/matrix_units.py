"""Matrix units of GPUs: what an instruction multiplies, and in which lanes its operands lie.

A warp of 32 lanes multiplies an m x k by a k x n tile onto an m x n tile. An instruction fits a
product of tiles just if its layouts divide the tiles' (``layout_algebra.divide``): the quotients
say which warp and which registers every single multiplication takes. Layouts after the PTX ISA,
"Matrix fragments for mma.m16n8k16" and "... mma.m16n8k32".

``…_fours`` are the same instructions (of f32: two of them) with k counted in another order, in
which a thread has four neighbours of the left side: what words of packed codes unpack to.

``…_turned8`` (16, 32) are instructions with sides exchanged, for few rows: the product's rows
are the instruction's eight columns. A thread has as many neighbours of k (whole chunks of codes)
and half as many of the right side's columns (words side by side). Sums have to be turned before
they are a left side, in 16 bits: ``movmatrix`` does that.

``m16n8k8`` multiplies f32: numbers are split into two of 11 bits (tf32), and three products of
these are added up, which leaves an error of 2^-22 of a term (the idea is Ootomo and Yokota's,
arXiv 2203.03341). Its k may be counted in any order that both sides share: here neighbours lie in
one thread, as they do in sums, so that sums go on without a move.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.dtypes import BF16, F16, F32, I8, I32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, column_local, column_spatial, local, spatial

WARP = 32
# Products of warp groups (wgmma, sm_90a): 64 rows, k of 16, the right side read from shared memory.
GROUP_UNIT = "m16n8k16"  # whose layouts they share
GROUP_WARPS = 4
GROUP_ROWS = 64
GROUP_TERMS = (BF16, F16)
MOST_COLUMNS = 256


@dataclass(frozen=True)
class MatrixUnit:
    """An instruction: sizes, the dtypes of what it multiplies and sums in, layouts over a warp."""

    name: str
    m: int
    n: int
    k: int
    terms: tuple[DType, ...]
    sums: DType
    a: Layout
    b: Layout
    c: Layout


_SUMS = local(2, 1).spatial(8, 4).local(1, 2)
_FOURS = local(2, 1).spatial(8, 4).local(1, 4)
_FOURS_RIGHT = column_spatial(4, 8).local(4, 1)
RUNS = (8, 16, 32)  # from 8 on, the words of four columns are read at once


def _turned(run: int) -> MatrixUnit:
    left = spatial(8, 4).local(1, run)
    right = column_spatial(4, 8).local(run // 4, run // 2).local(4, 1)
    sums = column_spatial(4, 8).local(1, run // 2).local(2, 1)
    name, size = f"m16n8k16_turned{run}", 4 * run
    return MatrixUnit(name, 8, size, size, (BF16, F16), F32, left, right, sums)


UNITS: dict[str, MatrixUnit] = {
    u.name: u
    for u in (
        MatrixUnit(
            "m16n8k16",
            16,
            8,
            16,
            (BF16, F16),
            F32,
            column_local(2, 2).spatial(8, 4).local(1, 2),
            local(2, 1).column_spatial(4, 8).local(2, 1),
            _SUMS,
        ),
        MatrixUnit("m16n8k16_fours", 16, 8, 16, (BF16, F16), F32, _FOURS, _FOURS_RIGHT, _SUMS),
        MatrixUnit("m16n8k8_fours", 16, 8, 16, (F32,), F32, _FOURS, _FOURS_RIGHT, _SUMS),
        MatrixUnit(
            "m16n8k8", 16, 8, 8, (F32,), F32, _SUMS, column_spatial(4, 8).local(2, 1), _SUMS
        ),
        MatrixUnit(
            "m16n8k32",
            16,
            8,
            32,
            (I8,),
            I32,
            column_local(2, 2).spatial(8, 4).local(1, 4),
            local(2, 1).column_spatial(4, 8).local(4, 1),
            _SUMS,
        ),
        *map(_turned, RUNS),
    )
}


def fours(unit: MatrixUnit) -> MatrixUnit:
    """The unit for left sides with four neighbours in a thread. Raises UnsupportedError."""
    if f"{unit.name}_fours" not in UNITS:
        raise UnsupportedError(f"{unit.name} does not take four neighbours of a thread")
    return UNITS[f"{unit.name}_fours"]


def turned(unit: MatrixUnit, run: int) -> MatrixUnit:
    """The unit with sides exchanged in which a thread has ``run`` neighbours of k. Raises
    UnsupportedError."""
    if f"{unit.name}_turned{run}" not in UNITS:
        raise UnsupportedError(f"{unit.name} does not take {run} neighbours of a thread")
    return UNITS[f"{unit.name}_turned{run}"]


def matrix_unit(terms: DType, sums: DType) -> MatrixUnit:
    """The instruction for a product. Raises UnsupportedError with those that exist."""
    plain = [unit for unit in UNITS.values() if "_" not in unit.name]
    for unit in plain:
        if terms in unit.terms and sums == unit.sums:
            return unit
    known = ", ".join(f"{t} in {u.sums}" for u in plain for t in u.terms)
    raise UnsupportedError(
        f"no matrix unit multiplies {terms} and sums in {sums}; there are {known}"
    )
