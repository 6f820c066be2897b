"""All code in README.md and docs/ runs, prints what the page shows, or says why it does not run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.docs.blocks import Shown, Step, missing, renewed, steps
from tests.docs.usage import problems
from tilewright.cli import app
from tilewright.frontend.op_map.registry import _FUNCTIONS
from tilewright.ir.core import REGISTRY
from tilewright.ir.dtypes import TABLE
from tilewright.passes.canonicalise import FOLDS
from tilewright.passes.decompose import PARTS
from tilewright.runtime.backends import MAKERS
from tilewright.runtime.bundle.active import use_bundle
from tilewright.runtime.native_code import kernel_cache
from tilewright.runtime.settings import settings

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# Pages whose code is a test's own matter, and which.
ELSEWHERE = {
    "docs/masks.md": "tests/test_mask_gallery.py",  # calls, with the names of each mask's file
    "docs/bundles.md": "tests/docs/test_bundles.py",  # needs a bundle, made there
    "docs/layouts.md": "tests/docs/test_layouts.py",  # its commands write pictures
}
# Pages whose printed numbers are the machine's or the day's.
NUMBERS_VARY = {"docs/experts_tour.md"}
NEEDS = {
    "docs/experts.md": ("transformers",),
    "docs/experts_tour.md": ("transformers", "scipy"),
    "docs/placement.md": ("transformers", "scipy"),
    "docs/quantize.md": ("transformers",),
    "docs/howto/adapters.md": ("transformers",),
    "docs/howto/huggingface.md": ("transformers",),
}
# page -> how many of its blocks say that they are not run. More of them need a reason here, too.
NOT_RUN = {"docs/checkpoints.md": 1, "docs/cuda.md": 2, "docs/gpu.md": 1}


def runnable(page: str) -> list[Step]:
    return [s for s in steps(PAGES[page].read_text(encoding="utf-8")) if not s.not_run]


WITH_CODE = [p for p in PAGES if p not in ELSEWHERE and any(s.kind != "usage" for s in runnable(p))]
WITH_USAGE = [p for p in PAGES if any(s.kind == "usage" for s in runnable(p))]


# What pages on extending Tilewright add to. Each is as before once the page has run.
TABLES: tuple[dict[Any, Any], ...] = (REGISTRY, TABLE, PARTS, FOLDS, MAKERS, _FUNCTIONS)


@pytest.fixture
def untouched_tables() -> Iterator[None]:
    def copied(value: Any) -> Any:
        return list(value) if isinstance(value, list) else value

    before = [{key: copied(value) for key, value in table.items()} for table in TABLES]
    yield
    for table, kept in zip(TABLES, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def place(
    untouched_tables: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A folder with examples/ in it, where pages may write. Kernels go to a cache of all pages."""
    for folder in ("examples", "bench"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "pages"))
    monkeypatch.setenv("COLUMNS", "200")
    settings.cache_clear()
    kernel_cache.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # programs this small only wait for more
    yield tmp_path
    torch.set_num_threads(threads)
    use_bundle(None)
    settings.cache_clear()
    kernel_cache.cache_clear()


@cache
def output(command: str) -> str:
    """What a command of ours prints; a mistake that it complains about is output, too."""
    name, *arguments = shlex.split(command)
    assert name == "tilewright", f"the test runs only tilewright, not {command}"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.output


def run(step: Step, at: int, names: dict[str, object], folder: Path) -> str:
    """Runs one step; what it printed."""
    if step.kind == "command":
        printed = output(step.text)
        shows_mistake = step.shown is not None and step.shown.text.startswith("error")
        assert shows_mistake or not printed.startswith("error"), printed
        return printed
    path = folder / f"block_{at}.py"  # a file, because Dynamo reads the source
    path.write_text(step.text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as printed_lines:
        exec(compile(step.text, str(path), "exec"), names)
    return printed_lines.getvalue()


def without_numbers(text: str) -> str:
    """Words of an output."""
    return re.sub(r" *-?\d[\d.,]*[^\s…]?", " #", text).strip()


def compare(page: str, step: Step, printed: str) -> None:
    shown = step.shown
    assert shown is not None
    if page in NUMBERS_VARY:
        shown, printed = Shown(without_numbers(shown.text), 0, 0), without_numbers(printed)
    lost = missing(shown, printed)
    where = f"{page}:{step.line} does not print this any more (if meant: pytest --update-golden)"
    assert not lost, "\n".join([where, *lost, "but", printed])


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_on_the_page_runs(
    page: str, place: Path, update_golden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    module = types.ModuleType("page")  # Dynamo looks up the globals of methods in it
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    new: list[tuple[Shown, str]] = []
    output.cache_clear()
    for at, step in enumerate(runnable(page)):
        if step.kind == "usage":
            continue
        printed = run(step, at, names, place)
        if step.shown is not None and update_golden and page not in NUMBERS_VARY:
            new.append((step.shown, renewed(step.shown, printed)))
        elif step.shown is not None:
            compare(page, step, printed)
    if new:
        text = PAGES[page].read_text(encoding="utf-8")
        for shown, now in reversed(new):
            text = text[: shown.start] + now + text[shown.end :]
        PAGES[page].write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", WITH_USAGE)
def test_commands_on_the_page_exist(page: str) -> None:
    usage = (s for s in runnable(page) if s.kind == "usage")
    found = [f"{page}:{s.line}: {problem}" for s in usage for problem in problems(s.text)]
    assert not found, "\n".join(found)


def test_what_is_not_run_is_listed() -> None:
    marked = {p: sum(bool(s.not_run) for s in steps(PAGES[p].read_text("utf-8"))) for p in PAGES}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


def test_other_tests_of_pages_are_there() -> None:
    for page, test in ELSEWHERE.items():
        assert page in PAGES and (ROOT / test).exists()


PAGE = """
```console
$ tilewright show
b 1
…
e … s
$ tilewright fail
```

*Not run by the tests: it needs a GPU.*

```python
out = 1
```

```python
print(2)
```

```text
2
```

```console
tilewright bench --no-such  # not a step
```
"""


def test_steps_of_a_page() -> None:
    show, fail, unrun, python, usage = steps(PAGE)
    assert show.shown and show.shown.text == "b 1\n…\ne … s"
    assert PAGE[show.shown.start : show.shown.end] == show.shown.text
    assert fail.kind == "command" and fail.line == 7 and fail.shown is None
    assert unrun.not_run == "it needs a GPU" and unrun.kind == "python"
    assert python.shown and python.shown.text == "2" and not python.not_run
    assert usage.kind == "usage"
    (problem,) = problems(usage.text)
    assert "bench has no option --no-such" in problem


def test_comparing_and_renewing_keep_what_is_left_out() -> None:
    shown = Shown("…\nb 1\nc\n…\ne", 0, 0)
    assert not missing(shown, "a\nb 1\nc\nd\ne\n")
    assert missing(shown, "a\nb 2\nc\nd\ne\n") == ["b 1", "c"]
    assert renewed(shown, "a\nb 22\nx\nd\nd\ne\n") == "…\nb 22\nx\n…\ne"
    with pytest.raises(LookupError, match="nothing like 'e'"):
        renewed(shown, "b 1\nc\n")
    part = Shown("took … ms\nend", 0, 0)
    assert not missing(part, "took 3.5 ms\nend\n") and missing(part, "took 3.5 s\nend\n")
    assert renewed(part, "took 3.5 ms\nend\n") == part.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tilewright layers", "there is no command layers"),
        ("tilewright cache ls --all-of-it", "no option --all-of-it"),
        ("tilewright trace -o t.json -- python serve.py --its-own 3", None),
        ("make hay", "no target hay"),
        ("pip install 'tilewright[gold]'", "no extra gold"),
        ("pip install -e '.[dev]'", None),
        ("python -m tilewright.bench.nothing", "no module"),
        ("TILEWRIGHT_LOG=1 python -m tilewright.bench.demo  # x", None),
        (".ci/run", None),
        (".ci/walk", "there is no file .ci/walk"),
        ("rm -rf /", "not a command that this test knows"),
    ],
)
def test_the_check_of_commands(line: str, said: str | None) -> None:
    found = "\n".join(problems(line))
    assert (said in found) if said else not found
