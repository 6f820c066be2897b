"""What keeps programs of threads within their registers: the order of operations, the estimate,
copies ahead, and layouts in which threads share out vectors and codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.passes.test_tile_attention import attention
from tests.passes.test_to_threads import both
from tests.strategies import AttentionShape
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.ops_tile_memory import Barrier, CopyAsync
from tilewright.ir.parser import parse
from tilewright.passes.to_threads.layouts import LANES, BlockLayouts, Made
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_threads.order import ordered
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_threads.registers import estimate, short_of_registers
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

PROGRAM = """
tile f(%x: buffer<4 x 8 x f32, unit 1>, %o: buffer<4 x 8 x f32, unit 1>) with
{grid = [[1, 1]], outputs = 1} {
  %c0 = math.const {value = 0, type = index}
  %row = tile.load %x, %c0, %c0 {dims = [0, -1], layout = local(4, 1)}
  %zero = math.const {value = 0.0, type = reg<4 x 8 x f32, local(4, 8)>}
  %wide = math.add %row, %zero
  %a = tile.load %x, %c0, %c0 {dims = [0, 1], layout = local(4, 8)}
  %product = math.mul %a, %wide
  %r = math.add %product, %zero
  tile.store %r, %o, %c0, %c0 {dims = [0, 1]}
  return
}
"""


def test_what_is_large_is_made_where_it_is_used() -> None:
    (graph,) = parse(PROGRAM).graphs
    late = ordered(graph)
    kinds = [[type(op) for op in g.body.ops] for g in (graph, late)]
    assert kinds[0].index(m.Add) < 4 and kinds[1][-4:-1] == [m.Add, m.Mul, m.Add]
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    (got,), (want,) = (evaluate_graph(g, x) for g in (late, graph))
    assert (got == want).all() and got.any()


def threads(park: bool, keys: int = 70) -> Graph:
    program = attention(AttentionShape(1, 1, 40, keys, 16, 16), 0, "bf16")
    whole, _ = both(program, BlockSchedule(32, 16, 2, 2))
    return plan_shared(lower_threads(whole, park=park), 96 << 10)


def test_left_sides_that_stay_in_shared_memory_take_no_registers() -> None:
    """And the program gives the same bits."""
    program = attention(AttentionShape(1, 1, 40, 70, 16, 16), 0, "bf16")
    kept, parked = threads(False), threads(True)
    assert estimate(parked) < estimate(kept)
    sizes = {n: v for n, v in program.sizes.items() if n in kept.sizes}
    results = [
        evaluate_graph(g, *program.inputs, sizes=sizes, lanes=True)[0] for g in (kept, parked)
    ]
    assert (results[0] == results[1]).all()


def test_more_columns_take_more_registers() -> None:
    found = []
    for head in (16, 64, 256):
        program = attention(AttentionShape(1, 1, 40, 70, head, head), None, "bf16")
        whole, _ = both(program, BlockSchedule(64, 32, 4, 2))
        found.append(lower_threads(whole))
    sizes = [estimate(g) for g in found]
    assert sizes == sorted(sizes) and sizes[2] > 128 + sizes[0]
    assert [short_of_registers(g) for g in found] == [False, False, True]


def test_loops_on_both_sides_of_a_mask_copy_ahead() -> None:
    """Their blocks lie where no multiple of the counter says."""
    _, graph = both(attention(AttentionShape(1, 1, 40, 70, 16, 16), 0, "bf16"))
    for loop in (op for op in graph.body.ops if isinstance(op, t.For)):
        inside = [type(op) for op in loop.regions[0].ops]
        assert inside.count(CopyAsync) == 2 and inside.count(Barrier) == 1


@pytest.mark.parametrize("size", [1, 8, 64, 256])
@pytest.mark.parametrize("dim", [0, 1])
def test_vectors_lie_in_every_warp_once(size: int, dim: int) -> None:
    shape = (size, 1) if dim == 0 else (1, size)
    layout = BlockLayouts(2).of(LANES, shape)
    for warp in range(2):
        lanes = range(32 * warp, 32 * warp + 32) if layout.lanes > 1 else range(1)
        held = {layout.index(lane, r) for lane in lanes for r in range(layout.registers)}
        assert held == set(itertools.product(*map(range, shape)))
    assert layout.registers == max(1, size // 32)


@pytest.mark.parametrize(("shape", "dim", "width"), [((64, 32), 0, 8), ((32, 128), 1, 4)])
def test_codes_are_unpacked_once_in_a_block(shape: tuple[int, int], dim: int, width: int) -> None:
    layout = BlockLayouts(4).of(Made(shape, dim, width).family, shape)
    held = [layout.index(lane, r) for lane in range(128) for r in range(layout.registers)]
    assert sorted(held) == list(itertools.product(*map(range, shape)))
    first, second = layout.index(5, 0), layout.index(5, width - 1)
    assert second[dim] - first[dim] == width - 1 and first[1 - dim] == second[1 - dim]


@pytest.mark.parametrize(("parts", "dim"), [(2, 0), (4, 1), (2, 1)])
def test_parts_of_a_tile_made_together_fit_its_width(parts: int, dim: int) -> None:
    """Four neighbours along rows are made of four tiles along rows, of no others."""
    assert Made((16, 8), 0, 4).part(4, 0) == Made((4, 8), 0, 1)
    with pytest.raises(UnsupportedError, match="tiles in turn"):
        Made((16, 8), 0, 4).part(parts, dim)
