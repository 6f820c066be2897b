"""The benchmark of attention runs on tiny problems and gives well-formed figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tilewright
from tilewright.bench import attention, costs
from tilewright.bench.programs import attention_text
from tilewright.bench.timing import QUICK
from tilewright.bench.workloads import (
    NAIVE,
    WORKLOADS,
    Workload,
    against_packed,
    compare,
    compare_naive,
)

pytestmark = pytest.mark.usefixtures("two_threads")
TINY = Workload("tiny", 33, 47, 16, heads=4, groups=2)
TOLERANCE = {"f32": 1e-5, "bf16": 4e-2}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_programs_parse_and_print(dtype: str, causal: bool) -> None:
    module = tilewright.parse(attention_text(32, causal=causal, dtype=dtype))
    assert str(tilewright.parse(str(module))) == str(module)


@pytest.mark.parametrize(
    "workload",
    [
        TINY,
        replace(TINY, causal=True, keys=33),
        replace(TINY, dtype="bf16", queries=1),
        against_packed(replace(TINY, queries=1)),
    ],
    ids=["f32", "causal", "bf16 decode", "packed decode"],
)
def test_a_workload_compares_right_results(workload: Workload) -> None:
    row = compare(workload, wide=True, effort=QUICK)
    assert row.our_error is not None and row.our_error <= TOLERANCE[workload.dtype]
    assert row.their_error is not None and row.their_error <= TOLERANCE[workload.dtype]
    assert row.ours.rounds == row.theirs.rounds == QUICK.fewest
    assert row.work is not None and row.work > 0


def test_the_naive_function_compares_right_results() -> None:
    tiny = replace(NAIVE, queries=40, keys=40, head=16, heads=2, groups=2)
    row = compare_naive(tiny, wide=False, effort=QUICK)
    assert row.our_error is not None and row.our_error < TOLERANCE["f32"]
    assert row.goal.must == 3.0


def test_every_workload_has_its_own_name_and_work() -> None:
    names = [workload.name for workload in (*WORKLOADS, NAIVE)]
    assert len(set(names)) == len(names)
    assert WORKLOADS[0].work == pytest.approx(4 * 8 * 2048 * 2048 * 64 / 1e9)
    decode = next(w for w in WORKLOADS if w.decode)
    assert decode.work == pytest.approx(2 * 8 * 4096 * 128 * 4 / 1e9)


def test_costs_are_positive_and_named() -> None:
    scratch = costs.scratch_memory(512)
    assert scratch.details["declared_bytes"] > 0
    assert 0 < scratch.value < 16
    overhead = costs.call_overhead(calls=5, rounds=1)
    assert overhead.value > 0
    forms = costs.compiled_forms(problems=6, longest=20)
    assert forms.details["forms"] == len(forms.details["layout_classes"]) * forms.value


def test_first_calls_compile_and_then_load() -> None:
    compiled, loaded, *totals = costs.first_calls(1)
    assert compiled.unit == "s"
    assert loaded.unit == "ms"
    assert all(total.details["whole_process"] > total.value for total in totals)


def test_the_whole_command_on_one_row() -> None:
    record = attention.run(QUICK, quick=True, only="L777")
    assert [row.name for row in record.comparisons] == ["f32 H8 L777 D80, lengths / 8"]
    assert record.to_dict()["machine"]["threads"] == 2
