"""docs/bundles.md: the Python on the page runs on a bundle that the command on the page makes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.runtime.bundle.active import use_bundle
from tilewright.runtime.bundle.manifest import SCHEMA, VERSION
from tilewright.runtime.settings import VARIABLES
from tilewright.runtime.tracing import file as trace_file

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")


def test_the_code_on_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "examples" / "attention.tw").read_text(encoding="utf-8")
    (tmp_path / "attention.tw").write_text(text, encoding="utf-8")
    sizes = "B=1,K=2,G=1,N=300,M=300"
    done = CliRunner().invoke(app, ["bundle", "attention.tw", "--sizes", sizes, "-o", "kernels"])
    assert done.exit_code == 0, done.output
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
    finally:
        use_bundle(None)
    if shutil.which("gcc"):
        run_from_c()
    printed = capsys.readouterr().out
    assert "Bundle(" in printed and "('q', 'k', 'v')" in printed and "by bundle" in printed


def run_from_c() -> None:
    """Builds a program by the page's own line; it ends well if the library is found."""
    (line,) = re.findall(r"/\* (gcc .*?) \*/", PAGE)
    header = Path("kernels/tilewright_kernels.h").read_text(encoding="utf-8")
    kernel = re.findall(r"\b(tw_\w+)_call\(", header)[0]
    main = f"int main(void) {{ void *volatile found = (void *){kernel}; return found == 0; }}"
    Path("main.c").write_text(f'#include "tilewright_kernels.h"\n{main}\n', encoding="utf-8")
    build = line.replace("[", "").replace("]", "")
    subprocess.run(f"{build} -o main && ./main", shell=True, check=True)


def test_what_the_page_names_exists() -> None:
    for variable in VARIABLES:
        if variable.name.endswith(("TRACE", "BUNDLE")):
            assert variable.name in PAGE
    assert f'"schema": "{trace_file.SCHEMA}", "version": {trace_file.VERSION}' in PAGE
    assert (SCHEMA, VERSION) == ("tilewright-bundle", 1)
    done = CliRunner().invoke(app, ["bundle", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    for option in ("--sizes", "--target", "--every-class", "--force"):
        assert option in PAGE and option in done.output
