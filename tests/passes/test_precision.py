"""Where numbers narrowed to 16 bits and widened again keep their 32: not where the 16 bits are
seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import tilewright
from tilewright.ir import ops_math as m
from tilewright.ir.parser import parse
from tilewright.passes.precision import precision

TEXT = """graph scaled<N>(%x: tensor<N x 64 x f32>) {{
  %size = math.abs %x : tensor<N x 64 x f32>
  %top = tensor.reduce %size {{kind = "max", axis = 1, keep = true}} : tensor<N x 1 x f32>
  %narrow = math.cast %top {{dtype = {dtype}}} : tensor<N x 1 x {dtype}>
  %wide = math.cast %narrow {{dtype = f32}} : tensor<N x 1 x f32>
  %out = math.div %x, %wide : tensor<N x 64 x f32>
  return %out{more}
}}
"""


def casts(more: str) -> int:
    """How many casts are left of both."""
    graph = precision(parse(TEXT.format(dtype="bf16", more=more))).main
    used = {v for op in graph.body.ops for v in op.operands} | set(graph.results)
    return sum(isinstance(op, m.Cast) and op.result in used for op in graph.body.ops)


def test_numbers_that_nobody_sees_stay_wide() -> None:
    assert casts("") == 0 and casts(", %narrow") == 2


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_quotients_by_a_result_are_those_of_the_result(dtype: str) -> None:
    program = tilewright.Program(parse(TEXT.format(dtype=dtype, more=", %narrow")))
    x = torch.randn(7, 64)
    out, top = program(x)
    assert top.dtype == {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    assert torch.equal(out, x / top.float())


def test_rounding_that_is_asked_for_is_done() -> None:
    """The two halves of a number, whether it fits, and what is left of it."""
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "what is lost": lambda x: x - x.bfloat16().float(),
        "low half": lambda x: (x - x.bfloat16().float()).to(torch.bfloat16).float() * 2,
        "overflow": lambda x: (x * 1e5).half().float() + 1,
        "underflow": lambda x: (x * 1e-9).half().float() * 1e9,
    }
    x = torch.randn(64, 512)
    for name, function in functions.items():
        with torch.no_grad():
            assert torch.equal(tilewright.compile(function)(x), function(x)), name
