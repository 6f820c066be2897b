"""Few rows on GPUs: work items that share out the positions, rows of several axes in one block, and
bounds that rows bring along. In the tile interpreter, which refuses to read outside of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention_programs import Attention
from tests.passes.whole_block_runs import SMALL, programs, run
from tests.strategies import assert_same, attention_programs
from tilewright.ir import evaluate_tile
from tilewright.ir.core import Op
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.to_tile.whole_blocks.schedule import (
    BEGINNING,
    LEAST_BLOCKS,
    MERGING,
    MOST_TURNS,
    BlockSchedule,
    parts_of,
)


@given(st.data(), st.sampled_from([0, 16]), st.integers(1, 6))
@settings(max_examples=6)
def test_drawn_programs_in_parts(data: st.DataObject, rows: int, parts: int) -> None:
    program = data.draw(attention_programs(most_depth=6))
    try:
        got = run(program.module, program.inputs, program.sizes, rows, parts)
    except UnsupportedError as error:
        assert {"flat", "merged"} & program.tags, error  # axes in the middle of a dimension
        return
    assert_same(got, program.run(), program.scale, 2e-8)


@pytest.mark.parametrize("mask", ["none", "bool", "add"])
@pytest.mark.parametrize("shape", [(1, 2, 4, 1, 40), (2, 1, 3, 5, 17)])
@pytest.mark.parametrize("parts", [0, 3, 40])
def test_heads_of_a_group_share_blocks(
    mask: str, shape: tuple[int, int, int, int, int], parts: int
) -> None:
    """Rows are the heads of a group and their queries; more parts than there are blocks, too."""
    form = Attention(5, 20, causal=mask == "none", mask=mask)
    b, k, g, n, m = shape
    rng = torch.Generator().manual_seed(m)
    sizes = (b, k * g, n, 5), (b, k, m, 5), (b, k, m, 20)
    q, keys, v = (torch.randn(x, generator=rng, dtype=torch.float64) for x in sizes)
    extra = torch.randn(b, 1, 1, n, m, generator=rng, dtype=torch.float64)
    more = {"bool": [extra > -0.3], "add": [extra]}.get(mask, [])
    values = {"B": b, "K": k, "G": g, "N": n, "M": m}
    got = run(parse(form.text()), [x.numpy() for x in (q, keys, v, *more)], values, 16, parts)
    want = form.reference(q, keys, v, more[0] if more else None)
    assert_same(got, [want.numpy()], 1.0, 2e-8)
    _, (program, *_) = programs(parse(form.text()), 16, parts)
    assert len(program.attrs["grid"]) == 3 + (parts > 0)  # batch, key heads, (parts,) rows


def test_every_part_is_merged_in_the_same_order() -> None:
    """Bit for bit the same, in the arithmetic of the kernel."""
    form, rng = Attention(16, 16), np.random.default_rng(0)
    inputs = [
        rng.standard_normal(x).astype(np.float32) for x in ((1, 2, 1, 16), *[(1, 1, 70, 16)] * 2)
    ]
    values = {"B": 1, "K": 1, "G": 2, "N": 1, "M": 70}
    once, again = (run(parse(form.text()), inputs, values, 16, 4, precision=None) for _ in "ab")
    assert once[0].tobytes() == again[0].tobytes()


@given(st.integers(1, 3000), st.integers(1, 400), st.sampled_from([264, 528]))
def test_number_of_parts(items: int, blocks: int, slots: int) -> None:
    parts = parts_of(items, blocks, slots)
    assert 1 <= parts <= max(1, blocks // 2)
    alone = -(-items // slots) * blocks  # blocks one after another
    shared = -(-items * parts // slots) * -(-blocks // parts)
    assert shared <= alone and (parts == 1 or shared < alone)


def test_parts_fill_a_gpu() -> None:
    assert parts_of(128, 128, 264) == 2  # 16 sequences, 8 key heads, 8,192 keys on 132 processors
    assert 24 <= parts_of(8, 128, 264) <= 33  # one sequence
    assert parts_of(4096, 128, 264) == 1 and parts_of(1, 1, 264) == 1


# ---- bounds from memory


def bounded(condition: str) -> str:
    """Attention over keys that ``%seen`` shows; %first and %end are numbers of each row."""
    return f"""graph f<N, M>(%q: tensor<N x 4 x f32>, %k: tensor<M x 4 x f32>,
        %v: tensor<M x 16 x f32>, %first: tensor<N x i32>, %end: tensor<N x i64>) {{
      %s = tensor.contract %q, %k {{equation = "nd,md->nm"}}
      %i = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
      %j = tensor.iota {{axis = 1, type = tensor<1 x M x i64>}}
      %f = tensor.gather %first, %i
      %low = math.cast %f {{dtype = i64}}
      %high = tensor.gather %end, %i
      {condition}
      %no = math.const {{value = -inf, type = tensor<f32>}}
      %t = math.select %seen, %s, %no
      %p = tensor.softmax %t {{axis = 1, safe = true}}
      %o = tensor.contract %p, %v {{equation = "nm,me->ne"}}
      return %o
    }}"""


BOTH = """%a = math.compare %j, %low {relation = "ge"}
      %b = math.compare %high, %j {relation = "gt"}
      %seen = math.and %a, %b"""
CONDITIONS = {
    "both": BOTH,
    "shifted": BOTH.replace("%j, %low", "%shift, %i").replace(
        "%a =", "%shift = math.add %j, %high\n%a ="
    ),
    "taken off": BOTH.replace("%j, %low", "%shift, %i").replace(
        "%a =", "%shift = math.sub %j, %low\n%a ="
    ),
}


@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from(sorted(CONDITIONS)),
    st.integers(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=8)
def test_bounds_of_rows(queries: int, keys: int, name: str, parts: int, seed: int) -> None:
    """Any numbers, of which some rows see nothing."""
    rng = np.random.default_rng(seed)
    shapes = (queries, 4), (keys, 4), (keys, 16)
    inputs: list[Any] = [rng.standard_normal(x) for x in shapes]
    inputs.append(rng.integers(-5, keys + 5, queries).astype(np.int32))
    inputs.append(rng.integers(-5, keys + 5, queries))
    module = parse(bounded(CONDITIONS[name]))
    got = run(module, inputs, {"N": queries, "M": keys}, 0, parts)
    assert_same(got, evaluate(module, *inputs, precision="f64"), 1.0, 2e-8)


def test_what_no_row_sees_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one sequence among many take its keys, without a look at any block."""
    counts = {"tile.product": 0, "tile.for": 0}
    step = evaluate_tile.Worker.step

    def counted(self: evaluate_tile.Worker, op: Op, scope: object) -> None:
        if op.name in counts:
            counts[op.name] += 1
        step(self, op, scope)  # type: ignore[arg-type]

    rng = np.random.default_rng(0)
    inputs: list[Any] = [rng.standard_normal(x) for x in ((16, 4), (256, 4), (256, 16))]
    inputs += [np.full(16, 70, np.int32), np.full(16, 130)]
    monkeypatch.setattr(evaluate_tile.Worker, "step", counted)
    run(parse(bounded(BOTH)), inputs, {"N": 16, "M": 256})
    assert counts == {"tile.product": 2 * 4, "tile.for": 2}  # 70 to 130: 3 whole, 1 cut


PAGED = """graph paged<B, N, P, T>(%q: tensor<B x N x 4 x f32>, %k: tensor<P x 3 x 4 x f32>,
    %v: tensor<P x 3 x 16 x f32>, %table: tensor<B x T x i32>, %used: tensor<B x i32>) {
  %b = tensor.iota {axis = 0, type = tensor<B x 1 x 1 x i64>}
  %m = tensor.iota {axis = 1, type = tensor<1 x (3*T) x 1 x i64>}
  %d = tensor.iota {axis = 2, type = tensor<1 x 1 x 4 x i64>}
  %e = tensor.iota {axis = 2, type = tensor<1 x 1 x 16 x i64>}
  %three = math.const {value = 3, type = tensor<i64>}
  %entry = math.div %m, %three
  %place = math.mod %m, %three
  %page = tensor.gather %table, %b, %entry
  %kk = tensor.gather %k, %page, %place, %d
  %vv = tensor.gather %v, %page, %place, %e
  %s = tensor.contract %q, %kk {equation = "bnd,bmd->bnm"}
  %j = tensor.iota {axis = 2, type = tensor<1 x 1 x (3*T) x i64>}
  %length = tensor.gather %used, %b
  %l64 = math.cast %length {dtype = i64}
  %seen = math.compare %j, %l64 {relation = "lt"}
  %no = math.const {value = -inf, type = tensor<f32>}
  %t = math.select %seen, %s, %no
  %p = tensor.softmax %t {axis = 2, safe = true}
  %o = tensor.contract %p, %vv {equation = "bnm,bme->bne"}
  return %o
}"""


@given(st.integers(0, 99), st.sampled_from([0, 2]))
@settings(max_examples=6)
def test_tables_of_any_numbers_read_inside_of_the_pages(seed: int, parts: int) -> None:
    """Of tables that lie on a GPU nobody checks the numbers: the interpreter would refuse to read
    outside. Those of pages that exist give what they should."""
    rng = np.random.default_rng(seed)
    shapes = (2, 3, 4), (5, 3, 4), (5, 3, 16)
    inputs: list[Any] = [rng.standard_normal(x) for x in shapes]
    table = rng.integers(0, 5, (2, 9)).astype(np.int32)
    sizes = {"B": 2, "N": 3, "P": 5, "T": 9}
    module = parse(PAGED)
    good = [*inputs, table, np.array([20, 27], np.int32)]
    want = evaluate(module, *good, precision="f64")
    assert_same(run(module, good, sizes, 16, parts), want, 1.0, 2e-8)
    wild = rng.integers(-(2**31), 2**31, (2, 9)).astype(np.int32)
    (got,) = run(module, [*inputs, wild, np.array([2**31 - 1, -7], np.int32)], sizes, 16, parts)
    assert np.isfinite(got[0]).all() and (got[1] == 0).all()


def test_large_blocks_of_few_rows() -> None:
    """A block of 64 rows for heads of a group, one of 16 positions."""
    form, rng = Attention(16, 16, causal=True), torch.Generator().manual_seed(1)
    sizes = (1, 6, 7, 16), (1, 1, 50, 16), (1, 1, 50, 16)
    q, k, v = (torch.randn(x, generator=rng, dtype=torch.float64) for x in sizes)
    values = {"B": 1, "K": 1, "G": 6, "N": 7, "M": 50}
    schedule = BlockSchedule(64, 32, 4, 2)
    got = run(parse(form.text()), [x.numpy() for x in (q, k, v)], values, 64, 2, schedule)
    assert_same(got, [form.reference(q, k, v, None).numpy()], 1.0, 2e-8)
    assert schedule != SMALL


@given(st.integers(1, 300), st.integers(0, 600), st.integers(1, 528))
def test_as_many_parts_as_end_first(items: int, blocks: int, slots: int) -> None:
    """Against all that may be: a part has some blocks, and all of them few turns. Parts cost their
    beginning, and merging what they found."""

    def cost(parts: int) -> int:
        turns = -(-items * parts // slots)
        return turns * (-(-blocks // parts) + BEGINNING) + MERGING * (parts > 1)

    most = min(blocks // LEAST_BLOCKS, -(-slots * MOST_TURNS // items))
    allowed = range(1, max(1, most) + 1)
    assert parts_of(items, blocks, slots) == min(allowed, key=cost)
