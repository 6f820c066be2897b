"""Where no block is cut short, closed forms of the cost model count what programs do exactly; and
the bytes that loops read over and over are those of the shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from tests.passes.cost_kernels import (
    TEXTS,
    WITH_INPUTS,
    closed_form,
    kernel,
    model,
    sections_of,
    sizes_of,
    space,
)
from tilewright.ir import ops_stream as s
from tilewright.ir.dtypes import F32
from tilewright.ir.target import named_target
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.cost.counts import NAMES, Counts
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.passes.to_tile.cost.operations import pointwise
from tilewright.passes.to_tile.cost.walk import count_program

CHOICES = {
    "default": ("znver4", {}),
    "two vectors, tiles of six": (
        "znver4",
        {"rows": 32, "inner_tile": 6, "element_tile": 6, "inner_block": 96, "unroll": 8},
    ),
    "one vector, tiles of four and twelve": (
        "x86-64-v3",
        {"rows": 8, "inner_tile": 4, "element_tile": 12, "inner_block": 48, "unroll": 8},
    ),
}


def chosen(name: str, target: str, rows: int, wanted: Mapping[str, int]) -> dict[str, int]:
    known = space(name, target, rows)
    choice = {**known.default, **{k: v for k, v in wanted.items() if k in known.values}}
    assert not known.why_not(choice)
    return choice


def differences(
    name: str, target: str, rows: int, choice: dict[str, int], sizes: Mapping[str, int]
) -> tuple[dict[str, float], Counts]:
    """By how much each kind of instruction is off, in all work items; and what the program does."""
    graph, machine = kernel(name), named_target(target)
    program = kernel_to_tile(graph, machine, rows, last_units(graph), choice)
    walked = count_program(program, sizes, machine)
    found = closed_form(name, target, rows, choice, sizes)
    pairs = zip(NAMES, found.numbers, walked.numbers, strict=True)
    return {n: abs(float(np.ravel(a)[0]) - float(b)) for n, a, b in pairs}, walked


@pytest.mark.parametrize("way", CHOICES)
@pytest.mark.parametrize("name", [*TEXTS, *WITH_INPUTS])
def test_many_rows_in_whole_blocks_are_counted_exactly(name: str, way: str) -> None:
    """But for what is done once for the rows of an item: a comparison and a load of every register
    of rows, and one broadcast for every row."""
    target, wanted = CHOICES[way]
    choice = chosen(name, target, 0, wanted)
    rows, length = 2 * choice["rows"], 2 * choice["inner_block"]
    if "causal" in name:
        rows = length = 2 * math.lcm(choice["rows"], choice["inner_block"])
    off, _ = differences(name, target, 0, choice, sizes_of(kernel(name), rows, length))
    once = 2 * rows / named_target(target).lanes
    slack = {"alu": once, "load": once, "broadcast": rows, "scalar": math.inf}
    assert {k: v for k, v in off.items() if v > slack.get(k, 0) + 1e-6} == {}


@pytest.mark.parametrize("target", ["znver4", "x86-64-v3"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", [*(n for n in TEXTS if "causal" not in n), "a factor of a row"])
def test_few_rows_in_whole_blocks_are_counted_exactly(name: str, rows: int, target: str) -> None:
    """But for what is done once for the item."""
    choice = chosen(name, target, rows, {})
    length = 2 * math.lcm(choice["inner_block"], choice.get("inner_part", 1))
    off, walked = differences(name, target, rows, choice, sizes_of(kernel(name), rows, length))
    slack = {"alu": 2, "shuffle": 10, "broadcast": 4 + 0.1 * walked.broadcast, "scalar": math.inf}
    assert {k: v for k, v in off.items() if v > slack.get(k, 0) + 1e-6} == {}


@pytest.mark.parametrize(("name", "size"), [("attention", 4), ("bf16", 2)])
def test_bytes_that_are_read_over_and_over_are_those_of_the_shapes(name: str, size: int) -> None:
    """A product reads what 48 rows bring for every tile of positions, a sum the block's weights for
    every tile of elements; pairs of bf16 take half the bytes."""
    choice = chosen(name, "znver4", 0, {"rows": 48, "inner_block": 128})
    sections, _ = sections_of(name, "znver4", 0, choice, sizes_of(kernel(name), 48, 256))
    done = [x for x in sections if np.any(x.turns * x.reach)]
    reach = {x.name: float(np.ravel(x.reach)[0]) for x in done}
    assert reach["product"] == 48 * 64 * size
    assert reach["sum"] == 48 * 128 * size
    if name == "attention":  # scores and their exponentials
        assert reach["tile"] == 2 * 48 * 128 * 4


def test_rows_are_rescaled_once_a_block_by_what_is_written() -> None:
    """exp(before - now), where ``before`` is not the first: a subtraction is one of its parts."""
    found = model("attention", "znver4", 0)
    (rescale,) = {
        op.rescale[0] for op in found.info.graph.body.ops if isinstance(op, s.Reduce) and op.rescale
    }
    made, each, seen, stack = found.info.made, Counts(), set(), [rescale]
    while stack:
        op = made.get(stack.pop())
        if op is None or op in seen or "pointwise" not in op.traits:
            continue
        seen.add(op)
        each = each + (pointwise(op, F32, found.target) if op.operands else Counts())
        stack.extend(op.operands)
    assert found.values.each == each and each.add >= 1
