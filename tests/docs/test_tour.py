"""docs/tour.md and README.md: what they show is what the commands print, and their Python runs."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.docs.tour import missing, python_blocks, renewed, shown_blocks
from tilewright.cli import app
from tilewright.lowbit import choose_layout
from tilewright.runtime.backends import kernel_cache
from tilewright.runtime.settings import settings

ROOT = Path(__file__).parent.parent.parent
TOUR = ROOT / "docs" / "tour.md"
PAGES = [
    "docs/tour.md",
    "docs/quantize.md",
    "docs/lowbit.md",
    "docs/kv_cache.md",
    "docs/placement.md",
    "README.md",
]


@pytest.fixture(autouse=True)
def at_the_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The pages name files from there. Kernels go to a cache of their own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "tour"))
    settings.cache_clear()
    kernel_cache.cache_clear()
    yield
    settings.cache_clear()
    kernel_cache.cache_clear()


@cache
def output(arguments: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_tour_shows_what_the_commands_print(update_golden: bool) -> None:
    page = TOUR.read_text(encoding="utf-8")
    blocks = shown_blocks(page)
    assert len(blocks) > 8
    if update_golden:
        for block in reversed(blocks):
            text = renewed(block, output(tuple(block.arguments)))
            page = page[: block.start] + text + page[block.end :]
        TOUR.write_text(page, encoding="utf-8")
        return
    for block in blocks:
        lost = missing(block, output(tuple(block.arguments)))
        assert not lost, f"{block.command} does not print this any more:\n" + "\n".join(lost)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_in_the_pages_runs(page: str, tmp_path: Path) -> None:
    found = python_blocks((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for at, text in enumerate(found):
        path = tmp_path / f"block_{at}.py"  # a file, because Dynamo reads the source
        path.write_text(text, encoding="utf-8")
        runpy.run_path(str(path))


def test_the_costs_of_packings_are_those_shown() -> None:
    page = (ROOT / "docs" / "lowbit.md").read_text(encoding="utf-8")
    choice = choose_layout("u6", 32, activation="int8", target="znver4")
    assert choice.explain() in page


PAGE = """
```console
$ tilewright show
```

```text
…
b 1
c
…
e
```
"""


def test_renewing_a_block_keeps_what_is_left_out() -> None:
    (block,) = shown_blocks(PAGE)
    assert block.arguments == ["show"]
    assert not missing(block, "a\nb 1\nc\nd\ne\n")
    assert missing(block, "a\nb 2\nc\nd\ne\n") == ["b 1", "c"]
    assert renewed(block, "a\nb 22\nx\nd\nd\ne\n") == "…\nb 22\nx\n…\ne"
    with pytest.raises(LookupError, match="nothing like 'e'"):
        renewed(block, "b 1\nc\n")
