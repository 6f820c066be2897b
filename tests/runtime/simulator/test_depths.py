"""Depths as the command line spells them."""

from __future__ import annotations

import pytest

from tilewright.bench.streams import graph_of
from tilewright.ir.errors import SettingError
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.runtime.simulator.depths import parse_depths

CHANNELS = channel_depths(find_nodes(graph_of("naive"), NodeRules(paper=True)))
SIZES = {"N": 64}


def parsed(*texts: str) -> dict[str, int | None]:
    return parse_depths(texts, CHANNELS, SIZES)


def test_short_and_long() -> None:
    found = parsed("short=2,long=N+2")
    assert found.pop("e->p") == 66 and len(found) == len(CHANNELS) - 1
    assert set(found.values()) == {2}


@pytest.mark.parametrize(
    ("texts", "name", "depth"),
    [
        (["3"], "e->p", 3),
        (["all=3"], "s->e", 3),
        (["3", "long=5"], "e->p", 5),
        (["e->p=7", "long=5", "3"], "e->p", 7),
        (["%e -> %p = 2*N"], "e->p", 128),
        (["long=inf"], "e->p", None),
        (["inf", "long=4"], "s->e", None),
        (["short=2", "short=2"], "s->e", 2),
    ],
)
def test_what_is_named_more_closely_counts(texts: list[str], name: str, depth: int | None) -> None:
    assert parsed(*texts)[name] == depth


def test_what_is_not_named_is_left_open() -> None:
    assert parsed("long=5") == {"e->p": 5} and not parsed()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short", "--depth all=short: no size short; sizes: N"),
        ("short=", "write a channel and a depth"),
        ("", "write a channel and a depth"),
        ("e->q=2", "no such channel; did you mean 'e->p'[?]; channels: short, long, s->e"),
        ("short=2,short=3", "given as 2 and as 3"),
        ("long=M", "no size M; sizes: N"),
        ("long=N-64", "is 0; a channel has 1 to"),
        ("long=0", "is 0"),
        ("long=9999999999999999999", "a channel has 1 to"),
        ("long=2.5", "write a number"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parsed(text)
