"""The benchmark of cross-entropy runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

import pytest
import torch

import tilewright
from tilewright.bench import cross_entropy
from tilewright.bench.cross_entropy import HEADS, WORKLOADS, Workload
from tilewright.bench.programs import cross_entropy_text
from tilewright.bench.timing import QUICK

pytestmark = pytest.mark.usefixtures("two_threads")


def test_the_program_parses_and_prints() -> None:
    module = tilewright.parse(cross_entropy_text())
    assert str(tilewright.parse(str(module))) == str(module)


@pytest.mark.parametrize("rows", [1, 33])
def test_a_workload_compares_right_results(rows: int) -> None:
    row = cross_entropy.compare(Workload("tiny", rows, 24, 77), QUICK)
    assert row.our_error is not None and row.our_error < 1e-5
    assert row.their_error is not None and row.their_error < 1e-5
    assert row.work == pytest.approx(2 * rows * 24 * 77 / 1e9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_compare_right_results(dtype: torch.dtype) -> None:
    workload = Workload("tiny", 33, 24, 77, dtype=dtype)
    row = cross_entropy.compare_head(workload, QUICK)
    close = 1e-5 if dtype == torch.float32 else 5e-3
    assert row.our_error is not None and row.our_error < close
    assert row.their_error is not None and row.their_error < close


def test_one_kernel_without_logits() -> None:
    scratch = cross_entropy.scratch_memory(Workload("small", 100, 64, 5000))
    assert scratch.details["kernels"] == 1
    assert 0 < scratch.details["declared_bytes"] < 100 * 5000 * 4


def test_the_whole_command() -> None:
    record = cross_entropy.run(QUICK, quick=True)
    names = [f"{w.name}, an eighth" for w in (*WORKLOADS, *HEADS)]
    assert [row.name for row in record.comparisons] == names
    assert all(row.goal.must is None for row in record.comparisons)
