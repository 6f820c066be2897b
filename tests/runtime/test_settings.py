"""The environment: defaults by the XDG rules, units, and what a wrong value says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tilewright.ir.errors import SettingError
from tilewright.runtime.settings import MIB, VARIABLES, Settings, settings

ROOT = Path(__file__).parents[2]
FOLDERS = ("ir", "passes", "backends", "runtime", "frontend")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    return settings()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, XDG_CACHE_HOME="/x/cache")
    folder = Path("/x/cache/tilewright")
    assert found == Settings(folder, 512 * MIB, None, "", tuning=folder / "tuning.sqlite3")


@pytest.mark.parametrize("base", ["", "relative/cache"])
def test_without_a_valid_xdg_folder(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    found = read(monkeypatch, XDG_CACHE_HOME=base, HOME="/home/someone")
    assert found.cache_dir == Path("/home/someone/.cache/tilewright")


def test_own_folder_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, XDG_CACHE_HOME="/x", TILEWRIGHT_CACHE_DIR="~/k", HOME="/home/s")
    assert found.cache_dir == Path("/home/s/k")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1234", 1234), ("3k", 3 << 10), (" 64 MiB ", 64 << 20), ("2GB", 2 << 30)],
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    assert read(monkeypatch, TILEWRIGHT_CACHE_SIZE=text).cache_size == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("TILEWRIGHT_CACHE_SIZE", text) for text in ("much", "-1", "1.5G", "M", "5Q", "²")),
        *(("TILEWRIGHT_NUM_THREADS", text) for text in ("0", "-2", "two", "1.5", "²")),
    ],
)
def test_wrong_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingError, match=rf"{name}='.*must be a number .* default"):
        read(monkeypatch, **{name: value})


def test_no_other_file_reads_the_environment() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name | ast.alias)
        and {getattr(node, field, "") for field in ("attr", "id", "name")} & {"environ", "getenv"}
    }
    assert readers == {"runtime/settings.py"}
