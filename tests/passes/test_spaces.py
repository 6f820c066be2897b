"""Spaces of schedules: no value is there in vain, and what is refused says why."""

from __future__ import annotations

import itertools

import pytest

from tests.passes.test_cost_model import SOFTMAX, attention, packed_product, stream
from tilewright.ir.core import Graph
from tilewright.ir.target import named_target
from tilewright.passes.to_tile.choices import Space
from tilewright.passes.to_tile.lower import default_schedule
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.spaces import cached_space, kernel_info, kernel_space

ZEN4 = named_target("znver4")
SPACES = {
    "many rows": lambda: kernel_space(attention(), ZEN4, 0),
    "few rows": lambda: kernel_space(attention(), ZEN4, 1),
    "AVX2": lambda: kernel_space(attention(), named_target("x86-64-v3"), 0),
    "rows": lambda: kernel_space(stream(SOFTMAX), ZEN4, 0),
    "packed": lambda: kernel_space(packed_product(), ZEN4, 0),
    "caches": lambda: cached_space(_schedule(attention()), ZEN4),
    "GPU": lambda: kernel_space(attention("bf16"), named_target("cuda-sm90"), 0),
}


def _schedule(graph: Graph) -> Schedule:
    found = default_schedule(kernel_info(graph), ZEN4, 4)
    assert isinstance(found, Schedule)
    return found


@pytest.mark.parametrize("name", SPACES)
def test_every_value_is_in_some_schedule(name: str) -> None:
    space: Space = SPACES[name]()
    every = list(space)
    assert every[0] == space.default and not space.why_not(space.default)
    for field, values in space.values.items():
        assert list(values) == sorted(set(values))
        assert {choice[field] for choice in every} == set(values), field


@pytest.mark.parametrize("name", SPACES)
def test_what_is_refused_says_why_and_nothing_else_is_left_out(name: str) -> None:
    space: Space = SPACES[name]()
    fields = list(space.values)
    allowed = {tuple(choice[x] for x in fields) for choice in space}
    for values in itertools.product(*space.values.values()):
        reason = space.why_not(dict(zip(fields, values, strict=True)))
        assert (values in allowed) == (reason == ""), reason
