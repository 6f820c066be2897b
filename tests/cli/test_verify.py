"""``tilewright verify`` and ``tilewright bisect``: options, files, certificates, exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cli.conftest import Command
from tests.runtime.verification.here import Here
from tests.runtime.verification.test_campaign import replacing, wrong_pass
from tilewright.ir import ops_math as m
from tilewright.runtime.verification import certificate as certificates

Refused = Callable[..., str]
Write = Callable[[str, str], str]
HERE = ("--backend", "interpreter")
SOFTMAX = "graph f<N, M>(%x: tensor<N x M x f32>) { %o = tensor.softmax %x {axis = 1} return %o }"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases run in this process, where bugs can be planted."""
    monkeypatch.setattr("tilewright.runtime.verification.workers.Worker", Here)


def certificate_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(data, certificates.SCHEMA)
    return data


@pytest.mark.usefixtures("in_process")
def test_a_certificate_of_a_right_compiler(tilewright: Command, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    out = tmp_path / "failures"
    options = ("--cases", "4", "--seed", "4", "--only", "rows", "--only", "graphs")
    done = tilewright("verify", *options, *HERE, "--certificate", str(path), "--out", str(out))
    assert done.code == 0, done
    assert "4 cases" in done.out and not out.exists()
    data = certificate_of(path)
    assert data["passed"] and data["cases"] == 4 and data["options"]["seed"] == 4
    assert sum(row["cases"] for row in data["by_kind_and_place"]) == 4
    assert {row["where"] for row in data["by_kind_and_place"]} == {"interpreter"}
    worst = [row["worst_error_over_bound"] for row in data["by_kind_and_place"]]
    assert data["worst_error_over_bound"] == max(worst) <= 1
    assert data["versions"]["tilewright"] and data["device"]["processor"]


@pytest.mark.usefixtures("in_process")
def test_a_failure_is_a_file_that_run_reproduces(
    tilewright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_pass(monkeypatch, "canonicalise", replacing(m.Exp, m.Tanh))
    path = tmp_path / "certificate.json"
    options = ("--cases", "60", "--seed", "1", "--only", "graphs", "--out", str(tmp_path))
    options = (*options, "--max-failures", "1")
    done = tilewright("verify", *options, *HERE, "--certificate", str(path))
    assert done.code == 1, done
    data = certificate_of(path)
    (file,) = [Path(f["file"]) for f in data["failures"]][:1]
    assert not data["passed"] and str(file) in done.out
    text = file.read_text(encoding="utf-8")
    assert "// kind graphs, batch " in text and "// seed " in text
    command = re.search(r"// reproduce: tilewright (run .*)", text)
    ratio = re.search(r"error ÷ bound ([^)]*)\)", text)
    assert command and ratio
    again = tilewright(*command[1].split())
    assert again.code == 1 and "WRONG" in again.out, again
    assert f"error ÷ bound {ratio[1]}" in again.out
    # the same with the bug taken out
    monkeypatch.undo()
    assert tilewright(*command[1].split()).code == 0


@pytest.mark.usefixtures("in_process")
def test_one_given_program(tilewright: Command, write: Write) -> None:
    file = write("softmax.tw", SOFTMAX)
    done = tilewright("verify", file, "--cases", "3", *HERE)
    assert done.code == 0 and re.search(r"given +interpreter +3 +3", done.out), done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "row"], "unknown kind; did you mean 'rows'?; known: graphs, rows"),
        (["--budget", "soon"], "a time such as 60s, 10m or 1h is expected"),
        (["--backend", "llvm"], "unknown back end 'llvm'"),
        (["--target", "znver9", "--backend", "interpreter"], "unknown target 'znver9'"),
        (["--cases", "0"], "Invalid value for '--cases'"),
        (["nothing.tw"], "there is no file"),
    ],
)
def test_misuse(refused: Refused, options: list[str], message: str) -> None:
    assert message in refused("verify", *options)


def test_without_hypothesis_it_says_what_to_install(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert "pip install 'tilewright[verify]'" in refused("verify", "--cases", "1")


def test_bisect_prints_a_table_and_names_the_pass(
    tilewright: Command, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("softmax.tw", SOFTMAX)
    options = (file, "-s", "N=3,M=4", *HERE)
    done = tilewright("bisect", *options)
    assert done.code == 0 and "every stage stays within the bound" in done.out, done
    wrong_pass(monkeypatch, "precision", replacing(m.Exp, m.Tanh))
    done = tilewright("bisect", *options)
    assert done.code == 1 and "first outside of the bound: precision" in done.out, done
    assert re.search(r"^-.*math\.exp", done.out, re.MULTILINE)
    assert re.search(r"^\+.*math\.tanh", done.out, re.MULTILINE)
    assert "canonicalise" in done.out and "WRONG" in done.out
