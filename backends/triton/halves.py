"""Bits of registers as another dtype, and words whose halves are two numbers of 16 bits."""

from __future__ import annotations

from typing import Any

from tilewright.backends.numba.text import PythonText
from tilewright.backends.triton.pointwise import dtype_name
from tilewright.backends.triton.words import atom
from tilewright.ir import ops_math as m
from tilewright.ir.bit_patterns import to_bits
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import BF16, F16, I32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import HALF
from tilewright.ir.types import RegisterType


class HalfOps:
    """What of a program's writer concerns them; ``emit.py`` has the rest."""

    graph: Graph
    text: PythonText
    wide: bool
    values: dict[Value, Any]
    made: dict[Value, Op]
    uses: dict[Value, int]
    readers: dict[Value, list[Op]]

    def _pointwise(self, op: Op) -> str:
        raise NotImplementedError

    def _tile_view(self, op: View) -> str | None:
        """Bits as another dtype; words may be cut into halves, which lie side by side."""
        if self._is_scaled_in_words(op):
            return None
        return self._viewed(op, atom(self.values[op.x]))

    def _viewed(self, op: View, x: str) -> str:
        made, type_ = dtype_name(op.dtype), op.x.type
        assert isinstance(type_, RegisterType)
        if op.layout == type_.layout:
            return f"{x}.to({made}, bitcast=True)"
        rows, columns = type_.layout.shape[0], type_.layout.shape[-1]
        cut = type_.dtype == I32 and op.dtype.bits == HALF
        if not cut or op.layout != Layout(2).local(rows, 2 * columns):
            raise UnsupportedError("a view as other than the halves of words", op.loc)
        halves = f"tl.join({x}.to(tl.int16), ({x} >> {HALF}).to(tl.int16))"
        view = f"tl.reshape({halves}, ({rows}, {2 * columns}))"
        return view if made == "tl.int16" else f"{view}.to({made}, bitcast=True)"

    def _is_scaled_in_words(self, op: Op | None) -> bool:
        """Whether the halves of words are only read by a multiply-add with numbers, which NVIDIA's
        units do for both at once. LLVM would take words apart for it, and put them together."""
        if not isinstance(op, View) or self.wide or self.uses.get(op.result) != 1:
            return False
        if (
            not self.graph.attrs["target"].startswith("cuda")
            or getattr(op.x.type, "dtype", None) != I32
        ):
            return False
        (user,) = self.readers[op.result]
        numbers = all(isinstance(self.made.get(v), m.Const) for v in user.operands[1:])
        return isinstance(user, m.Fma) and numbers and op.dtype in (BF16, F16)

    def _math_fma(self, op: m.Fma) -> str:
        view = self.made.get(op.operands[0])
        if not self._is_scaled_in_words(view):
            return self._pointwise(op)
        assert isinstance(view, View)
        numbers = [self.made[v].attrs["value"] for v in op.operands[1:]]
        factor, more = (_in_both_halves(x, view.dtype) for x in numbers)
        kind = "bf16x2" if view.dtype == BF16 else "f16x2"
        asm = (
            f"{{ .reg .b32 factor, more; mov.b32 factor, {factor}; mov.b32 more, {more}; "
            f"fma.rn.{kind} $0, $1, factor, more; }}"
        )
        words = self.text.bind(
            op.result.hint,
            f'tl.inline_asm_elementwise("{asm}", "=r,r", [{self.values[view.x]}], '
            "dtype=tl.int32, is_pure=True, pack=1)",
        )
        return self._viewed(view, words)


def _in_both_halves(value: float, dtype: DType) -> str:
    """A word with a number in each half."""
    bits = to_bits(value, dtype).item()
    return f"0x{bits << HALF | bits:08X}"
