"""The report on a terminal, and what stands there while it is being measured."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tilewright.bench.method.statistics import FEWEST_SITTINGS, Estimate, estimate, ratios
from tilewright.bench.report import rows as r
from tilewright.bench.report import words as w
from tilewright.bench.report.compare import Comparison
from tilewright.bench.report.document import OURS, Document, ProblemResults
from tilewright.bench.running import Row, Run

WIDE = 150  # columns where no terminal says how many there are
_STYLES = {"faster": "green", "slower": "red", "undecided": "dim"}


class Display:
    """Live progress. Drawn only between two measurements: a thread that draws would be noise."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last = ""

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, run: Run) -> None:
        if self._console.is_terminal:
            self._live.update(progress(run, self._console.height), refresh=True)
            return
        line = f"sitting {_number(run)} of {run.options.sittings}"
        if run.sitting == 0:  # the first is the longest: all is compiled
            line += f": {run.doing}"
        if line != self._last:
            self._console.print(f"{w.seconds_text(time.perf_counter() - run.began)}, {line}")
        self._last = line


def progress(run: Run, height: int = 40) -> RenderableType:
    """How far it is, how long it will take, and the ratios so far."""
    took, share = time.perf_counter() - run.began, run.share
    left = f", about {_clock(took * (1 - share) / share)} left" if share > 0.02 else ""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        ProgressBar(total=1.0, completed=share, width=30),
        f"{100 * share:.0f} %, sitting {_number(run)} of {run.options.sittings}, "
        f"{_clock(took)}{left}",
    )
    table = _plain_table("problem", "caches", "ours", "ratio so far")
    measured = [row for row in run.rows if OURS in row.warm]
    for row in measured[-max(5, height - 6) :]:
        _add(table, *_so_far(row))
    return Group(head, Text(run.doing, style="dim"), table)


def _number(run: Run) -> int:
    """Of the sitting, from 1; the last one stays when all are over."""
    return min(run.sitting + 1, run.options.sittings)


def _so_far(row: Row) -> list[Text]:
    samples = row.cold if row.problem.headline == "cold" and OURS in row.cold else row.warm
    mine = samples[OURS]
    found = Text()
    for name, theirs in samples.items():
        if name != OURS and len(theirs) == len(mine):
            ratio = estimate(ratios(mine, theirs), resamples=100)
            style = _STYLES[w.verdict(ratio)] if len(mine) >= FEWEST_SITTINGS else ""
            found.append(f"{name} ").append(f"{w.ratio_text(ratio)}  ", style=style)
    time_ = w.seconds_text(estimate(mine, resamples=100).median)
    return [Text(row.problem.name), Text(row.problem.headline), Text(time_), found]


def show(document: Document, console: Console | None = None) -> None:
    """The tables of a finished run."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(Text(document.about, style="bold"))
    console.print(Text(f"{w.machine_text(document)}; {w.roofs_text(document)}", style="dim"))
    style = "yellow" if document.noise.worst >= w.FAIR else "dim"
    console.print(Text(w.noise_text(document), style=style))
    if document.method.quick:
        console.print(Text("A trial run: these numbers mean nothing.", style="yellow"))
    for section in document.sections:
        console.print()
        console.print(Text(section, style="bold"))
        console.print(_section([p for p in document.problems if p.section == section]))
    console.print()
    console.print(_summary(document))
    for state in document.providers:
        if state.status != "measured":
            how = f"; {state.install}" if state.install else ""
            console.print(Text(f"{state.name}: {state.status}, {state.reason}{how}", style="dim"))


def show_comparison(found: Comparison, console: Console | None = None) -> None:
    """Every row that changed, worst first, and one line for the others."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    for remark in found.remarks:
        console.print(Text(remark, style="yellow"))
    changed = [change for change in found.changes if change.kind != "same"]
    table = _plain_table("", "problem", "caches", "A", "B", "B / A", right=("A", "B", "B / A"))
    for change in sorted(changed, key=lambda x: (not x.bad, -x.factor)):
        style = "red" if change.bad else "green" if change.kind == "faster" else "dim"
        times = [_relative(part) for part in (change.before, change.after)]
        factor = f"{change.factor:.3g}" if change.before and change.after else change.reason
        name = f"{change.section}: {change.problem}"
        _add(table, Text(change.kind, style=style), name, change.state, *times, factor)
    if changed:
        console.print(table)
    same = len(found.changes) - len(changed)
    bad = len(found.regressions)
    console.print(f"{bad} regressions, {same} rows are the same within noise")


def _relative(found: Estimate | None) -> str:
    """A time in units of the reference kernel's, with its interval."""
    return f"{found.median:.3g} {w.interval_text(found)}" if found else ""


def show_agreement(counts: dict[str, int], console: Console | None = None) -> None:
    """Of two runs of one build: how many ratios agree."""
    console = console or Console(highlight=False)
    rows = max(1, counts["rows"])
    for key, text in (
        ("overlap", "have overlapping intervals"),
        ("b in a", "of B lie in the interval of A"),
        ("a in b", "of A lie in the interval of B"),
    ):
        share = 100 * counts[key] / rows
        console.print(f"{counts[key]} of {counts['rows']} ratios ({share:.0f} %) {text}")


def _section(problems: list[ProblemResults]) -> Table:
    """A row for each provider: the state of the caches that counts."""
    columns = (
        "problem",
        "provider",
        "time",
        "",
        "ratio",
        "interval",
        "roof",
        "error",
        "first call",
    )
    table = _plain_table(*columns, right=columns[2:])
    for problem in problems:
        for at, result in enumerate(problem.results):
            times = w.headline_times(problem, result)
            name = f"{problem.name} ({problem.headline})" if at == 0 else ""
            if times is None:
                _add(table, name, result.provider, Text(w.status_text(result), style="dim"))
                continue
            said = w.verdict(times.ratio) if times.ratio else ""
            _add(
                table,
                name,
                f"{result.provider} ({result.form})",
                w.seconds_text(times.time.median),
                w.spread_text(times.time),
                Text(w.ratio_text(times.ratio) if times.ratio else "", style=_STYLES.get(said, "")),
                w.interval_text(times.ratio) if times.ratio else "",
                w.percent(times.roof),
                w.error_text(result.error_relative),
                w.seconds_text(result.first_call or 0.0),
            )
    return table


def _summary(document: Document) -> Table:
    launches = {row[0]: row[1:] for row in r.launch_rows(document)}
    calls = [f"a call: {section}" for section in document.sections]
    columns = ("provider", "speed-up", "faster", "slower", "undecided", *calls)
    table = _plain_table(*columns, right=columns[1:])
    for name in document.measured:
        counts = [str(n) for n in w.verdicts(document, name).values()]
        mean = f"{document.mean_ratio(name):.3g}{w.TIMES}"
        shown = [mean, *counts] if name != OURS else ["", "", "", ""]
        _add(table, w.rival(document, name), *shown, *launches.get(name, []))
    return table


def _plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _add(table: Table, *cells: str | Text) -> None:
    """Text as it is: a name may hold what Rich takes for markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
