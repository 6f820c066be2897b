"""Writes the README's table of figures and docs/results.md: ``python -m tilewright.bench.readme``.

It takes the newest results of each machine class, and replaces what stands between the two markers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from tilewright.bench.beside import PAGE as PEERS
from tilewright.bench.beside import beside_table
from tilewright.bench.records import RESULTS, Comparison, Record, newest_records
from tilewright.bench.results_page import PAGE, results_page
from tilewright.bench.tables import seconds_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
COMMANDS = (
    "attention",
    "demo",
    "experts",
    "routing",
    "placement",
    "expert_memory",
    "kv_cache",
    "lowbit",
    "masks",
)
_TIMES = "\N{MULTIPLICATION SIGN}"


@app.command()
def readme(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if it would change.")
    ] = False,
) -> None:
    """Writes the newest results: tables in README.md and docs/peers.md, and docs/results.md."""
    try:
        table = with_figures(README.read_text(encoding="utf-8"), figures_text(RESULTS))
        peers = with_figures(PEERS.read_text(encoding="utf-8"), beside_table())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    pages = (README, table), (PAGE, results_page()), (PEERS, peers)
    stale = [_stale(path, text, check) for path, text in pages]
    if check and any(stale):
        raise typer.Exit(1)


def _stale(path: Path, after: str, check: bool) -> bool:
    """Whether a file lacks the newest figures; writes them unless it is only to be checked."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if after == before:
        typer.echo(f"{path.name} has the newest figures")
    elif check:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="")
        typer.echo("\n".join(lines), err=True)
    else:
        path.write_text(after, encoding="utf-8")
        typer.echo(f"wrote the newest figures into {path.name}")
    return after != before


def with_figures(text: str, figures: str) -> str:
    """The text with ``figures`` between its markers. Raises ValueError if it has not both, once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs the lines {BEGIN} and {END}, each once, in this order")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{figures}{END}{rest.partition(END)[2]}"


def figures_text(results: Path) -> str:
    """Markdown: the machines, a row for each comparison that has a goal and a column for each
    machine class, then how many goals are met, and which are not."""
    records = [record for command in COMMANDS for record in newest_records(command, results)]
    if not records:
        return "Nothing has been measured yet.\n"
    kinds = _by_kind(records)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        for row in record.comparisons:
            if row.met is not None:
                name = f"{row.name}, {row.peer}"
                rows.setdefault(name, {})[record.machine.kind] = _comparison(row)
    lines = [*(_machine(kind, found) for kind, found in kinds.items()), ""]
    lines += _table(
        ["", *kinds], ([n, *(cells.get(k, "") for k in kinds)] for n, cells in rows.items())
    )
    lines += ["", *(_goals(kind, found) for kind, found in kinds.items())]
    return "\n".join([*lines, ""])


def _by_kind(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.machine.kind, []).append(record)
    return dict(sorted(found.items()))


def _machine(kind: str, records: list[Record]) -> str:
    here = records[0].machine
    versions = sorted({record.machine.versions.get("torch", "?") for record in records})
    days = sorted({record.date[:10] for record in records})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    torch = ", ".join(versions)
    return f"- **{kind}**: {here.model}, {here.threads} threads; torch {torch}; {dates}"


def _goals(kind: str, records: list[Record]) -> str:
    """How many goals of a machine class are met, those of quantities, too, and which are not."""
    judged = [(f"{row.name}, {row.peer}", row.met) for r in records for row in r.comparisons]
    judged += [(row.name, row.met) for r in records for row in r.quantities]
    missed = [name for name, met in judged if met is False]
    count = sum(met is not None for _, met in judged)
    told = f" Missed: {'; '.join(missed)}." if missed else ""
    return f"**{kind}**: {count - len(missed)} of {count} goals are met.{told}"


def _comparison(row: Comparison) -> str:
    """How many times faster, our time, and what memory allows where a goal is missed for it."""
    cell = f"{_judged(f'{row.ratio:.2f}{_TIMES}', row.met)} ({seconds_text(row.ours.median)})"
    if row.met is False and row.bound is not None:
        cell += f"; reading the bytes alone: {row.bound:.2f}{_TIMES}"
    return cell


def _judged(text: str, met: bool | None) -> str:
    """What misses its goal says so."""
    return f"{text} (goal missed)" if met is False else text


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """``| a | b |`` lines; a bar inside a cell would end it."""
    cells = [head, *rows]
    texts = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return [texts[0], "|---" * len(head) + "|", *texts[1:]]


if __name__ == "__main__":
    app()
