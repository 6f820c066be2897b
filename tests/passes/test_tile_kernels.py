"""Kernels other than attention as tile programs: reductions, products, rows, elementwise."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from tests.passes.stages import (
    NARROW_TO_WIDE,
    TARGETS,
    kernels,
    lowered,
    streamed,
    tile_program,
)
from tests.strategies import Program, assert_same, tensor_programs
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.split_sums import result_names
from tilewright.passes.to_tile.schedule import row_classes

RNG = np.random.default_rng(0)


def program(text: str, **sizes: int) -> Program:
    """A program with inputs drawn for given sizes."""
    module = parse(text)
    inputs = []
    for param in module.main.params:
        shape = [s.evaluate(sizes) for s in param.type.shape]  # type: ignore[union-attr]
        inputs.append(RNG.standard_normal(shape))
    return Program(module, tuple(inputs), sizes, scale=10)


def tiled(graph: Graph, target: str, rows: int) -> Graph:
    """The tile program, its results under the names of the kernel's."""
    return tile_program(graph, target, rows).main


def run_tiled(drawn: Program, target: str, rows: int, precision: str | None = "f64") -> list[Any]:
    """Runs all kernels as tile programs, wired by name."""
    values: dict[str, Any] = dict(
        zip([p.hint for p in drawn.module.main.params], drawn.inputs, strict=True)
    )
    for graph, tile in lowered(drawn.module, target, rows):
        inputs = [values[p.hint] for p in graph.params]
        sizes = {n: v for n, v in drawn.sizes.items() if n in tile.sizes}
        outputs = evaluate_graph(tile, *inputs, precision=precision, sizes=sizes)
        values.update(zip([v.hint for v in graph.results], outputs, strict=True))
    return [values[name] for name in result_names(streamed(drawn.module))]


def check(drawn: Program, target: str, rows: int) -> None:
    want = drawn.run()
    assert_same(run_tiled(drawn, target, rows), want, drawn.scale, 1e-7)
    assert_same(run_tiled(drawn, target, rows, precision=None), want, drawn.scale, 1e-4)


X = "graph f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>) {\n%a = math.tanh %x\n"
REDUCTIONS = {
    "row sums": X + '%r = tensor.reduce %a {kind = "sum", axis = 1}\nreturn %r }',
    "row sums kept": X + '%r = tensor.reduce %a {kind = "sum", axis = 1, keep = true}\nreturn %r }',
    "column sums": X + '%r = tensor.reduce %a {kind = "sum", axis = 0}\nreturn %r }',
    "row maxima": X + '%r = tensor.reduce %a {kind = "max", axis = 1}\nreturn %r }',
    "a sum and a maximum": X + '%s = tensor.reduce %a {kind = "sum", axis = 1}\n'
    '%m = tensor.reduce %a {kind = "max", axis = 1}\n%r = math.sub %s, %m\nreturn %r }',
    "row products": X + '%b = math.mul %a, %y\n%r = tensor.reduce %b {kind = "sum", axis = 1}\n'
    "return %r }",
    "two results": X + '%r = tensor.reduce %a {kind = "sum", axis = 1}\n'
    '%m = tensor.reduce %a {kind = "max", axis = 1}\nreturn %r, %m }',
    "sum of squared differences": X + "%d = math.sub %a, %y\n%q = math.mul %d, %d\n"
    '%r = tensor.reduce %q {kind = "sum", axis = 1}\nreturn %r }',
}
SIZES = [(1, 1), (3, 9), (9, 70), (5, 0), (0, 5)]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("target", ["scalar", "x86-64-v3", "znver4"])
def test_reductions(name: str, target: str) -> None:
    for n, m in SIZES:
        drawn = program(REDUCTIONS[name], N=n, M=m)
        for rows in (0, 1):
            check(drawn, target, rows)


LATE = (
    "graph f<B, N, M>(%x: tensor<B x N x M x {0} x f32>, %w: tensor<B x {0} x f32>) {{\n"
    '%s = tensor.reduce %x {{kind = "sum", axis = 2}}\n'
)
WHEN_SUMMED = {
    "largest number": '%r = tensor.reduce %s {{kind = "max", axis = 2}}\nreturn %r }}',
    "softmax": "%r = tensor.softmax %s {{axis = 2}}\nreturn %r }}",
    "divided by a norm": '%q = math.mul %s, %s\n%t = tensor.reduce %q {{kind = "sum", axis = 2, '
    "keep = true}}\n%e = math.const {{value = 0.1, type = tensor<f32>}}\n%u = math.add %t, %e\n"
    "%i = math.rsqrt %u\n%r = math.mul %s, %i\nreturn %r }}",
    "times a vector": '%r = tensor.contract %s, %w {{equation = "bnd,bd->bn"}}\nreturn %r }}',
    "times itself": '%r = tensor.contract %s, %s {{equation = "bnd,bnd->bn"}}\nreturn %r }}',
    "times another sum": "%a = math.tanh %x\n"
    '%b = tensor.reduce %a {{kind = "sum", axis = 2}}\n'
    '%c = tensor.contract %b, %s {{equation = "bnd,bnd->bn"}}\n'
    "%r = math.tanh %c\nreturn %r }}",
}


@pytest.mark.parametrize("name", WHEN_SUMMED)
@pytest.mark.parametrize("target", NARROW_TO_WIDE)
def test_one_row_after_its_vectors_are_summed(name: str, target: str) -> None:
    """Folds and products of a vector that the same kernel sums along its loop."""
    for number, width in enumerate((1, 7, 16, 33)):
        classes = row_classes(TARGETS[target])
        text = (LATE + WHEN_SUMMED[name]).format(width)
        check(program(text, B=2, N=3, M=number), target, classes[number % len(classes)])


AGAIN = (
    "graph f<N>(%x: tensor<1 x N x f32>) {\n%a = math.tanh %x\n%p = tensor.softmax %x {axis = 1}\n"
    '%s = tensor.contract %a, %p {equation = "an,an->a"}\n'
    '%f = math.compare %a, %s {relation = "lt"}\n%r = math.select %f, %a, %p\nreturn %r }'
)


@pytest.mark.parametrize("target", NARROW_TO_WIDE)
def test_one_number_summed_along_the_only_loop_and_read_in_it_again(target: str) -> None:
    """It is repeated by no operation, and comes from an earlier kernel all the same."""
    for n in (1, 7, 40):
        check(program(AGAIN, N=n), target, 0)


ROW = "graph f<N>(%x: tensor<N x {0} x f32>, %w: tensor<{0} x f32>) {{\n"
ROWS = {
    "normalisation": '%q = math.mul %x, %x\n%s = tensor.reduce %q {{kind = "sum", axis = 1, '
    "keep = true}}\n%c = math.const {{value = 0.25, type = tensor<f32>}}\n%m = math.mul %s, %c\n"
    "%e = math.const {{value = 0.001, type = tensor<f32>}}\n%t = math.add %m, %e\n"
    "%i = math.rsqrt %t\n%n = math.mul %x, %i\n%r = math.mul %n, %w\nreturn %r }}",
    "softmax": "%r = tensor.softmax %x {{axis = 1}}\nreturn %r }}",
    "safe softmax": "%r = tensor.softmax %x {{axis = 1, safe = true}}\nreturn %r }}",
    "elementwise": "%n = math.mul %x, %w\n%r = math.tanh %n\nreturn %r }}",
    "between a row's extremes": '%a = tensor.reduce %x {{kind = "max", axis = 1, keep = true}}\n'
    '%b = tensor.reduce %x {{kind = "min", axis = 1, keep = true}}\n'
    "%d = math.sub %x, %b\n%r = math.sub %d, %a\nreturn %r }}",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 16, 17, 65, 130])
def test_row_kernels(name: str, width: int) -> None:
    target = NARROW_TO_WIDE[width % 5]
    for n in (0, 9):
        check(program((ROW + ROWS[name]).format(width), N=n), target, 0)


PRODUCTS = {
    "matrix times vector": '%x, %k {equation = "nd,d->n"}',
    "matrix times matrix": '%x, %w {equation = "nd,md->nm"}',
    "turned result": '%x, %w {equation = "nd,md->mn"}',
    "one row": '%k, %w {equation = "d,md->m"}',
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("target", ["scalar", "sse", "x86-64-v3", "znver4"])
def test_products(name: str, target: str) -> None:
    counts: Counter[bool] = Counter()
    for n, m, d in (
        (1, 1, 1),
        (3, 5, 4),
        (2, 9, 16),
        (9, 2, 17),
        (5, 20, 33),
        (0, 3, 8),
        (3, 0, 8),
    ):
        text = (
            f"graph f<N, M>(%x: tensor<N x {d} x f32>, %w: tensor<M x {d} x f32>, "
            f"%k: tensor<{d} x f32>) {{ %r = tensor.contract {PRODUCTS[name]} return %r }}"
        )
        for rows in (0, 1):
            drawn = program(text, N=n, M=m)
            try:
                check(drawn, target, rows)
                counts[True] += 1
            except UnsupportedError:
                counts[False] += 1
    if name == "matrix times matrix":
        assert counts[True] >= counts[False], counts


ELEMENTWISE = {
    "a vector": "graph f<N>(%x: tensor<N x f32>) { %r = math.neg %x return %r }",
    "a matrix": "graph f<N, M>(%x: tensor<N x M x f32>) { %r = math.tanh %x return %r }",
    "turned": "graph f<N, M>(%x: tensor<N x M x f32>) { %a = math.abs %x "
    "%r = tensor.transpose %a {permutation = [1, 0]} return %r }",
    "outer sum": "graph f<N, M>(%x: tensor<N x 1 x f32>, %y: tensor<M x f32>) { "
    "%r = math.add %x, %y return %r }",
    "positions": "graph f<N, M>(%x: tensor<N x M x f32>) { "
    "%i = tensor.iota {axis = 1, type = tensor<1 x M x i64>} %f = math.cast %i {dtype = f32} "
    "%r = math.add %x, %f return %r }",
}


SHAPES = {
    "no dimensions": "graph f<N>(%x: tensor<N x f32>) { "
    '%r = tensor.reduce %x {kind = "sum", axis = 0} return %r }',
    "widened along the last axis": "graph f<N, M>(%x: tensor<N x 1 x f32>) { %a = math.neg %x "
    "%r = tensor.broadcast %a {shape = [size(N), size(M)]} return %r }",
    "rows merged into one dimension": "graph f<N>(%x: tensor<N x 3 x f32>) { "
    "%a = math.neg %x %r = tensor.reshape %a {shape = [size(3*N)]} return %r }",
}


@pytest.mark.parametrize("name", SHAPES)
def test_results_in_other_shapes(name: str) -> None:
    sizes = {"N": 4, "M": 5} if "M" in SHAPES[name] else {"N": 4}
    for target in NARROW_TO_WIDE:
        check(program(SHAPES[name], **sizes), target, 0)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("target", ["scalar", "x86-64-v3", "znver4"])
def test_elementwise(name: str, target: str) -> None:
    for n, m in ((1, 1), (3, 8), (9, 5), (2, 70), (0, 3)):
        sizes = {"N": n, "M": m} if "M" in ELEMENTWISE[name] else {"N": n}
        for rows in (0, TARGETS[target].lanes if target == "znver4" else 0):
            check(program(ELEMENTWISE[name], **sizes), target, rows)


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_elementwise_for_few_rows(rows: int) -> None:
    """A vector of 16 results, of which a register tile has written 16 / rows."""
    check(program(ELEMENTWISE["a vector"], N=3), "znver4", rows)


def test_rows_inside_one_dimension_are_refused_or_right() -> None:
    text = "graph f<N>(%x: tensor<(3*N) x f32>) { %a = tensor.reshape %x {shape = [size(N), 3]} "
    text += '%r = tensor.reduce %a {kind = "sum", axis = 1} return %r }'
    try:
        check(program(text, N=4), "x86-64-v3", 0)
    except UnsupportedError as error:
        assert "merged dimension" in error.message


@seed(0)
@settings(max_examples=100, database=None, derandomize=False, phases=[Phase.generate])
@given(tensor_programs(), st.data())
def test_drawn_programs(drawn: Program, data: st.DataObject) -> None:
    """Whatever becomes tile programs means what it did."""
    try:
        kernels(drawn.module)
    except UnsupportedError:
        return
    target = data.draw(st.sampled_from(NARROW_TO_WIDE))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[target])))
    try:
        got = run_tiled(drawn, target, rows)
    except UnsupportedError:
        return
    assert_same(got, drawn.run(), drawn.scale, 1e-7)


UNSUPPORTED = {
    "a result that is a matrix for every row": "graph f<N>(%x: tensor<N x 1 x 2 x f32>, "
    "%y: tensor<N x 2 x 1 x f32>) { %a = math.max %x, %y %p = tensor.softmax %x {axis = 2} "
    "return %p, %a }",
    "a matrix with what the same kernel sums": "graph f<N, M>(%x: tensor<N x M x 4 x f32>, "
    '%y: tensor<4 x 4 x f32>) { %s = tensor.reduce %x {kind = "sum", axis = 1} '
    '%r = tensor.contract %s, %y {equation = "nd,de->ne"} return %r }',
    "must be a number": "graph f<N, M, D>(%x: tensor<N x D x f32>, %y: tensor<N x D x f32>) { "
    '%r = tensor.contract %x, %y {equation = "nd,md->nm"} return %r }',
    "both change along a row|own transpose|a number": "graph f<N, M>(%x: tensor<N x M x 4 x f32>, "
    "%y: tensor<N x M x 4 x f32>) { "
    '%s = tensor.contract %x, %y {equation = "nmd,nmd->nm"} '
    '%r = tensor.reduce %s {kind = "sum", axis = 1} return %r }',
}


@pytest.mark.parametrize("match", UNSUPPORTED)
def test_what_no_schedule_covers_is_said(match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        for graph in kernels(parse(UNSUPPORTED[match].replace("N x D x f32>) ", "M x D x f32>) "))):
            tiled(graph, "x86-64-v3", 0)


def test_to_tile_lowers_every_stream_graph_of_a_module() -> None:
    from tilewright.passes.to_tile import to_tile

    text = "stream f() { return }\n" + str(parse("graph g(%x: tensor<4 x f32>) { return %x }"))
    stream = streamed(parse(ELEMENTWISE["a vector"]))
    module = type(stream)((*stream.graphs, parse(text).graphs[1]))
    lowered = to_tile(module, TARGETS["x86-64-v3"])
    assert [g.level for g in lowered.graphs] == ["tile", "graph"]
