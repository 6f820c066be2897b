"""Attention as tile programs: all targets, row classes, sizes, masks and dtypes, lane by lane.

In f64 the tile program equals the tensor program up to the error of its exp2; in its own dtypes it
stays within ``allowed``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import (
    NARROW_TO_WIDE,
    TARGETS,
    kernels,
    lowered,
    single_kernel,
    tile_program,
)
from tests.strategies import AttentionShape, Program, assert_same, attention_programs
from tilewright.ir.core import Module
from tilewright.ir.dtypes import BF16, F16, F32, TABLE
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.passes.to_tile.schedule import row_classes

POLYNOMIAL = 2e-8  # relative error of exponentials in f64, with a little room
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def allowed(program: Program, dtype: str) -> float:
    """A bound on the error relative to the largest value: scores are sums of products of f32, sums
    run over the keys, the result is rounded once, and weights of bf16 may be rounded too."""
    q, k = program.inputs[:2]
    depth, keys = q.shape[-1], program.sizes["M"]
    largest = [float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in (q, k)]
    scores = 1.5 * depth * largest[0] * largest[1] + 12
    arithmetic = 2.0**-24 * ((depth + 4) * scores + keys + 16)
    weights = 2.0**-8 if dtype == "bf16" else 0
    return 2 * arithmetic + ROUNDING[dtype] + weights


def check(program: Program, target: str, rows: int, dtype: str = "f32") -> None:
    ((_, graph),) = lowered(program.module, target, rows)
    tile = Module((graph,))
    want = program.run()
    assert_same(program.run(tile), want, program.scale, POLYNOMIAL)
    magnitude = max(1.0, *(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in want))
    assert_same(program.run(tile, precision=None), want, magnitude, allowed(program, dtype))


CAUSAL = (
    "%i = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}\n"
    "%j = tensor.iota {{axis = 1, type = tensor<1 x M x i64>}}\n"
    "%far = math.const {{value = {0}, type = tensor<i64>}}\n%last = math.add %i, %far\n"
    '%c = math.compare %j, %last {{relation = "le"}}\n'
    "%no = math.const {{value = -inf, type = tensor<f32>}}\n%t = math.select %c, %s, %no\n"
)


def attention(
    shape: AttentionShape, causal: int | None = None, dtype: str = "f32", safe: bool = True
) -> Program:
    """softmax(q k^T / sqrt(d)) v; ``causal`` lets query i see keys up to i + causal."""
    wide = "" if dtype == "f32" else "%{0}w = math.cast %{0} {{dtype = f32}}\n"
    names = [f"%{x}w" if wide else f"%{x}" for x in "qkv"]
    head = ", ".join(
        f"%{x}: tensor<{dims} x {dtype}>"
        for x, dims in (
            ("q", f"K x G x N x {shape.depth}"),
            ("k", f"K x M x {shape.depth}"),
            ("v", f"K x M x {shape.width}"),
        )
    )
    mask = "" if causal is None else CAUSAL.format(causal)
    lines = [
        f"graph f<K, G, N, M>({head}) {{",
        *(wide.format(x) for x in "qkv"),
        f'%s0 = tensor.contract {names[0]}, {names[1]} {{equation = "kgnd,kmd->kgnm"}}',
        f"%scale = math.const {{value = {shape.depth**-0.5}, type = tensor<f32>}}",
        f"%s = math.mul %s0, %scale\n{mask}",
        f"%p = tensor.softmax {'%t' if mask else '%s'} {{axis = 3, safe = {str(safe).lower()}}}",
        f'%o = tensor.contract %p, {names[2]} {{equation = "kgnm,kme->kgne"}}',
        f"%r = math.cast %o {{dtype = {dtype}}}\nreturn %r }}",
    ]
    sizes = {"K": shape.heads, "G": shape.group, "N": shape.queries, "M": shape.keys}
    rng = np.random.default_rng(sum(sizes.values()) + shape.depth)
    shapes = [
        (shape.heads, shape.group, shape.queries, shape.depth),
        (shape.heads, shape.keys, shape.depth),
        (shape.heads, shape.keys, shape.width),
    ]
    inputs = tuple(
        np.asarray(TABLE[dtype].round(rng.standard_normal(s)), np.float64) for s in shapes
    )
    return Program(parse("\n".join(lines)), inputs, sizes)


ALL_CLASSES = [(name, rows) for name, t in TARGETS.items() for rows in row_classes(t)]


@pytest.mark.parametrize(("target", "rows"), ALL_CLASSES)
def test_every_target_and_row_class(target: str, rows: int) -> None:
    check(attention(AttentionShape(2, 2, 5, 7, 3, 5), causal=1), target, rows)


def test_targets_have_the_lane_counts_that_are_tested() -> None:
    assert sorted({t.lanes for t in TARGETS.values()}) == [1, 4, 8, 16]


@pytest.mark.parametrize("size", range(1, 21))
@pytest.mark.parametrize("rows", [0, 1])
def test_head_sizes(size: int, rows: int) -> None:
    target = NARROW_TO_WIDE[1 + size % 4]
    check(attention(AttentionShape(1, 2, 2, 5, size, 21 - size)), target, rows)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 17, 32])
def test_narrow_dtypes(dtype: str, size: int) -> None:
    for target in ("znver4", "x86-64-v3"):
        for rows in (0, 2):
            program = attention(AttentionShape(1, 1, 3, 5, size, size + 1), 0, dtype)
            check(program, target, rows, dtype)


LENGTHS = [(0, 5), (5, 0), (1, 1), (1, 40), (30, 1), (3, 9), (9, 3), (17, 16)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("causal", [None, 0, 2, -3])
def test_lengths(queries: int, keys: int, causal: int | None) -> None:
    """Causal with as many queries as keys and with more or fewer, shifted to both sides."""
    shape = AttentionShape(1, 2, queries, keys, 2, 3)
    for target, rows in (("x86-64-v3", 0), ("znver4", 1)):
        check(attention(shape, causal), target, rows)


@pytest.mark.parametrize("keys", [64, 127, 128, 129, 200])
@pytest.mark.parametrize("causal", [None, 40])
def test_several_blocks(keys: int, causal: int | None) -> None:
    shape = AttentionShape(1, 1, 3, keys, 2, 2)
    for target, rows in (("x86-64-v3", 0), ("znver4", 0), ("znver4", 2), ("scalar", 0)):
        check(attention(shape, causal), target, rows)


@pytest.mark.parametrize(("group", "queries"), [(1, 1), (3, 1), (2, 3), (5, 3)])
@pytest.mark.parametrize("rows", [1, 4, 16, 0])
def test_rows_that_share_keys(group: int, queries: int, rows: int) -> None:
    """A class is for up to so many rows; more of them take more work items."""
    check(attention(AttentionShape(2, group, queries, 6, 3, 2), 0), "x86-64-v4", rows)


@pytest.mark.parametrize("target", ["sse", "x86-64-v3"])
def test_turned_masks(target: str) -> None:
    """Register tiles read what was not turned (and leave it out later)."""
    program = masked_attention(queries=2, keys=3)
    check(program, target, TARGETS[target].lanes)


@pytest.mark.parametrize("target", NARROW_TO_WIDE)
@pytest.mark.parametrize("queries", [1, 2, 9])
@pytest.mark.parametrize("keys", [1, 7, 130])
def test_bias_per_query_and_key(target: str, queries: int, keys: int) -> None:
    for rows in row_classes(TARGETS[target]):
        check(masked_attention(queries, keys), target, rows)


def masked_attention(queries: int, keys: int) -> Program:
    text = """graph f<N, M>(%q: tensor<N x 3 x f32>, %k: tensor<M x 3 x f32>,
                           %v: tensor<M x 2 x f32>, %b: tensor<N x M x f32>) {
      %s = tensor.contract %q, %k {equation = "nd,md->nm"}
      %t = math.add %s, %b
      %p = tensor.softmax %t {axis = 1}
      %o = tensor.contract %p, %v {equation = "nm,me->ne"}
      return %o
    }"""
    rng = np.random.default_rng(queries + keys)
    shapes = [(queries, 3), (keys, 3), (keys, 2), (queries, keys)]
    inputs = tuple(rng.standard_normal(s) for s in shapes)
    return Program(parse(text), inputs, {"N": queries, "M": keys})


@given(st.data())
@settings(max_examples=60)
def test_drawn_programs(data: st.DataObject) -> None:
    """Any scores, masks, statistics, ways to lie in memory."""
    dtype = data.draw(st.sampled_from([F32, F32, BF16, F16]))
    program = data.draw(attention_programs(dtype=dtype, most_depth=10, empty=True))
    target = data.draw(st.sampled_from(NARROW_TO_WIDE))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[target])))
    try:
        check(program, target, rows, str(dtype))
    except UnsupportedError as error:
        assert "flat" in program.tags and "merged dimension" in error.message


@given(st.data())
@settings(max_examples=15)
def test_drawn_programs_with_several_blocks(data: st.DataObject) -> None:
    keys = data.draw(st.sampled_from([63, 97, 129, 200]))
    shape = AttentionShape(1, data.draw(st.sampled_from([1, 2])), 3, keys, 3, 2)
    program = data.draw(attention_programs(shape=shape, forms=["grouped"]))
    target = data.draw(st.sampled_from(NARROW_TO_WIDE))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[target])))
    check(program, target, rows)


@given(st.data())
@settings(max_examples=30)
def test_special_values(data: st.DataObject) -> None:
    """Infinities, NaN and denormals come out where the oracle has them, in f64 and in f32."""
    shape = AttentionShape(1, 1, data.draw(st.sampled_from([1, 3])), 5, 3, 2)
    drawn = data.draw(
        attention_programs(
            shape=shape,
            score_steps=["scale", "bias", "key_mask", "bool_mask"],
            statistics=False,
            forms=["grouped"],
        )
    )
    which = data.draw(st.integers(0, 2))
    x = drawn.inputs[which].copy()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, x.size - 1))
        x.reshape(-1)[at] = data.draw(st.sampled_from([math.inf, -math.inf, math.nan, 1e-42, -0.0]))
    inputs = tuple(x if i == which else v for i, v in enumerate(drawn.inputs))
    program = Program(drawn.module, inputs, drawn.sizes, drawn.scale)
    target = data.draw(st.sampled_from(["x86-64-v3", "znver4", "scalar"]))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[target])))
    check(program, target, rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("safe", [True, False])
def test_special_values_in_the_last_row_of_a_tail(value: float, safe: bool) -> None:
    """What stands at the end of the keys must not leak through positions past the end."""
    for target, rows in (("x86-64-v3", 0), ("znver4", 0), ("znver4", 1), ("znver4", 2)):
        program = attention(AttentionShape(1, 1, 2, 5, 3, 3), safe=safe)
        for which in (1, 2):
            x = program.inputs[which].copy()
            x[0, -1, 1] = value
            inputs = tuple(x if i == which else v for i, v in enumerate(program.inputs))
            check(Program(program.module, inputs, program.sizes), target, rows)


@pytest.mark.xfail(strict=True, reason="positions that a mask skips give no 0 * inf = NaN")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_behind_a_causal_mask(value: float) -> None:
    """The oracle (and torch) multiply every value by its weight, 0 here."""
    program = attention(AttentionShape(1, 1, 1, 4, 2, 2), causal=0)
    v = program.inputs[2].copy()
    v[0, -1] = value
    check(Program(program.module, (*program.inputs[:2], v), program.sizes), "x86-64-v3", 0)


@pytest.mark.parametrize("target", ["x86-64-v3", "znver4"])
@pytest.mark.parametrize("rows", [0, 1])
def test_merged_heads(target: str, rows: int) -> None:
    """Inputs [N, H*D] with D no multiple of the lanes: all heads but the first read zeros."""
    text = """graph f<H, N, M>(%q: tensor<N x (3*H) x f32>, %k: tensor<M x (3*H) x f32>,
                              %v: tensor<M x (3*H) x f32>) {
      %q3 = tensor.reshape %q {shape = [size(N), size(H), 3]}
      %k3 = tensor.reshape %k {shape = [size(M), size(H), 3]}
      %v3 = tensor.reshape %v {shape = [size(M), size(H), 3]}
      %s = tensor.contract %q3, %k3 {equation = "nhd,mhd->hnm"}
      %p = tensor.softmax %s {axis = 2}
      %o = tensor.contract %p, %v3 {equation = "hnm,mhe->nhe"}
      %r = tensor.reshape %o {shape = [size(N), size(3*H)]}
      return %r
    }"""
    rng = np.random.default_rng(0)
    inputs = tuple(rng.standard_normal((n, 6)) for n in (3, 4, 4))
    check(Program(parse(text), inputs, {"H": 2, "N": 3, "M": 4}), target, rows)


@given(st.data())
@settings(max_examples=15)
def test_no_stride_needs_to_be_one(data: st.DataObject) -> None:
    """Without a known unit stride the same program, with gathers where it must."""
    from tilewright.passes.to_tile import kernel_to_tile

    program = data.draw(attention_programs(forms=["grouped", "heads"]))
    graph = single_kernel(program.module)
    name = data.draw(st.sampled_from(NARROW_TO_WIDE))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[name])))
    tile = Module((kernel_to_tile(graph, TARGETS[name], rows, {}),))
    assert_same(program.run(tile), program.run(), program.scale, POLYNOMIAL)


@pytest.mark.parametrize("target", ["x86-64-v3", "znver4", "scalar"])
def test_the_program_says_what_it_is(target: str) -> None:
    program = attention(AttentionShape(2, 3, 4, 5, 3, 2))
    graph = tile_program(single_kernel(program.module), target, 0).main
    assert graph.level == "tile" and graph.attrs["target"] == target
    assert graph.attrs["outputs"] == 1
    grid: Any = graph.attrs["grid"]
    items = [-(-size.evaluate(program.sizes) // tile) for size, tile in grid]
    assert items[0] == 2, "key heads are work items of their own"
    assert len(graph.params) == 4 and graph.sizes == program.module.main.sizes


def test_same_program_from_the_same_kernel() -> None:
    """Nothing depends on hashes or on what ran before."""
    program = attention(AttentionShape(2, 3, 4, 5, 3, 2), causal=0)
    texts = {str(tile_program(kernels(program.module)[0], "znver4", 0)) for _ in range(3)}
    assert len(texts) == 1
