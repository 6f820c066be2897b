"""``tilewright simulate``: a stream program on the streaming machine, cycle by cycle."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.cli.inputs import check_memory, input_shapes
from tilewright.cli.output import note, say
from tilewright.cli.programs import read_program
from tilewright.cli.simulation_output import Outcome, as_data, show
from tilewright.cli.sizes import SizeOption, choose_sizes, parse_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import SettingError, VerifyError
from tilewright.ir.sizes import product
from tilewright.ir.types import TensorType
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import Edge, NodeRules
from tilewright.passes.channels.throughput import Times

if TYPE_CHECKING:
    from tilewright.ir.dtypes import Array
    from tilewright.runtime.simulator import Simulation
    from tilewright.runtime.simulator.build import Plan

WRONG = 1  # exit code when a result is not the reference's
ORACLE_ELEMENTS = 1 << 25  # of the largest stream that the reference may hold
MOST_FIRINGS = 1 << 36  # about an hour


class Nodes(enum.StrEnum):
    """What a node is."""

    paper = "paper"
    operations = "operations"


class Repeats(enum.StrEnum):
    """What a repeat is."""

    node = "node"
    wire = "wire"


DepthOption = Annotated[
    list[str] | None,
    typer.Option(
        "--depth",
        metavar="short=2,long=N+2",
        help="Places of channels: short, long, all or value->node, each an expression in the "
        "sizes or inf. Without it, what full throughput takes.",
    ),
]
NodesOption = Annotated[Nodes, typer.Option(help="The paper's node kinds, or one per operation.")]
RepeatOption = Annotated[
    Repeats, typer.Option(help="A repeat is a node, or wiring: its consumer reads rows itself.")
]
LatencyOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[NODE=]CYCLES", help="Latency of all nodes (1), or of one."),
]
IntervalOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[NODE=]CYCLES", help="Initiation interval (1), likewise."),
]
PlotOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw occupancy over time: .svg or .png.")
]
TraceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace of the nodes.")
]


def simulate(  # noqa: PLR0913, PLR0917 (Typer wants each option as a parameter)
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A stream-level program; - is stdin.")
    ],
    size: SizeOption = None,
    depth: DepthOption = None,
    nodes: NodesOption = Nodes.paper,
    repeat: RepeatOption = Repeats.node,
    latency: LatencyOption = None,
    interval: IntervalOption = None,
    send: Annotated[int, typer.Option(help="Cycles until a token is there.")] = 1,
    response: Annotated[int, typer.Option(help="Cycles until a free place is known.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    check: Annotated[bool, typer.Option(help="Compute the results, compare them.")] = True,
    plot: PlotOption = None,
    trace: TraceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Cycles, throughput and channel occupancy of a stream program on the streaming machine."""
    from tilewright.passes.channels.nodes import find_nodes
    from tilewright.runtime.simulator import Machine
    from tilewright.runtime.simulator.build import Plan
    from tilewright.runtime.simulator.plot import BINS, check_plot
    from tilewright.runtime.simulator.trace import MOST_SPANS

    graph = _stream_graph(read_program(file), file)
    sizes = choose_sizes(graph, parse_sizes(size))
    rules = NodeRules(nodes is Nodes.paper, repeat is Repeats.node)
    every, single = _cycles(latency, "--latency")
    pace, paces = _cycles(interval, "--interval")
    machine = Machine(rules, every, pace, send, response, single, paces)
    found = find_nodes(graph, rules)
    machine.check_names(found)
    if plot:
        check_plot(plot)
    inputs = random_arrays(graph, sizes, seed) if check else None
    plan = Plan(found, machine, sizes, inputs, BINS if plot else 0, MOST_SPANS if trace else 0)
    _check_work(plan)
    outcome = _run(plan, depth or ())
    _write(outcome.run, plot, trace)
    if as_json:
        say(json.dumps(as_data(outcome), indent=2))
    else:
        show(outcome, check)
    if outcome.wrong:
        raise typer.Exit(WRONG)


def _stream_graph(module: Module, name: str) -> Graph:
    graph = module.main
    if graph.level != "stream":
        raise SettingError(
            f"simulate takes a stream-level program, {name} holds {graph.level} {graph.name}; make "
            "one with: tilewright opt --passes decompose,precision,canonicalise,to_stream"
        )
    for value in (*graph.params, *graph.results):
        if not isinstance(value.type, TensorType):
            raise VerifyError(
                f"{graph.name}: %{value.hint} is {value.type}; inputs and results are tensors: a "
                "stream begins in a stream.source and ends in a stream.sink"
            )
    if len(module.graphs) > 1:
        note(f"{name} has {len(module.graphs)} graphs; {graph.name} is simulated")
    return graph


def _cycles(texts: Sequence[str] | None, option: str) -> tuple[int, dict[str, int]]:
    """``["2", "e=11"]`` as 2 for all and 11 for e; 1 for all if nothing is said."""
    every, single = 1, {}
    for part in (p.strip() for text in texts or () for p in text.split(",")):
        name, _, number = part.rpartition("=")
        if not number.strip().isdecimal():
            raise SettingError(f"{option} {part!r}: write cycles, or a node and cycles: e=11")
        if name:
            single[name.strip().removeprefix("%")] = int(number)
        else:
            every = int(number)
    return every, single


def random_arrays(graph: Graph, sizes: Mapping[str, int], seed: int) -> tuple[Array, ...]:
    """Random inputs of a stream graph, floats in f64. Raises SettingError if they are too large."""
    import numpy as np

    shapes = input_shapes(graph, sizes)
    check_memory(shapes)
    rng = np.random.default_rng(seed)
    out: list[Array] = []
    for wanted in shapes:
        if wanted.dtype.is_float:
            out.append(rng.standard_normal(wanted.shape))
        else:
            most = 2 if wanted.dtype.kind == "bool" else 8
            out.append(rng.integers(0, most, wanted.shape))
    return tuple(out)


def _check_work(plan: Plan) -> None:
    """SettingError if the run would take days."""
    nests = [product(axis.size for axis in node.loops) for node in plan.nodes.nodes]
    firings = sum(nest.evaluate(plan.sizes) for nest in nests)
    if firings > MOST_FIRINGS:
        raise SettingError(f"the nodes would fire {firings:,} times: choose smaller sizes")


def _run(plan: Plan, depths: Sequence[str]) -> Outcome:
    """The run, and the same without limits. Raises DeadlockError."""
    from tilewright.runtime.simulator.deadlock import deadlock_error

    outcome, capacities = outcome_of(plan, depths)
    if outcome.run.stuck:
        raise deadlock_error(outcome.run, capacities)
    return outcome


def outcome_of(plan: Plan, depths: Sequence[str]) -> tuple[Outcome, dict[Edge, int | None]]:
    """The run with depths as ``--depth`` gives them, which may be stuck; all channels' places."""
    from dataclasses import replace

    from tilewright.runtime.simulator.depths import parse_depths
    from tilewright.runtime.simulator.run import run_plan

    sizes = dict(plan.sizes)
    machine = plan.machine
    times = Times(machine.latency, machine.send, machine.response, machine.latencies)
    general = channel_depths(plan.nodes, None, times)
    here = channel_depths(plan.nodes, sizes, times)
    given = parse_depths(depths, general, sizes)
    capacities = {
        edge: given.get(channel.name, channel.full.evaluate(sizes))
        for edge, channel in zip(plan.nodes.edges, here, strict=True)
    }
    run = run_plan(plan, capacities)
    checked = plan.inputs is not None and not run.stuck
    error = largest_error(run) if checked else None
    free = run_plan(replace(plan, inputs=None, bins=0, spans=0), dict.fromkeys(plan.nodes.edges))
    return Outcome(run, free, general, here, error), capacities


def _write(run: Simulation, plot: Path | None, trace: Path | None) -> None:
    from tilewright.runtime.simulator.plot import plot_occupancy
    from tilewright.runtime.simulator.trace import chrome_trace

    for path, option in ((plot, "--plot"), (trace, "--trace")):
        if path is None:
            continue
        try:
            if option == "--plot":
                plot_occupancy(run, path)
            else:
                path.write_text(chrome_trace(run), encoding="utf-8")
        except OSError as error:
            raise SettingError(f"{option} {path}: {error.strerror}") from None
    if trace and run.spans_lost:
        note(f"{trace} shows the beginning only: it would hold too many waits")


def largest_error(run: Simulation) -> float | None:
    """The largest error against the reference, relative to the largest result; None if that
    would take too much memory."""
    import numpy as np

    from tilewright.ir.evaluate import evaluate_graph

    graph, sizes = run.plan.nodes.graph, dict(run.plan.sizes)
    for op in graph.body.ops:
        for value in op.results:
            axes = getattr(value.type, "axes", ())
            if product(axis.size for axis in axes).evaluate(sizes) > ORACLE_ELEMENTS:
                return None
    assert run.plan.inputs is not None
    wanted = evaluate_graph(graph, *run.plan.inputs, precision="f64", sizes=sizes)
    worst = 0.0
    for output, reference in zip(run.outputs, wanted, strict=True):
        got, right = np.asarray(output, np.float64), np.asarray(reference, np.float64)
        same = (got == right) | (np.isnan(got) & np.isnan(right))
        if not same.all():
            scale = np.abs(right[np.isfinite(right)]).max(initial=1e-300)
            off = np.abs(got - right)[~same]
            worst = max(worst, float(np.where(np.isnan(off), np.inf, off).max() / scale))
    return worst
