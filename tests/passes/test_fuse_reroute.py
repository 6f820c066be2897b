"""Counts shared out over parts of the tokens, one kernel for few tokens: the meaning stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.ops_routing_stream import StreamSegmentCount
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.ir.types import TensorType
from tilewright.passes.fuse_reroute import share_counts, whole_routing
from tilewright.passes.partition import partition
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.reorder import reorder
from tilewright.passes.to_tile.routing.info import (
    FEW,
    FEW_PRODUCT,
    FEW_WITH_PRODUCT,
    routing_info,
    token_classes,
)

ROUTING = (Path(__file__).parent.parent.parent / "examples" / "routing.tw").read_text("utf-8")
HEAD = "graph f<T>(%ids: tensor<T x 2 x i32>, %w: tensor<5 x f32>, %x: tensor<T x 3 x f32>) {\n"
ONE = "%c = tensor.segment_count %ids {segments = size(5)}\n"
LATE = {
    "counts alone": "return %c }",
    "offsets": "%o = tensor.prefix_sum %c {axis = 0, exclusive = true} return %o, %c }",
    "mixed with what the loop gives": "%y = math.neg %ids return %y, %c, %y }",
    "needs other inputs": "%f = math.cast %c {dtype = f32} %r = math.mul %f, %w return %r, %c }",
    "two counts": "%d = tensor.segment_count %ids {segments = size(3)} "
    '%m = tensor.reduce %c {kind = "max", axis = 0} %r = math.sub %d, %m return %r, %d }',
    "needs a constant": "%two = math.const {value = 2, type = tensor<i32>} "
    "%r = math.mul %c, %two return %r }",
}


def first_kernel(text: str) -> Graph:
    return run_passes(parse(text), TO_KERNELS).graphs[0]


def meaning(graph: Graph, inputs: list[Any], sizes: dict[str, int]) -> list[Any]:
    known = {name: size for name, size in sizes.items() if name in graph.sizes}
    return list(evaluate_graph(graph, *inputs, precision="f64", sizes=known))


def shared(graph: Graph, inputs: list[Any], parts: int) -> list[Any]:
    """What the two kernels give, in the order of the whole one's results."""
    found = share_counts(graph, parts)
    assert found is not None
    for one in (found.loop, found.after):
        assert parse(str(Module((one,)))) == Module((one,))
    sizes = bind_sizes(graph, [np.shape(x) for x in inputs], None)
    first = meaning(found.loop, inputs, sizes)
    kept = len(found.loop_results)
    late = meaning(found.after, [*first[kept:], *(inputs[i] for i in found.after_inputs)], sizes)
    order = [*found.loop_results, *found.after_results]
    assert sorted(order) == list(range(len(graph.results)))
    both = [*first[:kept], *late]
    return [both[order.index(at)] for at in range(len(order))]


@pytest.mark.parametrize("name", LATE)
def test_sharing_counts_keeps_the_meaning(name: str) -> None:
    """Also for fewer tokens than parts, none, and parts that are not all as long."""
    graph = first_kernel(HEAD + ONE + LATE[name])

    @given(st.integers(0, 40), st.integers(2, 20), st.integers(0, 999))
    @settings(max_examples=20)
    def property_(tokens: int, parts: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = rng.integers(-2, 8, (tokens, 2)).astype(np.int32)
        every = {"ids": ids, "w": rng.standard_normal(5), "x": rng.standard_normal((tokens, 3))}
        inputs = [every[p.hint] for p in graph.params]
        wanted = evaluate_graph(graph, *inputs, precision="f64", sizes={"T": tokens})
        for ours, theirs in zip(shared(graph, inputs, parts), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)

    property_()


@given(st.integers(0, 40), st.integers(2, 17), st.integers(0, 999))
@settings(max_examples=10)
def test_the_example_counts_in_parts(tokens: int, parts: int, seed: int) -> None:
    graph, rng = first_kernel(ROUTING), np.random.default_rng(seed)
    every = {
        "x": rng.standard_normal((tokens, 64)),
        "gate": rng.standard_normal((16, 64)),
        "adapter": rng.integers(-1, 3, tokens),
        "map": rng.integers(0, 80, (3, 16)),
    }
    inputs = [every[p.hint] for p in graph.params]
    sizes = {"T": tokens, "A": 3}
    for ours, theirs in zip(
        shared(graph, inputs, parts), meaning(graph, inputs, sizes), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "body",
    [
        "%r = tensor.prefix_sum %w {axis = 0} return %r }",  # counts nothing
        # the loop needs the counts: it is another kernel's, or one worker's
        "%c = tensor.segment_count %ids {segments = size(5)} "
        "%p = tensor.segment_rank %ids, %c return %p }",
        # ranks go through the loop in order, by offsets that are given too
        ONE + "%o = math.cast %w {dtype = i32} %p = tensor.segment_rank %ids, %o return %c, %p }",
        # the second kernel would not know how many tokens there are
        ONE
        + "%n = math.size {size = size(T), type = tensor<i32>} %r = math.sub %c, %n return %r }",
    ],
)
def test_what_is_not_shared(body: str) -> None:
    graph = streamed(parse(HEAD + body)).main
    assert share_counts(graph) is None


def test_the_parts_of_a_count_add_up_and_each_counts_its_own() -> None:
    """Five tokens in three parts: two, two, one. More parts than tokens: some are empty."""
    text = (
        "stream f<T>(%ids: tensor<T x 2 x i32>) {\n"
        '%i = stream.source %ids {dims = [["t"], ["j"]], type = stream<t=T; j=2 x i32>}\n'
        '%c = stream.segment_count %i {axis = "t", segments = axis(s, 4), parts = PARTS}\n'
        '%o = stream.sink %c {dims = [["part"], ["s"]], type = tensor<PARTS x 4 x i32>}\n'
        "return %o }"
    )
    ids = np.array([[0, 1], [1, 1], [3, 9], [-1, 0], [2, 2]])
    wanted = [[1, 3, 0, 0], [1, 0, 0, 1], [0, 0, 2, 0]]
    (found,) = evaluate(parse(text.replace("PARTS", "3")), ids)
    assert found.tolist() == wanted
    (found,) = evaluate(parse(text.replace("PARTS", "7")), ids)
    assert found.sum(0).tolist() == [2, 3, 2, 1] and not found[5:].any()
    (found,) = evaluate(parse(text.replace("PARTS", "7")), ids[:0])
    assert found.shape == (7, 4) and not found.any()


def test_counts_of_parts_have_an_axis_of_them_first() -> None:
    graph = first_kernel(HEAD + ONE + "return %c }")
    found = share_counts(graph, 6)
    assert found is not None
    (count,) = [op for op in found.loop.body.ops if isinstance(op, StreamSegmentCount)]
    assert count.parts == 6 and routing_info(found.loop).parts == 6
    (result,) = found.loop.results
    assert isinstance(result.type, TensorType)
    assert [s.constant for s in result.type.shape] == [6, 5]
    assert found.loop_results == () and found.after_results == (0,) and found.after_inputs == ()


# ---- few tokens


def test_the_whole_of_a_routing_that_was_cut() -> None:
    """A routing in two kernels is one for few tokens; what is one anyway, or not all of which
    routes, is not."""
    uncut = reorder(streamed(parse(ROUTING)))
    kernels = partition(uncut)
    assert len(kernels.graphs) == 2 and whole_routing(uncut, kernels) is uncut.main
    one = reorder(streamed(parse(HEAD + ONE + "return %c }")))
    assert whole_routing(one, partition(one)) is None
    text = (
        "graph f<N>(%x: tensor<N x f32>) { "
        '%s = tensor.reduce %x {kind = "sum", axis = 0} %d = math.sub %x, %s '
        '%e = math.exp %d %t = tensor.reduce %e {kind = "sum", axis = 0} return %t }'
    )
    other = reorder(streamed(parse(text)))
    cut = partition(other)
    assert len(cut.graphs) == 2 and whole_routing(other, cut) is None


def test_classes_of_numbers_of_tokens() -> None:
    """Few tokens have programs of their own where there is a product, and where all of them wait
    for counts."""
    uncut = reorder(streamed(parse(ROUTING))).main
    wide, narrow = named_target("x86-64-v3"), named_target("scalar")
    assert token_classes(uncut, wide) == (FEW_PRODUCT, FEW_WITH_PRODUCT, 0)
    assert token_classes(uncut, narrow) == (FEW, 0)
    counts = first_kernel(HEAD + ONE + "return %c }")
    assert token_classes(counts, wide) == (FEW, 0)
    choice = first_kernel(
        "graph f<T>(%x: tensor<T x 8 x f32>) { %v, %i = tensor.top_k %x {k = 2} return %i }"
    )
    assert token_classes(choice, wide) == (0,)


def test_levels_of_the_whole_are_loops_over_tokens() -> None:
    """Counting is in the first, ranking in the second; the ids cross."""
    info = routing_info(reorder(streamed(parse(ROUTING))).main)
    assert info.token is not None and info.token.size.names == {"T"}
    level = {op.name: at for op, at in info.level.items()}
    assert level["stream.segment_count"] == 0
    assert level["stream.segment_rank"] == len(info.levels) - 1 > 0
    crossing = {v.hint for v in info.made if info.crosses(v)}
    assert "experts" in crossing and "weights" not in crossing
