"""Whether commands that a page only mentions exist: their names, options, extras and targets."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from tilewright.cli import app

ROOT = Path(__file__).parent.parent.parent
OTHERS = {"cd", "git", "source", "export", "pytest", "jq"}  # not ours: nothing to check


def problems(block: str) -> Iterator[str]:
    """What is wrong with the lines of a ``console`` block, a sentence each."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield from (f"{line.strip()}: {problem}" for problem in _problems(words))


def _problems(words: list[str]) -> Iterator[str]:
    name = Path(words[0]).name
    if name == "tilewright":
        yield from _of_ours(words[1:])
    elif name == "make":
        yield from _of_make(words[1:])
    elif name == "pip":
        yield from _of_pip(words[1:])
    elif name.startswith("python"):
        yield from _of_python(words[1:])
    elif "/" in words[0]:
        if not (ROOT / words[0]).is_file():
            yield f"there is no file {words[0]}"
    elif name not in OTHERS:
        yield f"{name} is not a command that this test knows"


@cache
def tree() -> Any:
    """All commands, as Typer makes them."""
    return typer.main.get_command(app)


def _of_ours(words: list[str]) -> Iterator[str]:
    """Groups, commands and options, by the tree that Typer makes."""
    command = tree()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            if type(command).parse_args is not TyperGroup.parse_args:
                break  # a group that completes what it is given, as `tune FILE` and `bench SUITE`
            yield f"there is no command {words[0]}"
            return
        command = command.commands[words.pop(0)]
    if command.context_settings.get("ignore_unknown_options"):
        return
    # A program's own options are its own business.
    own = words[: words.index("--")] if "--" in words else words
    known = {"-h", "--help"}
    for each in (command, *getattr(command, "commands", {}).values()):
        known |= {name for p in each.params for name in (*p.opts, *p.secondary_opts)}
    for word in own:
        option = word.split("=")[0]
        if re.fullmatch(r"--?[a-zA-Z][\w-]*", option) and option not in known:
            yield f"{command.name} has no option {option}"


def _of_make(words: list[str]) -> Iterator[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony
    for word in words:
        if "=" not in word and word not in phony[1].split():
            yield f"make has no target {word}"


def _of_pip(words: list[str]) -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for word in words[1:]:
        own = re.fullmatch(r"(?:tilewright|.*\.whl|\.)\[([\w,-]+)\]", word)
        for extra in own[1].split(",") if own else ():
            if extra not in project["optional-dependencies"]:
                yield f"there is no extra {extra}"


def _of_python(words: list[str]) -> Iterator[str]:
    """``python -m module`` of ours, a file in a folder of ours; a reader's own script is theirs."""
    if words and "/" in words[0] and not (ROOT / words[0]).is_file():
        yield f"there is no file {words[0]}"
    if (
        len(words) >= 2
        and words[0] == "-m"
        and words[1].split(".")[0] in ("tilewright", "examples", "tests")
    ):
        try:
            found = importlib.util.find_spec(words[1])
        except ModuleNotFoundError:
            found = None
        if found is None:
            yield f"there is no module {words[1]}"
