"""Kernels that are quickly compiled, as tasks to tune."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

import tilewright
from tests.attention_programs import Attention
from tilewright.bench.programs import attention_text
from tilewright.ir.printer import print_module
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.runtime.program import Program
from tilewright.runtime.tracing.kernels import TracedInput, TracedKernel
from tilewright.runtime.tuning.task import KernelTask, task_of
from tilewright.runtime.tuning.traced import tasks_of_call

SOFTMAX = """
graph normed<N>(%x: tensor<N x LENGTH x f32>) {
  %p = tensor.softmax %x {axis = 1}
  return %p
}
"""


def attention(queries: int, keys: int, heads: int = 2, causal: bool = False) -> KernelTask:
    """Attention in f32 with heads of 16, at one size."""
    text = Attention(16, 16, causal=causal).text()
    q, k, v = (torch.randn(1, heads, n, 16) for n in (queries, keys, keys))
    return _task(Program(tilewright.parse(text)), q, k, v)


def softmax(rows: int, length: int) -> KernelTask:
    """Softmax of rows of a known length."""
    text = SOFTMAX.replace("LENGTH", str(length))
    return _task(Program(tilewright.parse(text)), torch.randn(rows, length))


def product(rows: int, bits: int) -> KernelTask:
    """A product with packed weights."""
    weight = tilewright.QuantizedTensor.from_float(torch.randn(96, 128), f"u{bits}", group=32)
    return _task(lambda x: tilewright.linear(x, weight), torch.randn(rows, 128))


def matrices(rows: int, columns: int, length: int) -> KernelTask:
    """A product of two matrices whose sizes the program fixes."""
    left, right = f"tensor<{rows} x {length} x f32>", f"tensor<{columns} x {length} x f32>"
    text = f"""graph linear(%x: {left}, %w: {right}) {{
      %y = tensor.contract %x, %w {{equation = "mk,nk->mn"}}
      return %y
    }}"""
    program = Program(tilewright.parse(text))
    return _task(program, torch.randn(rows, length), torch.randn(columns, length))


def gpu_attention(backend: str) -> KernelTask:
    """Attention in bf16 with heads of 64, for a GPU that need not be there."""
    module = run_passes(tilewright.parse(attention_text(64, dtype="bf16")), TO_KERNELS)
    lengths = 512, 1024, 1024
    inputs = tuple(
        TracedInput(p.hint, "bf16", (1, 8, n, 64), (8 * n * 64, n * 64, 64, 1))
        for p, n in zip(module.main.params, lengths, strict=True)
    )
    text = print_module(module)
    return task_of(TracedKernel(text, "stream", "attention", "cuda-sm80", backend, inputs, {}))


def _task(call: Callable[..., object], *inputs: torch.Tensor) -> KernelTask:
    tasks, skipped = tasks_of_call(lambda: call(*inputs))
    assert len(tasks) == 1, skipped
    return tasks[0][0]


@cache
def prefill() -> KernelTask:
    """The one that most tests take."""
    return attention(100, 75)
