"""The compiled machine against the same rules written plainly, on random programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.simulator.slow_machine import run_slowly
from tests.runtime.simulator.stream_graphs import inputs_of, stream_graphs
from tilewright.ir.core import Graph
from tilewright.ir.errors import SettingError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.runtime.simulator import Machine, simulate
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.run import run_plan

SIZES = st.fixed_dictionaries({n: st.integers(1, 5) for n in "NMK"})
RULES = st.builds(NodeRules, st.booleans(), st.booleans())


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    small = st.integers(1, 4)
    return Machine(
        draw(RULES), draw(st.integers(0, 4)), draw(small), send=draw(small), response=draw(small)
    )


@given(st.integers(1, 3).flatmap(stream_graphs), machines(), SIZES, st.data())
@settings(max_examples=120)
def test_times_and_occupancy_are_those_of_the_rules(
    graph: Graph, machine: Machine, sizes: dict[str, int], data: st.DataObject
) -> None:
    nodes = find_nodes(graph, machine.rules)
    one = st.sampled_from([node.name for node in nodes.nodes])
    slow = data.draw(st.dictionaries(one, st.integers(1, 7), max_size=2))
    machine = Machine(**{**vars(machine), "latencies": slow, "intervals": slow})
    plan = Plan(nodes, machine, sizes)
    depths = st.sampled_from([None, 1, 2, 3, 5, 30])
    capacities = {edge: data.draw(depths) for edge in nodes.edges}
    run = run_plan(plan, capacities)
    cycles, channels, stuck = run_slowly(plan, capacities)
    assert run.stuck == stuck
    for result in run.channels:
        assert result.sent == len(channels[result.edge].sent)
        assert result.read == len(channels[result.edge].freed)
        if not stuck:
            assert result.peak == channels[result.edge].peak, result.name
            assert result.mean == pytest.approx(channels[result.edge].mean(cycles))
    assert run.cycles == cycles


@given(st.integers(1, 3).flatmap(stream_graphs), RULES, SIZES)
@settings(max_examples=60)
def test_results_come_out_of_the_channels(
    graph: Graph, rules: NodeRules, sizes: dict[str, int]
) -> None:
    sizes = {name: sizes[name] for name in graph.sizes}
    inputs = inputs_of(graph, sizes)
    run = simulate(graph, *inputs, sizes=sizes, machine=Machine(rules))
    wanted = evaluate_graph(graph, *inputs, precision="f64", sizes=sizes)
    for got, right in zip(run.outputs, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-10, atol=1e-10)


@given(stream_graphs(2), RULES)
@settings(max_examples=30)
def test_occupancy_over_time_has_the_mean_and_ends_at_zero(graph: Graph, rules: NodeRules) -> None:
    """Whatever the number of bins, which are joined in pairs when the run outgrows them."""
    for bins in (2, 3, 64):
        run = simulate(graph, sizes={"N": 7, "M": 9}, machine=Machine(rules), bins=bins)
        width = run.bin_width
        assert width & (width - 1) == 0 and run.cycles <= bins * width + 2
        for channel, occupancy in zip(run.channels, run.occupancy, strict=True):
            total = occupancy.sum() * width
            assert total == pytest.approx(channel.mean * run.cycles)
            assert occupancy.max() <= channel.peak + 1e-9 and occupancy.min() >= -1e-9


CHAIN = """stream chain<N>(%x: tensor<N x f32>) {
  %a = stream.source %x {dims = [["n"]], type = stream<n=N; f32>}
  %b = math.exp %a
  %c = stream.sink %b {dims = [["n"]], type = tensor<N x f32>}
  return %c
}"""


@pytest.mark.parametrize(
    ("options", "depth", "cycles"),
    [
        ({}, None, 102),  # 100 firings, two more nodes
        ({}, 2, 102),
        ({}, 1, 201),  # a place comes back after two cycles: sent at 198, read at 199 and 200
        ({"latency": 5}, None, 110),
        ({"latency": 5}, 5, 129),  # five elements in six cycles: 19 * 6 + 4, then 5 + 5 + 1
        ({"latency": 5}, 6, 110),
        ({"interval": 3}, 1, 302),  # 99 * 3 + 1 + 1 + 3
        ({"send": 3, "response": 2}, 4, 125 + 5),
        ({"latencies": {"b": 9}}, None, 110),
        ({"intervals": {"b": 2}}, 2, 1 + 99 * 2 + 1 + 1),
    ],
)
def test_a_chain_takes(options: dict[str, object], depth: int | None, cycles: int) -> None:
    graph = parse(CHAIN).main
    depths = {"a->b": depth, "b->c": depth}
    run = simulate(graph, sizes={"N": 100}, depths=depths, machine=Machine(**options))  # type: ignore[arg-type]
    slow = run_slowly(run.plan, {e: depth for e in run.plan.nodes.edges})
    assert (run.cycles, slow[0]) == (cycles, cycles)


@pytest.mark.parametrize(
    ("sizes", "cycles"), [({"N": 0}, 0), ({"N": 1}, 3), ({"N": 2}, 4), ({"N": 1000}, 1002)]
)
def test_sizes_of_a_chain(sizes: dict[str, int], cycles: int) -> None:
    run = simulate(parse(CHAIN).main, np.ones(sizes["N"]), sizes=sizes)
    assert run.cycles == cycles
    np.testing.assert_allclose(run.outputs[0], np.exp(np.ones(sizes["N"])))


EMPTY = """stream f<N, M>(%x: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %s = stream.reduce %a {kind = "KIND", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %d = math.sub %a, %r
  %t = stream.reduce %d {kind = "sum", axis = "m"}
  %o = stream.sink %t {dims = [["n"]], type = tensor<N x f32>}
  %p = stream.sink %s {dims = [["n"]], type = tensor<N x f32>}
  return %o, %p
}"""


@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("wired", [False, True])
@pytest.mark.parametrize(("n", "m"), [(3, 0), (0, 3), (0, 0), (1, 1)])
def test_loops_without_steps(kind: str, wired: bool, n: int, m: int) -> None:
    """Empty rows have neutral sums, and their values are taken away, or channels would fill up."""
    graph = parse(EMPTY.replace("KIND", kind)).main
    inputs = np.arange(float(n * m)).reshape(n, m)
    rules = NodeRules(repeat_nodes=not wired)
    nodes = find_nodes(graph, rules)
    run = simulate(
        graph,
        inputs,
        sizes={"N": n, "M": m},
        machine=Machine(rules),
        depths=dict.fromkeys([e.name for e in nodes.edges], 2),
    )
    assert not run.stuck
    wanted = evaluate_graph(graph, inputs, precision="f64", sizes={"N": n, "M": m})
    for got, right in zip(run.outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": -1}, "latency is -1 cycles"),
        ({"interval": 0}, "interval is 0 cycles; it has to be 1"),
        ({"send": 0}, "send is 0"),
        ({"response": 0}, "response is 0"),
        ({"latencies": {"b": 1 << 40}}, "latency of b"),
        ({"latencies": {"z": 1}}, "there is no node 'z'; nodes: a, b, c"),
    ],
)
def test_times_that_no_machine_has(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        simulate(parse(CHAIN).main, sizes={"N": 3}, machine=Machine(**options))  # type: ignore[arg-type]


def test_memory_is_bounded_by_the_channels() -> None:
    """A run of a million elements through limited channels grows no ring."""
    from tilewright.runtime.simulator.build import FIRST_SLOTS, build_tables
    from tilewright.runtime.simulator.engine import run
    from tilewright.runtime.simulator.layout import FINISHED

    nodes = find_nodes(parse(CHAIN).main)
    plan = Plan(nodes, Machine(), {"N": 1_000_000})
    tables, _ = build_tables(plan, dict.fromkeys(nodes.edges, 2))
    assert run(tables) == FINISHED
    assert len(tables.ready) == FIRST_SLOTS * len(nodes.edges)


def test_the_cached_engine_is_that_of_all_files() -> None:
    """Numba looks at the entry's own file; the simulator has it look at the whole folder."""
    from tilewright.runtime.simulator import compiled
    from tilewright.runtime.simulator.engine import run

    assert run._cache._cache_file._source_stamp == compiled._stamp()
