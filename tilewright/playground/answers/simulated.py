"""A kernel on the streaming machine: cycles, what every node did, channels over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilewright.cli.simulate import outcome_of, random_arrays
from tilewright.cli.simulation_output import Outcome
from tilewright.ir.core import Graph
from tilewright.ir.errors import SettingError
from tilewright.ir.sizes import product
from tilewright.passes.channels.nodes import NodeRules, find_nodes
from tilewright.playground.answers.program import sizes_for, stream_kernel
from tilewright.playground.request import Request
from tilewright.runtime.simulator import Machine
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.deadlock import deadlock_error, find_cycle

if TYPE_CHECKING:
    from tilewright.runtime.simulator import Simulation

BINS = 360  # of time, about a pixel each
MOST_FIRINGS = 1 << 28  # some seconds
CHECKED_FIRINGS = 1 << 22  # up to which results are computed and compared


def answer(request: Request) -> dict[str, Any]:
    """The run with the request's depths; a program that gets stuck has ``deadlock``, its report."""
    graph = stream_kernel(request)
    sizes = sizes_for(graph, request)
    rules = NodeRules(request.nodes == "paper", True)
    plan = _plan(graph, sizes, rules, request.seed)
    outcome, capacities = outcome_of(plan, [d for d in (request.depths,) if d.strip()])
    found = _figures(outcome)
    if outcome.run.stuck:
        found["deadlock"] = deadlock_error(outcome.run, capacities).message
    return found


def _plan(graph: Graph, sizes: dict[str, int], rules: NodeRules, seed: int) -> Plan:
    nodes = find_nodes(graph, rules)
    firings = sum(product(axis.size for axis in node.loops).evaluate(sizes) for node in nodes.nodes)
    if firings > MOST_FIRINGS:
        raise SettingError(f"the nodes would fire {firings:,} times: choose smaller sizes")
    inputs = random_arrays(graph, sizes, seed) if firings <= CHECKED_FIRINGS else None
    return Plan(nodes, Machine(rules), sizes, inputs, BINS)


def _figures(outcome: Outcome) -> dict[str, Any]:
    run, sizes = outcome.run, dict(outcome.run.plan.sizes)
    blocked = {w.edge for w in find_cycle(run) if w.full} if run.stuck else set()
    channels = []
    for result, general, here, bins in zip(
        run.channels, outcome.general, outcome.here, run.occupancy, strict=True
    ):
        channels.append(
            {
                "name": result.name,
                "capacity": result.capacity,
                "peak": result.peak,
                "mean": round(result.mean, 3),
                "numbers": result.numbers,
                "full": str(general.full),
                "full_here": here.full.evaluate(sizes),
                "least_here": here.least.evaluate(sizes),
                "deep": general.deep,
                "stuck": result.edge in blocked,
                "bins": _heights(bins, run),
            }
        )
    return {
        "graph": run.plan.nodes.graph.name,
        "sizes": sizes,
        "cycles": run.cycles,
        "free": outcome.free.cycles,
        "firings": run.firings,
        "bin": run.bin_width,
        "largest_error": outcome.error,
        "wrong": outcome.wrong,
        "channels": channels,
        "nodes": _nodes(run),
    }


def _heights(bins: Sequence[float], run: Simulation) -> list[float]:
    """Mean places taken in each bin of the run's cycles."""
    count = max(1, -(-run.cycles // run.bin_width))
    return [round(float(height), 2) for height in bins[:count]]


def _nodes(run: Simulation) -> list[dict[str, Any]]:
    waiting = {w.node.name for w in run.waits}
    return [
        {
            "name": r.node.name,
            "kind": r.node.kind,
            "firings": r.firings,
            "rate": round(r.throughput, 3),
            "first": r.first,
            "last": r.last,
            "waited": r.waited,
            "stuck": r.node.name in waiting,
        }
        for r in run.nodes
    ]
