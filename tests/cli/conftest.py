"""The command line in this process, with a kernel cache of its own for all its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.runtime.native_code import kernel_cache
from tilewright.runtime.settings import settings

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


class Outcome:
    """What a command printed and how it ended."""

    def __init__(self, *arguments: str, stdin: str | None = None) -> None:
        result = CliRunner().invoke(app, arguments, input=stdin)
        crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
        if crashed and result.exception is not None:
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands of these tests share their kernels and touch no others."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(cache_folder))
    settings.cache_clear()
    kernel_cache.cache_clear()
    yield
    settings.cache_clear()
    kernel_cache.cache_clear()


@pytest.fixture
def tilewright() -> Command:
    """``tilewright("run", "FILE", …)``; an exception that no user should see fails the test."""
    return Outcome


@pytest.fixture
def refused(tilewright: Command) -> Callable[..., str]:
    """The message of a command that has to end with exit code 2 and say nothing on stdout."""

    def run(*arguments: str, stdin: str | None = None) -> str:
        outcome = tilewright(*arguments, stdin=stdin)
        assert outcome.code == 2, outcome
        return outcome.err

    return run


@pytest.fixture
def example() -> Callable[[str], str]:
    """The path of a program in examples/ by its name."""
    return lambda name: str(EXAMPLES / f"{name}.tw")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a file and gives its path."""

    def run(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return run
