"""Shows the low-bit part of the demo: a table with bars, and a picture if matplotlib is there."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tilewright.bench.records import RESULTS, Record

BUILD = Path(__file__).resolve().parent.parent / "build"
_BAR = 24  # columns of the longest bar
_SMALLEST = 1e-7  # a divergence below is drawn as this one: the axis is logarithmic


def show_lowbit(details: dict[str, Any], console: Console) -> None:
    """What was quantised how, and a row for each width."""
    plan = ", ".join(f"{pattern} {width}" for pattern, width in details["plan"].items())
    console.print(
        f"weights of all linear layers in groups of {details['group']}, activations "
        f"{details['activation']}; {details['prompt']:,} tokens, then {details['steps']} steps of "
        f"each model in turns; mixed: {plan}",
        soft_wrap=True,
        markup=False,
    )
    console.print(lowbit_table(details["rows"]))


def lowbit_table(rows: list[dict[str, Any]]) -> Table:
    """Bits, size, divergence, speed, with a bar for the speed."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("weights", no_wrap=True)
    for column in ("bits", "MB", "KL, nats", "same token", "tokens/s", "vs f32"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    fastest = max(row["tokens_per_second"] for row in rows)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['bits']:.2f}",
            f"{row['megabytes']:.1f}",
            f"{row['divergence']:.1e}",
            f"{row['agreement']:.1%}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['speedup']:.2f}\N{MULTIPLICATION SIGN}",
            "█" * max(1, round(_BAR * row["tokens_per_second"] / fastest)),
        )
    return table


def plot_path(record: Record, saved: bool) -> Path:
    """Beside the record if that is saved, else in build/, which git ignores."""
    if not saved:
        return BUILD / "demo-lowbit.svg"
    return RESULTS / record.machine.kind / f"{record.command}-lowbit-{record.date[:10]}.svg"


def draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """Divergence over bits, and tokens a second, into a file. False without matplotlib."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        return False
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    _divergences(left, [row for row in rows[1:] if "compiled" not in row["name"]])
    names = [row["name"] for row in rows]
    right.barh(names[::-1], [row["tokens_per_second"] for row in rows][::-1], color="#3b6ea5")
    right.set_xlabel("tokens a second, one sequence")
    figure.suptitle("The demo's model by the width of its weights")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _divergences(axes: Any, rows: list[dict[str, Any]]) -> None:
    bits = [row["bits"] for row in rows]
    values = [max(row["divergence"], _SMALLEST) for row in rows]
    axes.plot(bits, values, "o", color="#b5432f")
    for row, x, y in zip(rows, bits, values, strict=True):
        axes.annotate(row["name"], (x, y), textcoords="offset points", xytext=(6, 4))
    axes.margins(x=0.15)
    axes.set_yscale("log")
    axes.set_ylim(top=10 ** (math.ceil(math.log10(max(values))) + 0.2))
    axes.set_xlabel("bits per weight, scales and zeros included")
    axes.set_ylabel("KL divergence of the logits from f32, nats")
    axes.grid(True, which="major", alpha=0.3)
