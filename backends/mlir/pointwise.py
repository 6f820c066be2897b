"""Pointwise operations as MLIR: one line of ``arith`` or ``math`` per physical register."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.backends.mlir.half_floats import narrow_f16, widen_f16
from tilewright.backends.mlir.registers import element_type
from tilewright.backends.mlir.text import MlirText
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import bf16_bits
from tilewright.ir.target import Target

Emit = Callable[["Scalars", Any, list[str]], str]
EMIT: dict[type[Op], Emit] = {}


class Scalars:
    """Writes scalar or vector arithmetic on values of one MLIR type."""

    def __init__(self, text: MlirText, target: Target, dtype: DType, lanes: int) -> None:
        self.text, self.target, self.dtype, self.lanes = text, target, dtype, lanes

    def shaped(self, element: str) -> str:
        return element if self.lanes == 1 else f"vector<{self.lanes}x{element}>"

    @property
    def type(self) -> str:
        return self.shaped(element_type(self.dtype))

    def number(self, value: float, element: str) -> str:
        """A constant of an element type in every lane; registers hold bf16 as its bits."""
        bits = self.dtype.name == "bf16" and element == element_type(self.dtype)
        literal = _literal(int(bf16_bits([value])[0]) if bits else value, element)
        if self.lanes == 1:
            return self.text.constant(literal, element)
        return self.text.constant(f"dense<{literal}>", self.shaped(element))

    def binary(self, name: str, a: str, b: str, element: str | None = None) -> str:
        return self.text.op(f"{name} {a}, {b} : {self.shaped(element) if element else self.type}")

    def convert(self, name: str, x: str, source: str, target: str) -> str:
        return self.text.op(f"{name} {x} : {self.shaped(source)} to {self.shaped(target)}")

    def choose(self, condition: str, a: str, b: str, type_: str) -> str:
        """a where the condition holds, else b."""
        tested = "" if self.lanes == 1 else f"{self.shaped('i1')}, "
        return self.text.op(f"arith.select {condition}, {a}, {b} : {tested}{type_}")


def _literal(value: float, element: str) -> str:
    if element == "i1":
        return "true" if value else "false"
    if element.startswith("i"):
        return str(int(value))
    if math.isnan(value):
        return {"f16": "0x7E00", "f32": "0x7FC00000", "f64": "0x7FF8000000000000"}[element]
    if value in (float("inf"), float("-inf")):
        bits = {
            "f16": ("0x7C00", "0xFC00"),
            "f32": ("0x7F800000", "0xFF800000"),
            "f64": ("0x7FF0000000000000", "0xFFF0000000000000"),
        }
        return bits[element][value < 0]
    return f"{float(value):.17e}"


def emits(cls: type[Op]) -> Callable[[Emit], Emit]:
    """Registers how an op class is written."""

    def register(emit: Emit) -> Emit:
        EMIT[cls] = emit
        return emit

    return register


_TWO: dict[type[Op], tuple[str, str]] = {  # op class -> (float, integer) operation
    m.Add: ("arith.addf", "arith.addi"),
    m.Sub: ("arith.subf", "arith.subi"),
    m.Mul: ("arith.mulf", "arith.muli"),
    m.Div: ("arith.divf", ""),
    m.Max: ("arith.maximumf", "arith.maxsi"),  # of numbers with a sign
    m.Min: ("arith.minimumf", "arith.minsi"),
    m.And: ("", "arith.andi"),
    m.Or: ("", "arith.ori"),
    m.BitAnd: ("", "arith.andi"),
    m.BitOr: ("", "arith.ori"),
    m.BitXor: ("", "arith.xori"),
    m.ShiftLeft: ("", "arith.shli"),
    m.ShiftRight: ("", "arith.shrui"),
    m.ShiftRightSigned: ("", "arith.shrsi"),
    m.Pow: ("math.powf", ""),
}
_UNSIGNED: dict[type[Op], str] = {
    m.Max: "arith.maxui",
    m.Min: "arith.minui",
}
_BOOL: dict[type[Op], str] = {  # one bit: 1 is no -1, and a sum of both is no 0
    m.Add: "arith.ori",
    m.Mul: "arith.andi",
    m.Max: "arith.ori",
    m.Min: "arith.andi",
}
_ONE: dict[type[Op], str] = {
    m.Sqrt: "math.sqrt",
    m.Abs: "math.absf",
    m.Round: "math.roundeven",
    m.Log: "math.log",
    m.Log2: "math.log2",
    m.Neg: "arith.negf",
    m.Exp: "math.exp",
    m.Exp2: "math.exp2",
    m.Tanh: "math.tanh",
    m.Erf: "math.erf",
}


def emit_pointwise(scalars: Scalars, op: Op, inputs: list[str], operand: DType) -> str:
    """One physical register of a pointwise op; ``operand`` is the dtype of its first operand."""
    special = EMIT.get(type(op))
    if special is not None:
        return special(scalars, op, inputs)
    floating = operand.is_float
    if type(op) in _TWO:
        name = _TWO[type(op)][0 if floating else 1]
        if operand.kind == "bool":
            name = _BOOL.get(type(op), name)
        elif operand.kind == "uint" and name:
            name = _UNSIGNED.get(type(op), name)
        if name:
            return scalars.binary(name, inputs[0], inputs[1], element_type(operand))
    if type(op) in _ONE and floating:
        return scalars.text.op(f"{_ONE[type(op)]} {inputs[0]} : {scalars.type}")
    if type(op) in _INTEGER and not floating:
        return _INTEGER[type(op)](scalars, op, inputs)
    raise UnsupportedError(f"{op.name} on {operand} in the mlir back end", op.loc)


def _divide(s: Scalars, op: Op, inputs: list[str]) -> str:
    """Rounded down; 0 by zero, and what wraps around for the least number by -1, where the machine
    would stop the process."""
    zero, one = s.number(0, element_type(s.dtype)), s.number(1, element_type(s.dtype))
    none = s.text.op(f"arith.cmpi eq, {inputs[1]}, {zero} : {s.type}")
    divisor = s.choose(none, one, inputs[1], s.type)
    if s.dtype.kind != "int":
        return s.choose(none, zero, s.binary("arith.divui", inputs[0], divisor), s.type)
    minus = s.text.op(
        f"arith.cmpi eq, {inputs[1]}, {s.number(-1, element_type(s.dtype))} : {s.type}"
    )
    divisor = s.choose(minus, one, divisor, s.type)
    quotient = s.binary("arith.floordivsi", inputs[0], divisor)
    quotient = s.choose(minus, _opposite(s, op, inputs), quotient, s.type)
    return s.choose(none, zero, quotient, s.type)


def _remainder(s: Scalars, op: Op, inputs: list[str]) -> str:
    """x - floor(x / y) * y"""
    quotient = _divide(s, op, inputs)
    return s.binary("arith.subi", inputs[0], s.binary("arith.muli", quotient, inputs[1]))


def _opposite(s: Scalars, op: Op, inputs: list[str]) -> str:
    return s.binary("arith.subi", s.number(0, element_type(s.dtype)), inputs[0])


def _magnitude(s: Scalars, op: Op, inputs: list[str]) -> str:
    if s.dtype.kind != "int":
        return inputs[0]
    return s.binary("arith.maxsi", inputs[0], _opposite(s, op, inputs))


_INTEGER: dict[type[Op], Emit] = {
    m.Div: _divide,
    m.Mod: _remainder,
    m.Neg: _opposite,
    m.Abs: _magnitude,
    m.Round: lambda s, op, inputs: inputs[0],
}


@emits(m.Fma)
def _fma(s: Scalars, op: m.Fma, inputs: list[str]) -> str:
    if not s.dtype.is_float:
        return s.binary("arith.addi", s.binary("arith.muli", inputs[0], inputs[1]), inputs[2])
    return multiply_add(s.text, op.fused or s.target.fused, inputs, s.type)


def multiply_add(text: MlirText, fused: bool, inputs: Sequence[str], held: str) -> str:
    """x * y + z, rounded once if ``fused``: by a call of libm where it is no instruction."""
    x, y, z = inputs
    if fused:
        return text.op(f"math.fma {x}, {y}, {z} : {held}")
    return text.op(f"arith.addf {text.op(f'arith.mulf {x}, {y} : {held}')}, {z} : {held}")


@emits(m.Not)
def _not(s: Scalars, op: Op, inputs: list[str]) -> str:
    return s.binary("arith.xori", inputs[0], s.number(1, "i1"), "i1")


@emits(m.Larger)
def _larger(s: Scalars, op: Op, inputs: list[str]) -> str:
    """lhs > rhs ? lhs : rhs is the machine's own maximum."""
    greater = s.text.op(f"{comparison('gt', s.dtype)}, {inputs[0]}, {inputs[1]} : {s.type}")
    return s.choose(greater, inputs[0], inputs[1], s.type)


@emits(m.Smaller)
def _smaller(s: Scalars, op: Op, inputs: list[str]) -> str:
    """lhs < rhs ? lhs : rhs is the machine's own minimum."""
    less = s.text.op(f"{comparison('lt', s.dtype)}, {inputs[0]}, {inputs[1]} : {s.type}")
    return s.choose(less, inputs[0], inputs[1], s.type)


@emits(m.Select)
def _select(s: Scalars, op: m.Select, inputs: list[str]) -> str:
    return s.choose(inputs[0], inputs[1], inputs[2], s.type)


@emits(m.Compare)
def _compare(s: Scalars, op: m.Compare, inputs: list[str]) -> str:
    dtype = getattr(op.lhs.type, "dtype", I64)
    element = element_type(dtype)
    if dtype.name == "bf16":  # registers hold it as its bits
        inputs, element = [widen_bf16(s, x) for x in inputs], "f32"
    compare = comparison(op.relation, dtype)
    return s.text.op(f"{compare}, {inputs[0]}, {inputs[1]} : {s.shaped(element)}")


def comparison(relation: str, dtype: DType) -> str:
    """The operation that says whether a relation holds between numbers of a dtype; between floats
    not where one is NaN, but for ne."""
    if dtype.is_float:
        return f"arith.cmpf {'une' if relation == 'ne' else 'o' + relation}"
    if relation in ("eq", "ne"):
        return f"arith.cmpi {relation}"
    return f"arith.cmpi {'s' if dtype.kind == 'int' else 'u'}{relation}"


def _has_avx512(s: Scalars) -> bool:
    return s.target.named == "avx512" and s.lanes == 16


def _bounded(s: Scalars, x: str) -> str:
    """x within the exponents that matter: 2**-150 rounds to zero, 2**129 is infinite; NaN stays."""
    lowest, highest = s.number(-150.0, "f32"), s.number(129.0, "f32")
    above = s.text.op(f"arith.cmpf ogt, {lowest}, {x} : {s.type}")
    x = s.choose(above, lowest, x, s.type)
    below = s.text.op(f"arith.cmpf olt, {highest}, {x} : {s.type}")
    return s.choose(below, highest, x, s.type)


@emits(m.Fraction)
def _fraction(s: Scalars, op: m.Fraction, inputs: list[str]) -> str:
    """One instruction with AVX-512 (imm 9: subtract the value rounded down, no exceptions)."""
    if _has_avx512(s):
        zero, full = s.number(0, "f32"), s.text.constant("-1", "i16")
        kind, mode = s.text.constant("9", "i32"), s.text.constant("4", "i32")
        name = '"llvm.x86.avx512.mask.reduce.ps.512"'
        types = f"({s.type}, i32, {s.type}, i16, i32) -> {s.type}"
        arguments = f"{inputs[0]}, {kind}, {zero}, {full}, {mode}"
        return s.text.op(f"llvm.call_intrinsic {name}({arguments}) : {types}")
    x = _bounded(s, inputs[0])
    floor = s.text.op(f"math.floor {x} : {s.type}")
    near = s.binary("arith.subf", x, floor)
    if not op.down:
        return near
    back = s.binary("arith.addf", near, floor)  # exact where the difference is not
    above = s.text.op(f"arith.cmpf ogt, {back}, {x} : {s.type}")
    bits = s.convert("arith.bitcast", near, "f32", "i32")
    less = s.binary("arith.subi", bits, s.number(1, "i32"), "i32")
    return s.choose(above, s.convert("arith.bitcast", less, "i32", "f32"), near, s.type)


@emits(m.Scale2)
def _scale2(s: Scalars, op: m.Scale2, inputs: list[str]) -> str:
    """x * 2**floor(n): one instruction with AVX-512, else two factors made of exponent bits (n may
    lie below the normal range)."""
    x, n = inputs
    if _has_avx512(s):
        full, mode = s.text.constant("-1", "i16"), s.text.constant("4", "i32")
        name = '"llvm.x86.avx512.mask.scalef.ps.512"'
        types = f"({s.type}, {s.type}, {s.type}, i16, i32) -> {s.type}"
        return s.text.op(f"llvm.call_intrinsic {name}({x}, {n}, {x}, {full}, {mode}) : {types}")
    floor = s.text.op(f"math.floor {_bounded(s, n)} : {s.type}")
    whole = s.convert("arith.fptosi", floor, "f32", "i32")
    half = s.binary("arith.shrsi", whole, s.number(1, "i32"), "i32")
    rest = s.binary("arith.subi", whole, half, "i32")
    for exponent in (half, rest):
        biased = s.binary("arith.addi", exponent, s.number(127, "i32"), "i32")
        bits = s.binary("arith.shli", biased, s.number(23, "i32"), "i32")
        x = s.binary("arith.mulf", x, s.convert("arith.bitcast", bits, "i32", "f32"))
    return x


@emits(m.Cast)
def _cast(s: Scalars, op: m.Cast, inputs: list[str]) -> str:
    source = getattr(op.x.type, "dtype", None)
    assert source is not None
    return convert(s, inputs[0], source, op.dtype)


def convert(s: Scalars, x: str, source: DType, target: DType) -> str:
    """A value in another dtype."""
    a, b = element_type(source), element_type(target)
    if source == target:
        return x
    if source.name == "bf16":
        wide = widen_bf16(s, x)
        return wide if b == "f32" else convert(s, wide, _f32(), target)
    if target.name == "bf16":
        narrow = x if a == "f32" else convert(s, x, source, _f32())
        return narrow_bf16(s, narrow)
    if source.name == "f16" and not s.target.halves:
        wide = widen_f16(s, x)
        return wide if b == "f32" else convert(s, wide, _f32(), target)
    if target.name == "f16" and not s.target.halves:
        return narrow_f16(s, x if a == "f32" else convert(s, x, source, _f32()))
    if source.is_float and target.is_float:
        return s.convert("arith.extf" if target.bits > source.bits else "arith.truncf", x, a, b)
    if source.is_float:
        if b == "i1":
            return s.text.op(f"arith.cmpf une, {x}, {s.number(0, a)} : {s.shaped(a)}")
        if target.bits < 32:  # 200 is no i8, and what fptosi makes of it is left to the machine
            return s.convert("arith.trunci", s.convert("arith.fptosi", x, a, "i32"), "i32", b)
        return s.convert("arith.fptosi", x, a, b)
    if target.is_float:
        return s.convert("arith.uitofp" if source.kind != "int" else "arith.sitofp", x, a, b)
    return _convert_integer(s, x, source, target)


def _f32() -> DType:
    from tilewright.ir.dtypes import F32

    return F32


def _convert_integer(s: Scalars, x: str, source: DType, target: DType) -> str:
    a, b = element_type(source), element_type(target)
    if b == "i1":
        return s.text.op(f"arith.cmpi ne, {x}, {s.number(0, a)} : {s.shaped(a)}")
    bits = 1 if a == "i1" else source.bits
    if bits == target.bits:
        return x
    if bits > target.bits:
        return s.convert("arith.trunci", x, a, b)
    return s.convert("arith.extsi" if source.kind == "int" else "arith.extui", x, a, b)


def widen_bf16(s: Scalars, x: str) -> str:
    """bf16 bits are the upper half of f32's."""
    wide = s.convert("arith.extui", x, "i16", "i32")
    high = s.binary("arith.shli", wide, s.number(16, "i32"), "i32")
    return s.convert("arith.bitcast", high, "i32", "f32")


def narrow_bf16(s: Scalars, x: str) -> str:
    """f32 to bf16, nearest even: one instruction where there is one, else on the bits."""
    if s.target.bf16_dot and s.lanes == s.target.lanes:
        # the intrinsic, since LLVM may turn a plain fptrunc into calls per element
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        types = f"({s.shaped('f32')}) -> {s.shaped('bf16')}"
        narrow = s.text.op(f'llvm.call_intrinsic "{name}"({x}) : {types}')
        return s.convert("arith.bitcast", narrow, "bf16", "i16")
    bits = s.convert("arith.bitcast", x, "f32", "i32")
    shift = s.number(16, "i32")
    odd = s.binary(
        "arith.andi", s.binary("arith.shrui", bits, shift, "i32"), s.number(1, "i32"), "i32"
    )
    half = s.binary("arith.addi", odd, s.number(0x7FFF, "i32"), "i32")
    rounded = s.binary("arith.shrui", s.binary("arith.addi", bits, half, "i32"), shift, "i32")
    nan = s.text.op(f"arith.cmpf uno, {x}, {x} : {s.shaped('f32')}")
    kept = s.choose(nan, s.number(0x7FC0, "i32"), rounded, s.shaped("i32"))
    return s.convert("arith.trunci", kept, "i32", "i16")
