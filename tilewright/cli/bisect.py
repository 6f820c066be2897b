"""``tilewright bisect``: the pass or back end at which a program's result leaves its bound."""

from __future__ import annotations

from typing import Annotated

import typer

from tilewright.cli.inputs import InputOption, check_memory, input_shapes, result_shapes
from tilewright.cli.output import note, say, table
from tilewright.cli.programs import only_tensor_level, read_program
from tilewright.cli.run_file import named_specs
from tilewright.cli.sizes import SizeOption, choose_sizes, parse_sizes

FOUND = 1  # exit code when a stage leaves the bound
SMALL = 16  # a size of which nothing is said: interpreters are slow


def bisect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A program at the tensor level.")],
    size: SizeOption = None,
    input: InputOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Back ends to compare (all that work); repeatable."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor to compile for: host, …")
    ] = None,
    text: Annotated[
        bool, typer.Option("--diff/--no-diff", help="Print what the pass changed.")
    ] = True,
) -> None:
    """Run a program after every pass, and by every back end; name the first that is wrong."""
    from tilewright.runtime.verification.bisect import Stage
    from tilewright.runtime.verification.bisect import bisect as search
    from tilewright.runtime.verification.case import Call

    module = only_tensor_level(read_program(file), file, "bisect")
    given = parse_sizes(size)
    sizes = choose_sizes(module.main, given)
    sizes = {n: given.get(n, min(SMALL, value)) for n, value in sizes.items()}
    if chosen := [f"{n} = {value}" for n, value in sizes.items() if n not in given]:
        note(f"{', '.join(chosen)} chosen; --size sets them")
    check_memory([*input_shapes(module.main, sizes), *result_shapes(module.main, sizes)])
    call = Call(sizes, seed, named_specs(input or ()))

    def watch(stage: Stage) -> None:
        state = "" if stage.good else ": WRONG"
        note(f"{stage.name}{state}")

    found = search(module, call, backends=_backends(backend), target=target, watch=watch)
    rows = []
    for stage in found.stages:
        ratio = f"{stage.comparison.ratio:.3g}" if not stage.problem else "-"
        remark = stage.problem.splitlines()[0] if stage.problem else ""
        if not stage.changed:
            remark = "nothing changed"
        rows.append((stage.name, ratio, remark if stage.good else f"WRONG {remark}".rstrip()))
    table(["stage", "error ÷ bound", ""], rows, right=["error ÷ bound"])
    culprit = found.culprit
    if culprit is None:
        say("every stage stays within the bound")
        return
    say(f"first outside of the bound: {culprit.name}")
    if text and (difference := found.difference()):
        say(difference)
    raise typer.Exit(FOUND)


def _backends(names: list[str] | None) -> list[str]:
    """Those given, or all that work here."""
    from tilewright.runtime.backends import BACKENDS, choose_backend
    from tilewright.runtime.doctor import doctor

    if names:
        return [choose_backend(name) for name in names]
    working = [b.name for b in doctor().backends if b.works]
    return [name for name in BACKENDS if name in working]
