"""The benchmark of masks runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tilewright.bench import mask_workloads as w
from tilewright.bench import masks
from tilewright.bench.mask_workloads import Workload
from tilewright.bench.records import Goal, load_record
from tilewright.bench.timing import QUICK, Effort

pytestmark = pytest.mark.usefixtures("two_threads")


def test_visible_shares_are_exact() -> None:
    assert w.visible_share(w.causal(5), 5, chunk=2) == 15 / 25
    assert w.visible_share(w.window(600), 600) == sum(min(i + 1, 256) for i in range(600)) / 600**2
    lengths = torch.bincount(w.document_numbers(2000, 100)).tolist()
    assert len(lengths) == 20 and sum(lengths) == 2000 and min(lengths) > 0
    numbers = w.document_numbers(8192)
    assert numbers[0] == 0 and numbers[-1] == 15  # a mean of 512
    shown = torch.bincount(numbers).square().sum().item()
    assert w.visible_share(w.documents(8192), 8192, chunk=3000) == shown / 8192**2


def test_documents_see_themselves_only() -> None:
    q, k = torch.arange(1024)[:, None], torch.arange(1024)
    both, causal = (make(1024)(0, 0, q, k) for make in (w.documents, w.causal_documents))
    assert torch.equal(both, both.T) and torch.equal(causal, both & (k <= q))
    assert both.sum() < 1024**2


@pytest.mark.parametrize("workload", masks.SHARES, ids=lambda x: x.name)
def test_time_by_visible_share(workload: Workload) -> None:
    small = Workload("tiny", workload.make, 1, 96)
    found = w.masked_share(small, QUICK)
    assert found["value"] == pytest.approx(found["time_ratio"] / found["visible_share"])
    assert found["rounds"] == 2 and found["value"] > 0


def test_rounds_take_turns_and_repeat_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = {"now": 0.0}

    def side(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            clock["now"] += seconds

        return call

    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    effort = Effort(seconds=0.0, fewest=2, most=2, shortest=1e-3)
    rounds = w.in_rounds((side("a", 0.5), side("b", 10.0)), effort)
    assert rounds == [pytest.approx((0.5, 10.0))] * 2
    assert "".join(order) == "abab" + "aab" + "baa"


@pytest.mark.parametrize("workload", masks.FLEX, ids=lambda x: x.name)
def test_right_results_beside_sdpa(workload: Workload) -> None:
    """As for flex_attention, which takes a C++ compiler and many seconds."""
    small = Workload("tiny", workload.make, 8, 40, Goal(1.3), workload.score)
    row = w.compare_sdpa(small, QUICK)
    assert row.our_error is not None and row.our_error < 1e-5
    assert row.their_error is not None and row.goal == Goal()
    if workload.make is w.causal:
        assert row.their_error < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_takes_its_fastest_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted here: what is compiled otherwise."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for workload in (masks.FLEX[0], masks.FLEX[1]):
        small = Workload("tiny", workload.make, 8, 130, Goal(1.3), workload.score)
        row, compiling = w.compare_flex(small, QUICK)
        assert row.their_error is not None and row.their_error < 1e-5
        assert len(compiling) == (1 if workload.score else len(w.BLOCKS))
        assert sum(form.endswith("(taken)") for form in compiling) == 1


def test_first_calls_in_a_new_process() -> None:
    rows = {row.name: row for row in masks.first_calls(1, flex=False)}
    assert len(rows) == 5 and all(row.value >= 0 for row in rows.values())
    assert rows["first call of a new mask"].value > 0
    assert rows["kernels compiled for five more lengths"].value == 0
    (run,) = rows["first call of a new mask"].details["runs"]
    assert run["kernels_before"] == 3 and len(run["beyond_steady"]) == 5


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "first_calls", lambda runs, flex: iter(()))
    record = masks.run(QUICK, quick=True, flex=False)
    assert [row.name for row in record.comparisons] == [f"{masks.FLEX[0].name}, an eighth"]
    assert len(record.quantities) == len(masks.SHARES)
    assert all(row.goal.must is None for row in (*record.comparisons, *record.quantities))
    assert load_record(record.save(tmp_path)) == record
    refused = CliRunner().invoke(masks.app, ["--quick", "--save"])
    assert refused.exit_code == 2


def test_the_goals() -> None:
    assert {w_.goal.must for w_ in masks.FLEX} == {1.3}
    assert masks.SHARE_GOAL.must == 1.25 and masks.FIRST_GOAL.must == masks.LENGTH_GOAL.must == 1.0
