"""The mode that floats are computed in: kernels in a fixed order set it, and put back what was.

torch.set_flush_denormal(True) lets a thread, and those that it starts, take subnormals for 0.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.backends.mlir.text import MlirText
from tilewright.ir.core import Graph
from tilewright.ir.target import Target

IEEE = 0x1F80  # MXCSR: to nearest even, nothing flushed to zero, no traps


def has_mxcsr(target: Target) -> bool:
    """Whether code for a target runs on an x86 processor."""
    machine = target.triple or platform.machine().lower()
    return machine.startswith(("x86_64", "amd64"))


@contextmanager
def in_ieee_mode(text: MlirText, graph: Graph, target: Target) -> Iterator[None]:
    """The code written meanwhile computes as IEEE 754 says, if the program is in a fixed order."""
    if graph.attrs.get("order") != "fixed" or not has_mxcsr(target):
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
