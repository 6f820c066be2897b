"""Kernels in a fixed order through NVRTC, without a GPU: it may neither fuse what other back ends
round twice, nor drop subnormal numbers, or bits would differ on a GPU alone."""

from __future__ import annotations

import re

import pytest
import torch

from tests.test_reproducible import TEXTS, drawn
from tilewright.backends.cuda.compile import (
    ARCHITECTURES,
    compile_kernel,
    compile_to_ptx,
    compiler_missing,
)
from tilewright.backends.gpu.machine_code import assembly, disassembler_missing
from tilewright.ir.parser import parse
from tilewright.runtime import cuda_ordered
from tilewright.runtime.program import Program

MISSING = compiler_missing() or disassembler_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
APART = """
graph apart<N>(%x: tensor<N x 8 x f32>, %y: tensor<N x 8 x f32>, %z: tensor<N x 8 x f32>) {
  %product = math.mul %x, %y
  %sum = math.add %product, %z
  return %sum
}
"""


def text_of(source: str, name: str | None = None) -> str:
    """The CUDA C++ of a program's first kernel, whose start is caught."""

    class Caught(Exception):
        pass

    found: list[str] = []

    def catch(text: str, *rest: object, **more: object) -> None:
        found.append(text)
        raise Caught

    program = Program(parse(source), backend="cuda-host", reproducible=True)
    sizes = dict.fromkeys(parse(source).main.sizes, 3)
    inputs = drawn(name, sizes, 0, 1.0) if name else three(sizes["N"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_ordered, "run_on_host", catch)
        with pytest.raises(Caught):
            program(*inputs)
    return found[0]


def three(rows: int) -> list[torch.Tensor]:
    return [torch.ones(rows, 8) for _ in range(3)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_apart_stays_apart(architecture: str) -> None:
    """A product and a sum may not become one instruction that rounds once."""
    found = assembly(compile_kernel(text_of(APART), architecture, "kernel"))
    assert re.search(r"\bFMUL", found) and re.search(r"\bFADD", found)
    assert not re.search(r"\bFFMA|\bF(?:MUL|ADD)\S*\.FTZ", found)


@pytest.mark.parametrize("name", TEXTS)
def test_every_operation_says_how_it_rounds(name: str) -> None:
    """PTX ISA, add and mul: without a rounding modifier they may be fused, with one never; ``.ftz``
    drops subnormal numbers."""
    ptx = compile_to_ptx(text_of(TEXTS[name], name), "sm_80", "kernel")
    operation = r"\s((?:add|sub|mul|fma|div|sqrt|rcp|rsqrt|ex2|lg2|tanh)\.\S*f(?:32|64))\s"
    rounded = re.findall(operation, ptx)
    assert len(rounded) > 10
    assert not [x for x in rounded if ".rn." not in x or ".ftz" in x]
