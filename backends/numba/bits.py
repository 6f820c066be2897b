"""Bits taken apart: a lane's registers seen as another dtype, and tables of values and of bytes.

Tables are arrays of the module, which Numba compiles in as constants.
"""

from __future__ import annotations

from tilewright.backends.numba.functions import Functions
from tilewright.backends.numba.lanes import Elements
from tilewright.backends.numba.pointwise import convert, dtype_of
from tilewright.backends.numba.registers import Tile, indices
from tilewright.ir.core import Op
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import Lookup, LookupBytes, LookupHalves, View, bf16_bits

# dtype -> the expression of a float's bits, and of the float of some bits
_BITS = {
    "f64": ("f64_bits({})", "bits_f64({})"),
    "f32": ("f32_bits({})", "bits_f32({})"),
    "f16": ("i64(f32_to_f16({}))", "f16_to_f32(u16({}))"),
    "bf16": ("i64(f32_to_bf16({}))", "bf16_to_f32(u16({}))"),
}
_WORDS = ("i64", "i32", "i16", "i8", "u8")


class BitEmitter:
    """Gives the expressions of such operations' elements."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions

    def view(self, op: View, x: Tile) -> Elements:
        """Every register of the result from the register, or registers, whose bits it is.

        i32 as four bytes: byte j is ``u8(x >> 8 * j)``; four bytes as i32: all, moved, by ``|``.
        """
        source, target = dtype_of(op.x.type), op.dtype
        given = [x.elements[i] for i in indices(op.x.type)]
        found = Elements()
        for at, index in enumerate(indices(op.result.type)):
            if source.bits >= target.bits:
                register, part = divmod(at, source.bits // target.bits)
                bits = _moved(_bits(op, given[register], source), ">>", part * target.bits)
            else:
                count = target.bits // source.bits
                parts = given[at * count : (at + 1) * count]
                bits = " | ".join(
                    _moved(_unsigned(_bits(op, text, source), source), "<<", i * source.bits)
                    for i, text in enumerate(parts)
                )
            found[index] = _of_bits(op, bits, target)
        return found

    def lookup(self, op: Lookup, index: Tile) -> Elements:
        """Entries of a table, whose length is a power of two."""
        values = ", ".join(repr(float(v)) for v in op.values)
        table = self.functions.constant("table", f"np.array([{values}], f32)")
        last = len(op.values) - 1
        return {i: f"{table}[{index.at(i)} & {last}]" for i in indices(op.result.type)}

    def lookup_bytes(self, op: LookupBytes, index: Tile) -> Elements:
        """Each byte of a word through a table of all bytes; those past the values get the last."""
        past = f" + [{op.values[-1]}] * {256 - len(op.values)}"
        table = self.functions.constant("table", f"np.array({list(op.values)}{past}, i64)")
        moved = {at: _moved("x", ">>", at) for at in (0, 8, 16, 24)}
        parts = [_moved(f"{table}[{x} & 255]", "<<", at) for at, x in moved.items()]
        body = f"    return i32({' | '.join(parts)})"
        function = self.functions.add("bytes_of", ["x"], [body])
        return {i: f"{function}({index.at(i)})" for i in indices(op.result.type)}

    def lookup_halves(self, op: LookupHalves, index: Tile) -> Elements:
        """Each half of a word through a table, whose length is a power of two."""
        listed, last = bf16_bits(op.values).tolist(), len(op.values) - 1
        table = self.functions.constant("table", f"np.array({listed}, i64)")
        low, high = (f"{table}[{_moved('x', '>>', at)} & {last}]" for at in (0, 16))
        body = f"    return i32({low} | {_moved(high, '<<', 16)})"
        function = self.functions.add("halves_of", ["x"], [body])
        return {i: f"{function}({index.at(i)})" for i in indices(op.result.type)}


def _moved(text: str, way: str, distance: int) -> str:
    return f"({text} {way} {distance})" if distance else text


def _bits(op: Op, text: str, dtype: DType) -> str:
    """An element's bits as an integer, which extends the sign of one."""
    if dtype.name in _WORDS:
        return text
    if dtype.name in _BITS:
        return _BITS[dtype.name][0].format(text)
    raise UnsupportedError(f"{op.name}: the bits of {dtype} in the numba back end", op.loc)


def _unsigned(text: str, dtype: DType) -> str:
    """Those bits and no others, as i64."""
    return f"({convert(text, dtype, I64)} & {(1 << dtype.bits) - 1})" if dtype.is_int else text


def _of_bits(op: Op, text: str, dtype: DType) -> str:
    """The element whose bits are the lowest ones of an integer."""
    if dtype.name in _WORDS:
        return f"{dtype.name}({text})"
    if dtype.name in _BITS:
        return _BITS[dtype.name][1].format(text)
    raise UnsupportedError(f"{op.name}: {dtype} of bits in the numba back end", op.loc)
