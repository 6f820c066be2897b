"""The cost model's order: what it ranks, what it refuses, what choices become on each target."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tilewright.bench.programs import attention_text, cross_entropy_text
from tilewright.ir.core import Graph
from tilewright.ir.errors import ScheduleError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.cost.counts import NAMES, total
from tilewright.passes.to_tile.cost.defaults import MARGIN, few_row_classes, last_units
from tilewright.passes.to_tile.cost.machine import spilled, step_cycles
from tilewright.passes.to_tile.cost.packed import PackedModel
from tilewright.passes.to_tile.cost.walk import count_program
from tilewright.passes.to_tile.cost_model import ranked
from tilewright.passes.to_tile.lower import default_schedule
from tilewright.passes.to_tile.schedule import Schedule, choose_schedule
from tilewright.passes.to_tile.spaces import kernel_info, kernel_space

ZEN4, AVX2 = named_target("znver4"), named_target("x86-64-v3")
SIZES = {"B": 1, "K": 8, "G": 1, "N": 512, "M": 1024}
SOFTMAX = """
graph softmax<N>(%x: tensor<N x 300 x f32>) {
  %p = tensor.softmax %x {axis = 1, safe = true}
  return %p
}
"""


def stream(text: str) -> Graph:
    return run_passes(parse(text), TO_KERNELS).graphs[0]


def attention(dtype: str = "f32", causal: bool = False) -> Graph:
    return stream(attention_text(64, dtype=dtype, causal=causal))


def packed_product() -> Graph:
    text = (Path(__file__).parent.parent.parent / "examples/low_bit_product.tw").read_text()
    return run_passes(parse(text), TO_KERNELS).graphs[-1]


@pytest.mark.parametrize("rows", [0, 1, 4, 16])
def test_all_of_a_space_is_ranked_best_first(rows: int) -> None:
    graph = attention()
    sizes = {**SIZES, "N": rows or 512}
    found = ranked(graph, ZEN4, rows, sizes, 2)
    every = [tuple(choice.items()) for choice in kernel_space(graph, ZEN4, rows)]
    assert sorted(tuple(choice.items()) for choice, _ in found) == sorted(every)
    seconds = [x for _, x in found]
    assert seconds == sorted(seconds) and seconds[0] > 0 and np.isfinite(seconds[-1])


def test_kernels_without_a_closed_form_are_ranked_by_their_programs() -> None:
    found = ranked(stream(SOFTMAX), ZEN4, 0, {"N": 64}, 2)
    assert len(found) == len(list(kernel_space(stream(SOFTMAX), ZEN4, 0)))
    assert found[0][1] <= found[-1][1]


def test_more_work_takes_longer_and_more_threads_less() -> None:
    graph = attention()
    first = ranked(graph, ZEN4, 0, SIZES, 1)[0][1]
    assert ranked(graph, ZEN4, 0, {**SIZES, "M": 2048}, 1)[0][1] > 1.5 * first
    assert ranked(graph, ZEN4, 0, SIZES, 4)[0][1] < 0.5 * first
    causal = attention(causal=True)
    sizes = {**SIZES, "N": 1024}
    assert ranked(causal, ZEN4, 0, sizes, 1)[0][1] < 0.75 * ranked(graph, ZEN4, 0, sizes, 1)[0][1]


def test_rows_that_a_call_lacks_count_against_high_work_items() -> None:
    graph = attention()
    by_rows: dict[int, float] = {}
    for choice, seconds in ranked(graph, ZEN4, 0, {**SIZES, "N": 64}, 1):
        by_rows.setdefault(choice["rows"], seconds)
    assert by_rows[32] < by_rows[48]  # 64 rows are two work items of either


@pytest.mark.parametrize(("target", "shape"), [(ZEN4, (4, 8)), (ZEN4, (2, 14)), (AVX2, (4, 4))])
def test_shapes_that_were_seen_to_spill_do(target: object, shape: tuple[int, int]) -> None:
    assert spilled(*shape, target) > 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "shape"), [(ZEN4, (3, 8)), (ZEN4, (2, 10)), (ZEN4, (1, 16)), (AVX2, (3, 4))]
)
def test_shapes_that_were_seen_not_to_spill_do_not(target: object, shape: tuple[int, int]) -> None:
    assert spilled(*shape, target) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["znver4", "x86-64-v3", "x86-64-v4", "sapphirerapids"])
def test_the_default_is_the_models_best_up_to_its_error(target: str) -> None:
    machine = named_target(target)
    for graph in (attention(), attention(causal=True), attention("bf16")):
        schedule = default_schedule(kernel_info(graph), machine, 0)
        assert isinstance(schedule, Schedule)
        steps = [
            step_cycles(v, t, machine)
            for v in (1, 2, 3)
            for t in range(2, 17, 2)
            if v * t + v < machine.registers
        ]
        mine = step_cycles(schedule.rows // machine.lanes, schedule.inner_tile, machine)
        assert mine <= MARGIN**2 * min(steps)


def test_kernels_whose_rows_share_what_blocks_make_keep_high_work_items() -> None:
    assert choose_schedule(ZEN4, 0).rows == 48
    assert choose_schedule(AVX2, 0).rows == 24


def test_instructions_of_packed_products_are_a_form_in_rows_and_vectors() -> None:
    graph = packed_product()
    info, units, target = kernel_info(graph), last_units(graph), ZEN4  # packed for 16 lanes
    model = PackedModel.of(graph, info, target, 0, units)
    sizes = {name: 100 if name == "M" else 8 for name in graph.sizes}
    every = list(kernel_space(graph, target, 0))
    for choice in random.Random(1).sample(every, 8):
        program = kernel_to_tile(graph, target, 0, units, choice)
        walked = count_program(program, sizes, target)
        sections, items = model.sections([choice], info, sizes)
        found = total(sections) * items
        for name, ours, theirs in zip(NAMES, found.numbers, walked.numbers, strict=True):
            assert float(np.ravel(ours)[0]) == pytest.approx(theirs, rel=1e-6), (name, choice)


GPUS = ["cuda-sm80", "cuda-sm90", "hip-gfx942"]


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("rows", [0, 16])
def test_choices_reach_the_programs_of_gpus(name: str, rows: int) -> None:
    graph, target = attention("bf16"), named_target(name)
    sizes = {**SIZES, "N": rows or 512}
    found = ranked(graph, target, rows, sizes, 1)
    assert len(found) == len(list(kernel_space(graph, target, rows)))
    for choice, _ in (found[0], found[-1]):
        program = kernel_to_tile(graph, target, rows, last_units(graph), choice)
        assert program.attrs["warps"] == choice["warps"]
        assert program.attrs["stages"] == choice["stages"]
        assert choice["rows"] in [tile for _, tile in program.attrs["grid"]]


def test_blocks_that_shared_memory_does_not_hold_are_refused_with_their_size() -> None:
    graph, target = stream(attention_text(128, dtype="bf16")), named_target("cuda-sm80")
    space = kernel_space(graph, target, 0)
    reason = space.why_not({**space.default, "inner": 128, "stages": 4, "rows": 64})
    assert "shared memory" in reason
    thin = {**space.default, "rows": 128, "inner": 128, "warps": 2, "stages": 1}
    assert "registers" in space.why_not(thin)
    assert not space.why_not(space.default)


def test_a_field_that_a_gpus_schedule_lacks_is_an_error() -> None:
    graph, target = attention("bf16"), named_target("cuda-sm90")
    with pytest.raises(ScheduleError, match="unknown field 'inner_tile'"):
        kernel_to_tile(graph, target, 0, last_units(graph), {"inner_tile": 8})


def test_unknown_sizes_inside_elements_leave_the_plain_schedule() -> None:
    graph = stream(cross_entropy_text())
    assert default_schedule(kernel_info(graph), ZEN4, 0) == choose_schedule(ZEN4, 0)
    known = specialise(graph, {"D": 64})
    assert isinstance(default_schedule(kernel_info(known), ZEN4, 0), Schedule)


@pytest.mark.parametrize("terms", [64, 512, 1024, 1040, 2048])
def test_eight_rows_in_registers_lie_in_the_nearest_cache(terms: int) -> None:
    """Rows that do not are one class with as many as there are lanes; fewer rows stay."""
    text = cross_entropy_text().replace("x D x", f"x {terms} x").replace(", D>", ">")
    classes = few_row_classes(kernel_info(stream(text)), ZEN4)
    assert set(classes) == {1, 2, 4, 16, 0} | ({8} if terms * 8 * 4 <= ZEN4.l1_bytes else set())
    assert set(few_row_classes(kernel_info(stream(text)), AVX2)) == {1, 2, 4, 8, 0}
