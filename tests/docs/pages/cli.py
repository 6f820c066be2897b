"""docs/reference/cli.md: every command with its arguments and options, from the Typer app."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer

from tests.docs.pages.markdown import WRITTEN, table
from tilewright.cli import app

HEAD = """\
# The command line

{written} `tilewright COMMAND --help` prints the same. `-` in place of a file is standard input;
`--json`, where there is one, prints data for programs. Exit codes: 0, 2 for a mistake (with [its
code](errors.md)), and what a command says itself.

{contents}"""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    commands = list(_commands("tilewright", root))
    rows = (
        (f"[`{name}`](#{name.replace(' ', '-')})", _first(command)) for name, command in commands
    )
    head = HEAD.format(
        written=WRITTEN.format(source="the Typer app"),
        contents=table(("command", "does"), rows),
    )
    return "\n".join([head, *(_section(name, command) for name, command in commands)])


def _commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Names and commands, groups' own before what is in them."""
    for name, command in group.commands.items():
        if getattr(command, "hidden", False):
            continue
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(full, command)
        else:
            yield full, command


def _first(command: Any) -> str:
    return _clean(command.help or "").split("\n\n")[0].replace("\n", " ")


def _clean(text: str) -> str:
    """Help as Markdown: what stands in brackets would be a link, in angles an element."""
    return re.sub(r"``?", "`", text.strip()).replace("[", "\\[").replace("<", "&lt;")


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(
        [name, *(_argument(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
    )
    parts = [f"## {name}\n", f"`{usage}`\n", _clean(command.help or "") + "\n"]
    rows = [(f"`{_argument(p)}`", _clean(getattr(p, "help", None) or "")) for p in arguments]
    rows += [(_names(p), _clean(p.help or "") + _default(p)) for p in options]
    if rows:
        parts.append(table(("argument or option", "is"), rows))
    return "\n".join(parts)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{n}`" for n in (*option.opts, *option.secondary_opts))
    flag = option.is_flag or option.count
    kind = option.metavar or _kind(option.type_descriptor.annotation)
    return names if flag else f"{names} `{kind}`"


def _kind(annotation: Any) -> str:
    """What a value is: the words of a choice, or the type's name."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    of = [a for a in get_args(annotation) if a is not type(None)]
    return _kind(of[0]) if of else getattr(annotation, "__name__", str(annotation)).upper()


def _default(option: Any) -> str:
    default = option.default
    plain = isinstance(default, int | float | str) and not isinstance(default, bool)
    return f" (default: `{default}`)" if plain and default != "" else ""
