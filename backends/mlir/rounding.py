"""The mode that floats are computed in (``float_mode.py``), as MLIR's programs set it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.backends.float_mode import IEEE, has_mxcsr
from tilewright.backends.mlir.text import MlirText
from tilewright.ir.core import Graph
from tilewright.ir.rounding import has_fixed_order
from tilewright.ir.target import Target


@contextmanager
def in_ieee_mode(text: MlirText, graph: Graph, target: Target) -> Iterator[None]:
    """The code written meanwhile computes as IEEE 754 says, if the program is in a fixed order."""
    if not has_fixed_order(graph) or not has_mxcsr(target.triple):
        yield
        return
    place = text.op(f"llvm.alloca {text.i64(1)} x i32 : (i64) -> !llvm.ptr")
    text.line(f'llvm.call_intrinsic "llvm.x86.sse.stmxcsr"({place}) : (!llvm.ptr) -> ()')
    before = text.op(f"llvm.load {place} : !llvm.ptr -> i32")
    _set(text, place, text.constant(str(IEEE), "i32"))
    yield
    _set(text, place, before)


def _set(text: MlirText, place: str, mode: str) -> None:
    text.line(f"llvm.store {mode}, {place} : i32, !llvm.ptr")
    text.line(f'llvm.call_intrinsic "llvm.x86.sse.ldmxcsr"({place}) : (!llvm.ptr) -> ()')
