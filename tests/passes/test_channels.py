"""Depths of channels: symbolic in the sizes, two deep in naive attention, none once reordered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.strategies import Program, attention_programs, tensor_programs
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.types import StreamType
from tilewright.passes.channels import SEND_AND_RESPONSE, Channel, find_channels
from tilewright.passes.reorder import reorder


def attention(safe: str = "false", masked: bool = False) -> Graph:
    mask = (
        "%i = tensor.iota {axis = 0, type = tensor<N x 1 x i64>} "
        "%j = tensor.iota {axis = 1, type = tensor<1 x M x i64>} "
        '%c = math.compare %j, %i {relation = "le"} '
        "%no = math.const {value = -inf, type = tensor<f32>} %t = math.select %c, %s, %no"
    )
    text = (
        "graph f<H, N, M>(%q: tensor<H x N x 4 x f32>, %k: tensor<H x M x 4 x f32>, "
        "%v: tensor<H x M x 3 x f32>) {\n"
        f'%s = tensor.contract %q, %k {{equation = "hnd,hmd->hnm"}} {mask if masked else ""}\n'
        f"%p = tensor.softmax {'%t' if masked else '%s'} {{axis = 2, safe = {safe}}}\n"
        '%o = tensor.contract %p, %v {equation = "hnm,hme->hne"} return %o }'
    )
    return streamed(parse(text)).main


def deep(graph: Graph) -> list[Channel]:
    return [c for c in find_channels(graph) if c.deep]


@pytest.mark.parametrize("safe", ["true", "false"])
@pytest.mark.parametrize("masked", [False, True])
def test_naive_attention_has_two_deep_channels(safe: str, masked: bool) -> None:
    """Scores wait for their row's maximum, exponentials for their row's sum."""
    found = deep(attention(safe, masked))
    assert [c.consumer.name for c in found] == ["math.sub", "math.div"]
    assert [c.value.hint for c in found] == ["t" if masked else "s", "e"]


def test_depth_is_the_length_of_the_row_and_a_constant() -> None:
    found = deep(attention())
    for channel in found:
        assert channel.depth.names == {"M"}
        at = [channel.depth.evaluate({"M": m}) for m in (0, 10, 1000)]
        assert at[1] - at[0] == 10 and at[2] - at[0] == 1000
        assert SEND_AND_RESPONSE <= at[0] <= 10
        assert "deep" in str(channel) and "M" in str(channel)


@pytest.mark.parametrize("safe", ["true", "false"])
@pytest.mark.parametrize("masked", [False, True])
def test_reordered_attention_has_none(safe: str, masked: bool) -> None:
    from tilewright.ir.core import Module

    graph = reorder(Module((attention(safe, masked),))).main
    channels = find_channels(graph)
    assert channels and not [c for c in channels if c.deep]
    assert all(c.depth.constant is not None and c.depth.constant <= 16 for c in channels)


@given(attention_programs())
@settings(max_examples=40)
def test_no_score_expression_makes_attention_deep(program: Program) -> None:
    """Nothing is matched: masks, biases, caps and a second reduction come along."""
    stream = streamed(program.module)
    assert deep(stream.main)
    assert not deep(reorder(stream).main)


@given(tensor_programs())
@settings(max_examples=60)
def test_every_channel_has_a_depth(program: Program) -> None:
    try:
        graph = streamed(program.module).main
    except UnsupportedError:
        return
    operands = [v for op in graph.body.ops for v in op.operands]
    produced = graph.producers()
    for channel in find_channels(graph):
        assert channel.value in operands
        assert channel.consumer.operands[channel.at] is channel.value
        assert isinstance(channel.value.type, StreamType)
        # every cycle: a place comes back two cycles after it was taken; once a row it is there
        every = channel.full.per.constant == 1 and len(channel.value.type.loops) > 1
        here = channel.depth.evaluate(dict.fromkeys("NMK", 30))
        assert here >= (SEND_AND_RESPONSE if every else 1)
        assert channel.deep == bool(channel.depth.names) or channel.depth.constant is not None
        assert channel.value in produced


ROW = "graph f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>) { "


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ('%a = math.exp %x %r = tensor.reduce %a {kind = "sum", axis = 1} return %r }', 0),
        ('%a = math.exp %x %m = tensor.reduce %a {kind = "max", axis = 1, keep = true} '
         '%r = math.sub %a, %m %s = tensor.reduce %r {kind = "sum", axis = 1} return %s }', 1),
        ("%a = math.exp %x %b = math.neg %a %r = math.add %a, %b return %r }", 0),
    ],
)  # fmt: skip
def test_deep_channels_of(body: str, count: int) -> None:
    assert len(deep(streamed(parse(ROW + body)).main)) == count


@pytest.mark.xfail(strict=True, reason="depth counts elements, and an element may be a whole row")
def test_a_channel_of_whole_rows_is_deep() -> None:
    """The maximum of the row of x and the row of y have axes of their own: x is folded at once."""
    graph = streamed(
        parse(
            ROW + '%m = tensor.reduce %x {kind = "max", axis = 1, keep = true} '
            '%r = math.sub %y, %m %s = tensor.reduce %r {kind = "sum", axis = 1} return %s }'
        )
    ).main
    assert deep(graph)


@given(st.integers(1, 6))
@settings(max_examples=6)
def test_paths_of_different_length_need_room_for_the_difference(steps: int) -> None:
    chain = "".join(f"%a{i + 1} = math.neg %a{i} " for i in range(steps))
    graph = streamed(
        parse(ROW + f"%a0 = math.exp %x {chain} %r = math.add %a0, %a{steps} return %r }}")
    ).main
    depths = [c.depth.constant for c in find_channels(graph)]
    assert max(d for d in depths if d is not None) == steps + SEND_AND_RESPONSE
