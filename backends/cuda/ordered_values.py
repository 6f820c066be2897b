"""What values of a program in a fixed order are in C++: memory, a variable per element."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.cuda.pointwise import HALVES
from tilewright.ir.core import Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import RegisterType

Index = tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """A buffer of the caller (``far``) or a thread's own array."""

    name: str
    strides: tuple[str, ...]
    dtype: DType
    far: bool

    def read(self, at: str) -> str:
        text = f"tw::global_load({self.name} + ({at}))" if self.far else f"{self.name}[{at}]"
        return f"tw::to_float({text})" if self.far and self.dtype in HALVES else text

    def write(self, at: str, value: str) -> str:
        if not self.far:
            return f"{self.name}[{at}] = {value};"
        value = f"tw::to_{self.dtype}({value})" if self.dtype in HALVES else value
        return f"tw::global_store({self.name} + ({at}), {value});"


@dataclass(frozen=True)
class Tile:
    """The variables (or literals) of a tile's elements."""

    shape: Index
    elements: dict[Index, str]

    def at(self, index: Index) -> str:
        """The element that goes with one of a larger tile."""
        sized = zip(index, self.shape, strict=True)
        return self.elements[tuple(i if size > 1 else 0 for i, size in sized)]


def indices(value: Value) -> list[Index]:
    assert isinstance(value.type, RegisterType)
    if value.type.layout.lanes != 1:
        raise UnsupportedError(f"{value.type} lies on lanes: a fixed order on CUDA has one")
    return [row[0] for row in value.type.layout.table()]


def shape(value: Value) -> Index:
    assert isinstance(value.type, RegisterType)
    return value.type.shape
