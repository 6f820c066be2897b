"""Products of what is computed first, for lengths that leave vectors and tiles part empty."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tilewright
from tests.computed_operands import expected, inputs, text
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

MADE = ("q", "k", "v", "qk", "qkv")


@pytest.mark.parametrize("target", ["host", "host:4"])
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize(("head", "value_head"), [(7, 9), (33, 17)])
def test_nothing_past_an_end_reaches_a_sum(
    made: str, head: int, value_head: int, target: str
) -> None:
    program = text(made, head, value_head)
    compiled = Program(parse(program), target=target)
    for rows, keys in ((1, 5), (9, 21)):
        given = inputs(rows, keys, head, value_head)
        (got,) = compiled(*given)
        torch.testing.assert_close(got.double(), expected(program, given), rtol=1e-4, atol=1e-4)


def test_a_vector_for_every_position_is_no_result_of_a_kernel() -> None:
    """A row's weights times 16-bit values with their dimensions exchanged: what is converted was
    kept in memory by a kernel that wrote one number of each vector."""

    def function(b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return F.softmax(c, dim=-1) @ b.float().mT

    b, c = torch.randn(7, 6).half(), torch.randn(6)
    with torch.no_grad():
        torch.testing.assert_close(tilewright.compile(function)(b, c), function(b, c))
