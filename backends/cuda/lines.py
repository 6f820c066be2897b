"""Lines of memory that offsets name, as C++: loads and copies of rows in any order."""

from __future__ import annotations

from tilewright.backends.cuda.pointwise import HALVES, c_type
from tilewright.backends.cuda.text import added, atom, register_of, register_part, times
from tilewright.backends.cuda.tiles import Buffer, Shared, Tile, Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_lines import Lines
from tilewright.ir.types import SWIZZLED_BYTES, RegisterType


class LineOps(Writer):
    """What of a program's writer concerns lines."""

    def thread(self, layout: Layout, dim: int) -> str:
        """The name of what a thread's number adds along a dimension."""
        raise NotImplementedError

    def divides(self, value: Value, width: int) -> bool:
        """True for numbers known to be multiples of ``width``."""
        raise NotImplementedError

    def from_word(self, tile: Tile, word: str) -> str:
        """A word out of memory as what a tile's registers hold."""
        raise NotImplementedError

    def _line_places(
        self, op: t.LoadLines | t.CopyLines, limits: tuple[Value, ...]
    ) -> tuple[str, Tile, str]:
        """A pointer to the first line, the offsets of all, and how many elements a line has
        ("": as many as the tile)."""
        held = self.values[op.source]
        assert isinstance(held, Buffer)
        start = added([held.pointer, self.index(op.offset)])
        base = self.bind(f"const {c_type(held.dtype)}* const", f"{held.pointer}_at", start)
        left = ""
        if limits:
            left = self.index(limits[0])
            most = op.layout.shape[op.dim]
            if not left.isdigit():
                text = f"static_cast<int>(tw::smaller({left}, {most}))"
                left = self.bind("const int", "left", text)
        return base, self.tile(op.offsets), left

    def _line_element(
        self, op: Lines, layout: Layout, offsets: Tile, register: str, left: str = ""
    ) -> tuple[str, str]:
        """The offset of a register's element, and whether it is read or written ("": it is)."""
        here = added([self.thread(layout, op.dim), register_part(layout, op.dim, register)])
        line = self.element(offsets, register_of(offsets.layout, layout, register))
        tests = [f"{here} < {left}"] if left else []
        tests += [f"{line} >= 0"] if op.gaps else []
        return added([line, here]), " && ".join(tests)

    def _tile_load_lines(self, op: t.LoadLines) -> None:
        held, layout = self.values[op.source], op.layout
        base, offsets, left = self._line_places(op, op.rest)
        out = self.declare(op.result)
        size, width = held.dtype.bits // 8, self._line_width(op)
        if width == 1:
            zero = "0.0f" if out.dtype.is_float else "0"

            def element(register: str) -> str:
                at, inside = self._line_element(op, layout, offsets, register, left)
                load = f"tw::global_load({base} + {atom(at)})"
                load = f"tw::to_float({load})" if out.dtype in HALVES else load
                return f"{inside} ? {load} : {zero}" if inside else load

            self.fill(out, element)
            return
        words = width * size // 4
        with self.text.each("i", layout.registers // width) as i:
            at, inside = self._line_element(op, layout, offsets, times(i, str(width)), left)
            kind = f"tw::Vec<{width * size}>"
            load = f"tw::global_load_vec<{width * size}>({base} + {atom(at)})"
            load = f"{inside} ? {load} : {kind}{{}}" if inside else load
            vector = self.bind(f"const {kind}", "v", load)
            with self.text.each("w", words) as w:
                place = added([times(i, str(words)), w])
                word = self.from_word(out, f"{vector}.words[{w}]")
                self.text.line(f"{out.name}[{place}] = {word};")

    def _line_width(self, op: t.LoadLines) -> int:
        """How many elements of a line a thread loads at once."""
        assert isinstance(op.result.type, RegisterType)
        digits, bits = op.layout.digits()[0], op.result.type.dtype.bits
        if not digits or digits[0][:2] != (op.dim, 1) or bits not in (16, 32):
            return 1
        if bits == 16 and not op.result.type.dtype.is_float:
            return 1
        width = min(digits[0][2], 16 * 8 // bits)
        held = self.values[op.source]
        while width > 1 and not self._aligned(held, op, op.rest, width):
            width //= 2
        return self.at_once(held, width) if width * bits >= 32 else 1

    def at_once(self, held: Buffer, width: int) -> int:
        """How many elements of a buffer are moved at once."""
        if width > 1:
            self.wide.add(held.number)
        return width

    def _aligned(self, held: Buffer, op: Lines, limits: tuple[Value, ...], width: int) -> bool:
        """True if lines begin at, and end before, multiples of ``width`` elements."""
        given = op.offset, op.offsets, *limits
        return held.lines and all(self.divides(v, width) for v in given)

    def _tile_copy_lines(self, op: t.CopyLines) -> None:
        shared, layout = self.values[op.target], op.layout
        assert isinstance(shared, Shared)
        slot, limits = self.index(op.rest[0]), op.rest[3:]
        base, offsets, left = self._line_places(op, limits)
        size = shared.dtype.bits // 8
        width = SWIZZLED_BYTES // size
        held = self.values[op.source]
        aligned = self._aligned(held, op, limits, width)
        self.at_once(held, width if aligned else 1)
        owner = self.owner(layout)
        if owner:
            self.text.line(f"if ({owner}) {{")
            self.text.depth += 1
        with self.text.each("i", layout.registers // width) as i:
            register = times(i, str(width))
            row, column = (
                added([self.thread(layout, d), register_part(layout, d, register)])
                for d in (op.to[1], op.to[2])
            )
            place = shared.at(slot, row, column)
            if aligned:
                at, inside = self._line_element(op, layout, offsets, register, left)
                more = f", {inside}" if inside else ""
                self.text.line(f"tw::copy_async<16>({place}, {base} + {atom(at)}{more});")
            else:
                self._line_by_elements(op, place, (base, offsets, register, left), width)
        if owner:
            self.text.depth -= 1
            self.text.line("}")

    def _line_by_elements(
        self, op: t.CopyLines, place: str, line: tuple[str, Tile, str, str], width: int
    ) -> None:
        """Part of a line, one element after the other, where memory does not lie in lines."""
        base, offsets, register, left = line
        dtype = self.values[op.target].dtype
        kind, size = c_type(dtype), dtype.bits // 8
        name = self.bind("unsigned char* const", "place", place)
        with self.text.each("w", width) as w:
            at, inside = self._line_element(op, op.layout, offsets, added([register, w]), left)
            load = f"tw::global_load({base} + {atom(at)})"
            load = f"{inside} ? {load} : {kind}{{}}" if inside else load
            self.text.line(f"tw::shared_store<{kind}>({name} + {w} * {size}, {load});")

    def _tile_store_lines(self, op: t.StoreLines) -> None:
        assert isinstance(op.value.type, RegisterType)
        layout, dtype, held = op.value.type.layout, op.value.type.dtype, self.values[op.target]
        assert isinstance(held, Buffer)
        start = added([held.pointer, self.index(op.offset)])
        base = self.bind(f"{c_type(dtype)}* const", f"{held.pointer}_at", start)
        value, offsets, owner = self.tile(op.value), self.tile(op.offsets), self.owner(layout)
        digits, width = layout.digits()[0], 1
        if dtype in HALVES and digits and digits[0][:2] == (op.dim, 1):
            width = min(digits[0][2], 8)
            while width > 1 and not self._aligned(held, op, (), width):
                width //= 2
            self.at_once(held, width)
        with self.text.each("i", layout.registers // width) as i:
            register = times(i, str(width))
            at, inside = self._line_element(op, layout, offsets, register)
            tests = " && ".join(text for text in (owner, inside) if text)
            guard = f"if ({tests}) " if tests else ""
            if width > 1:
                words = (added([times(i, str(width // 2)), str(w)]) for w in range(width // 2))
                parts = ", ".join(f"{value.name}[{w}]" for w in words)
                vector = f"tw::Vec<{width * 2}>{{{{{parts}}}}}"
                store = f"tw::global_store_vec<{width * 2}>"
                self.text.line(f"{guard}{store}({base} + {atom(at)}, {vector});")
            else:
                x = self.element(value, register)
                x = f"tw::to_{dtype}({x})" if dtype in HALVES else x
                self.text.line(f"{guard}tw::global_store({base} + {atom(at)}, {x});")
