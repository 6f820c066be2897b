"""docs/layouts.md: its commands print what stands there, its pictures are what they draw, its
Python holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from tilewright.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "layouts.md"
PICTURES = ROOT / "docs" / "images" / "layouts"
BLOCK = re.compile(r"```console\n(.*?)```\n", re.DOTALL)


def run(command: str, folder: Path) -> str:
    """What a command prints; its picture goes to the folder."""
    name, *arguments = shlex.split(command)
    assert name == "tilewright"
    if "--svg" in arguments:
        at = arguments.index("--svg") + 1
        assert (ROOT / arguments[at]).parent == PICTURES
        arguments[at] = str(folder / Path(arguments[at]).name)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def current_page(folder: Path) -> str:
    """The page with what its commands print now."""

    def block(match: re.Match[str]) -> str:
        commands = [line for line in match[1].splitlines() if line.startswith("$ ")]
        shown = [f"{line}\n{run(line[2:], folder)}" for line in commands]
        return "```console\n" + "\n".join(shown) + "```\n"

    return BLOCK.sub(block, PAGE.read_text(encoding="utf-8"))


def test_the_page_and_its_pictures_are_current(tmp_path: Path, update_golden: bool) -> None:
    page = current_page(tmp_path)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    if update_golden:
        PAGE.write_text(page, encoding="utf-8")
        for name, text in drawn.items():
            (PICTURES / name).write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "if that is meant: pytest --update-golden"
    assert {path.name for path in PICTURES.iterdir()} == set(drawn)
    for name, text in drawn.items():
        assert (PICTURES / name).read_text(encoding="utf-8") == text, name
        assert ElementTree.fromstring(text).tag.endswith("svg")
    shown = re.findall(r"!\[.*?\]\(images/layouts/(.*?)\)", page)
    assert sorted(shown) == sorted(drawn)


@pytest.mark.parametrize("number", [0, 1])
def test_its_python_holds(number: int) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks[: number + 1]), {})
