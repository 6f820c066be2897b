"""``tilewright doctor``, ``cache`` and ``--version``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tilewright as package
from tests.cli.conftest import Command
from tilewright.cli.output import amount, seconds
from tilewright.runtime.cache import Cache
from tilewright.runtime.settings import settings

Refused = Callable[..., str]
FACTS = {"kernel": "attention", "target": "host", "layout_class": "up to 4 rows"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    return tmp_path / "cache"


def test_version(tilewright: Command) -> None:
    done = tilewright("--version")
    assert (done.code, done.out) == (0, f"tilewright {package.__version__}\n")


def test_help_names_every_command(tilewright: Command) -> None:
    done = tilewright("--help")
    for command in ("run", "compile", "opt", "explain", "doctor", "cache"):
        assert command in done.out
        assert tilewright(command, "-h").code == 0


def test_doctor(tilewright: Command) -> None:
    done = tilewright("doctor")
    assert done.code == 0 and "back ends" in done.out and "mlir" in done.out
    data = json.loads(tilewright("doctor", "--json").out)
    assert {"packages", "backends", "machine", "cache"} <= set(data)


def test_an_empty_cache(tilewright: Command, folder: Path) -> None:
    assert tilewright("cache", "ls").out == "0 kernels, 0 bytes\n"
    assert tilewright("cache", "clear").out == f"removed 0 kernels from {folder}\n"
    assert f"folder   {folder}\nkernels  0\nsize     0 bytes of" in tilewright("cache", "stats").out


def test_a_cache_with_kernels(tilewright: Command, folder: Path) -> None:
    Cache().put("a" * 64, FACTS, b"x" * 3000)
    Cache().put("b" * 64, {}, b"y")
    lines = tilewright("cache", "ls").out.splitlines()
    assert lines[0].split()[0] == "kernel" and len(lines) == 4
    row = next(line for line in lines if "a" * 12 in line)
    assert row.startswith("attention") and "up to 4 rows" in row and "just now" in row
    assert "kernels  2" in tilewright("cache", "stats").out
    assert "removed 2 kernels" in tilewright("cache", "clear").out
    assert not list(folder.iterdir())


def test_a_cache_that_is_off(tilewright: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_SIZE", "0")
    settings.cache_clear()
    assert "off: TILEWRIGHT_CACHE_SIZE is 0" in tilewright("cache", "stats").out


def test_a_wrong_setting(
    tilewright: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_SIZE", "plenty")
    settings.cache_clear()
    assert "TILEWRIGHT_CACHE_SIZE='plenty'" in refused("cache", "ls")
    assert "TILEWRIGHT_CACHE_SIZE='plenty'" in tilewright("doctor").out


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 << 19, "1.5 MiB")],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(
    ("time", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.2e-5, "42 µs"), (0.0, "0 µs")]
)
def test_times(time: float, text: str) -> None:
    assert seconds(time) == text
