"""Attention over low-bit caches as tile programs for any number of rows, run by the interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest

from tests.cache_programs import Problem, Side, tolerance
from tests.passes.stages import TARGETS
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile


@dataclass(frozen=True)
class Case:
    """Bits, width, what scales are of, and a group's length: of keys and of values; tokens."""

    keys: tuple[int, int, str, int]
    values: tuple[int, int, str, int]
    tokens: int = 37
    zeros: bool = True

    def problem(self) -> Problem:
        keys = Side(CacheForm("lanes", *self.keys), self.zeros)
        values = Side(CacheForm("codes", *self.values), self.zeros, "f16")
        return Problem(keys, values, (1, 1, 2, 1, self.tokens))


CASES = {
    "more vectors than a strip, and some left": Case((4, 8, "token", 8), (4, 72, "token", 72)),
    "strips of channels": Case((2, 8, "channel", 32), (3, 200, "channel", 32)),
    "groups of values": Case((8, 16, "token", 16), (8, 112, "token", 48), zeros=False),
    "a loop over chunks of keys": Case((4, 160, "token", 160), (1, 16, "token", 16)),
    "groups of keys in several chunks": Case((3, 200, "token", 100), (5, 8, "token", 16)),
    "several groups of keys in a chunk": Case((1, 70, "token", 7), (6, 9, "channel", 64), 70),
    "keys by channel": Case((8, 130, "channel", 32), (2, 33, "token", 32), 40, zeros=False),
}


@lru_cache(maxsize=32)
def tile(case: Case, target: str, rows: int) -> Graph:
    kernel = run_passes(parse(case.problem().text()), TO_KERNELS).main
    units = {p.hint: len(p.type.shape) - 1 for p in kernel.params}  # type: ignore[union-attr]
    return kernel_to_tile(kernel, TARGETS[target], rows, units)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", CASES)
def test_every_class_of_rows(name: str, target: str) -> None:
    """What a kernel reads lies inside its inputs, and what it gives beside float64, for one row,
    for few and for many."""
    problem = CASES[name].problem()
    inputs, keys, values = problem.inputs()
    (want,) = evaluate(parse(problem.text()), *inputs, precision="f64")
    for rows in (1, 2, 0) if target == "x86-64-v3" else (1, 4):
        (got,) = evaluate_graph(tile(CASES[name], target, rows), *inputs)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(inputs[0], keys, values))
