"""docs/experts.md and docs/experts_tour.md: what they say to run runs, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tilewright.cli import app

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, TOUR = DOCS / "experts.md", DOCS / "experts_tour.md"


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of the page's blocks."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def without_numbers(text: str) -> str:
    """Words of an output: numbers depend on what the machine's rounding chooses."""
    return re.sub(r" *-?\d[\d.,]*\S?", " #", text).strip()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only wait for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    names: dict[str, object] = {}
    blocks = [text for language, text in blocks_of(PAGE) if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "math: slot 1, 3 experts in 1 layers (at most 3 of 4)" in capsys.readouterr().out


def test_the_tour_runs_and_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)  # it writes files
    names: dict[str, object] = {}
    for language, text in blocks_of(TOUR):
        if language == "python":
            exec(compile(text, str(TOUR), "exec"), names)
            printed = capsys.readouterr().out
        elif language == "text":
            assert without_numbers(printed) == without_numbers(text)
        else:
            command, _, shown = text.removeprefix("$ tilewright ").partition("\n")
            result = CliRunner().invoke(app, command.split(), env={"COLUMNS": "200"})
            assert result.exit_code == 0
            assert without_numbers(result.output) == without_numbers(shown)
    assert (tmp_path / "placement.json").stat().st_size
