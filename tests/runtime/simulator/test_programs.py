"""Programs that come from the tensor level, node kinds, pictures and traces."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.strategies import Program, attention_programs, tensor_programs
from tilewright.bench.streams import at_analysed_depths, graph_of
from tilewright.ir.core import Module
from tilewright.ir.errors import BindError, SettingError, UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.passes.reorder import reorder
from tilewright.runtime.simulator import Machine, simulate
from tilewright.runtime.simulator.plot import plot_occupancy
from tilewright.runtime.simulator.trace import chrome_trace

RULES = st.builds(NodeRules, st.booleans(), st.booleans())


def check(module: Module, program: Program, rules: NodeRules) -> None:
    """Results and full throughput with every channel as deep as the analysis says."""
    sizes = {name: program.sizes[name] for name in module.main.sizes}
    found = channel_depths(find_nodes(module.main, rules), sizes)
    depths = {c.name: c.full.evaluate(sizes) for c in found}
    run = simulate(module.main, *program.inputs, sizes=sizes, depths=depths, machine=Machine(rules))
    free = simulate(module.main, sizes=sizes, machine=Machine(rules))
    assert not run.stuck and run.cycles == free.cycles
    wanted = evaluate_graph(module.main, *program.inputs, precision="f64", sizes=sizes)
    for got, right in zip(run.outputs, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-9 * program.scale)


@given(attention_programs(), RULES, st.booleans())
@settings(max_examples=50)
def test_attention(program: Program, rules: NodeRules, reordered: bool) -> None:
    stream = streamed(program.module)
    check(reorder(stream) if reordered else stream, program, rules)


@given(tensor_programs(most=9, special=True), RULES)
@settings(max_examples=80)
def test_tensor_programs(program: Program, rules: NodeRules) -> None:
    try:
        stream = streamed(program.module)
    except UnsupportedError:
        return
    check(stream, program, rules)


def kinds(program: str, **rules: bool) -> dict[str, str]:
    nodes = find_nodes(graph_of(program), NodeRules(**rules))
    return {node.name: node.kind for node in nodes.nodes}


def test_nodes_of_the_paper() -> None:
    assert kinds("memory_free", paper=True) == {
        "s": "matmul",
        "values": "source",
        "running": "scan",
        "sum": "reduce",
        "total": "multiply-accumulate",
        "result": "map",
        "out": "sink",
    }
    assert "divisor" not in kinds("naive", paper=True, repeat_nodes=False)
    every = kinds("memory_free")
    assert len(every) == 14 and every["grown"] == "map" and every["s"] == "contract"


OPS = """stream f<N>(%x: tensor<N x f32>, %t: tensor<5 x 2 x f32>, %i: tensor<N x i64>) {
  %a = stream.source %x {dims = [["n"]], type = stream<n=N; f32>}
  %j = stream.source %i {dims = [["n"]], type = stream<n=N; i64>}
  %g = stream.gather %t, %j {dims = [["*"], ["d"]], type = stream<n=N; d=2 x f32>}
  %n = stream.index {axis = "n", type = stream<n=N; i64>}
  %p = math.mul %j, %n
  %f = math.cast %p {dtype = f32}
  %m = stream.fold %g {kind = "max", axis = "d"}
  %y = math.add %m, %f
  %z = math.mul %y, %a
  %w = math.mul %z, %g
  %out = stream.sink %w {dims = [["n"], ["d"]], type = tensor<N x 2 x f32>}
  return %out
}"""


def test_gathers_positions_and_folds() -> None:
    graph = parse(OPS).main
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal(6), rng.standard_normal((5, 2)), np.array([4, 0, 9, -3, 2, 2]))
    run = simulate(graph, *inputs)
    (wanted,) = evaluate_graph(graph, *inputs, precision="f64")
    np.testing.assert_allclose(run.outputs[0], wanted, rtol=1e-12)


def test_what_does_not_fit() -> None:
    graph = graph_of("naive")
    with pytest.raises(BindError, match="size N is not given"):
        simulate(graph)
    with pytest.raises(BindError, match="3 inputs"):
        simulate(graph, np.ones((2, 64)), sizes={"N": 2})
    with pytest.raises(SettingError, match="no channel 'e->z'; channels: divisor->p"):
        simulate(graph, sizes={"N": 2}, depths={"e->z": 2}, machine=Machine(NodeRules(paper=True)))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"x.{suffix}"
    plot_occupancy(at_analysed_depths("naive", 16, bins=64), path)
    data = path.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    assert "e-&gt;p: peak 19 of 19" in text and "naive (N = 16)" in text
    plot_occupancy(at_analysed_depths("naive", 16, bins=64), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == data


def test_a_trace_accounts_for_every_cycle() -> None:
    """The spans of a node follow one another from its first firing to its last."""
    graph = graph_of("naive")
    run = simulate(graph, sizes={"N": 8}, spans=1000, machine=Machine(NodeRules(paper=True)))
    data = json.loads(chrome_trace(run))
    assert data["otherData"] == {"cycles": run.cycles, "complete": True}
    names = {e["tid"]: e["args"]["name"] for e in data["traceEvents"] if e["ph"] == "M"}
    for tid, name in names.items():
        spans = [e for e in data["traceEvents"] if e["ph"] == "X" and e["tid"] == tid]
        spans.sort(key=lambda e: e["ts"])
        result = run.node(name)
        assert spans[0]["ts"] == result.first
        assert spans[-1]["ts"] + spans[-1]["dur"] == result.last + 1
        for one, other in itertools.pairwise(spans):
            assert one["ts"] + one["dur"] == other["ts"]
        waited = sum(e["dur"] for e in spans if e["cat"] == "waits")
        assert waited == result.waited
        assert sum(e["dur"] for e in spans) - waited == result.firings
    (why,) = {e["name"] for e in data["traceEvents"] if e.get("cat") == "waits" and e["tid"] == 7}
    assert why == "result->out is empty"


def test_a_trace_that_is_too_long_ends_early() -> None:
    graph = graph_of("naive")
    run = simulate(graph, sizes={"N": 8}, spans=3, machine=Machine(NodeRules(paper=True)))
    assert run.spans_lost and len(run.spans) <= 3 + 8
