"""Predicted seconds of GPU kernels: work and bytes of a schedule as the shapes say, and what a
multiprocessor makes of them, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest

from tests.gpu_lowbit_programs import stream as packed_stream
from tests.lowbit_programs import Form, Weight
from tilewright.bench.programs import attention_text
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, kernel_passes, run_passes
from tilewright.passes.to_tile.cost.gpu import CHIPS, Load, _block_load, _product_load, busy
from tilewright.passes.to_tile.gpu_spaces import (
    ACCUMULATORS,
    SHARED_BYTES,
    block_registers,
    gpu_space,
    product_bytes,
    shared_bytes,
)
from tilewright.passes.to_tile.spaces import kernel_info
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, choose_blocks

SM80, SM90, HIP = (named_target(f"{n}") for n in ("cuda-sm80", "cuda-sm90", "hip-gfx942"))
SIZES = {"B": 2, "K": 4, "G": 2, "N": 512, "M": 1024}
HEADS, SCORES = 2 * 4 * 2, 2 * 4 * 2 * 512 * 1024
NUMBERS = "graph f<N, M>(%x: tensor<N x M x f32>) {\n%p = tensor.softmax %x {axis = 1}\nreturn %p }"


@cache
def attention(dtype: str = "bf16", head: int = 64) -> Graph:
    (graph,) = run_passes(parse(attention_text(head, dtype=dtype)), TO_KERNELS).graphs
    return graph


def load_of(y: BlockSchedule, dtype: str = "bf16", head: int = 64, **sizes: int) -> Load:
    info = kernel_info(attention(dtype, head))
    return _block_load(y, info, SM90, {**SIZES, **sizes}, False)


BLOCKS = [
    BlockSchedule(64, 64, 4, 3),
    BlockSchedule(128, 32, 8, 2, bulk=True),
    BlockSchedule(16, 128, 2, 1),
]


@pytest.mark.parametrize("y", BLOCKS)
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2), ("f32", 4)])
def test_work_of_attention_is_that_of_its_shapes(y: BlockSchedule, dtype: str, size: int) -> None:
    """All items and turns together: both products of every score, an exponential for a score and
    one for rescaling, and the keys and values of a head for every block of its rows."""
    load, chip = load_of(y, dtype), CHIPS["sm_90"]
    times = load.items * load.turns
    together = y.warps % 4 == 0 and y.rows >= 16 * y.warps
    rate = chip.plain if dtype == "f32" else chip.matrix if together else chip.matrix / 2
    assert load.items == HEADS * 512 / y.rows and load.turns == 1024 / y.inner
    assert load.matrix * times * rate == SCORES * (64 + 64)
    assert load.special * times == 2 * SCORES
    assert load.bytes * times == HEADS * 512 / y.rows * 1024 * (64 + 64) * size
    assert load.unique == (HEADS * 512 + 2 * 2 * 4 * 1024) * 64 * size
    assert (load.warps, load.stages, load.shares) == (y.warps, y.stages, False)


def test_maps_of_scores_are_done_by_ordinary_units() -> None:
    """Each operation for every score of a turn, and half a rescaling of what the rows sum."""
    ops = attention().body.ops
    maps = sum(op.name.startswith("math.") for op in ops)
    exponentials = sum(op.name == "math.exp" for op in ops)
    load = load_of(BLOCKS[1])
    assert load.plain == 128 * 32 * maps + 128 * (64 + 64) / 2
    assert load.special == 128 * 32 * exponentials


def test_threads_copy_blocks_sixteen_bytes_at_a_time_where_no_engine_does() -> None:
    plain, bulk = load_of(BLOCKS[0]), load_of(replace(BLOCKS[0], bulk=True))
    assert plain.plain - bulk.plain == 3 * 64 * (64 + 64) * 2 / 16


@pytest.mark.parametrize(("rows", "blocks"), [(512, 16), (513, 17), (1, 1)])
def test_rows_that_do_not_fill_a_block_take_a_whole_one(rows: int, blocks: int) -> None:
    """Rows of both heads of a group share blocks of 64."""
    assert load_of(BLOCKS[0], N=rows).items == 2 * 4 * blocks


def test_a_matrix_unit_since_hopper_wants_four_warps_and_sixteen_rows_of_each() -> None:
    work = {y: load_of(y).matrix for y in (BLOCKS[0], BlockSchedule(64, 64, 8, 3))}
    assert 2 * work[BLOCKS[0]] == work[BlockSchedule(64, 64, 8, 3)]
    info = kernel_info(attention())
    older = [_block_load(replace(BLOCKS[0], warps=n), info, SM80, SIZES, True) for n in (4, 8)]
    assert older[0].matrix == older[1].matrix == 64 * 64 * 128 / CHIPS["sm_80"].matrix


# ---- space on a multiprocessor


@pytest.mark.parametrize("y", BLOCKS)
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2), ("f32", 4)])
@pytest.mark.parametrize("head", [64, 80])
def test_shared_memory_and_registers_of_attention(
    y: BlockSchedule, dtype: str, size: int, head: int
) -> None:
    """Stages of keys and values, the queries; sums and a block of scores. An element takes the next
    power of two."""
    info, wide = kernel_info(attention(dtype, head)), 64 if head == 64 else 128
    blocks = y.stages * y.inner * 2 * wide * size
    assert shared_bytes(y, info) == blocks + y.rows * wide * size
    for target, threads in ((SM90, 32), (HIP, 64)):
        found = block_registers(y, info, target)
        assert found == y.rows * (wide + y.inner) // (y.warps * threads)


def test_numbers_without_an_element_take_a_register_and_no_shared_blocks() -> None:
    """A softmax of rows in memory: running sums are one number a row."""
    (graph,) = run_passes(parse(NUMBERS), kernel_passes(SM90)).graphs[:1]
    info = kernel_info(graph)
    y = BlockSchedule(128, 127, 2, 2)
    assert block_registers(y, info, SM90) == 128 * (1 + 127) // 64 == 256
    assert shared_bytes(y, info) == 0
    load = _block_load(y, info, SM90, {"N": 256, "M": 254}, False)
    assert load.matrix == 0 and load.bytes == 127 * 4 and load.unique == 256 * 254 * 4
    assert choose_blocks(info, SM90).inner == 256


@pytest.mark.parametrize("target", [SM80, SM90, HIP])
@pytest.mark.parametrize("rows", [0, 16])
def test_the_space_has_what_fits_and_nothing_else(target: object, rows: int) -> None:
    info = kernel_info(attention("bf16", 128))
    space = gpu_space(info, target, rows)  # type: ignore[arg-type]
    allowed = 0
    every: list[dict[str, int]] = [{}]
    for field, values in space.values.items():
        every = [{**choice, field: v} for choice in every for v in values]
    for choice in every:
        y = replace(choose_blocks(info, target, rows), **choice)  # type: ignore[arg-type]
        fits = shared_bytes(y, info) <= SHARED_BYTES[target.cpu]  # type: ignore[attr-defined]
        fits = fits and block_registers(y, info, target) <= ACCUMULATORS  # type: ignore[arg-type]
        assert bool(space.why_not(choice)) != fits, choice
        allowed += fits
    assert 0 < allowed < len(every) and len(list(space)) == allowed


# ---- products with packed weights


def test_work_of_a_packed_product_is_that_of_its_shapes() -> None:
    graph = packed_stream(Form((Weight("u4", 32, "tiles"),), 512, x="bf16"))
    info, outputs = kernel_info(graph), 3 * 64
    sizes = {**dict.fromkeys(graph.sizes, 3), "M": 128}
    for y in (ProductSchedule(64, 1, 4, 4, 2), ProductSchedule(32, 1, 2, 8, 3, height=32)):
        load = _product_load(y, info, SM90, sizes)
        times, high = load.items * load.turns, 128 / y.rows
        rate = CHIPS["sm_90"].matrix / (1 if y.height == 16 * y.warps else 2)
        assert load.matrix * times * rate == 128 * outputs * 512
        assert load.bytes * times == high * outputs * 512 / 2
        assert load.plain * times == high * outputs * 512 * 2  # 8 instructions for 4 codes
        assert load.special == 0 and load.registers == y.rows * y.height // (32 * y.warps)
        codes = 16 * y.strips
        assert (
            load.shared
            == product_bytes(y, info)
            == y.stages * (codes * y.rows * 2 + codes * 64 // 2)
        )
        assert load.unique > outputs * 512 / 2


# ---- what a multiprocessor makes of it

CHIP = CHIPS["sm_90"]
ONE = Load(  # one item at a time on every multiprocessor; blocks arrive before they are needed
    matrix=5000.0, plain=0.0, special=0.0, bytes=1.0, turns=10.0, items=132.0, warps=64,
    registers=10, shared=0, stages=2, unique=0.0, shares=False,
)  # fmt: skip


def cycles(load: Load) -> float:
    return busy(load, SM90) * CHIP.hertz


def test_the_slowest_unit_decides_and_nothing_hides_the_barrier_of_one_item() -> None:
    assert cycles(ONE) == pytest.approx(10 * (5000 + 120) + 2500)
    units = replace(ONE, plain=128 * 3000.0, special=16 * 1000.0)
    assert cycles(units) == pytest.approx(10 * (5000 + 3000 + 1000 + 120) + 2500)


@pytest.mark.parametrize(
    ("items", "waves"), [(0, 0), (1, 1), (132, 1), (133, 2), (264, 2), (265, 3)]
)
def test_items_come_in_waves(items: int, waves: int) -> None:
    found = cycles(replace(ONE, items=float(items)))
    assert found == pytest.approx(waves * (10 * 5120 + 2500))


def test_positions_that_are_shared_out_have_no_last_wave() -> None:
    found = cycles(replace(ONE, items=132 * 1.5, shares=True))
    assert found == pytest.approx(1.5 * (10 * 5120 + 2500))


@pytest.mark.parametrize(
    ("fields", "at_once"),
    [
        ({"warps": 16}, 2),  # 512 threads of 58 registers
        ({"warps": 8, "registers": 80}, 2),  # 256 threads of 128 registers: 32768 of 65536
        ({"warps": 8, "shared": 100 << 10}, 2),  # of 227 KB
        ({"warps": 1}, 32),
        ({"warps": 64, "shared": 300 << 10}, 1),
    ],
)
def test_items_beside_each_other_hide_each_others_barriers(
    fields: dict[str, int], at_once: int
) -> None:
    """As many as registers and shared memory allow; then the unit alone decides."""
    load = replace(ONE, items=132.0 * at_once, **fields)  # type: ignore[arg-type]
    turn = max(5000.0, 5120 / at_once)
    assert cycles(load) == pytest.approx(at_once * (10 * turn + 2500 / at_once))
    lonely = replace(load, items=1.0)  # one item in all: it has a multiprocessor to itself
    assert cycles(lonely) == pytest.approx(10 * turn + 2500 / at_once)


@pytest.mark.parametrize(("stages", "waits"), [(1, 900), (2, 800), (5, 500), (10, 0), (20, 0)])
def test_blocks_under_way_hide_the_latency(stages: int, waits: int) -> None:
    load = replace(ONE, matrix=100.0, stages=stages)
    assert cycles(load) == pytest.approx(10 * (100 + waits + 120) + 2500)


def test_bytes_arrive_at_the_rate_of_the_shared_cache() -> None:
    """Each multiprocessor has its part of it."""
    a_cycle = 2.5 * 3.3e12 / 1.7e9 / 132
    load = replace(ONE, matrix=1.0, bytes=20000 * a_cycle)
    assert cycles(load) == pytest.approx(10 * 20000 + 2500)


def test_registers_beyond_those_of_a_thread_are_written_and_read() -> None:
    few = replace(ONE, warps=8, items=1.0)
    many = replace(few, registers=255)  # 48 more for addresses: 48 do not fit, of 256 threads
    spilled = 48 * 256 * 8 / 128
    alone = 5000 + spilled + 120
    assert cycles(many) == pytest.approx(10 * max(spilled, 5000, alone) + 2500)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_memory_gives_what_is_under_way_in_a_latency(stages: int) -> None:
    """Little's law: bytes under way of all multiprocessors, every 900 cycles, up to the rate of the
    memory."""
    load = replace(ONE, matrix=0.0, turns=0.0, bytes=1000.0, unique=1e12, stages=stages)
    under_way = 132 * 1000 * max(stages - 1, 0.5)
    assert busy(load, SM90) == pytest.approx(1e12 / (under_way / (900 / 1.7e9)))
    assert busy(replace(load, bytes=1e6), SM90) == pytest.approx(1e12 / 3.3e12)
    half = replace(load, items=66.0)  # half of the multiprocessors have something to read
    assert busy(half, SM90) == pytest.approx(2 * busy(load, SM90))
    assert math.isfinite(busy(half, SM90))
