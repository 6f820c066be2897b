"""Instruction counts in closed form against programs that are walked, over kernels, schedules,
sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.cost_kernels import TEXTS, closed_form, kernel, sizes_of, space
from tilewright.ir.target import named_target
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.cost.counts import NAMES
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.passes.to_tile.cost.walk import count_program

PART = 0.02  # of all vector instructions, by which a kind of them may be off
TARGETS = ("znver4", "x86-64-v3", "x86-64-v4")


def drawn(name: str, target: str, rows: int, at: int) -> dict[str, int]:
    """Choice number ``at`` of those that the fields' values make, the default if it is refused."""
    known, choice = space(name, target, rows), {}
    for field, values in known.values.items():
        at, digit = divmod(at, len(values))
        choice[field] = values[digit]
    return dict(known.default) if known.why_not(choice) else choice


def check(name: str, target: str, rows: int, at: int, sizes: dict[str, int]) -> None:
    graph, choice = kernel(name), drawn(name, target, rows, at)
    program = kernel_to_tile(graph, named_target(target), rows, last_units(graph), choice)
    walked = count_program(program, sizes, named_target(target))
    found = closed_form(name, target, rows, choice, sizes)
    for field, ours, theirs in zip(NAMES, found.numbers, walked.numbers, strict=True):
        if field != "scalar":  # once for all lanes: an estimate
            off = abs(float(np.ravel(ours)[0]) - float(theirs))
            assert off <= PART * float(walked.vector) + 2, (field, choice, ours, theirs)


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(sorted(TEXTS)),
    target=st.sampled_from(TARGETS),
    at=st.integers(0, 10**6),
    rows=st.integers(1, 150),
    length=st.integers(1, 400),
)
def test_many_rows_are_counted_as_their_programs_are(
    name: str, target: str, at: int, rows: int, length: int
) -> None:
    sizes = sizes_of(kernel(name), rows, length)
    if "causal" in name:
        sizes["N"] = sizes["M"] = max(rows, length)
    check(name, target, 0, at, sizes)


@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(["attention", "attention, 80 elements", "bf16", "cross entropy"]),
    target=st.sampled_from(TARGETS),
    at=st.integers(0, 10**6),
    rows=st.sampled_from([1, 2, 4]),
    length=st.integers(64, 700),
)
def test_few_rows_are_counted_as_their_programs_are(
    name: str, target: str, at: int, rows: int, length: int
) -> None:
    check(name, target, rows, at, sizes_of(kernel(name), rows, length))


def test_the_walk_itself_counts_a_product_by_hand() -> None:
    """Attention, 48 rows and 128 positions in one block: 3 x 128 registers of scores of 64 terms,
    and as many sums of 128 terms for 64 elements."""
    graph, target = kernel("attention"), named_target("znver4")
    choice = {"rows": 48, "inner_tile": 8, "inner_block": 128, "unroll": 4, "element_tile": 8}
    program = kernel_to_tile(graph, target, 0, last_units(graph), choice)
    sizes = sizes_of(graph, 48, 128)
    products = 2 * 3 * 128 * 64
    counted = count_program(program, sizes, target)
    exponentials = 7 * 3 * 128 + 7 * 3  # of scores; of how far the maximum grew
    scales = 3 * 128 + 3 + 3 * 64  # of scores, of the sum, of the vector's sums
    assert counted.fma == products + exponentials + scales
    assert counted.divide == 3 * 64


@pytest.mark.parametrize(("rows", "parts"), [(48, 1), (96, 2), (49, 2)])
def test_work_items_that_are_not_whole_are_counted_whole(rows: int, parts: int) -> None:
    choice = {"rows": 48, "inner_tile": 8, "inner_block": 128, "unroll": 4, "element_tile": 8}
    graph = kernel("attention")
    one = closed_form("attention", "znver4", 0, choice, sizes_of(graph, 48, 256))
    found = closed_form("attention", "znver4", 0, choice, sizes_of(graph, rows, 256))
    assert float(np.ravel(found.fma)[0]) == pytest.approx(
        parts * float(np.ravel(one.fma)[0]), rel=0.01
    )
