"""docs/streams.md and its pictures, as a command: ``python -m tilewright.bench.streams``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import tilewright
from tilewright.simulation import (
    Machine,
    NodeRules,
    Simulation,
    channel_depths,
    find_nodes,
    plot_occupancy,
    simulate,
)

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "streams"
PAGE = ROOT / "docs" / "streams.md"
PROGRAMS = ("naive", "safe_softmax", "reordered_division", "memory_free")
DEADLOCK = "deadlock"
PLOT_SIZE, PLOT_BINS, CLAIM_SIZES = 64, 512, (64, 256, 1024)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Row:
    """A figure of PAPERS.md 1.4: depths of the long channels (None: no channel has a limit), and
    what was found there."""

    program: str
    size: int
    short: int | None
    long: int | None
    cycles: int | str
    wired: bool = False
    second: int | None = None  # of the second long channel, where it is another

    def run(self) -> int | str:
        """The cycles that the simulator takes, or that it is stuck."""
        rules = NodeRules(paper=True, repeat_nodes=not self.wired)
        graph = graph_of(self.program)
        found = channel_depths(find_nodes(graph, rules))
        depths = {c.name: self.long if c.deep else self.short for c in found}
        deep = [c.name for c in found if c.deep]
        if self.second is not None:
            depths[deep[1]] = self.second
        run = simulate(graph, sizes={"N": self.size}, depths=depths, machine=Machine(rules))
        return DEADLOCK if run.stuck else run.cycles

    @property
    def what(self) -> str:
        """Program and depths in words."""
        name = self.program.replace("_", " ")
        name += ", the sum read by the division itself" if self.wired else ""
        if self.short is None:
            return f"{name} | {self.size} | no limits"
        if self.long in (None, self.short):
            return f"{name} | {self.size} | all {self.short}"
        more = (self.long or 0) - self.size
        long = "N" + (f" + {more}" if more > 0 else f" - {-more}" if more else "")
        second = "" if self.second is None else f", second long {self.second}"
        return f"{name} | {self.size} | short {self.short}, long {long}{second}"


ROWS = (
    Row("naive", 64, None, None, 4164, wired=True),
    Row("naive", 64, 2, 66, 4164, wired=True),
    Row("naive", 64, 2, 65, 4227, wired=True),
    Row("naive", 64, 2, 64, 4290, wired=True),
    Row("naive", 64, 2, 63, DEADLOCK, wired=True),
    Row("naive", 64, None, None, 4165),
    Row("naive", 64, 2, 67, 4165),
    Row("naive", 64, 2, 66, 4228),
    Row("naive", 64, 2, 62, DEADLOCK),
    Row("safe_softmax", 64, None, None, 4231),
    Row("safe_softmax", 64, 2, 67, 4231),
    Row("safe_softmax", 64, 2, 67, DEADLOCK, second=2),
    Row("reordered_division", 64, None, None, 4166),
    Row("reordered_division", 64, 2, 66, 4229),
    Row("reordered_division", 64, 2, 2, DEADLOCK),
    Row("memory_free", 64, None, None, 4100),
    Row("memory_free", 64, 2, None, 4100),
    Row("memory_free", 64, 1, None, 8195),
    Row("naive", 128, None, None, 16517),
    Row("naive", 128, 2, 130, 16644),
    Row("naive", 128, 1, 130, 33027),
    Row("memory_free", 128, None, None, 16388),
    Row("memory_free", 128, 2, None, 16388),
    Row("memory_free", 128, 1, None, 32771),
)


def graph_of(program: str) -> Any:
    """The stream graph of an example."""
    path = EXAMPLES / f"{program}.tw"
    return tilewright.parse(path.read_text(encoding="utf-8"), str(path)).main


@app.command()
def streams(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the page is not current.")
    ] = False,
) -> None:
    """Writes docs/streams.md: its tables, and the pictures in docs/streams/."""
    text = page(PAGE.read_text(encoding="utf-8"))
    if check:
        if text != PAGE.read_text(encoding="utf-8"):
            raise typer.Exit(1)
        return
    PAGE.write_text(text, encoding="utf-8")
    draw(PAGE.with_suffix(""))
    typer.echo(f"written: {PAGE}")


def page(old: str) -> str:
    """The page with its tables as they are now; the text between them stays."""
    parts = {"replication": replication(), "depths": depths(), "claim": claim()}
    for name, lines in parts.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        head, _, rest = old.partition(begin)
        _, _, tail = rest.partition(end)
        assert rest and tail, f"the page has no place for {name}"
        old = head + "\n".join([begin, *lines, end]) + tail
    return old


def replication() -> Iterator[str]:
    """The table of PAPERS.md 1.4, asked and found."""
    yield "| program | N | depths | asked | simulated |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        found = row.run()
        mark = "" if found == row.cycles else " (differs)"
        yield f"| {row.what} | {row.cycles} | {found}{mark} |"


def depths() -> Iterator[str]:
    """What the analysis says of every channel that is not simply two places deep."""
    yield "| program | channel | full throughput | no deadlock | deep |"
    yield "|---|---|---|---|---|"
    for program in PROGRAMS:
        for c in channel_depths(find_nodes(graph_of(program), NodeRules(paper=True))):
            deep = "yes" if c.deep else ""
            yield f"| {program} | `{c.name}` | {c.full} | {c.least} | {deep} |"


def claim() -> Iterator[str]:
    """The paper's claim: memory and rate of the first and the last program as N grows."""
    yield "| program | N | cycles | without limits | scores a cycle | places in all channels |"
    yield "|---|---|---|---|---|---|"
    for program in ("naive", "memory_free"):
        for size in CLAIM_SIZES:
            run, free = at_analysed_depths(program, size), simulated(program, size)
            places = sum(c.capacity or 0 for c in run.channels)
            rate = size * size / run.cycles
            yield (
                f"| {program} | {size:,} | {run.cycles:,} | {free.cycles:,} | {rate:.4f} "
                f"| {places:,} |"
            )


def simulated(program: str, size: int, **more: Any) -> Simulation:
    """A program without limits, times only."""
    machine = Machine(NodeRules(paper=True))
    return simulate(graph_of(program), sizes={"N": size}, machine=machine, **more)


def at_analysed_depths(
    program: str, size: int, inputs: Sequence[Any] = (), bins: int = 0
) -> Simulation:
    """A program with every channel as deep as the analysis says."""
    graph, rules, sizes = graph_of(program), NodeRules(paper=True), {"N": size}
    found = channel_depths(find_nodes(graph, rules))
    given = {c.name: c.full.evaluate(sizes) for c in found}
    machine = Machine(rules)
    return simulate(graph, *inputs, sizes=sizes, depths=given, machine=machine, bins=bins)


def attention(q: Any, k: Any, v: Any) -> Any:
    """What all four programs compute, by NumPy."""
    scores = q @ k.T
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)) @ v


def largest_error(program: str, size: int) -> float:
    """Of a simulated program's results against NumPy, relative to the largest."""
    q, k, v = np.random.default_rng(0).standard_normal((3, size, 64)) * 0.5
    (found,) = at_analysed_depths(program, size, (q, k, v)).outputs
    wanted = attention(q, k, v)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def draw(folder: Path) -> None:
    """A picture of each program's channels at the analysed depths."""
    folder.mkdir(exist_ok=True)
    for program in PROGRAMS:
        run = at_analysed_depths(program, PLOT_SIZE, bins=PLOT_BINS)
        plot_occupancy(run, folder / f"{program}.svg")


if __name__ == "__main__":
    app()
