"""Shows the adapters' demo: whose experts, how many bytes, and whether all is as if merged."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright.bench.records import Record
from tilewright.bench.tables import WIDE, seconds_text


def show_adapters(record: Record, console: Console | None = None) -> None:
    """The model, a row for each adapter, bytes, times."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    details = record.details
    console.print(model_line(details), soft_wrap=True)
    console.print(adapter_table(details["rows"]))
    for line in (verdict_line(details), bytes_line(details), times_line(record)):
        console.print(line, soft_wrap=True)


def model_line(details: dict[str, Any]) -> str:
    model = details["model"]
    return (
        f"Qwen3-MoE, {model['parameters'] / 1e6:.1f} M parameters in f32: {model['layers']} layers "
        f"of {model['experts']} experts, {model['chosen']} for each token; three adapters read "
        f"from safetensors in ESFT's layout; one batch of {len(details['batch'])} sequences of "
        f"{model['prompt']} tokens, then {details['steps']} greedy steps"
    )


def adapter_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("sequences of", no_wrap=True)
    for column in (
        "own experts",
        "in layers",
        "their MB",
        "a merged copy's",
        "largest difference",
        "error",
        "torch's",
        "tokens equal",
        "unlike the base's",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        same = row["difference"] == 0
        table.add_row(
            row["name"],
            str(row["experts"]),
            str(row["layers"]),
            f"{row['own_bytes'] / 1e6:.1f}",
            f"{row['merged_bytes'] / 1e6:.1f}",
            Text("none: same bits" if same else f"{row['difference']:.1e}"),
            f"{row['error']:.1e}",
            f"{row['torch_error']:.1e}",
            Text(
                f"{row['equal_tokens']} of {row['tokens']}" + ("" if row["equal"] else " ✗"),
                style="green" if row["equal"] else "red",
            ),
            str(row["unlike_base"]),
        )
    return table


def verdict_line(details: dict[str, Any]) -> Text:
    rows = details["rows"]
    if not details["equal"]:
        wrong = ", ".join(row["name"] for row in rows if not row["equal"])
        return Text(f"NOT EQUAL to the merged model: {wrong}", style="red")
    bits = all(row["difference"] == 0 for row in rows)
    how = "bit for bit" if bits else "within the rounding of float32, not bit for bit"
    return Text(
        f"equal: every sequence has the logits of its adapter's merged model, run by the same "
        f"kernels, {how}, and its tokens; errors are against that model in float64, torch's are "
        "those of transformers' own experts"
    )


def bytes_line(details: dict[str, Any]) -> str:
    mapped, existing, merged = (
        details[key] / 1e6 for key in ("mapped_bytes", "existing_bytes", "merged_bytes")
    )
    return (
        f"experts' memory: {mapped:.1f} MB mapped, of which {existing:.1f} MB are experts; the "
        f"base and three merged copies take {merged:.1f} MB: {merged / mapped:.2f} times as much"
    )


def times_line(record: Record) -> str:
    times, read = record.quantities[0].details, record.details["experts_read"]
    return (
        f"a decode step: {seconds_text(times['adapters'])} with adapters, "
        f"{seconds_text(times['base'])} without ({read['adapters']:.1f} and {read['base']:.1f} "
        f"different experts read in a layer), {seconds_text(times['merged'])} by four merged "
        "models in turns"
    )
