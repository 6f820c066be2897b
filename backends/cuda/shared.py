"""Shared memory read and written element by element, or a few neighbours at once, as C++."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.cuda.pointwise import HALVES, c_type
from tilewright.backends.cuda.text import added, atom, register_part, thread_part, times
from tilewright.backends.cuda.tiles import Shared, Tile, Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.types import SWIZZLED_BYTES, RegisterType


class SharedOps(Writer):
    """What of a program's writer concerns elements of shared memory."""

    def read_matrices(self, op: t.Load, out: Tile) -> bool:
        """Writes a load by ldmatrix; False where its layout does not divide by a matrix."""
        raise NotImplementedError

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
        out = self.declare(op.result)
        if self.read_matrices(op, out):
            return
        width = self._side_by_side(op)
        if width == 1:
            self.fill(out, lambda register: self._shared_element(op, register))
            return
        size = width * 2
        with self.text.each("i", out.layout.registers // width) as i:
            place = self._element_place(op, times(i, str(width)))
            load = f"tw::shared_load_vec<{size}>({place})"
            vector = self.bind(f"const tw::Vec<{size}>", "v", load)
            with self.text.each("w", width // 2) as w:
                at = added([times(i, str(width // 2)), w])
                self.text.line(f"{out.name}[{at}] = {vector}.words[{w}];")

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
        return self._place_of(op.layout, op.source, op.dims, op.rest[0], register)

    def _place_of(
        self, layout: Layout, memory: Value, dims: Sequence[int], slot: Value, register: str
    ) -> str:
        """The address of a register's element of a tile that begins where a slot does."""
        shared = self.values[memory]
        assert isinstance(shared, Shared)
        threads = [thread_part(layout, dim) for dim in dims[1:]]
        registers = [register_part(layout, dim, register) for dim in dims[1:]]
        return self._shared_place(shared, self.index(slot), threads, registers)

    def write_shared(self, op: t.Store) -> None:
        """Registers into shared memory, as many neighbours of a row at once as a thread has."""
        assert isinstance(op.value.type, RegisterType)
        layout, dtype = op.value.type.layout, op.value.type.dtype
        if op.bounds or op.dims[0] != -1 or dtype not in (*HALVES, F32):
            raise UnsupportedError(f"a store of {dtype} to shared memory", op.loc)
        value, size, digits = self.tile(op.value), dtype.bits // 8, layout.digits()[0]
        beside = digits[0][2] if digits and digits[0][:2] == (op.dims[-1], 1) else 1
        width = min(beside, SWIZZLED_BYTES // size)
        words = width * size // 4
        if not words:
            raise UnsupportedError("single floats of 16 bits into shared memory", op.loc)
        owner = self.owner(layout)
        head = f"if ({owner})" if owner else ""
        with self.text.block(head), self.text.each("i", layout.registers // width) as i:
            given = layout, op.target, op.dims, op.rest[0], times(i, str(width))
            places = (added([times(i, str(words)), str(w)]) for w in range(words))
            names = [f"{value.name}[{place}]" for place in places]
            if dtype == F32:
                names = [f"tw::float_to_bits({name})" for name in names]
            vector = f"tw::Vec<{4 * words}>{{{{{', '.join(names)}}}}}"
            self.text.line(
                f"tw::shared_store_vec<{4 * words}>({self._place_of(*given)}, {vector});"
            )

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
        piece = self.local(self.constant("piece", pieces[0]))
        piece = piece if pieces[1] == "0" else f"({piece} ^ {pieces[1]})"
        start = shared.start(slot)
        place = self.local(self.constant("from", parts[0]))
        return added([start, place, parts[1], times(piece, "16")])
