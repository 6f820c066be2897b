"""``tilewright playground`` on the command line; nothing is served."""

from __future__ import annotations

import html
import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.playground.serve import Playground


class Started:
    """What the command would serve and open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.servers: list[Playground] = []
        self.opened: list[str] = []
        self.files: list[tuple[Path, int]] = []  # with their modes
        self.signal: signal.Signals | None = None
        patch.setattr(Playground, "serve_forever", self._serve)
        patch.setattr("webbrowser.open", self._open)

    def _serve(self, *_: Any) -> None:
        if self.signal is None:
            raise KeyboardInterrupt
        assert callable(signal.getsignal(self.signal)), "it would end this process"
        signal.raise_signal(self.signal)

    def _open(self, url: str) -> bool:
        """As a browser follows the file that it is given."""
        assert url.startswith("file:") and "token" not in url, "command lines can be read by all"
        path = Path(url2pathname(urlsplit(url).path))
        self.files.append((path, path.stat().st_mode & 0o777))
        target = re.search(r'content="0;url=([^"]*)"', path.read_text(encoding="utf-8"))
        assert target
        self.opened.append(html.unescape(target[1]))
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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Unix has modes of files")
def test_only_the_user_can_read_the_file_that_is_opened(started: Started) -> None:
    assert started("--link", '#"><b>').exit_code == 0
    ((path, mode),) = started.files
    assert mode == 0o600 and not path.exists()
    assert started.opened[0].endswith('#"><b>')


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Unix has these signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_it_as_ctrl_c_does(started: Started, name: str) -> None:
    started.signal = signal.Signals[name]
    before = signal.getsignal(started.signal)
    outcome = started()
    assert outcome.exit_code == 0 and "ended" in outcome.stderr
    assert not started.files[0][0].exists(), "the file that was opened is removed"
    assert signal.getsignal(started.signal) == before


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
        (["--memory", "0.99"], "--memory 0.99: 1 to 1024 GiB"),
        (["x.tw", "--link", "1"], "not both"),
    ],
)
def test_mistakes(started: Started, arguments: list[str], says: str) -> None:
    outcome = started(*arguments)
    assert outcome.exit_code == 2 and says in outcome.stderr
