"""Programs of threads, run thread by thread: the same numbers as programs on whole blocks, shared
memory without races and without bank conflicts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.passes.stages import single_kernel
from tests.passes.test_tile_attention import attention
from tests.strategies import AttentionShape, Program, attention_programs
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Module, Op
from tilewright.ir.dtypes import BF16, F16, F32, I32, U8, DType
from tilewright.ir.errors import EvaluationError, UnsupportedError, VerifyError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.matrix_units import UNITS, matrix_unit
from tilewright.ir.ops_tile_memory import Barrier, CopyAsync, Wait
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.ir.types import SharedType
from tilewright.passes.rewrite import rewrite_graph
from tilewright.passes.to_threads.banks import choose_swizzle, swizzle_turns
from tilewright.passes.to_threads.layouts import FOURS, ROWS, BlockLayouts, terms_of
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink runs programs for minutes
SMALL = BlockSchedule(32, 16, 2, 3)


def both(program: Program, schedule: BlockSchedule = SMALL) -> tuple[Graph, Graph]:
    """A program on whole blocks, and that of its threads."""
    graph = single_kernel(program.module)
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    whole = gpu_program(graph, named_target("cuda-sm80"), units, schedule)
    return whole, plan_shared(lower_threads(whole), 96 << 10)


def run(graph: Graph, program: Program, lanes: bool) -> list[np.ndarray]:
    sizes = {n: v for n, v in program.sizes.items() if n in graph.sizes}
    return list(evaluate_graph(graph, *program.inputs, sizes=sizes, lanes=lanes))


def check(program: Program, schedule: BlockSchedule = SMALL) -> None:
    whole, threads = both(program, schedule)
    assert parse(str(Module((threads,)))) == Module((threads,))
    for got, want in zip(run(threads, program, True), run(whole, program, False), strict=True):
        np.testing.assert_array_equal(got, want)


@given(st.data())
@settings(max_examples=10, phases=QUICK)
def test_drawn_programs(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([BF16, F16]))
    program = data.draw(attention_programs(dtype=dtype, most_depth=20))
    try:
        check(program)
    except UnsupportedError as error:
        assert {"flat", "merged"} & program.tags, error  # axes in the middle of a dimension


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (33, 1), (20, 40)])
@pytest.mark.parametrize("causal", [None, 0, -3])
def test_lengths(queries: int, keys: int, causal: int | None) -> None:
    check(attention(AttentionShape(1, 2, queries, keys, 16, 32), causal, "bf16"))


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("warps", [1, 4])
def test_stages_and_warps(stages: int, warps: int) -> None:
    program = attention(AttentionShape(1, 1, 20, 70, 16, 16), 0, "f16")
    check(program, BlockSchedule(64, 16, warps, stages))


# ---- what would be wrong


def without(graph: Graph, drop: type[Op], number: int) -> Graph:
    """The program with one of its operations of a class left out."""
    counter = itertools.count()
    return rewrite_graph(
        graph, lambda _, op: () if isinstance(op, drop) and next(counter) == number else None
    )


def test_a_barrier_left_out_is_a_race() -> None:
    """Every barrier inside loops, and the first between two loops that share memory."""
    program = attention(AttentionShape(1, 1, 32, 70, 16, 16), None, "f16")
    _, threads = both(program)
    run(threads, program, True)
    inside = [
        op for loop in loops(threads) for op in loop.regions[0].ops if isinstance(op, Barrier)
    ]
    assert len(inside) == 2
    every = [op for op in threads.body.walk() if isinstance(op, Barrier)]
    for number, op in enumerate(every):
        if op in inside:
            with pytest.raises(EvaluationError, match=r"without a tile\.barrier between"):
                run(without(threads, Barrier, number), program, True)


def test_a_wait_left_out_reads_what_is_under_way() -> None:
    program = attention(AttentionShape(1, 1, 32, 70, 16, 16), None, "f16")
    _, threads = both(program)
    with pytest.raises(EvaluationError, match="under way"):
        run(without(threads, Wait, 0), program, True)


def loops(graph: Graph) -> list[t.For]:
    return [op for op in graph.body.ops if isinstance(op, t.For)]


def test_copies_run_ahead_of_their_turn() -> None:
    """stages - 1 copies of each side before the loop, one in it, and none of bytes twice."""
    _, threads = both(attention(AttentionShape(1, 1, 32, 70, 16, 16), None, "f16"))
    ops = threads.body.ops
    first = next(at for at, op in enumerate(ops) if isinstance(op, t.For))
    assert sum(isinstance(op, CopyAsync) for op in ops[:first]) == 2 * 2
    inside = [op for op in loops(threads)[0].regions[0].ops if isinstance(op, CopyAsync)]
    assert len(inside) == 2
    wait = next(op for op in loops(threads)[0].regions[0].ops if isinstance(op, Wait))
    assert wait.pending == 1


def test_memory_is_shared_by_loops_that_follow_each_other() -> None:
    _, threads = both(attention(AttentionShape(1, 1, 32, 70, 16, 16), None, "f16"))
    spans = threads.attrs["shared"]
    assert len(spans) == 4 and spans[:2] == spans[2:] and spans[0] != spans[1]
    with pytest.raises(UnsupportedError, match="bytes of shared memory"):
        plan_shared(threads, 1024)


# ---- layouts


@pytest.mark.parametrize("warps", [1, 2, 4])
@pytest.mark.parametrize("unit", [name for name in UNITS if "turned" not in name])
def test_sums_feed_the_next_product(warps: int, unit: str) -> None:
    """Sums of a product lie as the left side of the next, where the unit's k is 16."""
    layouts = BlockLayouts(warps)
    tile = layouts.of(ROWS, (16 * warps, 64))
    whole = Layout(2).spatial(warps, 1).local(1, 64 // UNITS[unit].k) @ UNITS[unit].a
    assert tile.same_map(whole) == (unit in ("m16n8k16", "m16n8k8"))
    fours = layouts.of(FOURS, (16 * warps, 64))
    assert fours.same_map(whole) == (unit not in ("m16n8k16", "m16n8k8"))  # bytes, too


@pytest.mark.parametrize(
    ("shape", "order"), [((64, 32), (0, 1)), ((16, 8), (1, 0)), ((128, 64), (1, 0))]
)
def test_copies_cover_a_tile_once(shape: tuple[int, int], order: tuple[int, int]) -> None:
    layout = BlockLayouts(2).copies(shape, order, 8)
    held = {layout.index(lane, r) for lane in range(64) for r in range(layout.registers)}
    assert held == set(itertools.product(*map(range, shape)))
    assert layout.lanes == 64
    for lane in range(64):  # eight neighbours along a row of memory
        first, second = layout.index(lane, 0), layout.index(lane, 7)
        assert second[order[1]] - first[order[1]] == 7 and first[order[0]] == second[order[0]]


def test_matrix_products_refuse_layouts_that_do_not_belong_together() -> None:
    unit = UNITS["m16n8k16"]
    layouts = BlockLayouts(2)
    kinds = {
        "acc": (ROWS, (32, 8), F32),
        "a": (ROWS, (32, 16), BF16),
        "b": (terms_of(unit.name), (16, 8), BF16),
    }

    def product(**other: Layout) -> None:
        lines = []
        for name, (family, shape, dtype) in kinds.items():
            layout = other.get(name, layouts.of(family, shape))
            size = " x ".join(map(str, layout.shape))
            lines.append(
                f"%{name} = math.const {{value = 0, type = reg<{size} x {dtype}, {layout}>}}"
            )
        tail = '%r = tile.matrix_product %acc, %a, %b {unit = "m16n8k16"}'
        parse("tile f() with {grid = [], outputs = 0} {" + "\n".join([*lines, tail, "return }"]))

    product()
    across = Layout(2).local(2, 1).replicate(2) @ unit.a  # every warp holds all rows
    with pytest.raises(VerifyError, match="do not belong together"):
        product(a=across)
    with pytest.raises(VerifyError, match="do not divide"):
        product(b=Layout(2).replicate(2).spatial(8, 4).local(2, 2))
    with pytest.raises(UnsupportedError, match="no matrix unit multiplies i8"):
        matrix_unit(TABLE_I8, F32)
    assert matrix_unit(TABLE_I8, I32).k == 32


TABLE_I8: DType = UNITS["m16n8k32"].terms[0]


# ---- banks


@pytest.mark.parametrize("swizzle", [0, 2, 4, 8])
@pytest.mark.parametrize("columns", [128, 256])
def test_swizzles_move_bytes_one_to_one(swizzle: int, columns: int) -> None:
    memory = SharedType((32, columns), U8, swizzle)
    places = {memory.place(r, c) for r in range(32) for c in range(columns)}
    assert places == set(range(32 * columns))
    (text,) = [str(memory)]
    program = (
        f"tile f() with {{grid = [], outputs = 0}} {{%x = tile.alloc {{type = {text}}}\nreturn }}"
    )
    assert str(parse(program).main.body.ops[0].result.type) == text


@pytest.mark.parametrize("row_bytes", [32, 64, 128, 256, 512])
def test_rows_of_powers_of_two_have_no_bank_conflicts(row_bytes: int) -> None:
    assert swizzle_turns(row_bytes, choose_swizzle(row_bytes)) == 1
    assert swizzle_turns(row_bytes, 0) > 1
