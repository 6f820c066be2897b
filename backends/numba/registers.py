"""How a register tile is held: one Python variable, or literal, per element.

A tile program for one lane has every element in a register of its own, so that a layout is only a
list of indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.backends.numba.text import Index
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import RegisterType, Type

_SHORT = {"f64": "f64", "f32": "f32", "f16": "u16", "bf16": "u16", "bool": "u8"}
_NUMPY = {
    "f64": "float64",
    "f32": "float32",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u16": "uint16",
    "u8": "uint8",
}


def memory_name(dtype: DType) -> str:
    """The generated code's name of the NumPy type that holds a dtype in memory."""
    return _SHORT.get(dtype.name, dtype.name)


def memory_dtype(dtype: DType) -> np.dtype[np.generic]:
    """The NumPy type that holds a dtype in memory. Raises UnsupportedError if none is chosen."""
    short = memory_name(dtype)
    if short not in _NUMPY:
        raise UnsupportedError(f"elements of {dtype} in the numba back end")
    return np.dtype(_NUMPY[short])


def held_name(dtype: DType) -> str:
    """The generated code's name of the type that a variable of this dtype has."""
    return "f32" if dtype.is_float and dtype.bits == 16 else dtype.name


def numpy_name(short: str) -> str:
    """NumPy's name of a type: ``f32`` is ``float32``."""
    return _NUMPY[short]


def literal(value: float, dtype: DType) -> str:
    """A constant as Python text, rounded to its dtype."""
    if dtype.name == "bool":
        return str(bool(value))
    if dtype.is_int:
        whole = int(np.asarray(int(value)).astype(dtype.host))
        return str(whole) if dtype.name == "i64" else f"{dtype.name}({whole})"
    number = float(value)
    if dtype.bits == 16:
        number = float(np.asarray(dtype.round(np.float64(number))))
    return repr(number) if dtype.name == "f64" else f"f32({number!r})"


@dataclass(frozen=True)
class Tile:
    """The names or literals of a tile's elements, in the order of its registers."""

    shape: Index
    elements: dict[Index, str]

    @property
    def constant(self) -> bool:
        """True if all elements are one literal."""
        texts = set(self.elements.values())
        text = next(iter(texts))
        return len(texts) == 1 and (not text.isidentifier() or text in ("True", "False"))

    def at(self, index: Index) -> str:
        """The element that goes with an index of a larger tile (dimensions of size one repeat)."""
        return self.elements[
            tuple(i if size > 1 else 0 for i, size in zip(index, self.shape, strict=True))
        ]


def tile_of(type_: Type) -> RegisterType:
    """A type that must be a register tile's."""
    assert isinstance(type_, RegisterType), f"{type_} is not a register tile"
    return type_


def indices(type_: Type) -> list[Index]:
    """The indices of a tile's elements in the order of its registers."""
    return [row[0] for row in tile_of(type_).layout.table()]


def check_lanes(op: Op, value: Value) -> None:
    """Raises UnsupportedError for a tile that is spread over lanes."""
    if isinstance(value.type, RegisterType) and value.type.layout.lanes != 1:
        raise UnsupportedError(
            f"{op.name}: {value.type} lies on {value.type.layout.lanes} lanes; the numba back end "
            "takes programs of one lane (lower for the target 'scalar')",
            op.loc,
        )
