"""Matrix units: operands out of shared memory in the instruction's layout, and products.

A load from shared memory becomes ``ldmatrix`` just if its layout divides by that of the eight by
eight matrix that the instruction hands out to a warp, or by the transposed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.backends.cuda.pointwise import HALVES, c_type
from tilewright.backends.cuda.text import (
    added,
    atom,
    counted,
    digit,
    register_part,
    thread_part,
    times,
)
from tilewright.backends.cuda.tiles import Lazy, Shared, Tile, Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, column_spatial, spatial
from tilewright.ir.layout_algebra import divide, permute
from tilewright.ir.matrix_units import GROUP_ROWS, GROUP_WARPS, UNITS, WARP
from tilewright.ir.ops_tile_threads import warp_parts
from tilewright.ir.types import SWIZZLED_BYTES, RegisterType

MATRIX = spatial(8, 4).local(1, 2)  # [rows, columns] of memory that a warp's words hold
TURNED = column_spatial(4, 8).local(2, 1)


@dataclass(frozen=True)
class Call:
    """The function that makes a unit's product, and how many registers it takes of both sides."""

    text: str
    left: int = 4
    right: int = 2


CALLS = {
    "m16n8k16": Call("tw::mma_16816<{}>"),
    "m16n8k16_fours": Call("tw::mma_fours_16816<{}>"),
    "m16n8k8": Call("tw::mma_split_1688"),
    "m16n8k8_fours": Call("tw::mma_split_fours", 8, 4),
}
SIDE = 8  # rows and columns of a matrix


@dataclass(frozen=True)
class Matrices:
    """How ldmatrix reads a tile: ``parts`` lays out the matrices over words and warps; ``count`` of
    them at once from rows at ``row`` (a name) and pieces at ``piece`` of slot ``slot``."""

    parts: Layout
    turned: bool
    count: int
    shared: Shared
    start: str
    piece: str

    @property
    def groups(self) -> int:
        return self.parts.registers // self.count

    def load(self, words: str, group: str) -> str:
        """The statement that reads a group of matrices into ``words``, a reference to an array."""
        number = times(group, str(self.count))
        row = times(register_part(self.parts, 0, number), str(SIDE * self.shared.row_bytes))
        piece = register_part(self.parts, 1, number)
        piece = self.piece if piece == "0" else f"({self.piece} ^ {piece})"
        at = added([self.start, row, times(piece, "16")])
        return f"tw::ldmatrix_x{self.count}{'_trans' if self.turned else ''}({words}, {at});"


class FragmentOps(Writer):
    """What of a program's writer concerns matrix units."""

    def matrices(self, op: t.Load) -> Matrices | None:
        """A load by ldmatrix; None if its layout does not divide by a matrix."""
        shared = self.values[op.source]
        assert isinstance(shared, Shared) and isinstance(op.result.type, RegisterType)
        if shared.dtype.bits != 16 or op.bounds or op.dims[0] != -1:
            return None
        layout = permute(op.layout, op.dims[1:])
        for matrix, turned in ((MATRIX, False), (TURNED, True)):
            parts = divide(layout, matrix)
            if parts is not None:
                return self._matrices(op, shared, parts, turned)
        return None

    def _matrices(self, op: t.Load, shared: Shared, parts: Layout, turned: bool) -> Matrices:
        count = min(4, parts.registers)
        lanes = [f"lane / {SIDE << bit} % 2" for bit in range(count.bit_length() - 1)]
        at: list[list[str]] = [["lane % 8"], []]
        for bit, text in enumerate(lanes):
            down, across = parts.index(0, 1 << bit)
            at[0].append(times(text, str(down * SIDE)))
            at[1].append(times(text, str(across)))
        warp_row = times(thread_part(parts, 0, "(thread / 32)"), str(SIDE))
        warp_piece = thread_part(parts, 1, "(thread / 32)")
        row = self.constant("row", added([*at[0], warp_row]))
        swizzled = shared.swizzled("lane % 8")
        piece = added([*at[1], warp_piece])
        piece = piece if swizzled == "0" else f"({piece}) ^ ({swizzled})"
        slot = self.index(op.rest[0])
        start = self.text.name(f"{shared.name}_slot")
        offset = self.constant("from", times(row, str(shared.row_bytes)))
        self.text.line(f"const unsigned char* const {start} = {shared.start(slot)} + {offset};")
        return Matrices(parts, turned, count, shared, start, self.constant("piece", piece))

    def constant(self, hint: str, text: str) -> str:
        """A name for what depends on the thread only, computed once."""
        if text.isidentifier() or text.isdigit():
            return text
        if text not in self.named:
            self.named[text] = self.text.name(hint)
            self.head.append(f"  const int {self.named[text]} = {text};")
        return self.named[text]

    def read_shared(self, op: t.Load) -> None:
        """A tile out of shared memory into registers."""
        matrices = self.matrices(op)
        out = self.declare(op.result)
        if matrices is not None:
            with self.text.each("g", matrices.groups) as g:
                place = times(g, str(matrices.count))
                words = f"tw::group<{matrices.count}>({out.name}, {place})"
                self.text.line(matrices.load(words, g))
            return
        width = self._side_by_side(op)
        if width == 1:
            self.fill(out, lambda register: self._shared_element(op, register))
            return
        size = width * 2
        with self.text.each("i", out.layout.registers // width) as i:
            place = self._element_place(op, times(i, str(width)))
            self.text.line(f"const tw::Vec<{size}> v = tw::shared_load_vec<{size}>({place});")
            with self.text.each("w", width // 2) as w:
                at = added([times(i, str(width // 2)), w])
                self.text.line(f"{out.name}[{at}] = v.words[{w}];")

    def _side_by_side(self, op: t.Load) -> int:
        """How many 16-bit floats of a row of shared memory neighbouring registers hold."""
        digits = op.layout.digits()[0]
        halves = op.result.type.dtype in HALVES  # type: ignore[union-attr]
        if not halves or not digits or digits[0][:2] != (op.dims[-1], 1):
            return 1
        return min(digits[0][2], 8)

    def _shared_element(self, op: t.Load, register: str) -> str:
        """One element of a tile out of shared memory, as a scalar."""
        shared = self.values[op.source]
        assert isinstance(shared, Shared)
        kind = c_type(shared.dtype)
        load = f"tw::shared_load<{kind}>({self._element_place(op, register)})"
        return f"tw::to_float({load})" if shared.dtype in HALVES else load

    def _element_place(self, op: t.Load, register: str) -> str:
        """Where an element of a tile lies in shared memory."""
        shared = self.values[op.source]
        assert isinstance(shared, Shared)
        threads = [thread_part(op.layout, dim) for dim in op.dims[1:]]
        registers = [register_part(op.layout, dim, register) for dim in op.dims[1:]]
        return self._shared_place(shared, self.index(op.rest[0]), threads, registers)

    def _shared_place(
        self, shared: Shared, slot: str, threads: list[str], registers: list[str]
    ) -> str:
        """The address of an element from what thread and register add to its row and column.

        They add bits at different places, so that what a swizzle makes of the thread's part is
        computed once.
        """
        size = shared.dtype.bits // 8
        width = SWIZZLED_BYTES // size
        parts, pieces = [], []
        for row, column in (threads, registers):
            inside = times(f"{atom(column)} % {width}", str(size)) if column != "0" else "0"
            parts.append(added([times(row, str(shared.row_bytes)), inside]))
            terms = [f"{atom(column)} / {width}"] if column != "0" else []
            swizzled = shared.swizzled(row) if row != "0" else "0"
            terms += [f"({swizzled})"] if swizzled != "0" else []
            pieces.append(" ^ ".join(terms) or "0")
        piece = self.constant("piece", pieces[0])
        piece = piece if pieces[1] == "0" else f"({piece} ^ {pieces[1]})"
        start = shared.start(slot)
        return added([start, self.constant("from", parts[0]), parts[1], times(piece, "16")])

    def _tile_matrix_product(self, op: t.MatrixProduct) -> None:
        unit = UNITS[op.unit]
        acc, a = self.tile(op.acc), self.tile(op.a)
        if a.dtype not in (*HALVES, F32):
            raise UnsupportedError(f"{unit.name} of {a.dtype} in the cuda back end", op.loc)
        lazy = self.values[op.b]
        matrices = self.matrices(lazy.op) if isinstance(lazy, Lazy) else None
        words = isinstance(lazy, Lazy) and (matrices is not None or a.dtype == F32)
        b = None if words else self.tile(op.b)
        out = self.declare(op.result)
        self.assign(out, acc)
        assert isinstance(op.b.type, RegisterType)
        parts = warp_parts(unit, acc.layout, a.layout, op.b.type.layout)
        assert parts is not None
        call = replace(CALLS[unit.name], text=CALLS[unit.name].text.format(c_type(a.dtype)))
        if matrices is not None and matrices.count == 4:
            self._streamed(matrices, parts, call, out, a)
        elif words and matrices is None:
            with self.text.each("f", parts[2].registers) as f:
                side = self.text.name("b")
                places = [added([times(f, str(call.right)), str(x)]) for x in range(call.right)]
                values = ", ".join(self._shared_element(lazy.op, at) for at in places)
                self.text.line(f"const float {side}[{call.right}] = {{{values}}};")
                self._multiply(parts, call, out, a, f, side)
        else:
            b = b or self.tile(op.b)
            with self.text.each("f", parts[2].registers) as f:
                right = f"tw::group<{call.right}>({b.name}, {times(f, str(call.right))})"
                self._multiply(parts, call, out, a, f, right)

    def _tile_group_product(self, op: t.GroupProduct) -> None:
        """``wgmma``: the right side is read from shared memory by the instruction itself."""
        acc, a, shared = self.tile(op.acc), self.tile(op.a), self.values[op.b]
        assert isinstance(shared, Shared)
        (rows, terms), columns = a.layout.shape, acc.layout.shape[1]
        out = self.declare(op.result)
        self.assign(out, acc)
        side = self.text.name(f"{shared.name}_tile")
        line, slot = shared.row_bytes, shared.type.shape[1] * shared.row_bytes
        start = shared.start(self.index(op.first))
        place = f"tw::wgmma_descriptor({start}, {slot}, {SIDE * line}, {line})"
        self.text.line(f"const uint64_t {side} = {place};")
        self.text.line("tw::wgmma_fence();")
        turned = 0 if tuple(op.dims) == (1, 0) else 1
        call = f"tw::wgmma<{c_type(a.dtype)}, {columns}, {turned}>"
        groups = acc.layout.lanes // (GROUP_WARPS * WARP)
        parts = rows // (GROUP_ROWS * groups)
        with self.text.each("k", terms // 16) as k, self.text.each("m", parts) as m:
            at = self._group_offset(k, line, slot, turned)
            left = times(added([times(m, str(terms // 16)), k]), "4")
            sums = f"tw::group<{columns // 2}>({out.name}, {times(m, str(columns // 2))})"
            words = f"tw::group<4>({a.name}, {left})"
            self.text.line(f"{call}({sums}, {words}, {added([side, at])});")
        self.text.line("tw::wgmma_commit();")
        self.text.line("tw::wgmma_wait<0>();")

    def _group_offset(self, k: str, line: int, slot: int, turned: int) -> str:
        """What 16 terms further on add to a descriptor, which counts pieces of 16 bytes."""
        if turned:
            return times(k, str(16 * line // 16))
        per = line // 32  # instructions in a row of a slot
        return counted(k, [(per, 2), (1 << 16, slot // 16)])

    def _tile_fence(self, op: Op) -> None:
        self.text.line("tw::fence_async();")

    def _streamed(
        self, matrices: Matrices, parts: tuple[Layout, ...], call: Call, out: Tile, a: Tile
    ) -> None:
        """A product that reads its right side two instructions' operands at a time."""
        with self.text.each("g", matrices.groups) as g:
            words = self.text.name("b")
            self.text.line(f"uint32_t {words}[4];")
            self.text.line(matrices.load(words, g))
            with self.text.each("f", 2) as f:
                at = added([times(g, "2"), f])
                self._multiply(parts, call, out, a, at, f"tw::group<2>({words}, {times(f, '2')})")

    def _multiply(
        self, parts: tuple[Layout, ...], call: Call, out: Tile, a: Tile, f: str, b: str
    ) -> None:
        """All products with one operand of the right side: its number ``f`` says which."""
        acc, left, right = parts
        k, n = (register_part(right, dim, f) for dim in (0, 1))
        with self.text.each("m", _row_parts(acc)) as m:
            at = times(_number(acc, (times(m, str(_row_step(acc))), n)), "4")
            from_ = times(_number(left, (times(m, str(_row_step(left))), k)), str(call.left))
            sums, words = f"tw::group<4>({out.name}, {at})", f"tw::group<{call.left}>"
            self.text.line(f"{call.text}({sums}, {words}({a.name}, {from_}), {b});")


def _row_parts(layout: Layout) -> int:
    """How many instructions' rows a warp has."""
    return math.prod(size for dim, _, size in layout.digits()[0] if dim == 0)


def _row_step(layout: Layout) -> int:
    """How far apart a warp's rows lie, in rows of an instruction."""
    return next((stride for dim, stride, _ in layout.digits()[0] if dim == 0), 1)


def _number(layout: Layout, index: tuple[str, str]) -> str:
    """The register of an instruction's tile [m, n]; dimensions are whole digits of registers."""
    terms, place = [], 1
    for dim, stride, size in layout.digits()[0]:
        terms.append(times(digit(index[dim], stride, size, stride * size), str(place)))
        place *= size
    return added(terms)
