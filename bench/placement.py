"""The figures of expert placement, as a command: ``python -m tilewright.bench.placement``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import typer

from tilewright.bench.command import AsJson, Only, Quick, Save, begin, deliver, note, require_whole
from tilewright.bench.placement_model import TINY, MoeSize, trained_trace
from tilewright.bench.placement_ranks import payload_bytes
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.timing import Effort
from tilewright.placement import (
    Judge,
    Placement,
    Topology,
    Trace,
    grouped_trace,
    place,
    round_robin,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HOPS = 0.7  # of round robin's: what the issue asks for
HELD_OUT = 0.3  # of the real trace's tokens


@dataclass(frozen=True)
class Workload:
    """A generated trace: hidden groups, as many as GPUs, that 4 of 5 tokens stay in."""

    experts: int
    layers: int
    choices: int
    gpus: int
    nodes: int = 1
    tokens: int = 20_000
    proven: bool = False  # small enough for a proof, and held to one
    seconds: float = 30.0

    @property
    def name(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        shape = f"{self.experts} experts, {self.layers} layers, top-{self.choices}"
        return f"{shape}, {self.gpus} GPUs{nodes}"

    def smaller(self) -> Workload:
        few = min(2, self.choices)
        return replace(self, experts=2 * self.gpus, choices=few, tokens=500, layers=3, seconds=1.0)


WORKLOADS = (
    Workload(8, 32, 2, 4, proven=True),
    Workload(16, 12, 1, 2, proven=True),
    Workload(64, 12, 1, 8),
    Workload(64, 24, 6, 8),
    Workload(128, 24, 8, 16, nodes=2),
)
MODEL = "small trained model"
BYTES = "bytes sent"


@app.command()
def placement(
    as_json: AsJson = False, save: Save = False, quick: Quick = False, only: Only = ""
) -> None:
    """Places experts for generated and real traces, and counts the bytes that four ranks send."""
    require_whole(save, quick, only)
    deliver(run(quick=quick, only=only), as_json, save)


def run(*, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, _ = begin(Effort(), quick)
    rows = tuple(_figures(quick, only))
    record = Record("placement", date, here, (), rows)
    return record.without_goals() if quick else record


def _figures(quick: bool, only: str) -> Iterator[Quantity]:
    for given in WORKLOADS:
        workload = given.smaller() if quick else given
        if only in workload.name:
            note(workload.name)
            yield from generated(workload)
    if only in MODEL:
        note(MODEL)
        yield from real(TINY if quick else MoeSize(), 2.0 if quick else 30.0)
    if only in BYTES:
        note(BYTES)
        yield from sent(200 if quick else 4000)


def generated(workload: Workload) -> Iterator[Quantity]:
    """Hops against round robin, and the gap to the bound: 0 where the optimum has to be proven."""
    w = workload
    trace, hidden = grouped_trace(
        w.tokens, w.layers, w.experts, w.gpus, choices=w.choices, affinity=0.8
    )
    topology = Topology(w.gpus, w.nodes)
    ratio, details, gap = _judged(trace, trace, topology, w.seconds)
    details["hidden groups"] = asdict(Judge(trace, topology)("hidden groups", hidden))
    yield Quantity(f"hops, {w.name}", ratio, "of round robin's", Goal(HOPS), details)
    goal = Goal(0.0, 0.0) if w.proven else Goal()
    yield Quantity(f"gap to the bound, {w.name}", 100 * gap, "%", goal)


def real(size: MoeSize, seconds: float) -> Iterator[Quantity]:
    """Hops on tokens that the placement was not chosen by, of a model trained for a minute."""
    trained = trained_trace(size)
    used, judged = trained.trace.split(HELD_OUT)
    shape = f"{size.experts} experts, {size.layers} layers, top-{size.choices}"
    for gpus in (2, 4):
        ratio, details, gap = _judged(used, judged, Topology(gpus), seconds)
        details |= {"steps": trained.steps, "loss": trained.losses}
        name = f"{MODEL}, {shape}, {gpus} GPUs"
        yield Quantity(f"hops on other tokens, {name}", ratio, "of round robin's", Goal(), details)
        yield Quantity(f"gap to the bound, {name}", 100 * gap, "%", Goal())


def _judged(
    used: Trace, judged: Trace, topology: Topology, seconds: float
) -> tuple[float, dict[str, Any], float]:
    """Cost against round robin's on the one trace, placed by the other; details; the gap."""
    solution = place(used.affinity(), topology, seconds=seconds)
    judge = Judge(judged, topology)
    rows = (judge("placed", solution.places), *judge.references())
    details: dict[str, Any] = {row.name: asdict(row) for row in rows}
    details |= {
        "method": solution.method,
        "seconds": solution.seconds,
        "gap": solution.gap,
        "proven": solution.proven,
    }
    return rows[0].cost / rows[1].cost, details, solution.gap


def sent(tokens: int) -> Iterator[Quantity]:
    """Rows' bytes of four processes, both modes, against two exchanges and round robin."""
    topology = Topology(4)
    for choices in (1, 2):
        trace, _ = grouped_trace(tokens, 8, 16, 4, choices=choices, affinity=0.8)
        robin = Placement(round_robin(trace.layers, topology, trace.experts), topology)
        placed = Placement(place(trace.affinity(), topology, seconds=5).places, topology)
        found = {"round robin": payload_bytes(trace, robin), "placed": payload_bytes(trace, placed)}
        base = found["round robin"]["exchange"]
        for where, modes in found.items():
            for mode, count in modes.items():
                words = "two exchanges" if mode == "exchange" else "context coherence"
                name = f"{BYTES}, top-{choices}, 4 ranks: {words}, {where}"
                details = {"bytes per token": count / tokens}
                if count != base:
                    unit = "of two exchanges, round robin"
                    yield Quantity(name, count / base, unit, Goal(), details)


if __name__ == "__main__":
    app()
