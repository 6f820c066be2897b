"""``tilewright playground``: a page of this machine on which a program is edited and seen at every
stage."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from tilewright.cli.output import note, say
from tilewright.cli.programs import read_text
from tilewright.ir.errors import SettingError

MOST_SECONDS, MOST_GIB = 3600.0, 1024.0


def playground(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A program to begin with; - is stdin.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    link: Annotated[
        str | None, typer.Option(metavar="LINK", help="Begin with a link copied from the page.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="The most that one request may take.")] = 30.0,
    memory: Annotated[float, typer.Option(help="The most memory of one request, in GiB.")] = 4.0,
) -> None:
    """Serve a page on 127.0.0.1: a program and all its forms, side by side.

    Programs are compiled in processes of their own, with limits. Ctrl-C ends it.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise SettingError(f"--seconds {seconds:g}: up to {MOST_SECONDS:g}, above 0")
    if not 0.5 <= memory <= MOST_GIB:
        raise SettingError(f"--memory {memory:g}: 0.5 to {MOST_GIB:g} GiB")
    if file is not None and link is not None:
        raise SettingError("give a FILE or --link, not both")
    opened = None
    if file is not None:
        from tilewright.playground.request import MOST_PROGRAM

        text = read_text(file)
        if len(text) > MOST_PROGRAM:
            raise SettingError(f"{file}: the playground takes up to {MOST_PROGRAM:,} characters")
        opened = {"program": text}
    from tilewright.playground.children import GIB, Limits
    from tilewright.playground.serve import Playground

    server = Playground(port, Limits(seconds, int(memory * GIB)), opened)
    url = server.url + (f"#{link.rpartition('#')[2]}" if link else "")
    say(f"playground  {url}")
    note("Ctrl-C ends it; the address has a token, without which nobody else can use it")
    if browser and not webbrowser.open(url):
        note("no browser could be opened: open the address yourself")
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            note("ended")
