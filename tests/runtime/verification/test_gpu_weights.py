"""Packed weights on GPUs: what is drawn for them is what they take, and what is not contiguous is
refused, not misread."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.lowbit_programs import Form, Weight
from tests.runtime.verification.here import run
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program
from tilewright.runtime.verification.grammar.cases import Place

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
LANES = 64


def test_most_drawn_cases_run_on_emulated_gpus() -> None:
    tally = run("lowbit", 8, seed=2, place=Place("cuda-host", None))
    (counts,) = tally.by_place.values()
    assert not tally.failures and counts["ok"] >= 4, counts


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_contiguous_is_refused(which: int) -> None:
    weight = Weight("u4", 32, order="tiles", zeros="f16")
    program = Program(parse(Form((weight,), 128).text(LANES)), backend="cuda-host")
    packing = weight.packing(LANES)
    words = torch.zeros(2, packing.chunks(128) * packing.words * LANES, dtype=torch.int32)
    scales = torch.ones(2, packing.groups(128) * LANES).half()
    given = [words, scales, scales.clone()]
    assert program(torch.randn(3, 128), *given)[0].shape == (3, 128)
    wide = given[which].repeat_interleave(2, 1)
    given[which] = wide[:, ::2]
    with pytest.raises(UnsupportedError, match="packed weights that are not contiguous"):
        program(torch.randn(3, 128), *given)
    empty = [x[:0] for x in given]
    assert program(torch.randn(3, 128), *empty)[0].shape == (3, 0)
