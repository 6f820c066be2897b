"""``tilewright playground`` on the command line; nothing is served."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.playground.serve import Playground


class Started:
    """What the command would serve and open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.servers: list[Playground] = []
        self.opened: list[str] = []
        patch.setattr(Playground, "serve_forever", self._serve)
        patch.setattr("webbrowser.open", self._open)

    def _serve(self, *_: Any) -> None:
        raise KeyboardInterrupt

    def _open(self, url: str) -> bool:
        self.opened.append(url)
        return True

    def __call__(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["playground", *arguments])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


def test_it_prints_its_address_and_opens_it(started: Started) -> None:
    outcome = started()
    assert outcome.exit_code == 0, outcome.output
    address = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", outcome.stdout)
    assert address and started.opened == [address[0].strip()]


def test_without_a_browser(started: Started) -> None:
    assert started("--no-browser").exit_code == 0 and not started.opened


def test_a_program_to_begin_with(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    original = Playground.__init__

    def noted(self: Playground, *arguments: Any) -> None:
        given.extend(arguments)
        original(self, *arguments)

    monkeypatch.setattr(Playground, "__init__", noted)
    path = tmp_path / "mine.tw"
    path.write_text("graph mine() { return }", encoding="utf-8")
    outcome = started(str(path), "--no-browser", "--seconds", "7", "--memory", "1.5")
    assert outcome.exit_code == 0, outcome.output
    port, limits, opened = given
    assert port == 0 and opened == {"program": "graph mine() { return }"}
    assert (limits.seconds, limits.memory) == (7.0, 3 << 29)


@pytest.mark.parametrize("link", ["http://127.0.0.1:1/?token=x#1abc", "#1abc", "1abc"])
def test_a_link_to_begin_with(started: Started, link: str) -> None:
    outcome = started("--link", link)
    assert outcome.exit_code == 0 and started.opened[0].endswith("#1abc")
    assert "token=x" not in started.opened[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.tw"], "there is no file 'missing.tw'"),
        (["--seconds", "0"], "--seconds 0"),
        (["--memory", "0.1"], "--memory 0.1"),
        (["x.tw", "--link", "1"], "not both"),
    ],
)
def test_mistakes(started: Started, arguments: list[str], says: str) -> None:
    outcome = started(*arguments)
    assert outcome.exit_code == 2 and says in outcome.stderr
