"""``tilewright explain``: why a program becomes the kernels that it becomes, without running it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.compile import load_target
from tilewright.cli.inputs import InputOption
from tilewright.cli.output import heading, plural, say, table
from tilewright.cli.programs import is_function, only_tensor_level, read_program
from tilewright.cli.results import no_option
from tilewright.cli.sizes import SizeOption, parse_sizes, with_sizes

if TYPE_CHECKING:
    from tilewright.cli.explanation import Explanation, KernelFacts, LayoutFacts


def explain(
    program: Annotated[
        str,
        typer.Argument(metavar="FILE|MODULE:FUNCTION", help="A tensor-level program; - is stdin."),
    ],
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Processor: host, x86-64-v3, znver5 …")
    ] = "host",
    size: SizeOption = None,
    input: InputOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show deep channels, the rules that make them shallow, kernels, channels and layouts.

    A function is called once, on random inputs.
    """
    if is_function(program):
        from tilewright.cli.run_function import explain_function

        no_option(size, "--size", "a function has inputs: --input 2x8x128x64:f32")
        report = explain_function(program, input or (), target)
        say(_json(report.to_dict()) if as_json else str(report))
        return
    from tilewright.cli.explanation import explanation

    no_option(input, "--input", "a file is explained for all sizes of its inputs")
    module = only_tensor_level(read_program(program), program, "explain")
    found = explanation(with_sizes(module, parse_sizes(size)), load_target(target))
    if as_json:
        say(_json(asdict(found)))
    else:
        _show(found)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _show(found: Explanation) -> None:
    heading(f"{found.program}: {plural(len(found.kernels), 'kernel')}")
    count = plural(len(found.deep_channels), "channel") if found.deep_channels else "no channel"
    say(f"\nas written, {count} would have to hold a whole row or more")
    rows = [(c.name, c.depth, c.least) for c in found.deep_channels]
    table(("channel", "depth", "no deadlock from"), rows, indent=2)
    say("\nrules that make deep channels shallow")
    effects = []
    for rule in found.rules:
        effect = f"deep channels {rule.deep_before} -> {rule.deep_after}"
        effects.append((rule.name, rule.algebra, effect if rule.applied else "does not apply"))
    table(("rule", "algebra", "effect"), effects, indent=2)
    for kernel in found.kernels:
        say("")
        _show_kernel(kernel, found.target)


def _show_kernel(kernel: KernelFacts, target: str) -> None:
    heading(f"kernel {kernel.name}")
    if kernel.problem:
        say(f"  not compiled: {kernel.problem}")
    else:
        _show_loop("grid", kernel.grid, "independent of each other")
        meaning = "share what is read along the stream" if kernel.inner else "each by itself"
        _show_loop("rows", kernel.rows, meaning)
        meaning = "shared out in parts, " if kernel.shared_out else ""
        _show_loop("stream", [kernel.inner] if kernel.inner else [], f"{meaning}walked in blocks")
        _show_loop(
            "mask", kernel.intervals, "blocks outside are skipped, inside no mask is computed"
        )
        _show_loop("mask", kernel.tests, "its interval over each block says: skip, whole or cut")
    say(f"  {plural(len(kernel.channels), 'channel')}, the deepest holds {kernel.deepest} elements")
    channels = [(c.name, c.depth) for c in kernel.channels]
    table(("channel", "depth"), channels, right=("depth",), indent=4)
    if kernel.packed:
        _show_packed(kernel, target)
    elif kernel.layouts and not kernel.inner:
        say(f"  a row's elements on lanes, {kernel.layouts[0].schedule.rows} rows a work item")
    elif kernel.layouts:
        say(f"  layouts for {target}, chosen by the number of rows at the call")
        columns = ("rows", "layout", "rows a block", "register tile", "block of the stream")
        table(columns, [_layout_row(layout) for layout in kernel.layouts], indent=4)


def _show_packed(kernel: KernelFacts, target: str) -> None:
    """Schedules of packed weights, and why the bits lie as they do."""
    say(f"  layouts for {target}: rows in registers, the weights' rows on lanes")
    columns = ("rows", "register tile", "rows of a work item")
    rows = [
        (
            f"up to {facts.up_to_rows}" if facts.up_to_rows else "any number",
            f"{facts.schedule.rows} x {facts.schedule.vectors * facts.schedule.lanes}",
            str(facts.schedule.item_rows),
        )
        for facts in kernel.packed
    ]
    table(columns, rows, indent=4)
    for text in kernel.packings:
        for line in text.splitlines():
            say(f"  {line}")


def _show_loop(kind: str, axes: Sequence[str], meaning: str) -> None:
    if axes:
        say(f"  {kind:<8}{', '.join(axes)}   ({meaning})")


def _layout_row(layout: LayoutFacts) -> tuple[str, ...]:
    chosen = layout.schedule
    return (
        f"up to {layout.up_to_rows}" if layout.up_to_rows else "any number",
        "rows on lanes" if chosen.rows_on_lanes else "rows in registers",
        str(chosen.rows),
        f"{chosen.inner_tile} x {chosen.rows}",
        str(chosen.inner_block),
    )
