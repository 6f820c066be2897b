"""``tilewright doctor``: what is installed here, and which back ends work."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilewright.cli.output import say


def show(
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    variables: Annotated[
        bool, typer.Option("--variables", help="Only the table of environment variables.")
    ] = False,
) -> None:
    """Say what is installed, which back ends work, and why others do not.

    Exit code 1 where an environment variable of ours has a value that it cannot have.
    """
    if variables:
        from tilewright.runtime.settings import as_markdown

        say(as_markdown())
        return
    from tilewright.runtime.doctor import doctor

    report = doctor()
    say(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    if report.setting_problem:
        raise typer.Exit(1)
