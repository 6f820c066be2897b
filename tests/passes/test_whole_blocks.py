"""Kernels on whole blocks (for GPUs) in the tile interpreter: right for any scores, masks,
statistics and ways to lie in memory; nothing walked that no mask shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import single_kernel
from tests.passes.test_tile_attention import allowed, attention
from tests.strategies import AttentionShape, Program, assert_same, attention_programs
from tilewright.ir import evaluate_tile
from tilewright.ir.core import Graph, Module, Op
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.tables import tables_of, with_tables
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.tables import block_extremes

SMALL = BlockSchedule(16, 16, 4, 2)
LARGE = BlockSchedule(64, 64, 4, 2)


def lowered(program: Program, schedule: BlockSchedule = SMALL) -> Graph:
    graph = with_tables(single_kernel(program.module))
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    return gpu_program(graph, named_target("cuda-sm90"), units, schedule)


def check(program: Program, dtype: str = "f32", schedule: BlockSchedule = SMALL) -> None:
    tile = Module((lowered(program, schedule),))
    assert parse(str(tile)) == tile
    want = program.run()
    assert_same(run(program, schedule), want, program.scale, 2e-8)
    magnitude = max(1.0, *(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in want))
    bound = allowed(program, dtype) + (2.0**-11 if dtype == "f16" else 0)
    assert_same(run(program, schedule, None), want, magnitude, bound)


@given(st.data())
@settings(max_examples=12)
def test_drawn_programs(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([F32, F32, BF16, F16]))
    program = data.draw(attention_programs(dtype=dtype, most_depth=10))
    try:
        check(program, str(dtype))
    except UnsupportedError as error:
        assert {"flat", "merged"} & program.tags, error  # axes in the middle of a dimension


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (33, 1), (20, 50), (50, 33)])
@pytest.mark.parametrize("causal", [None, 0, 7, -3])
def test_lengths(queries: int, keys: int, causal: int | None) -> None:
    check(attention(AttentionShape(1, 2, queries, keys, 5, 20), causal))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("size", [16, 17])
def test_narrow_dtypes(dtype: str, size: int) -> None:
    """Products of 16-bit floats stay 16-bit, also where the weights were not rounded in writing."""
    program = attention(AttentionShape(2, 1, 20, 33, size, size + 1), 0, dtype)
    check(program, dtype)
    products = [op for op in lowered(program).body.walk() if op.name == "tile.product"]
    types = {getattr(op.operands[1].type, "dtype", None) for op in products}
    assert {str(x) for x in types} <= {dtype, "f32"} and dtype in {str(x) for x in types}


# ---- what is walked


def run(
    program: Program, schedule: BlockSchedule = SMALL, precision: str | None = "f64"
) -> list[np.ndarray]:
    """The results of the tile program, with the tables that it takes."""
    graph = lowered(program, schedule)
    inputs = list(program.inputs)
    for source, _, _ in tables_of(graph_of(program)):
        inputs += [x.numpy() for x in block_extremes(torch.from_numpy(inputs[source]))]
    sizes = {n: v for n, v in program.sizes.items() if n in graph.sizes}
    return list(evaluate_graph(graph, *inputs, precision=precision, sizes=sizes))


def graph_of(program: Program) -> Graph:
    return with_tables(single_kernel(program.module))


def products_run(
    monkeypatch: pytest.MonkeyPatch, program: Program, schedule: BlockSchedule = SMALL
) -> tuple[int, int]:
    """How many blocks were walked, and how often a mask was applied to one (a select)."""
    block = schedule.rows, schedule.inner
    counts = {"tile.product": 0, "math.select": 0}
    step = evaluate_tile.Worker.step

    def counted(self: evaluate_tile.Worker, op: Op, scope: object) -> None:
        whole = getattr(op.results[0].type, "shape", ()) == block if op.results else False
        if op.name == "tile.product" or (op.name == "math.select" and whole):
            counts[op.name] += 1
        step(self, op, scope)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate_tile.Worker, "step", counted)
    run(program, schedule, None)
    monkeypatch.undo()
    return counts["tile.product"] // 2, counts["math.select"]


def test_causal_walks_no_block_above_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, selects = products_run(monkeypatch, attention(AttentionShape(1, 1, 64, 64, 4, 16), 0))
    assert blocks == 4 * 5 // 2
    whole = products_run(monkeypatch, attention(AttentionShape(1, 1, 64, 64, 4, 16)))
    assert whole == (16, 0) and 0 < selects <= 4 * 5  # masks cost something on the diagonal only


MASKS = {
    # condition, and how many of 4 x 4 blocks have to be walked
    "documents": ('%c = math.compare %x, %y {relation = "eq"}', 4),
    "documents, causal": (
        '%a = math.compare %x, %y {relation = "eq"}\n'
        '%b = math.compare %j, %i {relation = "le"}\n%c = math.and %a, %b',
        4,
    ),
    "one far block": ('%c = math.compare %y, %two {relation = "eq"}', 4),
}


def masked(mask: str, length: int, numbers: np.ndarray) -> Program:
    text = f"""graph f<N>(%q: tensor<N x 4 x f32>, %k: tensor<N x 4 x f32>,
                          %v: tensor<N x 16 x f32>, %d: tensor<N x i32>) {{
      %s = tensor.contract %q, %k {{equation = "nd,md->nm"}}
      %i = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
      %j = tensor.iota {{axis = 1, type = tensor<1 x N x i64>}}
      %x = tensor.gather %d, %i
      %y = tensor.gather %d, %j
      %two = math.const {{value = 2, type = tensor<i32>}}
      {mask}
      %no = math.const {{value = -inf, type = tensor<f32>}}
      %t = math.select %c, %s, %no
      %p = tensor.softmax %t {{axis = 1, safe = true}}
      %o = tensor.contract %p, %v {{equation = "nm,me->ne"}}
      return %o
    }}"""
    rng = np.random.default_rng(length)
    inputs = tuple(rng.standard_normal((length, d)) for d in (4, 4, 16))
    return Program(parse(text), (*inputs, numbers), {"N": length})


@pytest.mark.parametrize("mask", MASKS)
def test_blocks_that_a_mask_hides_are_not_walked(
    mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition, walked = MASKS[mask]
    program = masked(condition, 256, np.arange(256) // 64)
    assert_same(run(program, LARGE), program.run(), 1.0, 2e-8)
    assert products_run(monkeypatch, program, LARGE)[0] == walked


@given(st.lists(st.integers(0, 3), min_size=1, max_size=70), st.sampled_from(sorted(MASKS)))
@settings(max_examples=12)
def test_masks_of_any_numbers(numbers: list[int], mask: str) -> None:
    """Numbers in any order: what is seen may lie in several stretches."""
    program = masked(MASKS[mask][0], 5 * len(numbers), np.repeat(numbers, 5))
    assert_same(run(program, BlockSchedule(64, 32, 4, 2)), program.run(), 1.0, 2e-8)


def test_exponentials_cost_one_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale and base lie in one constant; the maximum is scaled once a row."""
    graph = lowered(attention(AttentionShape(1, 1, 16, 64, 4, 16)))
    loop = next(op for op in graph.body.ops if op.name == "tile.for")
    wide = [
        op.name
        for op in loop.regions[0].ops
        if getattr(op.results[0].type, "shape", ()) == (16, 16) and op.name.startswith("math.")
    ]
    rest = [name for name in wide if name != "math.const"]
    assert rest == ["math.fma", "math.exp2", "math.mul"]  # the last one rescales [rows, 16] sums


def test_what_is_not_covered_says_so() -> None:
    text = """graph f<N, M>(%x: tensor<N x M x f64>) {
      %o = tensor.reduce %x {kind = "sum", axis = 1}
      return %o
    }"""
    with pytest.raises(UnsupportedError, match="f64"):
        lowered(Program(parse(text), (np.ones((2, 2)),), {"N": 2, "M": 2}))
