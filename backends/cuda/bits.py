"""Bits of registers: views as other dtypes, and halves of words, as C++."""

from __future__ import annotations

from tilewright.backends.cuda.pointwise import HALVES, c_type
from tilewright.backends.cuda.text import (
    added,
    atom,
    counted,
    digit,
    joined,
    register_bits,
    times,
)
from tilewright.backends.cuda.tiles import Tile, Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import QUAD, Packing
from tilewright.ir.types import RegisterType

CHANGED = {("i32", "f32"): "tw::bits_to_float", ("f32", "i32"): "tw::float_to_bits"}


class BitOps(Writer):
    """What of a program's writer concerns the bits of registers."""

    def _tile_view(self, op: View) -> None:
        """The same bits of the same registers as another dtype."""
        x, type_ = self.tile(op.x), op.result.type
        assert isinstance(type_, RegisterType)
        ratio = x.dtype.bits // type_.dtype.bits
        if x.scalar or not x.layout.local(1, max(1, ratio)).same_map(type_.layout):
            raise UnsupportedError(f"{x.dtype} seen as {type_} in the cuda back end", op.loc)
        if type_.dtype in HALVES and x.dtype.name == "i32" and ratio == 2:
            out = self.declare(op.result)
            with self.text.each("i", x.layout.registers) as i:
                self.text.line(f"{out.name}[{i}] = static_cast<uint32_t>({x.name}[{i}]);")
        elif type_.dtype in HALVES and x.dtype.name == "i16" and ratio == 1:
            self._paired(op, x)
        elif x.dtype.is_int and type_.dtype.is_int and ratio > 1:
            bits, kind = type_.dtype.bits, c_type(type_.dtype)

            def piece(r: str) -> str:
                word = self.element(x, digit(r, ratio, x.layout.registers, type_.layout.registers))
                low = times(digit(r, 1, ratio, type_.layout.registers), str(bits))
                return f"static_cast<{kind}>({word} >> {atom(low)})"

            self.fill(self.declare(op.result), piece)
        elif (x.dtype.name, type_.dtype.name) in CHANGED:
            form = CHANGED[x.dtype.name, type_.dtype.name]
            self.fill(self.declare(op.result), lambda r: f"{form}({self.element(x, r)})")
        else:
            raise UnsupportedError(f"{x.dtype} seen as {type_.dtype} in the cuda back end", op.loc)

    def _paired(self, op: View, x: Tile) -> None:
        """Integers of 16 bits as floats, two in a word."""
        out = self.declare(op.result)
        kind = c_type(out.dtype)
        with self.text.each("w", -(-out.layout.registers // 2)) as w:
            places = [added([times(w, "2"), half]) for half in "01"]
            halves = [f"static_cast<uint16_t>({x.name}[{at}])" for at in places]
            if out.layout.registers == 1:
                halves[1] = "uint16_t(0)"
            packed = ", ".join(f"{kind}{{{half}}}" for half in halves)
            self.text.line(f"{out.name}[{w}] = tw::pack({packed});")

    def _tile_alternate(self, op: t.Alternate) -> None:
        """Every other register: of words with two floats one byte permutation for two."""
        x = self.tile(op.x)
        type_ = op.result.type
        assert isinstance(type_, RegisterType)
        if not x.layout.same_map(type_.layout @ Layout(2).local(1, 2)):
            raise UnsupportedError(f"every other column of {x.layout} in the cuda back end", op.loc)
        out = self.declare(op.result)
        if out.dtype in HALVES:
            selector = "0x7632" if op.at else "0x5410"
            with self.text.each("w", -(-out.layout.registers // 2)) as w:
                first, second = (f"{x.name}[{added([times(w, '2'), h])}]" for h in "01")
                second = second if out.layout.registers > 1 else first
                self.text.line(f"{out.name}[{w}] = tw::prmt({first}, {second}, {selector});")
            return
        self.fill(out, lambda r: self.element(x, added([times(r, "2"), str(op.at)])))

    def _tile_unpack(self, op: t.Unpack) -> None:
        """Codes cut out of words four at a time, as the bytes of a word; of 16-bit floats two
        neighbours become numbers at once."""
        form, words, out = op.form, [self.tile(v) for v in op.words], self.declare(op.result)
        one, bit = words[0].layout, form.chunk.bit_length() - 1
        wide = 2 if out.dtype in HALVES else 1  # numbers in a register
        along = [form.chunk if d == op.dim else 1 for d in range(2)]
        bits = register_bits(out.layout, one.local(*along))  # those of a chunk are the lowest
        inner, outer = bits[:bit], joined(bits[bit:])
        if form.order != "quads" or (wide > 1 and inner[0][1] != 1):
            raise UnsupportedError(f"{form} as {out.dtype} in {out.layout}", op.loc)
        with self.text.each("i", one.registers) as i:
            names, at = [f"{x.name}[{i}]" for x in words], counted(i, outer)
            for quad in range(0, form.chunk, QUAD):
                codes = self.bind("const uint32_t", "codes", _quad(form, quad, names))
                for number in range(0, QUAD, wide):
                    digits = [quad + number >> n & 1 for n in range(bit)]
                    place = sum(d * w for d, (_, w) in zip(digits, inner, strict=True))
                    first = at if at == "0" or wide == 1 else f"{atom(at)} / {wide}"
                    first = added([first, str(place // wide)])
                    text = _numbers(form, out.dtype, codes, number)
                    self.text.line(f"{out.name}[{first}] = {text};")


def _quad(form: Packing, first: int, words: list[str]) -> str:
    """The four codes from the first one on, as bytes."""
    parts = []
    for piece in form.pieces(first):
        mask, down = ((1 << piece.width) - 1) << piece.low, piece.at - piece.low
        word = f"static_cast<uint32_t>({words[piece.word]})"
        moved = f"({word} >> {down})" if down > 0 else f"({word} << {-down})" if down else word
        parts.append(word if mask == 0xFF else f"({moved} & {mask * 0x01010101:#x}u)")
    return " | ".join(parts)


def _numbers(form: Packing, dtype: DType, codes: str, number: int) -> str:
    """A code as a number, or two neighbours as floats of 16 bits."""
    if dtype not in HALVES:
        return f"tw::byte_to_float({codes}, {number})"
    return f"tw::bytes_to_{dtype}<{number}, {form.bits}>({codes})"
