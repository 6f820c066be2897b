"""Instructions of matrix units: their calls, and sums as the left side of the next product."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.backends.cuda.pointwise import HALVES
from tilewright.backends.cuda.shared import SharedOps
from tilewright.backends.cuda.text import added, digit, register_part, times
from tilewright.backends.cuda.tiles import Tile
from tilewright.ir import ops_tile as t
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.layout_algebra import divide
from tilewright.ir.matrix_units import GROUP_UNIT, RUNS, UNITS, turned


@dataclass(frozen=True)
class Call:
    """The function that makes a unit's product, and how many registers it takes of both sides and
    of sums."""

    text: str
    left: int = 4
    right: int = 2
    sums: int = 4


CALLS = {
    "m16n8k16": Call("tw::mma_16816<{}>"),
    "m16n8k16_fours": Call("tw::mma_fours_16816<{}>"),
    "m16n8k8": Call("tw::mma_split_1688"),
    "m16n8k8_fours": Call("tw::mma_split_fours", 8, 4),
    **{
        f"m16n8k16_turned{n}": Call(f"tw::mma_turned_16816<{{}}, {n}>", n // 2, n * n // 4, n)
        for n in RUNS
    },
}


class UnitOps(SharedOps):
    """What of a program's writer concerns instructions of matrix units."""

    def multiply(
        self, parts: tuple[Layout, ...], call: Call, out: Tile, a: Tile, f: str, b: str
    ) -> None:
        """All products with one operand of the right side: its number ``f`` says which."""
        acc, left, right = parts
        k, n = (register_part(right, dim, f) for dim in (0, 1))
        with self.text.each("m", row_parts(acc)) as m:
            at = times(_number(acc, (times(m, str(row_step(acc))), n)), str(call.sums))
            from_ = times(_number(left, (times(m, str(row_step(left))), k)), str(call.left))
            sums, words = f"tw::group<{call.sums}>({out.name}, {at})", f"tw::group<{call.left}>"
            self.text.line(f"{call.text}({sums}, {words}({a.name}, {from_}), {b});")

    def _tile_rearrange(self, op: t.Rearrange) -> None:
        """Sums in 16 bits as the left side of the next product with sides exchanged."""
        x, layout = self.tile(op.x), op.layout
        for run in RUNS:
            unit = turned(UNITS[GROUP_UNIT], run)
            parts = divide(x.layout, unit.c)
            if x.dtype in HALVES and parts is not None and parts == divide(layout, unit.a):
                out, count = self.declare(op.result), run // 2
                with self.text.each("i", parts.registers) as i:
                    to, given = (
                        f"tw::group<{count}>({y.name}, {times(i, str(count))})" for y in (out, x)
                    )
                    self.text.line(f"tw::turn<{run}>({to}, {given});")
                return
        raise UnsupportedError(f"{x.layout} as {layout} in the cuda back end", op.loc)


def row_parts(layout: Layout) -> int:
    """How many instructions' rows a warp has."""
    return math.prod(size for dim, _, size in layout.digits()[0] if dim == 0)


def row_step(layout: Layout) -> int:
    """How far apart a warp's rows lie, in rows of an instruction."""
    return next((stride for dim, stride, _ in layout.digits()[0] if dim == 0), 1)


def _number(layout: Layout, index: tuple[str, str]) -> str:
    """The register of an instruction's tile [m, n]; dimensions are whole digits of registers."""
    terms, place = [], 1
    for dim, stride, size in layout.digits()[0]:
        terms.append(times(digit(index[dim], stride, size, stride * size), str(place)))
        place *= size
    return added(terms)
