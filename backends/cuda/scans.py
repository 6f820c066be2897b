"""Running sums of tiles as C++: doubling, through registers and lanes of a warp."""

from __future__ import annotations

from tilewright.backends.cuda.pointwise import HALVES, scalar_type
from tilewright.backends.cuda.tiles import Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.matrix_units import WARP


class ScanOps(Writer):
    """What of a program's writer concerns running sums."""

    def _tile_scan(self, op: t.Scan) -> None:
        """Every element has the sum of its group so far, and the group's; groups double: those that
        come second add what the first has summed."""
        x, layout = self.tile(op.x), self.tile(op.x).layout
        if x.dtype in HALVES or x.scalar:
            raise UnsupportedError(f"running sums of {x.dtype} in the cuda back end", op.loc)
        out = self.declare(op.result)
        self.assign(out, x)
        total, kind = self.text.name("total"), scalar_type(x.dtype)
        self.text.line(f"{kind} {total}[{layout.registers}];")
        with self.text.each("i", layout.registers) as i:
            self.text.line(f"{total}[{i}] = {out.name}[{i}];")
        for place, in_lanes in _bits(layout, op.dim):
            if not in_lanes:
                self._registers(out.name, total, layout.registers, place)
            elif place < WARP:
                self._lanes(out.name, total, layout.registers, place)
            else:
                raise UnsupportedError("running sums across warps in the cuda back end", op.loc)

    def _registers(self, sums: str, total: str, count: int, place: int) -> None:
        with self.text.each("i", count // 2) as i:
            at = f"({i} / {place} * {2 * place} + {i} % {place})"
            first, second = f"{total}[{at}]", f"{total}[{at} + {place}]"
            self.text.line(f"{sums}[{at} + {place}] += {first};")
            self.text.line(f"{first} += {second};")
            self.text.line(f"{second} = {first};")

    def _lanes(self, sums: str, total: str, count: int, place: int) -> None:
        with self.text.each("i", count) as i:
            other = self.bind("const auto", "other", f"tw::shuffle_xor_any({total}[{i}], {place})")
            self.text.line(f"if (lane / {place} % 2) {sums}[{i}] += {other};")
            self.text.line(f"{total}[{i}] += {other};")


def _bits(layout: Layout, dim: int) -> list[tuple[int, bool]]:
    """The bits of register and lane numbers that count along a dimension, the smallest steps
    first: the bit's value, and whether it is a lane's."""
    found = []
    for in_lanes, digits in enumerate(layout.digits()):
        place = 1
        for d, stride, size in digits:
            for bit in range(size.bit_length() - 1):
                if d == dim and stride:
                    found.append((stride << bit, place << bit, bool(in_lanes)))
            place *= size
    return [(place, in_lanes) for _, place, in_lanes in sorted(found)]
