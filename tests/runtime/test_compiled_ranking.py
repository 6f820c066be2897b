"""Schedules of GPU kernels in the order of what they compile to, without a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tilewright.bench.programs import attention_text
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.runtime.compiled_ranking import compiled_first, resources

GRAPH = run_passes(parse(attention_text(64, dtype="bf16")), TO_KERNELS).graphs[0]
UNITS = last_units(GRAPH)
THIN = {"rows": 128, "inner": 128, "warps": 2, "stages": 2}
GOOD = {"rows": 64, "inner": 64, "warps": 4, "stages": 3}


def test_a_schedule_that_spills_moves_behind_one_that_does_not() -> None:
    target = named_target("cuda-sm80")
    assert resources(GRAPH, target, 0, UNITS, THIN).spills > 0
    assert resources(GRAPH, target, 0, UNITS, GOOD).spills == 0
    found = compiled_first(GRAPH, target, 0, UNITS, [(THIN, 1.0), (GOOD, 1.1)])
    assert [choice for choice, _ in found] == [GOOD, THIN]


def test_schedules_of_processors_are_not_compiled_ahead() -> None:
    with pytest.raises(UnsupportedError, match="no GPU"):
        resources(GRAPH, named_target("znver4"), 0, UNITS, {})
