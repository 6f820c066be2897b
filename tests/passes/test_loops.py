"""Which axes become one loop, and which loop is streamed."""

from __future__ import annotations

import pytest

from tests.fused_variations import ALL
from tests.passes.stages import streamed
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.ir.types import StreamType
from tilewright.passes.loop_order import LONGEST_ROW


def graph_of(text: str) -> Graph:
    (graph,) = streamed(parse(text)).graphs
    return graph


def sources(graph: Graph, name: str) -> list[s.Source]:
    ops = [op for op in graph.body.ops if isinstance(op, s.Source)]
    return [op for op in ops if op.tensor.hint == name]


def loops(graph: Graph) -> list[str]:
    types = [v.type for op in graph.body.ops for v in op.results]
    found = {x.loops for x in types if isinstance(x, StreamType)}
    return [a.name for a in max(found, key=len)]


@pytest.mark.parametrize("name", ["two queries of one key", "difference of two attentions"])
def test_keys_of_several_attentions_are_read_once(name: str) -> None:
    graph = graph_of(ALL[name].text)
    assert len(sources(graph, "k")) == 1
    assert loops(graph) == ["n", "m"]


def test_rows_of_two_products_are_read_once() -> None:
    graph = graph_of(ALL["gated products of a normalised row"].text)
    assert len(sources(graph, "x")) == 1


def test_sums_taken_apart_share_a_loop() -> None:
    graph = graph_of(ALL["ratio of two sums"].text)
    reduces = [op for op in graph.body.ops if isinstance(op, s.Reduce)]
    assert len(reduces) == 2 and len({op.axis for op in reduces}) == 1


def test_axes_of_one_length_that_meet_stay_apart() -> None:
    graph = graph_of(
        "graph f<N>(%x: tensor<N x N x f32>) {\n"
        '%a = tensor.reduce %x {kind = "sum", axis = 1}\nreturn %a }'
    )
    assert len(loops(graph)) == 2
    graph = graph_of(
        "graph f<N>(%x: tensor<N x 4 x f32>, %y: tensor<N x 4 x f32>) {\n"
        '%s = tensor.contract %x, %y {equation = "nd,md->nm"}\n'
        '%p = tensor.softmax %s {axis = 1}\n%o = tensor.reduce %p {kind = "max", axis = 1}\n'
        "return %o }"
    )
    assert loops(graph) == ["n", "m"]


def test_both_sides_of_a_product_with_itself_stay_apart() -> None:
    graph = graph_of(
        "graph f<N>(%x: tensor<N x 4 x f32>) {\n"
        '%s = tensor.contract %x, %x {equation = "nd,md->nm"}\n'
        '%p = tensor.softmax %s {axis = 1}\n%o = tensor.contract %p, %x {equation = "nm,me->ne"}\n'
        "return %o }"
    )
    assert loops(graph) == ["n", "m"] and len(sources(graph, "x")) == 3


@pytest.mark.parametrize(
    ("length", "streamed_axis"), [(512, "o"), (LONGEST_ROW, "o"), (LONGEST_ROW + 1, "k")]
)
def test_a_normalised_row_is_an_element_unless_it_is_long(length: int, streamed_axis: str) -> None:
    graph = graph_of(
        f"graph f<N>(%x: tensor<N x {length} x f32>, %w: tensor<7 x {length} x f32>) {{\n"
        '%x2 = math.mul %x, %x\n%l = tensor.reduce %x2 {kind = "sum", axis = 1, keep = true}\n'
        "%r = math.rsqrt %l\n%y = math.mul %x, %r\n"
        '%o = tensor.contract %y, %w {equation = "nk,ok->no"}\nreturn %o }'
    )
    assert loops(graph)[-1] == streamed_axis


def test_the_axis_without_a_known_length_is_streamed() -> None:
    """Even if more reductions run along the other one."""
    graph = graph_of(
        "graph f<N, M>(%x: tensor<N x 8 x f32>, %w: tensor<M x 8 x f32>) {\n"
        '%a = tensor.reduce %x {kind = "sum", axis = 1, keep = true}\n'
        '%b = tensor.reduce %x {kind = "max", axis = 1, keep = true}\n'
        "%y0 = math.sub %x, %a\n%y = math.sub %y0, %b\n"
        '%s = tensor.contract %y, %w {equation = "nk,mk->nm"}\n'
        '%o = tensor.reduce %s {kind = "max", axis = 1}\nreturn %o }'
    )
    assert loops(graph)[-1] == "m"
