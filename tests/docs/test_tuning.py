"""docs/tuning.md: the options, settings, states and numbers on the page are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from tilewright.cli import app
from tilewright.runtime.settings import VARIABLES
from tilewright.runtime.tuned import FARTHEST, LOOK_SECONDS
from tilewright.runtime.tuning.ray_workers import RETRIES
from tilewright.runtime.tuning.tuner import FINALISTS, GAIN

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")


def test_what_the_page_names_exists() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    tune = command.commands["tune"]
    assert isinstance(tune, typer.core.TyperGroup)
    known = {
        option
        for each in tune.commands.values()
        for parameter in each.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    lines = re.findall(r"tilewright tune (.*?)(?:#|$)", PAGE, re.MULTILINE)
    assert len(lines) >= 8
    named = set(re.findall(r"(?<![\w-])--?[a-z]+", " ".join(lines)))
    named |= set(re.findall(r"`(--[a-z]+)", PAGE))
    assert named and named <= known, named - known
    assert {"show", "export", "import", "merge"} <= set(tune.commands)
    variables = set(re.findall(r"TILEWRIGHT_[A-Z_]+", PAGE))
    assert variables <= {x.name for x in VARIABLES} and "TILEWRIGHT_TUNING" in variables
    for path in re.findall(r"\]\(([\w/.]+)\)|`(bench/\w+\.py)`", PAGE):
        name = path[1] or f"docs/{path[0]}"
        assert (ROOT / name).exists(), name


def test_the_numbers_on_the_page_hold() -> None:
    text = " ".join(PAGE.split())
    assert f"less than {GAIN:.0%}".replace("%", " %") in text and GAIN == 0.98
    assert FINALISTS == 3 and "the best three" in text
    assert FARTHEST == 2 and "at most two powers of two away" in text
    assert LOOK_SECONDS == 1.0 and "at most once a second" in text
    assert RETRIES == 2 and "loses three workers is kept as `lost`" in text
