"""How a register tile is held: one MLIR value per physical register.

A tile whose lanes all hold the same element is kept as scalars and broadcast where it is used,
which
lets the instruction selector read them from memory as broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.mlir.text import MlirText
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_memory import refuse_gpu_ops
from tilewright.ir.types import RegisterType

# bf16 is kept as its bits: LLVM would turn operations on it into calls where the CPU has none
_ELEMENT = {"bool": "i1", "u8": "i8", "bf16": "i16"}


def refuse_what_vectors_lack(graph: Graph) -> None:
    """Raises UnsupportedError for what only GPUs have, and for layouts that are no products."""
    refuse_gpu_ops(graph, "mlir")
    for op in graph.body.walk():
        for type_ in (v.type for v in op.results):
            if isinstance(type_, RegisterType) and type_.layout.strides:
                message = f"{op.name} on {type_.layout} in the mlir back end"
                raise UnsupportedError(f"{message}: use a layout that is a product", op.loc)


def element_type(dtype: DType) -> str:
    """MLIR's name of a dtype in registers."""
    return _ELEMENT.get(dtype.name, dtype.name)


def memory_type(dtype: DType) -> str:
    """MLIR's name of a dtype in memory (bool is a byte)."""
    return "i8" if dtype.name == "bool" else element_type(dtype)


def is_uniform(layout: Layout) -> bool:
    """True if all lanes hold the same elements."""
    return all(kind != "spatial" for kind, _, _ in layout.steps)


def packed(type_: RegisterType) -> int:
    """Elements side by side in one lane's 32-bit word: pairs of 16-bit floats, quads of bytes."""
    count = 32 // type_.dtype.bits
    narrow = type_.dtype.name in ("bf16", "f16", "i8", "u8") and type_.layout.rank != 1
    last = type_.layout.steps[-1] if type_.layout.steps else ("", 0, 0)
    innermost = last == ("local", type_.layout.rank - 1, count)
    return count if narrow and innermost else 1


@dataclass
class Registers:
    """The values that hold a tile, by physical register."""

    type: RegisterType
    names: list[str]

    @property
    def uniform(self) -> bool:
        return is_uniform(self.type.layout)

    @property
    def lanes(self) -> int:
        return self.type.layout.lanes

    @property
    def element(self) -> str:
        return element_type(self.type.dtype)

    @property
    def pack(self) -> int:
        return packed(self.type)

    @property
    def held(self) -> str:
        """The MLIR type of each name."""
        return held_type(self.type)


def held_type(type_: RegisterType) -> str:
    """The MLIR type of each physical register of a tile; uniform pairs and quads are one 32-bit
    integer."""
    element, pack = element_type(type_.dtype), packed(type_)
    if is_uniform(type_.layout):
        return "i32" if pack > 1 else element
    return f"vector<{type_.layout.lanes * pack}x{element}>"


def physical(type_: RegisterType) -> int:
    """How many physical registers a tile takes."""
    return type_.layout.registers // packed(type_)


def register_map(operand: RegisterType, result: RegisterType) -> list[int]:
    """For each physical register of ``result`` the register of ``operand`` that goes with it."""
    pack, other = packed(result), packed(operand)
    where: dict[tuple[int, ...], int] = {}
    for register, row in enumerate(operand.layout.table()):
        for index in row:
            where.setdefault(index, register // other)
    found = []
    for register in range(0, result.layout.registers, pack):
        index = result.layout.table()[register][0]
        clipped = tuple(
            i if size > 1 else 0 for i, size in zip(index, operand.layout.shape, strict=True)
        )
        found.append(where[clipped])
    return found


def spread(text: MlirText, name: str, element: str, lanes: int) -> str:
    """A scalar in all lanes of a vector (itself for one lane)."""
    if lanes == 1:
        return name
    return text.op(f"vector.broadcast {name} : {element} to vector<{lanes}x{element}>")
