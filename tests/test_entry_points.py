"""The ways in besides ``import tilewright``: torch's entry point for backends, ``python -m``,
completion, the environment, logging."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tilewright
from tilewright.frontend.capture import last_report
from tilewright.ir.errors import SettingError
from tilewright.runtime import logs
from tilewright.runtime.settings import LEVELS, VARIABLES, as_markdown, settings

ROOT = Path(__file__).parent.parent
BACKEND = """
import json, torch
from torch._dynamo import list_backends
listed = "tilewright" in list_backends()
def f(q, k): return torch.softmax(q @ k.mT / 3, dim=-1) @ k
run = torch.compile(f, backend="tilewright", options={"strict": True})
seen, graphs = [], 0
for length in (7, 9, 30):
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, length, 8)
    with torch.no_grad():
        seen.append(float((run(q, k) - f(q, k)).abs().max()))
from tilewright.frontend.capture import last_report
regions = [r["status"] for g in last_report().to_dict()["graphs"] for r in g["regions"]]
print(json.dumps({"listed": listed, "errors": seen, "regions": regions}))
"""
# Files beside the compiler (tests/runtime/test_settings.py holds that) -> why they read a variable.
READS = {
    "bench/machine.py": "only the public face may be imported there; for reports only",
    "bench/gpu_session.py": "passes PYTHONPATH on, lengthened",
    "bench/soak_load.py": "a process that is told its cache by the one that started it",
    "tilewright/cli/bench.py": "puts back what it sets for a while",
}


def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT / 3, dim=-1) @ k


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A new process outside of the checkout: what is installed, not what lies here."""
    command = [sys.executable, *arguments]
    environment = os.environ | variables
    return subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, check=False
    )


def test_torch_finds_the_backend_by_itself() -> None:
    done = python("-c", BACKEND)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["listed"] and max(seen["errors"]) < 1e-5
    assert set(seen["regions"]) == {"kernel"}
    assert len(seen["regions"]) == 2, "a third length was captured again"


def test_gradients_come_from_torch() -> None:
    torch.compiler.reset()
    run = torch.compile(attention, backend="tilewright")
    inputs = [torch.randn(1, 2, n, 8, requires_grad=True) for n in (5, 7)]
    run(*inputs).sum().backward()
    got = [x.grad for x in inputs]
    expected = torch.autograd.grad(attention(*inputs).sum(), inputs)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)
    assert "require gradients" in str(last_report())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "max-autotune"}, "modes are those of backend='inductor'"),
        ({"options": {"stric": True}}, "unknown option 'stric'; backend='tilewright' has target"),
        ({"options": {"strict": "yes"}}, "a bool is expected, not a str"),
    ],
)
def test_what_torch_compile_cannot_have_is_refused(
    arguments: dict[str, object], message: str
) -> None:
    torch.compiler.reset()
    run = torch.compile(attention, backend="tilewright", **arguments)  # type: ignore[call-overload]
    with pytest.raises(Exception, match=message) as refused:
        run(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8))
    inner = getattr(refused.value, "inner_exception", refused.value)
    assert isinstance(inner, SettingError)


def test_python_m_is_the_command() -> None:
    done = python("-m", "tilewright", "--version")
    assert (done.returncode, done.stdout) == (0, f"tilewright {tilewright.__version__}\n")


def test_shells_complete_commands_and_options() -> None:
    program = "from tilewright.cli import main; import sys; sys.argv[0] = 'tilewright'; main()"
    for words, wanted in (("tilewright lay", "layout"), ("tilewright compile --em", "--emit")):
        count = str(len(words.split()) - 1)
        asked = {"_TILEWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        assert wanted in python("-c", program, **asked).stdout.split(), words
    shown = python("-c", program, _TILEWRIGHT_COMPLETE="source_bash")
    assert "complete -o default -F" in shown.stdout


def reads(path: Path) -> Iterator[str]:
    """Lines of a file that read a variable. Passing all of them on to a process reads none."""
    source = path.read_text(encoding="utf-8")
    if "environ" not in source and "getenv" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        asked = getattr(node, "func", None) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            asked = node.value
        text = ast.unparse(asked) if isinstance(asked, ast.Attribute | ast.Name) else ""
        called = ("os.environ.get", "environ.get", "os.getenv", "getenv")
        if text in (("os.environ", "environ") if isinstance(node, ast.Subscript) else called):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def test_one_file_reads_the_environment() -> None:
    files = {
        p.resolve() for folder in ("bench", "tilewright") for p in (ROOT / folder).rglob("*.py")
    }
    found = {p: list(reads(p)) for p in sorted(files)}
    there = {p.relative_to(ROOT).as_posix() for p, lines in found.items() if lines}
    assert not [
        x
        for p, lines in found.items()
        for x in lines
        if p.relative_to(ROOT).as_posix() not in READS
    ]
    assert there == set(READS), "reasons that nothing needs any more"


def test_the_page_of_variables_is_that_of_the_settings() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    table = page.partition("<!-- variables -->\n")[2].partition("<!-- /variables -->")[0]
    assert table.strip() == as_markdown(), "tilewright doctor --variables prints it"
    assert all(f"`{variable.name}`" in table for variable in VARIABLES)


def test_forms_are_logged_when_made_and_steady_calls_say_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = "%y = tensor.softmax %x {axis = 1}\nreturn %y"
    rows = f"graph rows<N>(%x: tensor<N x 6 x f32>) {{\n{body} }}"
    with caplog.at_level(logging.DEBUG, logger="tilewright"):
        program = tilewright.Program(tilewright.parse(rows))
        program(torch.randn(3, 6))
        (made,) = [r for r in caplog.records if r.name == "tilewright.kernels"]
        assert made.levelno == logging.INFO and "for host by mlir" in made.getMessage()
        assert [r.name for r in caplog.records if r.levelno == logging.DEBUG] == [
            "tilewright.programs"
        ]
        caplog.clear()
        program(torch.randn(5, 6))
        assert not caplog.records


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """The package's logger as it was, afterwards."""
    before, level = list(logs.ROOT.handlers), logs.ROOT.level
    yield
    logs.ROOT.handlers[:] = before
    logs.ROOT.setLevel(level)


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_written_to_stderr(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILEWRIGHT_LOG", level.upper())
    logs.start()
    for number, name in enumerate(LEVELS):
        logs.KERNELS.log(logging.getLevelNamesMapping()[name.upper()], "message %d", number)
    written = capsys.readouterr().err
    first = LEVELS.index(level)
    assert [f"message {n}" in written for n in range(4)] == [n >= first for n in range(4)]


@pytest.mark.usefixtures("own_handlers")
def test_a_wrong_level_is_said_where_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_LOG", "loud")
    handlers = len(logs.ROOT.handlers)
    logs.start()  # an import does not fail
    assert len(logs.ROOT.handlers) == handlers + 1  # the one that drops everything
    settings.cache_clear()
    with pytest.raises(SettingError, match=r"TILEWRIGHT_LOG='loud'.* must be one of debug, info"):
        settings()
    settings.cache_clear()
