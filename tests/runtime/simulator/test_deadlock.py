"""Deadlocks: the cycle that is named is one, and the depths that are named are the least."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.runtime.simulator.stream_graphs import stream_graphs
from tilewright.bench.streams import graph_of
from tilewright.ir.core import Graph
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.runtime.simulator import Machine
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.deadlock import deadlock_error, explain_deadlock
from tilewright.runtime.simulator.run import run_plan

SIZES = {"N": 4, "M": 9}


@given(stream_graphs(2), st.booleans())
@settings(max_examples=60)
def test_the_named_depths_free_it_and_are_the_least(graph: Graph, paper: bool) -> None:
    nodes = find_nodes(graph, NodeRules(paper=paper))
    plan = Plan(nodes, Machine(nodes.rules), SIZES)
    small = dict.fromkeys(nodes.edges, 1)
    run = run_plan(plan, small)
    assume(run.stuck)
    found = explain_deadlock(run, small)
    for one, other in itertools.pairwise([*found.cycle, found.cycle[0]]):
        assert other.node is (one.edge.consumer if one.full else one.edge.producer)
        channel = run.channel(one.edge.name)
        assert channel.full if one.full else channel.sent == channel.read
    assert any(wait.full for wait in found.cycle)
    assert not run_plan(plan, {**small, **found.needs}).stuck
    for edge, depth in found.needs.items():
        assert run_plan(plan, {**small, **found.needs, edge: depth - 1}).stuck


def stuck(program: str, depths: dict[str, int]) -> str:
    nodes = find_nodes(graph_of(program), NodeRules(paper=True))
    plan = Plan(nodes, Machine(nodes.rules), {"N": 16})
    given = {edge: depths.get(edge.name, 2) for edge in nodes.edges}
    run = run_plan(plan, given)
    assert run.stuck
    return str(deadlock_error(run, given))


@pytest.mark.parametrize(
    ("program", "depths", "told"),
    [
        ("naive", {"e->p": 5}, "e->p=15"),
        ("safe_softmax", {}, "s->shifted=15, e->p=15"),
        ("safe_softmax", {"s->shifted": 19}, "e->p=15"),
        ("reordered_division", {"s->shifted": 14}, "s->shifted=15"),
    ],
)
def test_message(program: str, depths: dict[str, int], told: str) -> None:
    message = stuck(program, depths)
    assert f"it ends with --depth '{told}' or more" in message
    assert f"{program} is stuck at cycle" in message
    assert "waits for room in" in message and "places are taken" in message
    assert "waits for an element of" in message
