"""Why a program is stuck: the channels that block each other, and the least depths that free it.

A node that is stuck waits for one other: for the sender of an empty channel, or for the reader of a
full one. Following these from any node leads into a cycle; its full channels are too small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tilewright.ir.errors import DeadlockError
from tilewright.passes.channels.nodes import Edge
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.run import Simulation, Wait, run_plan

Capacities = Mapping[Edge, int | None]


@dataclass(frozen=True)
class Deadlock:
    """``cycle``: nodes of which each waits for the next, the last for the first. ``needs``: depths
    of the channels that have to be deeper for the program to end, each the least with the others.
    """

    cycle: tuple[Wait, ...]
    needs: dict[Edge, int]


def find_cycle(run: Simulation) -> tuple[Wait, ...]:
    """The nodes of a stuck run that wait for each other."""
    waits = {wait.node: wait for wait in run.waits}
    wait, seen = run.waits[0], []
    while wait not in seen:
        seen.append(wait)
        wait = waits[wait.edge.consumer if wait.full else wait.edge.producer]
    return tuple(seen[seen.index(wait) :])


def explain_deadlock(run: Simulation, capacities: Capacities) -> Deadlock:
    """The cycle of a stuck run, and the least depths that free it (found by running it, channel
    after channel: of the first cycle, of the one that comes next if there is one, …)."""
    plan = replace(run.plan, inputs=None, bins=0, spans=0)
    cycle = find_cycle(run)
    now, needs = dict(capacities), {}
    while run.stuck:
        full = [w.edge for w in find_cycle(run) if w.full]
        assert full, "a cycle without a full channel would be a cycle of data"
        edge = min(full, key=lambda e: now[e] or 0)
        now[edge] = needs[edge] = past_the_cycle(plan, now, edge, full)
        run = run_plan(plan, now)
    for edge in list(needs):  # what was found first may be too much with the rest
        low, high = (capacities[edge] or 0) - 1, needs[edge]

        def ends(depth: int, edge: Edge = edge) -> bool:
            return depth > 0 and not run_plan(plan, {**now, edge: depth}).stuck

        now[edge] = needs[edge] = _least(low, high, ends)
        if needs[edge] == capacities[edge]:
            del needs[edge]
    return Deadlock(cycle, needs)


def _least(low: int, high: int, good: Callable[[int], bool]) -> int:
    """The least good number above ``low``; ``high`` is good."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def past_the_cycle(plan: Plan, capacities: Capacities, edge: Edge, full: list[Edge]) -> int:
    """The least depth of one channel with which the program gets past a cycle of full channels."""

    def passes(depth: int | None) -> bool:
        run = run_plan(plan, {**capacities, edge: depth})
        return not run.stuck or not any(w.full and w.edge in full for w in find_cycle(run))

    low = capacities[edge] or 0  # too small
    free = run_plan(plan, {**capacities, edge: None})
    return _least(low, max(free.channel(edge.name).peak, low + 1), passes)


def deadlock_error(run: Simulation, capacities: Capacities) -> DeadlockError:
    """The error for a stuck run."""
    found = explain_deadlock(run, capacities)
    lines = [f"{run.plan.nodes.graph.name} is stuck at cycle {run.cycles}:"]
    for wait in found.cycle:
        channel = run.channel(wait.edge.name)
        if wait.full:
            what = f"for room in {channel.name} (all {channel.capacity} places are taken)"
        else:
            what = f"for an element of {channel.name} (it is empty)"
        lines.append(f"  {wait.node.name} waits {what}")
    given = ", ".join(f"{edge.name}={depth}" for edge, depth in found.needs.items())
    lines.append(f"it ends with --depth '{given}' or more (the least there)")
    return DeadlockError("\n".join(lines))
