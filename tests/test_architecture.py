"""The import directions of the folders and the sizes of files and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FACE = "the public face"  # the modules of tilewright/ itself
MAY_IMPORT = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "backends": {"backends", "ir"},
    "runtime": {"runtime", "ir", "passes", "backends"},
    "frontend": {"frontend", "ir", "runtime"},
    "bench": {"bench", FACE},
}
WITHOUT_TORCH = {"ir", "passes", "backends"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# "folder/file.py" or "folder/file.py:function" -> why it may be longer. A waiver not needed fails.
WAIVERS: dict[str, str] = {
    "tests/strategies.py": "one shared file of everything that Hypothesis draws, as STYLE.md asks",
}

FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
FACE_FILES = sorted(
    [
        *(ROOT / "tilewright").glob("*.py"),
        *(ROOT / "tilewright" / "cli").glob("*.py"),
        *(ROOT / "tilewright" / "playground").rglob("*.py"),
    ]
)
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported anywhere in a file.

    ``from a.b import c`` gives ``a.b.c``, since c may be a module.
    """
    package = ("tilewright", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                parts = (*base, *(node.module or "").split("."), alias.name)
                yield node.lineno, ".".join(part for part in parts if part)


def forbidden_imports(path: Path) -> Iterator[str]:
    """Each import of a file that its folder may not make, with its place."""
    folder = path.relative_to(ROOT).parts[0]
    for line, name in imported_modules(path):
        first, *rest = name.split(".")
        if first in MAY_IMPORT:
            yield f"{relative(path)}:{line}: write tilewright.{name}, not {name}"
        elif first == "torch" and folder in WITHOUT_TORCH:
            yield f"{relative(path)}:{line}: {folder} does not import torch"
        elif first == "tilewright":
            target = rest[0] if rest and rest[0] in MAY_IMPORT else FACE
            if target not in MAY_IMPORT[folder]:
                yield f"{relative(path)}:{line}: {folder} does not import {target} ({name})"


def too_long(path: Path) -> Iterator[tuple[str, int, int]]:
    """What is longer than the house style allows: its waiver key, its lines, the limit."""
    text = path.read_text(encoding="utf-8")
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield relative(path), lines, MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{relative(path)}:{node.name}", lines, MAX_FUNCTION_LINES


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_what_lies_below_them(folder: str) -> None:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]
    assert files, f"{folder}/ has no Python file"
    found = [problem for path in files for problem in forbidden_imports(path)]
    assert not found, "\n".join(found)


def test_files_and_functions_are_short_unless_waived() -> None:
    long = {key: (n, top) for p in FILES + FACE_FILES + TEST_FILES for key, n, top in too_long(p)}
    found = [f"{k}: {n} lines, at most {top}" for k, (n, top) in long.items() if k not in WAIVERS]
    assert not found, "\n".join(found)
    assert not set(WAIVERS) - set(long), "waivers that nothing needs any more"


def test_the_face_links_to_every_folder() -> None:
    for folder in MAY_IMPORT:
        link = ROOT / "tilewright" / folder
        assert link.is_symlink(), f"tilewright/{folder} is not a link"
        assert link.readlink().as_posix() == f"../{folder}"


@pytest.mark.parametrize(
    ("place", "line", "expected"),
    [
        ("ir/core.py", "from tilewright.passes import rewrite", "does not import passes"),
        ("ir/core.py", "from ..passes.rewrite import Rewriter", "does not import passes"),
        ("passes/to_tile/rows.py", "from ... import backends", "does not import backends"),
        ("passes/axes.py", "def f():\n    import torch.nn", "does not import torch"),
        ("backends/mlir/emit.py", "from torch import Tensor", "does not import torch"),
        ("bench/demo.py", "from tilewright.ir.core import Op", "does not import ir"),
        ("runtime/kernel.py", "import tilewright", "does not import the public face"),
        ("frontend/capture.py", "from ir.core import Op", "write tilewright.ir.core.Op"),
        ("passes/to_tile/rows.py", "from .state import x\nfrom ..axes import y", None),
        ("backends/mlir/emit.py", "import torch_mlir.ir\nfrom tilewright.ir import core", None),
        ("bench/demo.py", "import torch\nimport tilewright\nfrom tilewright import compile", None),
    ],
)
def test_the_import_rule_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    line: str,
    expected: str | None,
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line, encoding="utf-8")
    found = "\n".join(forbidden_imports(path))
    assert (expected in found) if expected else not found
