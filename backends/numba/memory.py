"""Loads and stores: flat one-dimensional arrays, indexed by sums of position times stride."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.numba.registers import Tile, indices, literal
from tilewright.backends.numba.text import Index, PythonText, is_atom, product, total
from tilewright.ir.dtypes import DType
from tilewright.ir.types import RegisterType

_WIDEN = {"bf16": "bf16_to_f32", "f16": "f16_to_f32"}
_NARROW = {"bf16": "f32_to_bf16", "f16": "f32_to_f16", "bool": "u8"}


@dataclass(frozen=True)
class MemoryRef:
    """Memory as the code sees it: an array's name and strides in elements (names or integers)."""

    name: str
    strides: tuple[str, ...]
    dtype: DType

    def read(self, offset: str) -> str:
        """The expression of an element's value."""
        element = f"{self.name}[{offset}]"
        if self.dtype.name == "bool":
            return f"{element} != 0"
        widen = _WIDEN.get(self.dtype.name)
        return f"{widen}({element})" if widen else element

    def write(self, offset: str, value: str) -> str:
        """The statement that stores a value."""
        narrow = _NARROW.get(self.dtype.name)
        return f"{self.name}[{offset}] = {f'{narrow}({value})' if narrow else value}"


@dataclass(frozen=True)
class Limit:
    """A bound on the positions along one tile dimension, and what is done past it."""

    kind: str
    limit: str


@dataclass(frozen=True)
class Access:
    """One load or store: start per memory dimension, which tile dimension runs along it, limits."""

    memory: MemoryRef
    start: tuple[str, ...]
    dims: tuple[int, ...]
    limits: dict[int, Limit]


class MemoryEmitter:
    """Writes accesses for one function."""

    def __init__(self, text: PythonText) -> None:
        self.text = text

    def load(self, access: Access, type_: RegisterType, hint: str) -> Tile:
        """A tile from memory."""
        wanted = indices(type_)
        where = self._offsets(access, wanted, type_.shape)
        names = self.text.names(hint or access.memory.name, wanted)
        for index, name in names.items():
            value, inside = access.memory.read(where[index]), self._inside(access, index)
            if inside:
                value = f"{value} if {inside} else {literal(0, type_.dtype)}"
            self.text.line(f"{name} = {value}")
        return Tile(type_.shape, names)

    def store(self, access: Access, tile: Tile) -> None:
        """A tile to memory, except what lies past a limit."""
        where = self._offsets(access, list(tile.elements), tile.shape)
        for index, value in tile.elements.items():
            written, inside = access.memory.write(where[index], value), self._inside(access, index)
            if not inside:
                self.text.line(written)
                continue
            with self.text.block(f"if {inside}"):
                self.text.line(written)

    def gather(
        self, memory: MemoryRef, offset: str, offsets: Tile, type_: RegisterType, hint: str
    ) -> Tile:
        """One element per element of ``offsets``."""
        names = self.text.names(hint or memory.name, indices(type_))
        for index, name in names.items():
            self.text.line(f"{name} = {memory.read(total([offsets.at(index), offset]))}")
        return Tile(type_.shape, names)

    def _inside(self, access: Access, index: Index) -> str:
        """The condition that an element lies before all limits that cut off ("": always)."""
        found = []
        for start, dim in zip(access.start, access.dims, strict=True):
            limit = access.limits.get(dim)
            if limit is not None and limit.kind != "clamp":
                found.append(f"{total([start, str(index[dim])])} < {limit.limit}")
        return " and ".join(found)

    def _offsets(self, access: Access, wanted: list[Index], shape: Index) -> dict[Index, str]:
        """The offset of every element: a common part, computed once, and what its index adds."""
        common: list[str] = []
        moving: list[tuple[int, list[str]]] = []  # tile dimension, what each position along it adds
        for start, stride, dim in zip(
            access.start, access.memory.strides, access.dims, strict=True
        ):
            limit = access.limits.get(dim)
            if limit is not None and limit.kind == "clamp":
                positions = self._clamped(start, limit.limit, shape[dim])
                moving.append((dim, [product(at, stride) for at in positions]))
                continue
            common.append(product(start, stride))
            if dim >= 0 and shape[dim] > 1:
                moving.append((dim, [product(str(i), stride) for i in range(shape[dim])]))
        base = total(common)
        if len(wanted) > 1 and not is_atom(base):
            base = self.text.bind("at", base)
        return {i: total([base, *(steps[i[dim]] for dim, steps in moving)]) for i in wanted}

    def _clamped(self, start: str, limit: str, count: int) -> list[str]:
        """Positions from ``start``, those past the limit at its last one."""
        last = self.text.bind("last", f"max({total([limit, '-1'])}, 0)")
        return [
            self.text.bind("at", f"min({total([start, str(i)])}, {last})") for i in range(count)
        ]
