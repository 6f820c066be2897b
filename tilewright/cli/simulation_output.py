"""What ``simulate`` prints of a run: nodes, channels with their depths, the results' error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.cli.output import heading, note, plural, say, table
from tilewright.passes.channels.compare import Depth
from tilewright.passes.channels.depth import Channel

if TYPE_CHECKING:
    from tilewright.runtime.simulator import Simulation

CLOSE = 1e-9  # of a result in f64, relative to the largest


@dataclass(frozen=True)
class Outcome:
    """A run, the same without limits, the channels' depths in general and for these sizes, and
    the largest error (None: not checked)."""

    run: Simulation
    free: Simulation
    general: list[Channel]
    here: list[Channel]
    error: float | None

    @property
    def wrong(self) -> bool:
        return self.error is not None and not self.error <= CLOSE


def show(found: Outcome, checked: bool) -> None:
    """Everything as text."""
    run, sizes = found.run, found.run.plan.sizes
    nodes, edges = run.plan.nodes.nodes, run.plan.nodes.edges
    heading(
        f"{run.plan.nodes.graph.name}: {plural(len(nodes), 'node')}, "
        f"{plural(len(edges), 'channel')}"
    )
    say(f"sizes   {', '.join(f'{k} = {n}' for k, n in sizes.items()) or 'none'}")
    more = run.cycles - found.free.cycles
    limits = "as without limits: full throughput" if not more else f"{more} more than without"
    say(f"cycles  {run.cycles}   ({limits})")
    say(f"fired   {run.firings} times, {run.firings / max(run.cycles, 1):.2f} a cycle")
    _show_nodes(run)
    _show_channels(found)
    _show_error(found, checked)


def _show_nodes(run: Simulation) -> None:
    say("\nnodes")
    table(
        ("node", "kind", "firings", "a cycle", "first", "last", "waited"),
        [
            (r.node.name, r.node.kind, r.firings, f"{r.throughput:.3f}", r.first, r.last, r.waited)
            for r in run.nodes
        ],
        right=("firings", "a cycle", "first", "last", "waited"),
        indent=2,
    )


def _show_channels(found: Outcome) -> None:
    say("\nchannels, in elements of their streams")
    rows = []
    sizes = dict(found.run.plan.sizes)
    for result, symbolic, numeric in zip(
        found.run.channels, found.general, found.here, strict=True
    ):
        places = "inf" if result.capacity is None else result.capacity
        full = _expression(symbolic.full, numeric.full, sizes)
        least = _expression(symbolic.least, numeric.least, sizes)
        element = result.numbers
        rows.append((result.name, places, result.peak, f"{result.mean:.2f}", element, full, least))
    columns = ("channel", "places", "peak", "mean", "numbers", "full throughput", "no deadlock")
    table(columns, rows, right=("places", "peak", "mean", "numbers"), indent=2)


def _expression(symbolic: Depth, numeric: Depth, sizes: dict[str, int]) -> str:
    """``N + 3 = 67``; the number alone where the expression, which is for long loops, is not it."""
    number = numeric.evaluate(sizes)
    text = str(symbolic)
    if text == str(number) or symbolic.evaluate(sizes) != number:
        return str(number)
    return f"{text} = {number}"


def _show_error(found: Outcome, checked: bool) -> None:
    if found.error is not None:
        verdict = "WRONG, not as the reference" if found.wrong else "as the reference"
        say(f"\nresults {verdict}: largest error {found.error:.1e} of the largest")
    elif checked:
        note("results not checked: too large for the reference, which holds every stream")


def as_data(found: Outcome) -> dict[str, Any]:
    """Everything as plain data."""
    run, sizes = found.run, dict(found.run.plan.sizes)
    return {
        "program": run.plan.nodes.graph.name,
        "sizes": sizes,
        "cycles": run.cycles,
        "cycles_without_limits": found.free.cycles,
        "firings": run.firings,
        "largest_error": found.error,
        "nodes": [
            {
                "name": r.node.name,
                "kind": r.node.kind,
                "firings": r.firings,
                "throughput": r.throughput,
                "first": r.first,
                "last": r.last,
                "waited": r.waited,
            }
            for r in run.nodes
        ],
        "channels": [
            {
                "name": r.name,
                "capacity": r.capacity,
                "peak": r.peak,
                "mean": r.mean,
                "numbers": r.numbers,
                "deep": s.deep,
                "full_throughput": str(s.full),
                "full_throughput_here": x.full.evaluate(sizes),
                "no_deadlock": str(s.least),
                "no_deadlock_here": x.least.evaluate(sizes),
            }
            for r, s, x in zip(run.channels, found.general, found.here, strict=True)
        ],
    }
