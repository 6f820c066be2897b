"""Shows the demo's record on a terminal, for someone who has never seen Tilewright."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright.bench.lowbit_output import show_lowbit
from tilewright.bench.records import Record
from tilewright.bench.tables import (
    WIDE,
    comparison_table,
    machine_lines,
    quantity_table,
    seconds_text,
)

_PLACE = 70  # columns of a source line


def show_demo(record: Record, console: Console | None = None) -> None:
    """Model, tokens, times, errors, kernels."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    for line in machine_lines(record.machine):
        console.print(line, style="dim")
    details = record.details
    console.print(model_line(details))
    console.print(tokens_line(details["tokens"], record.quantities[0].details["ours"]))
    console.print(comparison_table(record.comparisons, console.width))
    console.print(quantity_table(record.quantities))
    console.print(kernel_table(details["kernels"], console.width))
    for line in kernel_lines(details):
        console.print(line, soft_wrap=True, markup=False)
    if "lowbit" in details:
        show_lowbit(details["lowbit"], console)


def model_line(details: dict[str, Any]) -> str:
    model = details["model"]
    return (
        f"Llama, {model['parameters'] / 1e6:.1f} M parameters in f32: {model['layers']} layers of "
        f"{model['hidden']}, {model['heads']} heads over {model['groups']}; {details['prompt']:,} "
        f"tokens of text, then {details['steps']} greedy steps; {details['repeats']} repeats"
    )


def tokens_line(tokens: dict[str, Any], error: float) -> str:
    """Equal or not; if not, how near the choice was where they part."""
    about = f"{tokens['number']} tokens, {tokens['distinct']} different ones"
    if tokens["equal"]:
        nearest = f"the nearest choice was between logits {tokens['smallest_gap']:.1e} apart"
        return f"tokens: equal ({about}; {nearest})"
    gap = tokens["gap_at_difference"]
    why = "a near tie" if gap < 4 * error else "NOT a near tie"
    return (
        f"tokens: DIFFERENT from number {tokens['first_difference'] + 1} on ({about}), where torch "
        f"chose between logits {gap:.1e} apart: {why}, as the largest logit error is {error:.1e}"
    )


def kernel_lines(details: dict[str, Any]) -> list[str]:
    """How many kernels, and what ran and stayed with torch."""
    kernels = details["kernels"]
    forms = [form for kernel in kernels for form in kernel["forms"]]
    hits = sum(bool(form["from_cache"]) for form in forms)
    seconds = sum(float(form["seconds"]) for form in forms)
    lines = [
        f"kernels: {len(kernels)} for {details['graphs']} captured graphs; {len(forms)} compiled "
        f"forms, {hits} of them from the disk cache, {seconds_text(seconds)} in all"
    ]
    if details["regions_with_torch"]:
        lines += [
            "regions that ran with torch:",
            *(f"  {r}" for r in details["regions_with_torch"]),
        ]
    left = ", ".join(f"{count} {op}" for op, count in details["operations_left"].items())
    lines.append(f"stayed with torch, both graphs together: {left or 'nothing'}")
    return lines


def kernel_table(kernels: list[dict[str, Any]], width: int = WIDE) -> Table:
    """A row for each kernel: its regions, its channels by depth, its forms, where it comes from.

    A narrow terminal has no room for the latter.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("regions", justify="right", no_wrap=True)
    table.add_column("channels: how many of which depth", no_wrap=True)
    table.add_column("compiled forms", no_wrap=True)
    if width >= WIDE:
        table.add_column("the line of its result", no_wrap=True)
    for kernel in kernels:
        channels = ", ".join(f"{count} of {depth}" for depth, count in kernel["depths"].items())
        forms = "\n".join(_form(form) for form in kernel["forms"]) or kernel["runs_on"]
        place = _cut(kernel["place"].rpartition("/")[2])
        cells: list[str | Text] = [str(kernel["regions"]), Text(channels), Text(forms), Text(place)]
        table.add_row(*cells[: len(table.columns)])
        for channel in kernel["made_shallow"]:
            table.add_row("", Text(f"was deep: {channel}"), "made shallow by reordering")
    return table


def _form(form: dict[str, Any]) -> str:
    how = "loaded" if form["from_cache"] else "compiled"
    return f"{form['layout_class']}: {how} in {seconds_text(float(form['seconds']))}"


def _cut(text: str) -> str:
    return text if len(text) <= _PLACE else text[: _PLACE - 1] + "…"
