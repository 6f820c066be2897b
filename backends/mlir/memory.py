"""Loads and stores of register tiles: whole vectors where memory allows, else lane by lane."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.mlir.registers import (
    Registers,
    element_type,
    held_type,
    is_uniform,
    memory_type,
    packed,
    physical,
)
from tilewright.backends.mlir.text import MlirText
from tilewright.ir.dtypes import DType
from tilewright.ir.types import RegisterType

Index = tuple[int, ...]


@dataclass
class MemoryRef:
    """Memory as the code sees it: a pointer and strides in elements (names of i64 values)."""

    pointer: str
    strides: list[str]
    dtype: DType


@dataclass
class Access:
    """One load or store: start index per dimension, which tile dimension runs along it, limits."""

    memory: MemoryRef
    start: list[str]
    dims: tuple[int, ...]
    limits: dict[int, tuple[str, str]]  # tile dimension -> (kind, limit)


class MemoryEmitter:
    """Writes accesses for one program."""

    def __init__(self, text: MlirText) -> None:
        self.text = text

    # ---- addresses

    def offset(self, access: Access, index: Index) -> str:
        """Offset in elements of a tile's element; positions past a limit fall back to the last."""
        t, total = self.text, self.text.i64(0)
        for start, stride, dim in zip(
            access.start, access.memory.strides, access.dims, strict=True
        ):
            at = start
            if dim >= 0:
                at = t.add(start, t.i64(index[dim]))
                if dim in access.limits:
                    last = t.add(access.limits[dim][1], t.i64(-1))
                    at = t.op(f"arith.minsi {at}, {last} : i64")
            total = t.add(total, t.mul(at, stride))
        return total

    def valid(self, access: Access, index: Index, kinds: tuple[str, ...]) -> str | None:
        """Whether an element lies inside the limits of the given kinds (None: always)."""
        t, found = self.text, None
        for start, dim in zip(access.start, access.dims, strict=True):
            if dim not in access.limits or access.limits[dim][0] not in kinds:
                continue
            at = t.add(start, t.i64(index[dim]))
            inside = t.op(f"arith.cmpi slt, {at}, {access.limits[dim][1]} : i64")
            found = inside if found is None else t.op(f"arith.andi {found}, {inside} : i1")
        return found

    def pointer(self, access: Access, offset: str) -> str:
        return self.text.address(access.memory.pointer, offset, memory_type(access.memory.dtype))

    # ---- how lanes lie in memory

    def lane_pattern(self, access: Access, rows: list[Index]) -> list[int] | None:
        """Offsets of the lanes from the first if they are known now and no limit cuts between."""
        t, first = self.text, rows[0]
        offsets = [0] * len(rows)
        for stride, dim in zip(access.memory.strides, access.dims, strict=True):
            if dim < 0 or all(r[dim] == first[dim] for r in rows):
                continue
            known = t.known(stride)
            if known is None or access.limits.get(dim, ("zero",))[0] == "clamp":
                return None
            offsets = [
                o + (r[dim] - first[dim]) * known for o, r in zip(offsets, rows, strict=True)
            ]
        return offsets

    def lane_limit(self, access: Access, rows: list[Index]) -> tuple[int, str] | None:
        """(tile dimension, limit) if a zero-limit applies along a dimension of the lanes."""
        for dim, (kind, limit) in access.limits.items():
            if kind == "zero" and any(r[dim] != rows[0][dim] for r in rows):
                return dim, limit
        return None

    def mask(self, access: Access, rows: list[Index], dim: int, limit: str, repeat: int) -> str:
        """A lane mask: position < limit."""
        t, lanes = self.text, len(rows) * repeat
        start = access.start[access.dims.index(dim)]
        left = t.op(f"arith.subi {limit}, {start} : i64")
        low = t.op(f"arith.trunci {self._small(left)} : i64 to i32")
        wide = t.op(f"vector.broadcast {low} : i32 to vector<{lanes}xi32>")
        here = ", ".join(str(r[dim] + k) for r in rows for k in range(repeat))
        position = t.constant(f"dense<[{here}]>", f"vector<{lanes}xi32>")
        return t.op(f"arith.cmpi slt, {position}, {wide} : vector<{lanes}xi32>")

    def _small(self, x: str) -> str:
        t = self.text
        bounded = t.op(f"arith.minsi {x}, {t.i64(1 << 20)} : i64")
        return t.op(f"arith.maxsi {bounded}, {t.i64(0)} : i64")

    # ---- loads

    def read(self, access: Access) -> str:
        """One integer as i64; a bool is 0 or 1."""
        held, offset = access.memory, self.offset(access, ())
        place = self.pointer(access, offset)
        kind = memory_type(held.dtype)
        name = self.text.op(f"llvm.load {place} : !llvm.ptr -> {kind}")
        if kind == "i64":
            return name
        extend = "arith.extui" if held.dtype.kind != "int" else "arith.extsi"
        return self.text.op(f"{extend} {name} : {kind} to i64")

    def load(self, access: Access, type_: RegisterType) -> Registers:
        """A tile from memory."""
        table, pack = type_.layout.table(), packed(type_)
        names = [self._load_one(access, type_, table[r * pack]) for r in range(physical(type_))]
        return Registers(type_, names)

    def _load_one(self, access: Access, type_: RegisterType, rows: list[Index]) -> str:
        if is_uniform(type_.layout):
            return self._load_scalar(access, type_, rows[0])
        pattern, repeat = self.lane_pattern(access, rows), packed(type_)
        if repeat == 2 and not self._pairs_adjacent(access, rows[0]):
            pattern = None
        name = None
        if pattern is not None:
            name = self._load_pattern(access, type_, rows, pattern)
        if name is None:
            return self._load_lanes(access, type_, rows)
        return self._zeroed(access, rows, name, held_type(type_))

    def _zeroed(self, access: Access, rows: list[Index], name: str, held: str) -> str:
        """Zero where a limit along a register's own dimension cuts the whole register off."""
        t = self.text
        cut = self.lane_limit(access, rows)
        others = {d: v for d, v in access.limits.items() if cut is None or d != cut[0]}
        inside = self.valid(
            Access(access.memory, access.start, access.dims, others), rows[0], ("zero",)
        )
        if inside is None:
            return name
        zero = self._zero(held)
        return t.op(f"arith.select {inside}, {name}, {zero} : {held}")

    def _zero(self, held: str) -> str:
        element = (
            held.rsplit("x", maxsplit=1)[-1].rstrip(">") if held.startswith("vector") else held
        )
        literal = "0" if element.startswith("i") else "0.0"
        literal = "false" if element == "i1" else literal
        return self.text.constant(
            f"dense<{literal}>" if held.startswith("vector") else literal, held
        )

    def _load_scalar(self, access: Access, type_: RegisterType, index: Index) -> str:
        """One element, or a pair of them as an integer."""
        t, dtype = self.text, access.memory.dtype
        if packed(type_) > 1 and not self._pairs_adjacent(access, index):
            raise AssertionError("uniform pairs and quads must lie side by side in memory")
        pointer = self.pointer(access, self.offset(access, index))
        if packed(type_) > 1:
            align = dtype.bits // 8
            return t.op(f"llvm.load {pointer} {{alignment = {align} : i64}} : !llvm.ptr -> i32")
        name = t.op(f"llvm.load {pointer} : !llvm.ptr -> {memory_type(dtype)}")
        if dtype.name == "bool":
            name = t.op(f"arith.cmpi ne, {name}, {t.constant('0', 'i8')} : i8")
        inside = self.valid(access, index, ("zero",))
        if inside is None:
            return name
        element = element_type(dtype)
        return t.op(f"arith.select {inside}, {name}, {self._zero(element)} : {element}")

    def _pairs_adjacent(self, access: Access, index: Index) -> bool:
        dim = len(index) - 1
        at = access.dims.index(dim)
        return self.text.known(access.memory.strides[at]) == 1

    def _load_pattern(
        self, access: Access, type_: RegisterType, rows: list[Index], pattern: list[int]
    ) -> str | None:
        """One vector load, with a shuffle where lanes repeat elements nearby; None if too far."""
        t, dtype, repeat = self.text, access.memory.dtype, packed(type_)
        lanes, element = len(rows) * repeat, memory_type(dtype)
        contiguous = pattern == [i * repeat for i in range(len(rows))]
        cut = self.lane_limit(access, rows)
        pointer = self.pointer(access, self.offset(self._unlimited(access, cut), rows[0]))
        align = dtype.bits // 8
        if contiguous and cut is not None:
            mask = self.mask(access, rows, cut[0], cut[1], repeat)
            held = f"vector<{lanes}x{element}>"
            zero = self._zero(held)
            types = f"(!llvm.ptr, vector<{lanes}xi1>, {held}) -> {held}"
            name = t.op(
                f"llvm.intr.masked.load {pointer}, {mask}, {zero} "
                f"{{alignment = {align} : i32}} : {types}"
            )
        elif contiguous:
            name = self._vector_load(pointer, lanes, element, align)
        elif cut is None and repeat == 1 and min(pattern) == 0 and max(pattern) < len(rows):
            width = max(pattern) + 1
            small = self._vector_load(pointer, width, element, align)
            name = t.shuffle(small, small, pattern, f"vector<{width}x{element}>")
        else:
            return None
        if dtype.name == "bool":
            zero = self._zero(f"vector<{lanes}xi8>")
            name = t.op(f"arith.cmpi ne, {name}, {zero} : vector<{lanes}xi8>")
        return name

    def _unlimited(self, access: Access, cut: tuple[int, str] | None) -> Access:
        limits = {d: v for d, v in access.limits.items() if cut is None or d != cut[0]}
        return Access(access.memory, access.start, access.dims, limits)

    def _vector_load(self, pointer: str, lanes: int, element: str, align: int) -> str:
        return self.text.op(
            f"llvm.load {pointer} {{alignment = {align} : i64}} : "
            f"!llvm.ptr -> vector<{lanes}x{element}>"
        )

    def _load_lanes(self, access: Access, type_: RegisterType, rows: list[Index]) -> str:
        """Every lane by itself (a stride that is not one, a limit that clamps)."""
        t, dtype, repeat = self.text, access.memory.dtype, packed(type_)
        held, element = held_type(type_), element_type(dtype)
        vector = t.op(f"llvm.mlir.undef : {held}")
        scalar = RegisterType(dtype, type(type_.layout)(type_.layout.rank))
        for lane, row in enumerate(rows):
            for k in range(repeat):
                index = (*row[:-1], row[-1] + k)
                x = self._load_scalar(access, scalar, index)
                at = t.i64(lane * repeat + k)
                vector = t.op(f"llvm.insertelement {x}, {vector}[{at} : i64] : {held}")
        del element
        return vector

    def gather(
        self, source: MemoryRef, offset: str, offsets: Registers, type_: RegisterType
    ) -> Registers:
        """One element per lane, each at its own offset."""
        text, element = self.text, memory_type(type_.dtype)
        base = text.address(source.pointer, offset, element)
        names = []
        for name in offsets.names:
            if offsets.uniform:
                place = text.address(base, name, element)
                x, held = text.op(f"llvm.load {place} : !llvm.ptr -> {element}"), element
            else:
                held = f"vector<{offsets.lanes}x{element}>"
                x = self._gather_vector(base, name, offsets.lanes, element, type_.dtype)
            if type_.dtype.name == "bool":
                x = text.op(f"arith.cmpi ne, {x}, {self._zero(held)} : {held}")
            names.append(x)
        return Registers(type_, names)

    def _gather_vector(
        self, base: str, offsets: str, lanes: int, element: str, dtype: DType
    ) -> str:
        text, held = self.text, f"vector<{lanes}x{element}>"
        pointers = text.op(
            f"llvm.getelementptr {base}[{offsets}] : (!llvm.ptr, vector<{lanes}xi64>) -> "
            f"vector<{lanes}x!llvm.ptr>, {element}"
        )
        mask = text.constant("dense<true>", f"vector<{lanes}xi1>")
        return text.op(
            f"llvm.intr.masked.gather {pointers}, {mask}, {self._zero(held)} "
            f"{{alignment = {dtype.bits // 8} : i32}} : "
            f"(vector<{lanes}x!llvm.ptr>, vector<{lanes}xi1>, {held}) -> {held}"
        )

    def prefetch(self, access: Access, type_: RegisterType) -> None:
        """One request for every line of 64 bytes in which a register of the load starts."""
        table, pack = type_.layout.table(), packed(type_)
        step = max(1, 64 * 8 // (type_.layout.lanes * pack * type_.dtype.bits))
        for register in range(0, physical(type_), step):
            pointer = self.pointer(access, self.offset(access, table[register * pack][0]))
            place = "rw = 0 : i32, hint = 1 : i32, cache = 1 : i32"
            self.text.line(f'"llvm.intr.prefetch"({pointer}) <{{{place}}}> : (!llvm.ptr) -> ()')

    # ---- stores

    def store(self, access: Access, value: Registers) -> None:
        """A tile to memory; lanes that hold the same element write it once."""
        table, pack = value.type.layout.table(), value.pack
        for register, name in enumerate(value.names):
            rows = table[register * pack]
            if value.uniform:
                self._store_scalar(access, name, rows[0], value.held, value.type.dtype)
            else:
                self._store_vector(access, value, name, rows)

    def _store_scalar(
        self, access: Access, name: str, index: Index, held: str, dtype: DType
    ) -> None:
        t = self.text
        if dtype.name == "bool":
            name, held = t.op(f"arith.extui {name} : i1 to i8"), "i8"
        pointer = self.pointer(access, self.offset(access, index))
        inside = self.valid(access, index, ("zero",))
        if inside is None:
            t.line(f"llvm.store {name}, {pointer} : {held}, !llvm.ptr")
            return
        t.line(f"scf.if {inside} {{")
        with t.region():
            t.line(f"llvm.store {name}, {pointer} : {held}, !llvm.ptr")
        t.line("}")

    def _store_vector(self, access: Access, value: Registers, name: str, rows: list[Index]) -> None:
        t, dtype, repeat, held = self.text, value.type.dtype, value.pack, value.held
        if dtype.name == "bool":
            lanes = len(rows)
            name = t.op(f"arith.extui {name} : vector<{lanes}xi1> to vector<{lanes}xi8>")
            held = f"vector<{lanes}xi8>"
        first = list(dict.fromkeys(rows))
        pattern = self.lane_pattern(access, first)
        prefix = first == rows[: len(first)]
        cut = self.lane_limit(access, rows)
        others = self.valid(self._unlimited(access, cut), rows[0], ("zero",))
        straight = pattern == [i * repeat for i in range(len(first))] and prefix and others is None
        if not straight or (repeat == 2 and not self._pairs_adjacent(access, rows[0])):
            self._store_lanes(access, value, name, rows)
            return
        if len(first) < len(rows):
            lanes = len(first) * repeat
            element = held.split("x")[-1].rstrip(">")
            small = f"vector<{lanes}x{element}>"
            name = t.shuffle(name, name, list(range(lanes)), held)
            held = small
        pointer = self.pointer(access, self.offset(self._unlimited(access, cut), rows[0]))
        align = dtype.bits // 8
        if cut is None:
            t.line(
                f"llvm.store {name}, {pointer} {{alignment = {align} : i64}} : {held}, !llvm.ptr"
            )
            return
        mask = self.mask(access, first, cut[0], cut[1], repeat)
        lanes = len(first) * repeat
        t.line(
            f"llvm.intr.masked.store {name}, {pointer}, {mask} {{alignment = {align} : i32}} : "
            f"{held}, vector<{lanes}xi1> into !llvm.ptr"
        )

    def _store_lanes(self, access: Access, value: Registers, name: str, rows: list[Index]) -> None:
        t, repeat = self.text, value.pack
        element = memory_type(value.type.dtype)
        held = f"vector<{len(rows) * repeat}x{element}>"
        seen = set()
        for lane, row in enumerate(rows):
            if row in seen:
                continue
            seen.add(row)
            for k in range(repeat):
                at = t.i64(lane * repeat + k)
                x = t.op(f"llvm.extractelement {name}[{at} : i64] : {held}")
                index = (*row[:-1], row[-1] + k)
                # a bool is a byte already here
                plain = value.type.dtype
                kind = plain if plain.name != "bool" else _byte()
                self._store_scalar(access, x, index, element, kind)


def _byte() -> DType:
    from tilewright.ir.dtypes import U8

    return U8
