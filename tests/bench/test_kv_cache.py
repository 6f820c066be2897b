"""The benchmark of low-bit caches runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tilewright.bench import kv_cache
from tilewright.bench.kv_cache import Workload
from tilewright.bench.timing import QUICK

pytestmark = pytest.mark.usefixtures("two_threads")


def test_a_comparison_counts_bytes_and_errors() -> None:
    details: dict[str, dict[str, float]] = {}
    workload = Workload("u8", "u4", keys=96, heads=4, groups=2, head=32, held=True)
    row = kv_cache.compare(workload, QUICK, details)
    found = details[workload.name]
    # a code and 4 bytes of scale and zero for each token and head
    assert found["bytes"] == 2 * 96 * (32 + 16 + 8)
    assert found["bytes ratio"] == 2 * 2 * 96 * 32 * 4 / found["bytes"]
    assert row.goal.must == 2.5 and row.goal.aim == round(found["bytes ratio"], 2)
    assert row.their_error is not None and row.their_error < 1e-5
    assert row.our_error is not None and row.our_error < 1e-3


def test_the_command_says_what_it_measures() -> None:
    result = CliRunner().invoke(kv_cache.app, ["--quick", "--only", "u2"])
    assert result.exit_code == 0
    assert "K u2 V u2, group 32" in result.output
    refused = CliRunner().invoke(kv_cache.app, ["--quick", "--save"])
    assert refused.exit_code == 2
