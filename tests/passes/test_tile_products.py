"""Products and vector-valued sums as tile programs: factors of terms, chunks of long sums, gathered
rows, operands that are not f32, and which loops are rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.passes.stages import NARROW_TO_WIDE, TARGETS, kernels, lowered
from tests.passes.test_tile_kernels import check, program, run_tiled
from tests.strategies import Program
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.schedule import row_classes

CASES = [(target, rows) for target in NARROW_TO_WIDE for rows in row_classes(TARGETS[target])]
SOME = [(target, rows) for target in NARROW_TO_WIDE for rows in (0, 1, 4)]
SOME = [case for case in SOME if case in CASES]

FACTORS = """graph f<N, M>(%a: tensor<N x M x 1 x f32>, %b: tensor<N x M x 1 x f32>,
    %v: tensor<M x 5 x f32>, %w: tensor<M x 5 x f32>, %u: tensor<M x 5 x f32>) {{
  {0}
  %r = tensor.reduce %t {{kind = "sum", axis = 1}}
  %z = tensor.reduce %a {{kind = "sum", axis = 1}}
  return %r, %z
}}"""  # vectors are elements: not all results have their axis
TERMS = {
    "two scalars and two vectors": "%x = math.mul %a, %v\n%y = math.mul %b, %w\n"
    "%t = math.mul %x, %y",
    "a scalar and three vectors": "%x = math.mul %a, %v\n%y = math.mul %x, %w\n"
    "%t = math.mul %u, %y",
    "a product of scalars": "%x = math.mul %a, %b\n%t = math.mul %x, %v",
}


@pytest.mark.parametrize(("target", "rows"), SOME)
@pytest.mark.parametrize("name", TERMS)
def test_all_factors_of_a_term_count(name: str, target: str, rows: int) -> None:
    for n, k in ((1, 1), (9, 5)):
        check(program(FACTORS.format(TERMS[name]), N=n, M=k), target, rows)


def long_product(depth: int) -> Program:
    text = f"""graph f<N, M>(%x: tensor<N x {depth} x f32>, %w: tensor<M x {depth} x f32>) {{
      %r = tensor.contract %x, %w {{equation = "nd,md->nm"}}
      return %r
    }}"""
    return program(text, N=2, M=3)


@pytest.mark.parametrize("depth", [127, 128, 192, 193, 300])
def test_products_of_any_depth(depth: int) -> None:
    """What a chunk of a sum is, one and a half of it, several, and what is left of them."""
    check(long_product(depth), "sse", 0)
    check(long_product(depth), "x86-64-v4", 0)


@pytest.mark.parametrize("target", ["sse", "x86-64-v3", "x86-64-v4"])
def test_rounding_of_a_long_sum(target: str) -> None:
    """It grows with the length of a chunk and the number of chunks, not with the whole length:
    numbers too small to be seen beside the first are summed among themselves."""
    depth, chunk, small = 1024, 128, 2.0**-25
    x = np.full((2, depth), small, np.float32)
    x[:, 0] = 1.0
    drawn = replace(long_product(depth), inputs=(x, np.ones((3, depth), np.float32)))
    (got,) = run_tiled(drawn, target, 0, precision=None)
    want = 1 + (depth - 1) * small
    lost = (1.5 * chunk + depth / chunk) * small
    assert (np.abs(got - want) <= lost).all(), np.abs(got - want).max() / lost


PAGED = """graph f<N, M, P>(%q: tensor<N x {0} x f32>, %k: tensor<P x {0} x f32>,
    %v: tensor<P x {0} x f32>, %keys: tensor<M x i32>, %queries: tensor<N x i32>) {{
  %d = tensor.iota {{axis = 1, type = tensor<1 x {0} x i64>}}
  %n = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
  %m = tensor.iota {{axis = 0, type = tensor<M x 1 x i64>}}
  %row = tensor.gather %queries, %n
  %page = tensor.gather %keys, %m
  %qq = tensor.gather %q, %row, %d
  %kk = tensor.gather %k, %page, %d
  %vv = tensor.gather %v, %page, %d
  %s = tensor.contract %qq, %kk {{equation = "nd,md->nm"}}
  %p = tensor.softmax %s {{axis = 1}}
  %o = tensor.contract %p, %vv {{equation = "nm,me->ne"}}
  return %o
}}"""


@pytest.mark.parametrize("width", [1, 4, 8, 16, 19])
@pytest.mark.parametrize("target", NARROW_TO_WIDE)
def test_rows_looked_up_in_tables(target: str, width: int) -> None:
    """Queries, keys and values, whole elements of each; numbers past either end read the last row
    there is."""
    rng = np.random.default_rng(width)
    for rows in row_classes(TARGETS[target])[width % 2 :: 2]:
        n, k, pages = 3, 9, 6
        tables = [rng.integers(-2, pages + 2, k), rng.integers(-1, n + 1, n)]
        floats = [rng.standard_normal((count, width)) for count in (n, pages, pages)]
        inputs: list[Any] = [*floats, *(x.astype(np.int32) for x in tables)]
        drawn = Program(
            parse(PAGED.format(width)), tuple(inputs), {"N": n, "M": k, "P": pages}, scale=10
        )
        check(drawn, target, rows)


HALF = """graph f<N, M>(%x: tensor<N x 20 x {0}>, %w: tensor<M x 20 x {0}>) {{
  %k = math.neg %w
  %r = tensor.contract %x, %k {{equation = "nd,md->nm"}}
  return %r
}}"""


@pytest.mark.parametrize("target", ["sse", "x86-64-v3", "x86-64-v4", "znver4"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_operands_are_computed_in_any_dtype(dtype: str, target: str) -> None:
    """What rows share is brought to f32 where it is computed once for all of them."""
    drawn = program(HALF.format(dtype), N=3, M=9)
    ((graph, tile),) = lowered(drawn.module, target, 0)
    inputs = [np.round(x * 4) / 4 for x in drawn.inputs]  # exact in any dtype
    got = evaluate_graph(tile, *inputs, precision="f64")
    want = evaluate_graph(graph, *inputs, precision="f64")
    np.testing.assert_allclose(got[0], want[0], rtol=1e-9, atol=1e-9)


ROLLED = {
    "what rows share": """graph f<N, M>(%x: tensor<N x {0} x f32>, %w: tensor<M x {0} x f32>) {{
  %y = tensor.roll %w {{axis = 1, shift = {1}}}
  %k = math.mul %y, %w
  %r = tensor.contract %x, %k {{equation = "nd,md->nm"}}
  return %r
}}""",
    "rows": """graph f<N>(%x: tensor<N x {0} x f32>) {{
  %y = tensor.roll %x {{axis = 1, shift = {1}}}
  %r = math.sub %x, %y
  return %r
}}""",
}


@pytest.mark.parametrize("name", ROLLED)
@pytest.mark.parametrize("target", ["scalar", "sse", "x86-64-v3", "x86-64-v4"])
def test_rolls_move_whole_vectors_or_are_refused(target: str, name: str) -> None:
    """Either way and further than the element is long; no vector is made of both of its ends."""
    lanes = TARGETS[target].lanes
    for length, shift in ((16, 8), (16, -16), (24, 8), (24, -40), (32, 16), (32, 3), (20, 4)):
        sizes = {"N": 3, "M": 5} if "M" in ROLLED[name] else {"N": 3}
        drawn = program(ROLLED[name].format(length, shift), **sizes)
        if length % lanes or shift % lanes:
            with pytest.raises(UnsupportedError, match=f"a roll by {shift} of {length} elements"):
                lowered(drawn.module, target, 0)
        else:
            check(drawn, target, 0)


LOOPS = """graph f<B, N, M>(%x: tensor<B x N x M x f32>, %q: tensor<B x N x 4 x f32>,
    %k: tensor<B x M x 4 x f32>) {{
  {0}
  return %r
}}"""
ROWS = {
    "nothing is shared": '%a = math.tanh %x %r = tensor.reduce %a {kind = "sum", axis = 2}',
    "keys are shared": '%s = tensor.contract %q, %k {equation = "bnd,bmd->bnm"} '
    '%r = tensor.reduce %s {kind = "max", axis = 2}',
}


@pytest.mark.parametrize("name", ROWS)
def test_one_loop_is_rows_and_the_others_are_the_grid(name: str) -> None:
    """Rows are loops along which what is read does not change, else the last one before the inner
    axis."""
    (graph,) = kernels(parse(LOOPS.format(ROWS[name])))
    info = analyse(graph)
    assert [str(a.size) for a in info.rows] == ["N"] and [str(a.size) for a in info.grid] == ["B"]
    assert str(info.inner.size) == "M"


@pytest.mark.parametrize("unit", [0, -1])
def test_neighbours_that_lie_apart_are_no_reason_for_a_long_text(unit: int) -> None:
    """Lanes are filled one by one then: written out, 256 terms of 16 columns took a compiler more
    than a minute."""

    def length(terms: int) -> int:
        text = f"""graph apart<M, N>(%x: tensor<M x {terms} x f32>,
                                     %w: tensor<{terms} x N x bf16>) {{
          %wide = math.cast %w {{dtype = f32}}
          %y = tensor.contract %x, %wide {{equation = "mk,kn->mn"}}
          return %y
        }}"""
        (graph,) = run_passes(parse(text), TO_KERNELS).graphs
        units = {"x": 1, "w": 1 if unit == 0 else -1}
        program = kernel_to_tile(graph, named_target("znver4"), 1, units)
        return sum(1 for _ in program.body.walk())

    assert length(256) <= length(1024)
