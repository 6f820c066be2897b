"""Shows a record on a terminal. Measures nothing and decides nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright.bench.machine import Machine
from tilewright.bench.records import Comparison, Goal, Quantity, Record

_TIMES = "\N{MULTIPLICATION SIGN}"
WIDE = 178  # columns of a whole table, and where no terminal says how many there are


def show_record(record: Record, console: Console | None = None) -> None:
    """The machine, the comparisons, the quantities."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    for line in machine_lines(record.machine):
        console.print(line, style="dim")
    if record.comparisons:
        console.print(comparison_table(record.comparisons, console.width))
    if record.quantities:
        console.print(quantity_table(record.quantities))


def machine_lines(machine: Machine) -> list[str]:
    """The conditions of a run, for the head of a table."""
    speeds = [
        (machine.read_gb_per_s, "reads {:.0f} GB/s"),
        (machine.matmul_f32_gflops, "torch matmul f32 {:.0f} GFLOP/s"),
        (machine.matmul_bf16_gflops, "bf16 {:.0f} GFLOP/s"),
    ]
    measured = ", ".join(text.format(number) for number, text in speeds if number)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return [
        f"{machine.kind}: {machine.model}, {machine.cores} cores, {machine.threads} threads a side",
        versions,
        f"OMP_WAIT_POLICY: {machine.wait_policy}; load at the start {machine.load_at_start}"
        + (f"; {measured}" if measured else ""),
    ]


def comparison_table(rows: tuple[Comparison, ...], width: int = WIDE) -> Table:
    """A row for each comparison; a narrow terminal gets the times and ratios only."""
    short = ("workload", "ours", "theirs", "ratio", "must", "aim")
    more = ("of the fastest", "bound", "ours does", "theirs does", "error", "theirs", "peer")
    table = _table(*short, *(more if width >= WIDE else ()))
    for row in rows:
        cells: list[str | Text] = [
            row.name,
            seconds_text(row.ours.median),
            seconds_text(row.theirs.median),
            _verdict(f"{row.ratio:.2f}{_TIMES}", row.met),
            *_goal(row.goal, "≥ {:g}" + _TIMES),
            f"{row.best_ratio:.2f}{_TIMES}",
            "" if row.bound is None else f"{row.bound:.2f}{_TIMES}",
            *(_rate(row, timing.median) for timing in (row.ours, row.theirs)),
            *(_error(error) for error in (row.our_error, row.their_error)),
            row.peer,
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def quantity_table(rows: tuple[Quantity, ...]) -> Table:
    table = _table("figure", "value", "must", "aim")
    for row in rows:
        value = _verdict(f"{row.value:.3g} {row.unit}".rstrip(), row.met)
        table.add_row(row.name, value, *_goal(row.goal, "≤ {:g} " + row.unit))
    return table


def seconds_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", no_wrap=at > 0)
    return table


def _verdict(text: str, met: bool | None) -> Text:
    style = {True: "green", False: "red", None: ""}[met]
    return Text(text + (" ✗" if met is False else ""), style=style)


def _goal(goal: Goal, text: str) -> list[str]:
    return ["" if n is None else text.format(n).rstrip() for n in (goal.must, goal.aim)]


def _rate(row: Comparison, seconds: float) -> str:
    return f"{row.work / seconds:.3g} {row.unit}" if row.work else ""


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
