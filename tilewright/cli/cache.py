"""``tilewright cache``: the compiled kernels on disk."""

from __future__ import annotations

import time

import typer

from tilewright.cli.output import amount, plural, say, table
from tilewright.runtime.cache import Cache, EntryInfo

app = typer.Typer(
    help="Look at the compiled kernels on disk, or remove them.", no_args_is_help=True
)


@app.command("ls")
def ls() -> None:
    """List the kernels, the last used first."""
    entries = Cache().entries()
    columns = ("kernel", "for", "layout class", "size", "last used", "key")
    table(columns, [_row(entry) for entry in entries], right=("size",))
    say(_total(entries))


@app.command("clear")
def clear() -> None:
    """Remove all kernels; they are compiled again when they are needed."""
    cache = Cache()
    say(f"removed {plural(cache.clear(), 'kernel')} from {cache.root}")


@app.command("stats")
def stats() -> None:
    """Say where the cache is, how much it holds, and how much it may hold."""
    found = Cache().stats()
    say(f"folder   {found.root}")
    say(f"kernels  {found.entries}")
    if found.limit:
        say(f"size     {amount(found.bytes)} of {amount(found.limit)}")
    else:
        say("size     off: TILEWRIGHT_CACHE_SIZE is 0")


def _row(entry: EntryInfo) -> tuple[str, ...]:
    facts = [_shown(entry.metadata.get(key, "?")) for key in ("kernel", "target", "layout_class")]
    return (*facts, amount(entry.bytes), _ago(time.time() - entry.last_used), entry.key[:12])


def _shown(fact: object) -> str:
    """What a file says, without what would write something else than itself to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(fact)[:100])


def _ago(duration: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if duration >= length:
            return f"{plural(int(duration // length), unit)} ago"
    return "just now"


def _total(entries: tuple[EntryInfo, ...]) -> str:
    return f"{plural(len(entries), 'kernel')}, {amount(sum(e.bytes for e in entries))}"
