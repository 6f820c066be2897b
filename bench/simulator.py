"""How many firings a second the streaming simulator does, as a command:
``python -m tilewright.bench.simulator``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import typer

from tilewright.bench import machine
from tilewright.bench.command import AsJson, Quick, Save, deliver
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.streams import graph_of
from tilewright.simulation import Machine, NodeRules, channel_depths, find_nodes, simulate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# nanoseconds of a firing: at least 5 million a second, better 50
GOAL = Goal(200.0, 20.0)
SIZE, QUICK_SIZE, ROUNDS = 1024, 32, 5


@dataclass(frozen=True)
class Workload:
    """One of the examples with every channel as deep as the analysis says."""

    program: str
    paper: bool  # the paper's nodes, or one per operation
    values: bool  # the results are computed, too

    @property
    def name(self) -> str:
        nodes = "the paper's nodes" if self.paper else "a node per operation"
        what = "with heads of 64" if self.values else "times only"
        return f"{self.program}, {nodes}, {what}"

    def call(self, size: int) -> Any:
        """A function that runs it once."""
        graph, rules, sizes = graph_of(self.program), NodeRules(paper=self.paper), {"N": size}
        found = channel_depths(find_nodes(graph, rules), sizes)
        depths = {c.name: c.full.evaluate(sizes) for c in found}
        inputs = np.random.default_rng(0).standard_normal((3, size, 64)) if self.values else ()
        return lambda: simulate(graph, *inputs, sizes=sizes, depths=depths, machine=Machine(rules))


WORKLOADS = tuple(
    Workload(program, paper, values)
    for program in ("naive", "memory_free")
    for values in (False, True)
    for paper in (True, False)
)


@app.command()
def simulator(
    as_json: AsJson = False,
    save: Save = False,
    quick: Quick = False,
) -> None:
    """Measures nanoseconds of processor time for a node's firing."""
    if save and quick:
        raise typer.BadParameter("only a whole run is saved: leave out --quick")
    record = run(quick)
    deliver(record, as_json, save)


def run(quick: bool = False) -> Record:
    """All workloads; a quick run is held to nothing."""
    date = machine.now()
    here = machine.describe_machine(threads=1)
    record = Record("simulator", date, here, (), tuple(_measured(quick)))
    return record.without_goals() if quick else record


def _measured(quick: bool) -> Iterator[Quantity]:
    for workload in WORKLOADS:
        call = workload.call(QUICK_SIZE if quick else SIZE)
        found = call()  # loads the compiled engine
        seconds = [_processor_time(call) for _ in range(1 if quick else ROUNDS)]
        least = min(seconds)
        details = {
            "firings": found.firings,
            "million_firings_per_second": found.firings / least / 1e6,
            "seconds": seconds,
        }
        yield Quantity(workload.name, 1e9 * least / found.firings, "ns/firing", GOAL, details)


def _processor_time(call: Any) -> float:
    """Processor seconds of this process, which other processes on the machine do not add to."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    app()
