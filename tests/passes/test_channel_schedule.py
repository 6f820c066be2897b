"""The firings of a program at given sizes, against the simulator: two ways to the same times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.test_channel_depth import RULES, SHORT, machine_times
from tests.runtime.simulator.stream_graphs import stream_graphs
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.passes.channels import depth as depth_module
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import NodeGraph, NodeRules, find_nodes
from tilewright.passes.channels.schedule import Schedule
from tilewright.passes.channels.throughput import Times
from tilewright.runtime.simulator import Machine
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.run import run_plan


def schedule_of(nodes: NodeGraph, sizes: dict[str, int], times: Times) -> Schedule:
    loops = {axis: axis.size.evaluate(sizes) for node in nodes.nodes for axis in node.loops}
    return Schedule(nodes, loops, times)


@given(st.integers(1, 3).flatmap(stream_graphs), RULES, SHORT, st.data())
@settings(max_examples=60)
def test_the_schedule_is_what_the_simulator_does(
    graph: Graph, rules: NodeRules, sizes: dict[str, int], data: st.DataObject
) -> None:
    """When it ends, what is under way without limits, and whether any depths are enough; on
    machines of any latencies, with loops without steps, too."""
    nodes = find_nodes(graph, rules)
    times = data.draw(machine_times([node.name for node in nodes.nodes]))
    machine = Machine(rules, times.latency, 1, times.send, times.response, times.latencies)
    plan, schedule = Plan(nodes, machine, sizes), schedule_of(nodes, sizes, times)
    free = run_plan(plan, dict.fromkeys(nodes.edges))
    assert schedule.cycles == free.cycles
    unlimited = schedule.unlimited()
    assert all(unlimited[c.edge] == c.peak for c in free.channels if c.sent)
    assert schedule.enough(unlimited)
    for _ in range(2):
        depths = {e: data.draw(st.sampled_from([1, 1, 2, 2, 3, 4, 6, 8])) for e in nodes.edges}
        run = run_plan(plan, depths)
        assert schedule.enough(depths) == (not run.stuck and run.cycles == free.cycles)


NAIVE = """stream f<N, M>(%x: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %z = math.sub %a, %r
  %out = stream.sink %z {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %out
}"""


def test_one_place_less_is_too_little() -> None:
    """Found from far too much, and kept where it is right."""
    nodes = find_nodes(parse(NAIVE).main)
    schedule = schedule_of(nodes, {"N": 9, "M": 20}, Times())
    least = schedule.least(dict.fromkeys(nodes.edges, 50))
    assert {e.name: depth for e, depth in least.items()} == {
        "a->s": 2, "s->r": 1, "a->z": 23, "r->z": 2, "z->out": 2,
    }  # fmt: skip
    assert schedule.least(least) == least == schedule.mended(least)
    for edge, depth in least.items():
        assert schedule.enough(least) and not schedule.enough({**least, edge: depth - 1})
    little = {edge: 1 for edge in nodes.edges}
    mended = schedule.mended(little)
    assert schedule.enough(mended) and mended.keys() == little.keys()


@pytest.mark.parametrize("sizes", [(3, 700), (700, 3), (60, 5)])
def test_many_firings_are_looked_at_for_smaller_sizes(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
) -> None:
    nodes = find_nodes(parse(NAIVE).main)
    given_sizes = dict(zip("NM", sizes, strict=True))
    monkeypatch.setattr(depth_module, "MOST_FIRINGS", 1000)
    found = channel_depths(nodes, given_sizes)
    depths = {e: c.full.evaluate(given_sizes) for e, c in zip(nodes.edges, found, strict=True)}
    assert schedule_of(nodes, given_sizes, Times()).enough(depths)
    assert max(depths.values()) == sizes[1] + 3  # not all of the stream
