"""``tilewright run``: a program or a function on random inputs, timed and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tilewright.cli.inputs import InputOption
from tilewright.cli.programs import is_function
from tilewright.cli.results import RunOptions
from tilewright.cli.sizes import SizeOption

WRONG = 1  # exit code when a result is not what the oracle says


def run(  # noqa: PLR0913, PLR0917 (Typer wants each option as a parameter)
    program: Annotated[str, typer.Argument(metavar="FILE|MODULE:FUNCTION", help="What to run.")],
    size: SizeOption = None,
    input: InputOption = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="Dtype of the floating inputs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    check: Annotated[bool, typer.Option(help="Compare with the float64 oracle.")] = True,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="mlir, numba or interpreter.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor to compile for: host, x86-64-v3 …")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a kernel.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 10,
) -> None:
    """Run a program on random inputs: shapes, time, error against float64, kernels."""
    options = RunOptions(size or (), input or (), dtype, seed, check, backend, target, repeat)
    with _threads(threads):
        if is_function(program):
            from tilewright.cli.run_function import run_function

            good = run_function(program, options)
        else:
            from tilewright.cli.run_file import run_file

            good = run_file(program, options)
    if not good:
        raise typer.Exit(WRONG)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads for the time of a call."""
    if count is None:
        yield
        return
    from tilewright.runtime.threads import set_num_threads

    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(None)
