"""A survey of schedules becomes a few figures by kind of kernel; all kernels are held to goals."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright.bench.machine import describe_machine
from tilewright.bench.tuning_summary import record_of


def entry(workload: str, best: float, tuned: float | None = None) -> dict[str, Any]:
    """A kernel of three schedules, the default of time 1 the model's first."""
    ratios = [[[2, 8], best], [[4, 8], 1.5]]
    predicted = [[[1, 8], 0.1], [[2, 8], 0.2], [[4, 8], 0.3]]
    found: dict[str, Any] = {"workload": workload, "default": [1, 8], "predicted": predicted}
    found |= {"ratios": ratios, "finals": ratios}
    if tuned is not None:
        found["tuned"] = {"chosen": [4, 8], "ratios": [[[4, 8], tuned], [[2, 8], best]]}
    return found


def survey(**kernels: dict[str, Any]) -> dict[str, Any]:
    facts = {"seed": 1, "clock": "wall", "threads": 2, "date": "2026-11-27T00:00:00+00:00"}
    return {**facts, "machine": vars(describe_machine(2)), "kernels": kernels}


def test_geometric_means_by_kind_and_over_all() -> None:
    record = record_of(
        survey(
            a=entry("attention f32 D64", 0.8),
            b=entry("attention bf16 D64", 0.5, tuned=0.6),
            c=entry("softmax", 0.9),
            unfinished={"workload": "rmsnorm", "ratios": []},
        )
    )
    values = {x.name: (x.value, x.goal.must) for x in record.quantities}
    default = "default schedule ÷ best"
    assert values[f"{default}, attention of many rows (2)"] == (pytest.approx(0.4**-0.5), None)
    assert values[f"{default}, rows and fused neighbours (1)"] == (pytest.approx(1 / 0.9), None)
    assert values[f"{default}, all kernels (3)"] == (pytest.approx(0.36 ** (-1 / 3)), 1.12)
    found = "found within 60 s ÷ best"
    assert values[f"{found}, all kernels (1)"] == (pytest.approx(1.2), 1.03)
    assert record.quantities[-1].met is False and record.command == "schedules"
