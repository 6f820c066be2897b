"""``tilewright playground``: a page of this machine on which a program is edited and seen at every
stage."""

from __future__ import annotations

import html
import os
import signal
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.output import note, say
from tilewright.cli.programs import read_text
from tilewright.ir.errors import SettingError

MOST_SECONDS, MOST_GIB = 3600.0, 1024.0
LEAST_GIB = 1.0  # with less, what every request has loaded leaves too little


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
    if not LEAST_GIB <= memory <= MOST_GIB:
        raise SettingError(f"--memory {memory:g}: {LEAST_GIB:g} to {MOST_GIB:g} GiB")
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
    try:
        with _ended_by_signals(), server, ExitStack() as stack:
            if browser and not webbrowser.open(stack.enter_context(_redirection(url))):
                note("no browser could be opened: open the address yourself")
            server.serve_forever()
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may have gone
            note("ended")


@contextmanager
def _redirection(url: str) -> Iterator[str]:
    """The address of a file that leads to ``url`` and that only this user can read, as Jupyter has
    it: command lines, a browser's too, can be read by all users of the machine."""
    descriptor, name = tempfile.mkstemp(prefix="tilewright-", suffix=".html")  # mode 0600
    path, target = Path(name), html.escape(url)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(
                '<!doctype html><meta charset="utf-8"><title>tilewright playground</title>'
                '<meta name="referrer" content="no-referrer">'
                f'<meta http-equiv="refresh" content="0;url={target}">'
                f'<a href="{target}">tilewright playground</a>\n'
            )
        yield path.as_uri()
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt within, as Ctrl-C does; not where they are ignored
    (nohup)."""
    known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    numbers = [n for n in known if n is not None and signal.getsignal(n) is not signal.SIG_IGN]

    def end(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # one is enough: the end is not interrupted
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
