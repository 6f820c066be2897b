"""``tilewright opt``: passes by name, each alone if wanted, with the program before and after."""

from __future__ import annotations

from typing import Annotated

import typer

from tilewright.cli.compile import load_target
from tilewright.cli.output import say
from tilewright.cli.programs import read_program
from tilewright.cli.sizes import SizeOption, parse_sizes, with_sizes
from tilewright.ir.errors import SettingError, close_to
from tilewright.passes.pipeline import TO_KERNELS, Pass, named_passes

TO_TILE = "to_tile"


def opt(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A program at any level; - is stdin.")
    ],
    passes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Passes in order; without it, all from tensor to tile."),
    ] = None,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print before the first and after each pass.")
    ] = False,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Processor for to_tile: host, x86-64-v3 …")
    ] = "host",
    size: SizeOption = None,
) -> None:
    """Run passes on a program and print what comes out; the output can be read in again."""
    module = with_sizes(read_program(file), parse_sizes(size))
    chosen = _chosen(passes, target)
    if print_after_all:
        say(f"// ---- before\n{module}")
    for step in chosen:
        before, module = module, step.run(module)
        if print_after_all:
            same = " (nothing changed)" if str(before) == str(module) else ""
            say(f"// ---- after {step.name}{same}\n{module}")
    if not print_after_all:
        say(str(module).rstrip("\n"))


def _chosen(names: str | None, target: str) -> tuple[Pass, ...]:
    """The passes of a comma-separated list. The target is looked up only if one needs it."""
    if names is None:
        wanted = [*(p.name for p in TO_KERNELS), TO_TILE]
    else:
        wanted = [part.strip() for part in names.split(",") if part.strip()]
    known = named_passes(load_target(target) if TO_TILE in wanted else None)
    for name in wanted:
        if name not in known:
            listed = ", ".join(known)
            near = close_to(name, known)
            raise SettingError(f"unknown pass {name!r}{near}; known passes: {listed}")
    return tuple(known[name] for name in wanted)
