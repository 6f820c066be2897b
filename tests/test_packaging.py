"""What pyproject.toml says of the package, against what lies in the folders.

``.ci/wheel`` builds and tries the wheel; what can be seen without building is here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tilewright

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = ("ir", "passes", "backends", "frontend", "runtime", "bench")
# What lies in packages' folders and is not installed, and why.
LEFT_OUT = {
    "bench/results/": "measurements of this project's machines",
    "bench/gpu_session.sh": "carries a checkout to a lent machine",
}
PYTHONS = ("3.11", "3.12", "3.13")


def packages() -> Iterator[tuple[str, Path]]:
    """Every package by its name, with its real folder."""
    tops = [("tilewright", ROOT / "tilewright")]
    tops += [(f"tilewright.{name}", ROOT / name) for name in LINKED]
    for name, top in tops:
        for init in sorted(top.rglob("__init__.py")):
            inner = init.parent.relative_to(top).parts
            if not (name == "tilewright" and inner[:1] and inner[0] in LINKED):
                yield ".".join([name, *inner]), init.parent


def owner(path: Path, known: dict[Path, str]) -> Path:
    """The folder of the package that a file belongs to."""
    return next(folder for folder in path.parents if folder in known)


def data_files() -> Iterator[Path]:
    """Files beside the modules, relative to the root."""
    for folder in ("tilewright", *LINKED):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            hidden = "__pycache__" in name or path.suffix in (".py", ".pyc") or path.is_dir()
            if not hidden and not name.startswith(tuple(LEFT_OUT)):
                yield path


def test_every_data_file_is_installed() -> None:
    patterns: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    known = {folder: name for name, folder in packages()}
    missing = []
    for path in data_files():
        if path.is_relative_to(ROOT / "tilewright") and path.is_symlink() and path.is_dir():
            continue
        folder = owner(path, known)
        inside = path.relative_to(folder)
        wanted = [*patterns["*"], *patterns.get(known[folder], [])]
        if not any(
            inside.match(pattern) and len(inside.parts) == pattern.count("/") + 1
            for pattern in wanted
        ):
            missing.append(f"{known[folder]}: {inside}")
    assert not missing, "add a pattern to [tool.setuptools.package-data] in pyproject.toml"


def test_patterns_of_data_files_name_packages_that_exist() -> None:
    named = set(PROJECT["tool"]["setuptools"]["package-data"]) - {"*"}
    assert named <= {name for name, _ in packages()}


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without ``__init__.py`` would be installed or not as the tool pleases."""
    known = {folder for _, folder in packages()}
    folders = {p.parent for name in LINKED for p in (ROOT / name).rglob("*.py")}
    assert not folders - known


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert tilewright.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_python_versions_agree() -> None:
    project, tools = PROJECT["project"], PROJECT["tool"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    stated = [c for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert stated == [f"Programming Language :: Python :: {version}" for version in PYTHONS]
    assert tools["mypy"]["python_version"] == PYTHONS[0]
    assert tools["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")


def test_the_licence_is_whole_and_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))


def requirement_names(lines: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", line.strip())[0].lower().replace("_", "-") for line in lines}


def test_extras_are_on_the_page_and_dependencies_have_a_measured_version() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras: dict[str, Any] = PROJECT["project"]["optional-dependencies"]
    assert {name for name in extras if f"`[{name}]`" not in page} == set()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = requirement_names([line for line in lines if line and not line.startswith("#")])
    needed = requirement_names(PROJECT["project"]["dependencies"])
    assert not needed - fixed, "constraints.txt has no version of them"


@pytest.mark.parametrize("name", ["tilewright/py.typed", "MANIFEST.in", "CONTRIBUTING.md"])
def test_files_that_packaging_needs(name: str) -> None:
    assert (ROOT / name).exists()
