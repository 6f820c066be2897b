"""Routing on streams: what is one kernel, where a channel has to hold the batch, what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.routing_programs import groups
from tilewright.ir import ops_routing_stream as rs
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.channels import Channel, find_channels
from tilewright.passes.partition import partition
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.precision import precision
from tilewright.passes.reorder import reorder
from tilewright.passes.split_sums import result_names
from tilewright.passes.to_tile import kernel_to_tile

ROUTING = Path(__file__).parent.parent.parent / "examples" / "routing.tw"


def deep(module: Module) -> list[Channel]:
    return [c for c in find_channels(streamed(module).main) if c.deep]


def check(text: str, *inputs: Any) -> int:
    """The kernels one after another mean what the tensors mean; how many they are."""
    module = parse(text)
    wanted = evaluate(module, *inputs, precision="f64")
    sizes = bind_sizes(module.main, [np.shape(x) for x in inputs], None)
    stream = streamed(module)
    assert parse(str(stream)) == stream
    found = partition(reorder(stream)).graphs
    values = dict(zip([p.hint for p in module.main.params], inputs, strict=True))
    for graph in found:
        known = {n: v for n, v in sizes.items() if n in graph.sizes}
        given_ = [values[p.hint] for p in graph.params]
        outputs = evaluate_graph(graph, *given_, precision="f64", sizes=known)
        values.update(zip([v.hint for v in graph.results], outputs, strict=True))
    for name, right in zip(result_names(stream), wanted, strict=True):
        np.testing.assert_allclose(values[name], right, rtol=1e-9, atol=1e-12)
    return len(found)


def test_the_border_is_where_the_sort_by_expert_begins() -> None:
    """Gate, softmax, top-k, map, count: constant depth. The permutation waits for all counts."""
    module = parse(ROUTING.read_text())
    (channel,) = deep(module)
    assert channel.value.hint == "experts" and channel.consumer.name == "stream.segment_rank"
    assert channel.depth.names == {"T"} and channel.depth.evaluate({"T": 4096}) >= 4095
    first, second = run_passes(module, TO_KERNELS).graphs
    names = [[op.name for op in g.body.ops] for g in (first, second)]
    assert {"stream.top_k", "stream.gather", "stream.segment_count"} <= set(names[0])
    assert "stream.segment_rank" in names[1] and "stream.top_k" not in names[1]
    assert [p.hint for p in second.params] == ["experts_out1", "offsets_in_memory"]  # once
    assert names[0].count("stream.sink") == 4
    for graph in (first, second):
        depths = [c.depth.constant for c in find_channels(graph)]
        assert depths and all(d is not None and d <= 4 for d in depths)


@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20)
def test_the_example_means_the_same_in_kernels(tokens: int, adapters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, gate = rng.standard_normal((tokens, 64)), rng.standard_normal((16, 64))
    adapter = rng.integers(-1, adapters, tokens)
    table = rng.integers(0, 80, (adapters, 16))
    assert check(ROUTING.read_text(), x, gate, adapter, table) == 2


COUNTED = (
    "graph f<T>(%ids: tensor<T x 2 x i32>, %given: tensor<5 x i32>, %w: tensor<T x 5 x f32>) {\n"
    "%counts = tensor.segment_count %ids {segments = size(5)}\n"
)


@pytest.mark.parametrize(
    ("body", "waiting"),
    [
        ("return %counts }", []),
        ("%p = tensor.segment_rank %ids, %given return %p }", []),  # offsets that are known
        ("%p = tensor.segment_rank %ids, %counts return %p }", ["stream.segment_rank"]),
        # not only the permutation: whatever is counted and then needed beside the counts
        ("%c = math.cast %counts {dtype = f32} %f = math.cast %ids {dtype = f32} "
         '%t = tensor.reduce %c {kind = "max", axis = 0} %p = math.mul %f, %t return %p }',
         ["math.mul"]),
        ("%p = tensor.prefix_sum %w {axis = 0} return %p, %counts }", []),
    ],
)  # fmt: skip
def test_what_waits_for_the_counts_of_all_tokens(body: str, waiting: list[str]) -> None:
    module = parse(COUNTED + body)
    assert [c.consumer.name for c in deep(module)] == waiting
    rng = np.random.default_rng(0)
    for tokens in (0, 1, 6):
        ids, w = rng.integers(-1, 6, (tokens, 2)), rng.standard_normal((tokens, 5))
        assert check(COUNTED + body, ids, np.arange(5), w) == 1 + len(waiting)


def test_other_tokens_start_when_all_are_counted() -> None:
    """No channel holds them, but a kernel runs a loop once: there are two."""
    text = COUNTED + (
        "%row = tensor.reshape %counts {shape = [1, 5]} %c = math.cast %row {dtype = f32} "
        "%p = math.mul %w, %c return %p }"
    )
    assert not deep(parse(text))
    ids, w = np.array([[0, 4], [1, 1], [4, 9]]), np.arange(15.0).reshape(3, 5)
    assert check(text, ids, np.arange(5), w) == 2


LONG = (
    "graph f<T, E>(%x: tensor<T x E x f32>) {\n%y = math.exp %x\n%v, %i = tensor.top_k %y {k = 3}\n"
)


def test_a_choice_of_any_number_of_experts_is_a_fold_of_a_loop() -> None:
    """Its state is k numbers; scores compared with the least chosen wait for it."""
    alone = LONG + "return %v, %i }"
    assert not deep(parse(alone))
    (op,) = [o for o in streamed(parse(alone)).main.body.ops if isinstance(o, rs.StreamTopK)]
    type_ = op.stream(op.x)
    assert op.axes == (type_.loops[-1].name,) and not type_.element
    compared = (
        LONG + '%least = tensor.reduce %v {kind = "min", axis = 1, keep = true}\n'
        '%c = math.compare %y, %least {relation = "ge"}\nreturn %c }'
    )
    (channel,) = deep(parse(compared))
    assert channel.consumer.name == "math.compare" and channel.depth.names == {"E"}
    x = np.random.default_rng(0).standard_normal((4, 7))
    assert check(alone, x) == 1 and check(compared, x) == 2


@given(st.integers(0, 6), st.sampled_from([1, 4, 12]), st.integers(0, 99))
@settings(max_examples=20)
def test_groups_are_axes_of_one_element(tokens: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, bias = rng.standard_normal((tokens, 12)), rng.standard_normal(12)
    assert check(groups("%s", f"k = {k}", "%weights, %ids, %marked"), x, bias) == 1


@pytest.mark.parametrize(
    "body",
    [
        "%o = tensor.sort_order %x {axis = 0} return %o }",
        "%t = tensor.transpose %i {permutation = [1, 0]} "
        "%o = tensor.segment_rank %t, %s return %o }",
        "%v, %o = tensor.top_k %one {k = 1} return %o }",
        "%v, %o = tensor.top_k %wide {k = 4} "
        "%r = tensor.reshape %v {shape = [size(T), 2, 2]} %n = math.neg %r return %n }",
    ],
)
def test_what_has_no_streams_is_refused(body: str) -> None:
    text = (
        "graph f<T, M>(%x: tensor<T x f32>, %i: tensor<T x M x i32>, %s: tensor<4 x i32>, "
        f"%one: tensor<T x 1 x f32>, %wide: tensor<T x 9 x f32>) {{ {body}"
    )
    with pytest.raises(UnsupportedError):
        streamed(parse(text))


HEAD = "graph f<T>(%x: tensor<T x 40 x f32>, %i: tensor<T x 2 x i32>, %table: tensor<8 x f32>) {\n"


@pytest.mark.parametrize(
    "body",
    [
        "%v, %o = tensor.top_k %x {k = 2} return %o }",
        "%o = tensor.segment_count %i {segments = size(4)} return %o }",
        "%o = tensor.prefix_sum %x {axis = 1} return %o }",
        "%o = tensor.gather %table, %i return %o }",
        "%o = tensor.take_along %x, %i {axis = 1} return %o }",
    ],
)
def test_every_operation_has_a_tile_program(body: str) -> None:
    (graph,) = run_passes(parse(HEAD + body), TO_KERNELS).graphs
    for rows in (0, 4):
        tile = kernel_to_tile(graph, named_target("x86-64-v3"), rows, {})
        assert tile.level == "tile" and parse(str(Module((tile,)))) == Module((tile,))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("%o = tensor.prefix_sum %x {axis = 0} return %o }", "running sums along a loop"),
        ("%v, %o = tensor.top_k %x {k = 33} return %o }", "the 33 largest"),
        ("%v, %o = tensor.top_k %i {k = 1} return %o }", "the largest of i32"),
        ('%v, %o = tensor.top_k %x {k = 20, ties = "torch"} return %o }', "order of equal numbers"),
    ],
)
def test_without_a_schedule_there_is_no_kernel(body: str, reason: str) -> None:
    (graph,) = run_passes(parse(HEAD + body), TO_KERNELS).graphs
    with pytest.raises(UnsupportedError, match=reason):
        kernel_to_tile(graph, named_target("x86-64-v3"), 0, {})


def test_rounding_before_a_choice_is_kept() -> None:
    """Ties of bf16 stay ties: wide numbers would choose others."""
    text = (
        "graph f<T>(%x: tensor<T x 8 x f32>) { %n = math.cast %x {dtype = bf16} "
        "%w = math.cast %n {dtype = f32} %y = math.exp %w LAST }"
    )
    chosen = precision(parse(text.replace("LAST", "%v, %i = tensor.top_k %y {k = 2} return %i")))
    plain = precision(parse(text.replace("LAST", "return %y")))
    casts = [str(m).count("math.cast") for m in (chosen, plain)]
    assert casts == [2, 1] and "math.exp %x" in str(plain)
