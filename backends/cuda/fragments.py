"""Matrix units: operands out of shared memory in the instruction's layout, and products.

A load from shared memory becomes ``ldmatrix`` just if its layout divides by that of the eight by
eight matrix that the instruction hands out to a warp, or by the transposed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

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
from tilewright.backends.cuda.tiles import Lazy, Shared, Tile
from tilewright.backends.cuda.units import CALLS, Call, UnitOps, row_parts, row_step
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, column_spatial, spatial
from tilewright.ir.layout_algebra import divide, permute
from tilewright.ir.matrix_units import GROUP_ROWS, GROUP_WARPS, UNITS, WARP
from tilewright.ir.ops_math import Const
from tilewright.ir.ops_tile_threads import warp_parts
from tilewright.ir.types import RegisterType

MATRIX = spatial(8, 4).local(1, 2)  # [rows, columns] of memory that a warp's words hold
TURNED = column_spatial(4, 8).local(2, 1)
SIDE = 8  # rows and columns of a matrix


@dataclass(frozen=True)
class Left:
    """A left side that is read from shared memory in the course of its product: all ``rows`` parts
    of a warp's rows whenever ``turns`` groups of the right side have been used."""

    lazy: Lazy
    matrices: Matrices
    turns: int
    rows: int


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


class FragmentOps(UnitOps):
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
        offset = self.local(self.constant("from", times(row, str(shared.row_bytes))))
        self.text.line(f"const unsigned char* const {start} = {shared.start(slot)} + {offset};")
        piece = self.local(self.constant("piece", piece))
        if self.anew is not None:
            piece = f"tw::anew({piece})"  # else every piece of a row is kept for the next rows
        return Matrices(parts, turned, count, shared, start, piece)

    def read_matrices(self, op: t.Load, out: Tile) -> bool:
        matrices = self.matrices(op)
        if matrices is None:
            return False
        with self.text.each("g", matrices.groups) as g:
            place = times(g, str(matrices.count))
            words = f"tw::group<{matrices.count}>({out.name}, {place})"
            self.text.line(matrices.load(words, g))
        return True

    def _tile_matrix_product(self, op: t.MatrixProduct) -> None:
        unit = UNITS[op.unit]
        assert isinstance(op.a.type, RegisterType) and isinstance(op.b.type, RegisterType)
        dtype = op.a.type.dtype
        if dtype not in (*HALVES, F32):
            raise UnsupportedError(f"{unit.name} of {dtype} in the cuda back end", op.loc)
        parts = warp_parts(unit, op.acc.type.layout, op.a.type.layout, op.b.type.layout)  # type: ignore[union-attr]
        assert parts is not None
        call = replace(CALLS[unit.name], text=CALLS[unit.name].text.format(c_type(dtype)))
        lazy = self.values[op.b]
        matrices = self.matrices(lazy.op) if isinstance(lazy, Lazy) else None
        streamed = matrices is not None and matrices.count == 4
        left = self._left_matrices(op, parts) if streamed else None
        a = self.declare(op.a) if left is not None else self.tile(op.a)
        words = isinstance(lazy, Lazy) and (matrices is not None or dtype == F32)
        b, acc = None if words else self.tile(op.b), self.tile(op.acc)
        out = self.declare(op.result)
        self.assign(out, acc)
        if matrices is not None and streamed:
            self._streamed(matrices, parts, call, out, a, left)
            if left is not None:
                self.values[op.a] = left.lazy  # not all of it is kept
        elif words and matrices is None:
            with self.text.each("f", parts[2].registers) as f:
                side = self.text.name("b")
                places = [added([times(f, str(call.right)), str(x)]) for x in range(call.right)]
                values = ", ".join(self._shared_element(lazy.op, at) for at in places)
                self.text.line(f"const float {side}[{call.right}] = {{{values}}};")
                self.multiply(parts, call, out, a, f, side)
        else:
            b = b or self.tile(op.b)
            with self.text.each("f", parts[2].registers) as f:
                right = f"tw::group<{call.right}>({b.name}, {times(f, str(call.right))})"
                self.multiply(parts, call, out, a, f, right)

    def _tile_group_product(self, op: t.GroupProduct) -> None:
        self._group_begin(op)
        self._group_end(self.tile(op.result), 0)

    def _tile_group_begin(self, op: t.GroupBegin) -> None:
        self._group_begin(op)

    def _tile_group_wait(self, op: t.GroupWait) -> None:
        self.values[op.result] = x = self.tile(op.x)
        terms = []
        for tile in map(self.tile, op.after):
            terms += [self.element(tile, str(i)) for i in range(tile.layout.registers)]
        if terms:
            self.text.line(f"tw::warp_barrier_after({added(terms)}, {self.zero()});")
        self._group_end(x, op.pending)

    def zero(self) -> str:
        """A number that is 0, which a compiler cannot know."""
        sizes = [*self.sizes.values(), "0LL"]
        return self.constant("zero", f"static_cast<int>({sizes[0]} >> 62)")

    def _group_end(self, x: Tile, pending: int) -> None:
        self.text.line(f"tw::wgmma_wait<{pending}>();")
        self.text.line(f"tw::wgmma_ended({x.name});")

    def _group_begin(self, op: t.GroupProduct) -> None:
        """``wgmma``: the right side is read from shared memory by the instruction itself, the left
        one if it lies there."""
        shared, from_zero = self.values[op.b], self._is_zero(op.acc)
        assert isinstance(shared, Shared) and isinstance(op.acc.type, RegisterType)
        (rows, terms), columns = op.left_shape, op.acc.type.shape[1]
        groups = op.acc.type.layout.lanes // (GROUP_WARPS * WARP)
        left = self._group_left(op, groups)
        if from_zero:
            out = self.declare(op.result)
        else:
            acc = self.tile(op.acc)
            out = self.declare(op.result)
            self.assign(out, acc)
        side = self._descriptor(shared, shared.start(self.index(op.first)))
        self.text.line("tw::wgmma_fence();")
        turned = 0 if tuple(op.dims) == (1, 0) else 1
        call = f"tw::wgmma<{c_type(shared.type.dtype)}, {columns}, {turned}>"
        parts = rows // (GROUP_ROWS * groups)
        with self.text.each("k", terms // 16) as k, self.text.each("m", parts) as m:
            at = self._group_offset(k, shared, turned)
            sums = f"tw::group<{columns // 2}>({out.name}, {times(m, str(columns // 2))})"
            more = f", {k} > 0" if from_zero else ""
            self.text.line(f"{call}({sums}, {left(k, m)}, {added([side, at])}{more});")
        self.text.line("tw::wgmma_commit();")

    def before_loop(self, region: Region) -> None:
        """Left sides that the region's warp groups take, and that are read before it: other loops
        take them, too."""
        inside = {v for op in region.walk() for v in op.results}
        for op in region.walk():
            if not isinstance(op, t.GroupProduct) or op.a in inside:
                continue
            if isinstance(self.values.get(op.a), Lazy):
                self.tile(op.a)

    def _group_left(self, op: t.GroupProduct, groups: int) -> Callable[[str, str], str]:
        """The left side of the instruction for terms ``k`` and the group's rows ``m``: registers,
        or the descriptor of 64 rows in shared memory."""
        shared, (_, terms) = self.values[op.a], op.left_shape
        if not isinstance(shared, Shared):
            a = self.tile(op.a)

            def words(k: str, m: str) -> str:
                at = times(added([times(m, str(terms // 16)), k]), "4")
                return f"tw::group<4>({a.name}, {at})"

            return words
        rows = GROUP_ROWS * shared.row_bytes
        own = added([shared.name, times(f"thread / {GROUP_WARPS * WARP}", str(rows))])
        side = self._descriptor(shared, own)

        def descriptor(k: str, m: str) -> str:
            down = times(m, str(groups * rows // 16))
            return added([side, self._group_offset(k, shared, 0), down])

        return descriptor

    def _descriptor(self, shared: Shared, start: str) -> str:
        """The name of a descriptor of what lies in shared memory from ``start`` on."""
        name, line = self.text.name(f"{shared.name}_tile"), shared.row_bytes
        place = f"tw::wgmma_descriptor({start}, {_slot_bytes(shared)}, {SIDE * line}, {line})"
        self.text.line(f"const uint64_t {name} = {place};")
        return name

    def only_begins(self, value: Value) -> bool:
        """True for zeros that nothing but products of warp groups begin with."""
        users = self.users.get(value, [])
        first = [isinstance(u, t.GroupProduct) and u.acc is value is not u.a for u in users]
        once = bool(users) and all(first) and value not in self.yielded
        return once and self._is_zero(value)

    @cached_property
    def yielded(self) -> set[Value]:
        """What loops carry on."""
        return {v for op in self.graph.body.walk() for r in op.regions for v in r.yields}

    def _is_zero(self, value: Value) -> bool:
        """True for sums that begin with zero: the instruction needs none in its registers."""
        op = self.made.get(value)
        return isinstance(op, Const) and op.value == 0

    def _group_offset(self, k: str, shared: Shared, turned: int) -> str:
        """What 16 terms further on add to a descriptor, which counts pieces of 16 bytes."""
        line, slot = shared.row_bytes, _slot_bytes(shared)
        if turned:
            return times(k, str(16 * line // 16))
        per = line // 32  # instructions in a row of a slot
        return counted(k, [(per, 2), (1 << 16, slot // 16)])

    def _tile_fence(self, op: Op) -> None:
        self.text.line("tw::fence_async();")

    def _left_matrices(self, op: t.MatrixProduct, parts: tuple[Layout, ...]) -> Left | None:
        """How a product reads its left side as it goes: where that lies in shared memory, and the
        right side comes k after k."""
        lazy = self.values[op.a]
        if not isinstance(lazy, Lazy):
            return None
        _, left, right = parts
        ks = [right.index(0, f)[0] for f in range(right.registers)]
        turns = ks.count(0)
        in_order = ks == [f // turns for f in range(right.registers)] and turns % 2 == 0
        rows = row_parts(left)
        order = [left.index(0, r) for r in range(left.registers)]
        whole = order == [(r % rows * row_step(left), r // rows) for r in range(left.registers)]
        matrices = self.matrices(lazy.op) if in_order and whole else None
        if matrices is None or matrices.count != 4:
            return None
        return Left(lazy, matrices, turns // 2, rows)

    def _streamed(
        self,
        matrices: Matrices,
        parts: tuple[Layout, ...],
        call: Call,
        out: Tile,
        a: Tile,
        left: Left | None,
    ) -> None:
        """A product that reads its right side two instructions' operands at a time, and its left
        side k after k."""
        with self.text.each("g", matrices.groups) as g:
            if left is not None:
                head = f"if ({atom(g)} % {left.turns} == 0)" if left.turns > 1 else ""
                with self.text.block(head), self.text.each("m", left.rows) as m:
                    turn = digit(g, left.turns, matrices.groups, matrices.groups)
                    part = added([times(turn, str(left.rows)), m])
                    side = f"tw::group<4>({a.name}, {times(part, '4')})"
                    self.text.line(left.matrices.load(side, part))
            words = self.text.name("b")
            self.text.line(f"uint32_t {words}[4];")
            self.text.line(matrices.load(words, g))
            with self.text.each("f", 2) as f:
                at = added([times(g, "2"), f])
                self.multiply(parts, call, out, a, at, f"tw::group<2>({words}, {times(f, '2')})")


def _slot_bytes(shared: Shared) -> int:
    """Bytes from a slot to the next."""
    return shared.type.shape[1] * shared.row_bytes
