"""Operations per second that the processor reaches when it does nothing else.

Loops of multiply-adds on registers, written in LLVM's IR and run on every thread. torch's own
product is no such measure: on some machines it takes instructions that reach half of it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

ACCUMULATORS = 12  # enough to fill two units of latency 4 to 5; all stay in registers


@dataclass(frozen=True)
class Instruction:
    """A multiply-add of vectors: accumulator and operands as LLVM types, what one does."""

    name: str
    needs: str  # of the processor's features
    call: str  # its intrinsic
    sums: str
    parts: str
    operations: int
    accumulator_last: bool = False

    def text(self) -> str:
        """A function of a number of rounds; the sums are stored at the end, so that they are
        made."""
        s, p, n = self.sums, self.parts, ACCUMULATORS
        order = "{p} %x, {p} %y, {s} {a}" if self.accumulator_last else "{s} {a}, {p} %x, {p} %y"
        given = f"{p}, {p}, {s}" if self.accumulator_last else f"{s}, {p}, {p}"
        phis = "\n".join(
            f"  %a{i} = phi {s} [ zeroinitializer, %start ], [ %b{i}, %loop ]" for i in range(n)
        )
        steps = "\n".join(
            f"  %b{i} = call {s} @{self.call}({order.format(p=p, s=s, a=f'%a{i}')})"
            for i in range(n)
        )
        stores = "\n".join(
            f"  %p{i} = getelementptr {s}, ptr %out, i64 {i}\n  store {s} %b{i}, ptr %p{i}, align 1"
            for i in range(n)
        )
        return f"""
declare {s} @{self.call}({given})
define void @run(ptr %in, ptr %out, i64 %rounds) {{
start:
  %x = load {p}, ptr %in, align 1
  %next = getelementptr {p}, ptr %in, i64 1
  %y = load {p}, ptr %next, align 1
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %j, %loop ]
{phis}
{steps}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %rounds
  br i1 %more, label %loop, label %end
end:
{stores}
  ret void
}}
"""


def _fma(lanes: int, needs: str) -> Instruction:
    vector = f"<{lanes} x float>"
    return Instruction("f32", needs, f"llvm.fma.v{lanes}f32", vector, vector, 2 * lanes, True)


INSTRUCTIONS = (
    _fma(16, "avx512f"),
    _fma(8, "fma"),
    _fma(4, "neon"),
    Instruction(
        "bf16",
        "avx512bf16",
        "llvm.x86.avx512bf16.dpbf16ps.512",
        "<16 x float>",
        "<32 x bfloat>",
        64,
    ),
    Instruction(
        "int8", "avx512vnni", "llvm.x86.avx512.vpdpbusd.512", "<16 x i32>", "<64 x i8>", 128
    ),
)


def measure_peaks(threads: int, seconds: float = 0.02, rounds: int = 7) -> dict[str, float]:
    """Operations per second by kind, with all ``threads`` at once: the best of ``rounds``. A kind
    that the processor has no instruction for is not there."""
    features = {name for name, has in llvm.get_host_cpu_features().items() if has}
    found: dict[str, float] = {}
    for instruction in INSTRUCTIONS:
        if instruction.name not in found and instruction.needs in features:
            found[instruction.name] = _measure(instruction, threads, seconds, rounds)
    return found


def _measure(instruction: Instruction, threads: int, seconds: float, rounds: int) -> float:
    _engine, address = _compiled(instruction.text())
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)
    given = (ctypes.c_char * 256)()
    out = [(ctypes.c_char * (64 * ACCUMULATORS))() for _ in range(threads)]

    def run(thread: int, count: int) -> tuple[float, float]:
        began = time.perf_counter()
        function(ctypes.addressof(given), ctypes.addressof(out[thread]), count)
        return began, time.perf_counter()

    run(0, 1000)
    trial = 100_000
    began, ended = run(0, trial)
    count = max(trial, round(trial * seconds / max(ended - began, 1e-9)))
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            spans = list(pool.map(run, range(threads), [count] * threads))
            took = max(end for _, end in spans) - min(begin for begin, _ in spans)
            best = max(best, threads * count * ACCUMULATORS * instruction.operations / took)
    return best


def _compiled(text: str) -> tuple[Any, int]:
    """The engine, to be kept, and the function's address."""
    for prepare in _preparations():
        prepare()
    module = llvm.parse_assembly(text)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return engine, engine.get_function_address("run")


def _preparations() -> Iterable[Any]:
    return llvm.initialize_native_target, llvm.initialize_native_asmprinter
