"""Loads, stores and copies of tiles of threads as C++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.backends.cuda.neighbours import NeighbourOps
from tilewright.backends.cuda.pointwise import HALVES, c_type, literal
from tilewright.backends.cuda.text import (
    added,
    atom,
    counted,
    register_part,
    thread_part,
    times,
)
from tilewright.backends.cuda.tiles import Buffer, Lazy, Shared, Tile
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_memory import CopyAsync
from tilewright.ir.types import SWIZZLED_BYTES, RegisterType

COPIES_AT_ONCE = 8  # of a thread whose addresses are at hand


@dataclass(frozen=True)
class Window:
    """A tile in memory: its base pointer, what a thread adds there, and the limits along tile
    dimensions as text of how many positions are left."""

    base: str
    strides: dict[int, str]  # of tile dimensions
    left: dict[int, str]


class MemoryOps(NeighbourOps):
    """What of a program's writer concerns memory."""

    # ---- the caller's memory

    def _window(
        self, op: t.Load | t.Store | CopyAsync, memory: Value, rest: Sequence[Value]
    ) -> Window:
        held = self.values[memory]
        assert isinstance(held, Buffer)
        rank = len(held.strides)
        at = [self.index(v) for v in rest[:rank]]
        limits = dict(zip([d for d, _ in op.bounds], rest[rank:], strict=True))
        terms, strides, left = [], {}, {}
        for here, stride, dim in zip(at, held.strides, op.dims, strict=True):
            terms.append(times(here, stride))
            if dim >= 0:
                strides[dim] = stride
                if dim in limits:
                    end = self.index(limits[dim])
                    left[dim] = end if here == "0" else f"{atom(end)} - {atom(here)}"
        layout: Layout = op.value.type.layout if isinstance(op, t.Store) else op.layout  # type: ignore[union-attr]
        base = self.text.name(f"{held.pointer}_at")
        constant = "" if isinstance(op, t.Store) else "const "
        start = added([held.pointer, *terms])
        self.text.line(f"{constant}{c_type(held.dtype)}* const {base} = {start};")
        named = {}
        for dim, end in left.items():
            named[dim] = end
            if not end.isdigit():
                named[dim] = self.limit(end, layout.shape[dim])
        return Window(base, strides, named)

    def limit(self, left: str, most: int) -> str:
        """The name of how many of a tile's positions are left, in 32 bits."""
        return self.bind("const int", "left", f"static_cast<int>(tw::smaller({left}, {most}))")

    def _places(self, layout: Layout, window: Window, register: str) -> tuple[str, str]:
        """The offset of a register's element, and whether it lies within the limits ("": yes)."""
        offset, inside = [], []
        for dim in range(layout.rank):
            if layout.shape[dim] == 1 and dim not in window.left:
                continue
            here = self._element_at(layout, dim, register)
            if dim in window.strides:
                offset.append(times(here, window.strides[dim]))
            if dim in window.left:
                inside.append(f"{here} < {window.left[dim]}")
        return added(offset), " && ".join(inside)

    def _element_at(self, layout: Layout, dim: int, register: str) -> str:
        """Where a thread's register lies along a dimension of its tile."""
        return added([self.thread(layout, dim), register_part(layout, dim, register)])

    def _width(self, op: t.Load | t.Store, memory: Value, layout: Layout) -> int:
        """How many neighbouring elements a thread moves at once: those that its registers hold
        side by side, where memory has them side by side, too, and no limit cuts them."""
        held = self.values[memory]
        assert isinstance(held, Buffer)
        if not held.lines or held.unit < 0 or held.dtype == BOOL:
            return 1
        dim = op.dims[held.unit]
        digits = layout.digits()[0]
        if dim < 0 or not digits or digits[0][:2] != (dim, 1):
            return 1
        most = 16 * 8 // held.dtype.bits
        width = min(digits[0][2], most)
        first = op.rest[held.unit]
        ends = [v for v, (d, _) in zip(op.rest[len(op.dims) :], op.bounds, strict=True) if d == dim]
        while width > 1 and not all(self.divides(v, width) for v in (first, *ends)):
            width //= 2
        return self.at_once(held, width)

    def _tile_load(self, op: t.Load) -> None:
        if isinstance(self.values[op.source], Shared):
            self.values[op.result] = Lazy(op)
            return
        layout = op.layout
        window = self._window(op, op.source, op.rest)
        out = self.declare(op.result)
        width = self._width(op, op.source, layout)
        held = self.values[op.source]
        assert isinstance(held, Buffer)
        size = held.dtype.bits // 8
        if any(kind == "clamp" for _, kind in op.bounds):
            raise UnsupportedError("a clamped load in the cuda back end", op.loc)
        if width * size < 4 or width == 1:
            self._single_loads(out, layout, window, held)
            return
        words = width * size // 4
        with self.text.each("i", layout.registers // width) as i:
            at = "0" if i == "0" else f"{i} * {width}"
            offset, inside = self._places(layout, window, at)
            load = f"tw::global_load_vec<{width * size}>({window.base} + {offset})"
            kind = f"tw::Vec<{width * size}>"
            value = load if not inside else f"{inside} ? {load} : {kind}{{}}"
            vector = self.bind(f"const {kind}", "v", value)
            with self.text.each("w", words) as w:
                place = added([times(i, str(words)), w])
                if size != 4 and out.dtype not in HALVES:
                    raise UnsupportedError(f"vectors of {out.dtype}", op.loc)
                what = self.from_word(out, f"{vector}.words[{w}]")
                self.text.line(f"{out.name}[{place}] = {what};")

    def _single_loads(self, out: Tile, layout: Layout, window: Window, held: Buffer) -> None:
        zero = literal(0, out.dtype) if out.dtype not in HALVES else "0.0f"

        def element(register: str) -> str:
            offset, inside = self._places(layout, window, register)
            load = f"tw::global_load({window.base} + {offset})"
            if out.dtype in HALVES:
                load = f"tw::to_float({load})"
            return load if not inside else f"{inside} ? {load} : {zero}"

        self.fill(out, element)

    def _tile_store(self, op: t.Store) -> None:
        assert isinstance(op.value.type, RegisterType)
        layout, dtype = op.value.type.layout, op.value.type.dtype
        if isinstance(self.values[op.target], Shared):
            self.write_shared(op)
            return
        window = self._window(op, op.target, op.rest)
        value = self.tile(op.value)
        owner = self.owner(layout)
        width = self._width(op, op.target, layout)
        size = dtype.bits // 8
        if owner:
            self.text.line(f"if ({owner}) {{")
            self.text.depth += 1
        if width > 1 and dtype in HALVES:
            words = width * size // 4
            with self.text.each("i", layout.registers // width) as i:
                at = "0" if i == "0" else f"{i} * {width}"
                offset, inside = self._places(layout, window, at)
                guard = f"if ({inside}) " if inside else ""
                parts = [
                    f"{value.name}[{added([times(i, str(words)), str(w)])}]" for w in range(words)
                ]
                vector = f"tw::Vec<{width * size}>{{{{{', '.join(parts)}}}}}"
                store = f"tw::global_store_vec<{width * size}>"
                self.text.line(f"{guard}{store}({window.base} + {offset}, {vector});")
        else:
            with self.text.each("i", layout.registers) as i:
                offset, inside = self._places(layout, window, i)
                guard = f"if ({inside}) " if inside else ""
                x = self.element(value, i)
                x = f"tw::to_{dtype}({x})" if dtype in HALVES else x
                self.text.line(f"{guard}tw::global_store({window.base} + {atom(offset)}, {x});")
        if owner:
            self.text.depth -= 1
            self.text.line("}")

    def owner(self, layout: Layout) -> str:
        """Which threads store a tile: the lowest of those that hold copies ("": all do)."""
        terms, inner = [], 1
        lanes = layout.digits()[1]
        whole = layout.lanes
        if whole == 1:
            return "thread == 0"
        for _, stride, size in lanes:
            if stride == 0:
                terms.append(f"{counted('thread', [(inner, 0), (size, 1)], whole)} == 0")
            inner *= size
        return " && ".join(terms)

    def _tile_gather(self, op: t.Gather) -> None:
        held = self.values[op.source]
        assert isinstance(held, Buffer)
        first = self.index(op.offset)
        offsets, out = self.tile(op.offsets), self.declare(op.result)
        width = self.neighbours(op)
        if width > 1:
            size = width * held.dtype.bits // 8
            with self.text.each("i", out.layout.registers // width) as i:
                at = added([held.pointer, first, self.element(offsets, times(i, str(width)))])
                load = f"tw::global_load_vec<{size}>({at})"
                vector = self.bind(f"const tw::Vec<{size}>", "v", load)
                with self.text.each("w", width) as w:
                    to = f"{out.name}[{added([times(i, str(width)), w])}]"
                    self.text.line(f"{to} = {self.from_word(out, f'{vector}.words[{w}]')};")
            return

        def element(register: str) -> str:
            at = added([held.pointer, first, self.element(offsets, register)])
            load = f"tw::global_load({at})"
            return f"tw::to_float({load})" if held.dtype in HALVES else load

        self.fill(out, element)

    def _tile_scatter(self, op: t.Scatter) -> None:
        assert isinstance(op.value.type, RegisterType)
        held = self.values[op.target]
        assert isinstance(held, Buffer)
        first, dtype = self.index(op.offset), op.value.type.dtype
        value, offsets, inside = (self.tile(v) for v in (op.value, op.offsets, op.inside))
        guard = [self.owner(op.value.type.layout)]
        with self.text.each("i", op.value.type.layout.registers) as i:
            at = added([held.pointer, first, self.element(offsets, i)])
            x = self.element(value, i)
            x = f"tw::to_{dtype}({x})" if dtype in HALVES else x
            test = " && ".join(text for text in (*guard, self.element(inside, i)) if text)
            self.text.line(f"if ({test}) tw::global_store({at}, {x});")

    def _tile_read(self, op: t.Read) -> str:
        held = self.values[op.source]
        assert isinstance(held, Buffer)
        terms = [times(self.index(v), s) for v, s in zip(op.at, held.strides, strict=True)]
        return f"static_cast<long long>(tw::global_load({added([held.pointer, *terms])}))"

    # ---- copies into shared memory

    def _tile_copy_async(self, op: CopyAsync) -> None:
        shared, held = self.values[op.target], self.values[op.source]
        assert isinstance(shared, Shared) and isinstance(held, Buffer)
        rank = len(op.dims)
        slot = self.index(op.rest[rank])
        outside = [*op.rest[:rank], *op.rest[rank + len(op.to) :]]
        window = self._window(op, op.source, outside)
        layout, (row_dim, column_dim) = op.layout, (op.to[1], op.to[2])
        size = shared.dtype.bits // 8
        width = SWIZZLED_BYTES // size
        owner = self.owner(layout)
        if owner:
            self.text.line(f"if ({owner}) {{")
            self.text.depth += 1
        most = COPIES_AT_ONCE if self.anew is None else COPIES_AT_ONCE // 2
        with self.text.each("i", layout.registers // width, most) as i:
            register = times(i, str(width))
            row, column = (self._element_at(layout, d, register) for d in (row_dim, column_dim))
            place = shared.at(slot, row, column)
            if self._copies_lines(op, held, column_dim, width):
                offset, inside = self._places(layout, window, register)
                more = f", {inside}" if inside else ""
                self.text.line(
                    f"tw::copy_async<16>({place}, {window.base} + {atom(offset)}{more});"
                )
            else:
                self._copy_elements(layout, window, register, width, place, size, shared)
        if owner:
            self.text.depth -= 1
            self.text.line("}")

    def _copies_lines(self, op: CopyAsync, held: Buffer, column_dim: int, width: int) -> bool:
        """True if 16 bytes of a row are 16 aligned bytes of the caller's memory."""
        if not held.lines or held.unit < 0 or op.dims[held.unit] != column_dim:
            return False
        ends = op.rest[len(op.dims) + len(op.to) :]
        limits = [v for v, (d, _) in zip(ends, op.bounds, strict=True) if d == column_dim]
        if not all(self.divides(v, width) for v in (op.rest[held.unit], *limits)):
            return False
        self.at_once(held, width)
        return True

    def _copy_elements(
        self,
        layout: Layout,
        window: Window,
        register: str,
        width: int,
        place: str,
        size: int,
        shared: Shared,
    ) -> None:
        """One by one, where memory does not lie in lines."""
        kind = c_type(shared.dtype)
        name = self.text.name("place")
        self.text.line(f"unsigned char* const {name} = {place};")
        with self.text.each("w", width) as w:
            offset, inside = self._places(layout, window, added([register, w]))
            load = f"tw::global_load({window.base} + {atom(offset)})"
            value = f"{inside} ? {load} : {kind}{{}}" if inside else load
            self.text.line(f"tw::shared_store<{kind}>({name} + {w} * {size}, {value});")

    def thread(self, layout: Layout, dim: int) -> str:
        """The name of what a thread's number adds along a dimension."""
        text = thread_part(layout, dim)
        if text in ("0", "thread"):
            return text
        return self.local(self.named.get(text) or self._named_thread(text))

    def _named_thread(self, text: str) -> str:
        name = self.text.name("at")
        self.head.append(f"  const int {name} = {text};")
        self.named[text] = name
        return name

    def from_word(self, tile: Tile, word: str) -> str:
        """A word out of memory as what a tile's registers hold."""
        if tile.dtype in HALVES:
            return word
        if tile.dtype.is_float:
            return f"tw::bits_to_float({word})"
        return f"static_cast<{c_type(tile.dtype)}>({word})"
