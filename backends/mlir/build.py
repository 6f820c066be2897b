"""MLIR text to LLVM IR text, through MLIR's own passes."""

from __future__ import annotations

import importlib
import re
import struct
import sys
from typing import Any

from tilewright.ir.errors import BackendMissingError
from tilewright.ir.ops_lowbit import bf16_bits

PIPELINE = (
    "builtin.module(canonicalize,cse,loop-invariant-code-motion,convert-scf-to-cf,"
    "convert-vector-to-llvm{enable-x86=true},convert-math-to-llvm,"
    "arith-expand,convert-arith-to-llvm,convert-cf-to-llvm,convert-func-to-llvm,"
    "convert-ub-to-llvm,reconcile-unrealized-casts)"
)


def bindings(part: str) -> Any:
    """A module of MLIR's Python bindings: upstream's ``mlir`` or the copy in ``torch_mlir``."""
    for package in ("mlir", "torch_mlir"):
        try:
            return importlib.import_module(f"{package}.{part}")
        except ImportError:
            continue
    raise BackendMissingError(
        "the mlir back end needs MLIR's Python bindings: pip install 'tilewright[mlir]' "
        "(the wheel torch-mlir has them), or choose backend='numba'"
    )


def loaded() -> bool:
    """Whether MLIR's bindings are in this process already."""
    return any(f"{package}.ir" in sys.modules for package in ("mlir", "torch_mlir"))


_TOKEN = re.compile(
    r"\b(half|bfloat|float|double)\b"
    r"|(?<![\w.%@\"])(?:([+-]?)(inf|nan|qnan)\b|f0x([0-9A-Fa-f]+)|(-?\d+\.\d+e[+-]\d+))"
)
_MARKS = ("f0x", "e+", "e-", "inf", "nan")  # one of them is in each constant of _TOKEN
_FLOAT = struct.Struct("<f")
_PREFIX = {"half": "0xH", "bfloat": "0xR", "float": "0x", "double": "0x"}
_INFINITY = {"half": 0x7C00, "bfloat": 0x7F80, "float": 0x7F800000, "double": 0x7FF << 52}
_QUIET = {"half": 0x200, "bfloat": 0x40, "float": 0x400000, "double": 1 << 51}
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}


def _older_spelling(text: str) -> str:
    """Float constants as llvmlite's LLVM reads them: the wheel's newer LLVM prints words and
    f0x."""
    return "\n".join(map(_older_line, text.split("\n")))


def _older_line(line: str) -> str:
    """A line has all that its constants need; most have none, which is seen at once."""
    if not any(mark in line for mark in _MARKS):
        return line
    current = "float"

    def spell(found: re.Match[str]) -> str:
        nonlocal current
        type_, sign, word, digits, decimal = found.groups()
        if type_:
            current = type_  # a constant has the type last named on its line
            return found.group()
        if decimal:
            return _spell_decimal(current, decimal)
        return _spell_constant(current, sign, word, digits)

    return _TOKEN.sub(spell, line)


def _spell_decimal(type_: str, decimal: str) -> str:
    """The nearest number by its bits: the older reader wants decimals to be exact in their type,
    unless it is double."""
    number = float(decimal)
    if type_ == "float":
        return _spell_double(_FLOAT.unpack(_FLOAT.pack(number))[0])
    if type_ == "half":
        return f"{_PREFIX[type_]}{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
    if type_ == "bfloat":
        return f"{_PREFIX[type_]}{int(bf16_bits([number])[0]):04X}"
    return decimal


def _spell_constant(type_: str, sign: str, word: str | None, digits: str | None) -> str:
    bits = int(digits, 16) if digits else _INFINITY[type_]
    if word in ("nan", "qnan"):
        bits |= _QUIET[type_]
    if sign == "-":
        bits |= 1 << (_BITS[type_] - 1)
    if type_ == "float":  # written with the bits of the same value in double precision
        return _spell_double(_FLOAT.unpack(struct.pack("<I", bits))[0])
    width = 4 if type_ in ("half", "bfloat") else 16
    return f"{_PREFIX[type_]}{bits:0{width}X}"


def _spell_double(number: float) -> str:
    """A float constant by the bits of the same value in double precision."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


def to_llvm_ir(mlir: str) -> str:
    """LLVM IR text of an MLIR module."""
    ir, passes = bindings("ir"), bindings("passmanager")
    llvm = bindings("dialects.llvm")
    with ir.Context() as context:
        context.enable_multithreading(False)
        module = ir.Module.parse(mlir)
        passes.PassManager.parse(PIPELINE).run(module.operation)
        text: str = llvm.translate_module_to_llvmir(module.operation)
    return _older_spelling(text)
