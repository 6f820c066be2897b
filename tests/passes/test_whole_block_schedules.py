"""Blocks and orders of kernels on whole blocks: sizes that GPUs have, planes of codes with as many
terms as units take, folds of elements, and programs that do not depend on names."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.cache_programs import Problem
from tests.gpu_lowbit_programs import stream
from tests.lowbit_programs import Form, Weight
from tests.passes.stages import single_kernel
from tests.passes.test_tile_attention import attention
from tests.passes.whole_block_runs import SMALL, run
from tests.strategies import AttentionShape
from tests.test_cached_kernels import key, value
from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_index import BlockId
from tilewright.ir.packing import STRIP, Packing
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse
from tilewright.passes.to_tile.lower import gpu_program, prepared
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.program import packed_programs
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    MOST_STAGES,
    REGISTERS,
    STAGE_BYTES,
    product_schedule,
)
from tilewright.passes.to_tile.whole_blocks.schedule import (
    blocks_of_planes,
    choose_blocks,
    power_of_two,
)

TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942")


def units_of(graph: Graph) -> dict[str, int]:
    return {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_products_of_codes_have_sizes_that_gpus_have(target: str, bits: int) -> None:
    """Powers of two; a whole number of turns to a chunk; the rows of a call in one block, if there
    are few; what is under way fits into its share of shared memory."""
    where = named_target(target)
    for width, rows in itertools.product(range(1, 9), (0, 1, 8, 9, 16, 17, 32, 33, 64, 65, 999)):
        packing = Packing.tiles(width, LANES, 128)
        found = product_schedule((packing,), bits, where, rows, 2)
        sizes = found.rows, found.vectors, found.strips, found.warps, found.height
        assert all(size == power_of_two(size) for size in sizes), (width, rows)
        assert packing.chunk // STRIP % found.strips == 0 and found.parts == 2
        assert found.rows >= min(rows or 999, 64) and found.rows <= 128
        assert found.height in (LANES, LANES // 2) and 2 <= found.stages <= MOST_STAGES
        whole = packing.chunk // STRIP  # every word is read once
        if found.rows <= 16 and bits < 32:
            assert found.strips == whole
        if found.rows == 32 and bits < 32:  # as much of it as registers hold
            held = [n * 32 * bits // 32 + 2 * 32 for n in (found.strips, 2 * found.strips)]
            assert held[0] <= REGISTERS and (held[1] > REGISTERS or found.strips == whole)
        if found.stages > 2 and bits < 32:
            turn = STRIP * found.strips * found.rows * bits // 8
            assert turn * (found.stages - 1) <= STAGE_BYTES[where.gpu, found.rows <= 32]


def test_a_product_of_codes_is_one_program_unless_parts_are_asked_for() -> None:
    graph = stream(Form((Weight("u4", 32, "tiles", 8),), 300, x="bf16"))
    given = analyse(graph), units_of(graph), named_target("cuda-sm90"), 4
    whole, parts = packed_programs(*given), packed_programs(*given, parts=2)
    one = packed_programs(*given, parts=1)
    assert whole.finish is None and one.finish is None and parts.finish is not None
    assert Module((whole.main,)) == Module((one.main,))


def cached(keys: int, values: int, width: int, dtype: str) -> KernelInfo:
    """Attention of few rows over keys and values of so many bits."""
    sides = key(keys, width, group=width), value(values, width, group=width)
    text = Problem(*sides, (1, 1, 4, 1, 130)).text()
    if dtype != "f32":
        text = text.replace(f"N x {width} x f32>", f"N x {width} x {dtype}>", 1)
        cast = "%w = math.cast %q {dtype = f32}\n  %heads = tensor.reshape %w "
        text = text.replace("%heads = tensor.reshape %q ", cast)
    (graph,) = run_passes(parse(text), TO_KERNELS).graphs
    return analyse(prepared(graph))


@pytest.mark.parametrize("values", [2, 3, 4, 8])
def test_planes_of_codes_have_the_terms_of_a_unit(values: int) -> None:
    """Few rows in 16 bits on Triton's NVIDIA targets, if twice the usual tokens are enough."""
    some = set()
    for keys, width in itertools.product((4, 8), (64, 128, 256)):
        info = cached(keys, values, width, "bf16")
        caches = [op for op in info.graph.body.ops if isinstance(op, CachedStream)]
        chunks = {op.form.keys: op.form.packing.chunk for op in caches}
        for where in map(named_target, TARGETS):
            usual, tokens = choose_blocks(info, where, 16), 16 * chunks[False]
            fits = usual.inner < tokens <= 2 * usual.inner and 16 * chunks[True] <= width
            wanted = replace(usual, inner=tokens) if fits and where.gpu == "cuda" else None
            for rows in (1, 16):
                assert blocks_of_planes(info, where, rows) == wanted, (keys, width)
            for rows in (0, 17, 64):
                assert blocks_of_planes(info, where, rows) is None
            some |= {where.gpu} if wanted is not None else set()
    assert some == ({"cuda"} if values in (4, 8) else set())


def test_codes_beside_numbers_of_32_bits_have_no_planes() -> None:
    info, where = cached(8, 4, 128, "f32"), named_target("cuda-sm90")
    assert blocks_of_planes(info, where, 16) is None


def test_kernels_without_caches_have_no_planes() -> None:
    graph = single_kernel(attention(AttentionShape(1, 1, 4, 40, 64, 64), None, "bf16").module)
    assert blocks_of_planes(analyse(prepared(graph)), named_target("cuda-sm90"), 16) is None


FOLDS = """graph f<N, M>(%q: tensor<N x 4 x f32>, %k: tensor<M x 4 x f32>,
    %v: tensor<M x 16 x f32>) {
  %s = tensor.contract %q, %k {equation = "nd,md->nm"}
  %heads = tensor.reshape %q {shape = [size(N), 1, 4]}
  %queries = tensor.broadcast %heads {shape = [size(N), size(M), 4]}
  %keys = tensor.broadcast %k {shape = [size(N), size(M), 4]}
  %x = math.mul %LEFT, %RIGHT
  %norm = tensor.reduce %x {kind = "KIND", axis = 2}
  %t = math.sub %s, %norm
  %p = tensor.softmax %t {axis = 1}
  %o = tensor.contract %p, %v {equation = "nm,me->ne"}
  return %o
}"""


def folded(left: str, right: str, kind: str) -> Module:
    return parse(FOLDS.replace("LEFT", left).replace("RIGHT", right).replace("KIND", kind))


@pytest.mark.parametrize("side", ["queries", "keys"])
@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_folds_of_elements(side: str, kind: str) -> None:
    """Over what every row has, or every position, of lengths that are no multiples of blocks."""
    module, rng = folded(side, side, kind), np.random.default_rng(0)
    for rows, positions in ((20, 37), (1, 1), (16, 16)):
        shapes = (rows, 4), (positions, 4), (positions, 16)
        inputs = [rng.standard_normal(shape) for shape in shapes]
        (got,) = run(module, inputs, {"N": rows, "M": positions})
        (want,) = evaluate(module, *inputs, precision="f64")
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_folds_of_elements_of_both_are_refused() -> None:
    inputs = [np.ones((4, 4)), np.ones((4, 4)), np.ones((4, 16))]
    with pytest.raises(UnsupportedError, match="for every row and position"):
        run(folded("queries", "keys", "sum"), inputs, {"N": 4, "M": 4})


@pytest.mark.parametrize("offset", [None, 0, -3])
def test_names_of_axes_do_not_matter(offset: int | None) -> None:
    """Nor whether a kernel was made or read back from its text: the order of blocks and all else
    stay."""
    graph = single_kernel(attention(AttentionShape(1, 1, 40, 40, 4, 16), offset).module)
    longer = parse(re.sub(r"\bn\b", "query", str(Module((graph,))))).main
    programs = [
        gpu_program(x, named_target("cuda-sm90"), units_of(x), SMALL) for x in (graph, longer)
    ]
    first, second = (str(Module((program,))) for program in programs)
    assert first == second.replace("query", "n")
    for program in programs:  # of rows that see more and more, those with most to do come first
        blocks = {op.result for op in program.body.ops if isinstance(op, BlockId)}
        last_first = [op for op in program.body.ops if isinstance(op, m.Sub) and op.rhs in blocks]
        assert bool(last_first) == (offset is not None)
