"""The commands put together, and the one place where a user's mistake becomes exit code 2."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import tilewright
from tilewright.cli import (
    bench,
    bisect,
    bundle,
    cache,
    checkpoint,
    compile,
    doctor,
    explain,
    layout,
    opt,
    place,
    playground,
    run,
    simulate,
    trace,
    tune,
    verify,
)
from tilewright.cli.output import complain, forget_unwritten, friendly_warnings, say
from tilewright.ir.errors import SettingError, TilewrightError

USER_MISTAKE = 2
NARROW = 60  # columns of a terminal; in fewer, help has no boxes, which would leave words no room
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a closed pipe is Typer's


class _Commands(TyperGroup):
    """Prints TilewrightError without a traceback; ours are the bugs that have one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with friendly_warnings():
                return super().invoke(ctx)
        except TilewrightError as error:
            complain(error)
            raise typer.Exit(USER_MISTAKE) from None
        except typer.BadParameter as error:  # pydantic's word, which says nothing to a user
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    cls=_Commands,
    name="tilewright",
    help="A compiler for attention, low-bit matmul and expert-routing kernels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"tilewright {tilewright.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before a command."""


app.command("run")(run.run)
app.command("compile")(compile.compile_)
app.command("opt")(opt.opt)
app.command("explain")(explain.explain)
app.command("simulate")(simulate.simulate)
app.command("layout")(layout.layout)
app.command("place")(place.place)
app.command("playground")(playground.playground)
app.command("trace")(trace.trace)
app.command("bundle")(bundle.bundle)
app.command("doctor")(doctor.show)
app.command("verify")(verify.verify)
app.command("bisect")(bisect.bisect)
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(tune.app, name="tune")


def main() -> None:
    """The entry point. Where what is printed cannot be written, that is said in one line."""
    if Console().width < NARROW:
        app.rich_markup_mode = None
    try:
        app()
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        forget_unwritten()
        reason = f"cannot write the output: {error.strerror}; make room, or send it elsewhere"
        with suppress(OSError):  # stderr may be what is full
            complain(SettingError(reason))
        raise SystemExit(USER_MISTAKE) from None
