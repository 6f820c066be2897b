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
from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.runtime.family import Variant
from tilewright.runtime.verification import bisect as bisection
from tilewright.runtime.verification import certificate as certificates
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome

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
def test_failures_of_earlier_runs_stay_and_the_worst_is_told(
    tilewright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_pass(monkeypatch, "canonicalise", replacing(m.Exp, m.Tanh))
    path, out = tmp_path / "certificate.json", tmp_path / "failures"
    options = ("--cases", "60", "--seed", "1", "--only", "graphs", "--out", str(out))
    options = (*options, "--max-failures", "1", *HERE, "--certificate", str(path))
    assert tilewright("verify", *options).code == 1
    (first,) = out.glob("*.tw")
    text = first.read_text(encoding="utf-8")
    assert tilewright("verify", *options).code == 1
    names = sorted(x.name for x in out.glob("*.tw"))
    assert [name.split("-")[1] for name in names] == ["0", "1"]
    assert first.read_text(encoding="utf-8") == text
    data = certificate_of(path)
    (failure,) = data["failures"]
    told = [x["worst_error_over_bound"] for x in data["by_kind_and_place"]]
    assert failure["status"] == "wrong" and Path(failure["file"]).name == names[1]
    assert data["worst_error_over_bound"] in told
    assert data["worst_error_over_bound"] == "infinite" or data["worst_error_over_bound"] > 1


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("option", ["--certificate", "--out"])
@pytest.mark.parametrize("where", ["missing/x", "file/x", "file"])
def test_files_that_cannot_be_written_are_known_before_the_first_case(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    where: str,
) -> None:
    monkeypatch.setattr(Here, "check", lambda *_: pytest.fail("a case was run"))
    (tmp_path / "file").write_text("kept")
    path = tmp_path / where
    if (option, where) in {("--certificate", "file"), ("--out", "missing/x")}:
        path = Path("/proc") / where  # these two can be, elsewhere
    assert "cannot write" in refused("verify", "--cases", "3", *HERE, option, str(path))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("in_process")
def test_an_interrupted_run_has_not_passed(
    tilewright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Here.check

    def check(worker: Here, case: Case) -> Outcome:
        found = checked(worker, case)
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found

    calls: list[Case] = []
    monkeypatch.setattr(Here, "check", check)
    path = tmp_path / "certificate.json"
    options = ("--cases", "9", "--only", "rows", *HERE, "--certificate", str(path))
    done = tilewright("verify", *options)
    assert done.code == 130 and "interrupted" in done.out, done
    data = certificate_of(path)
    assert data["interrupted"] and not data["passed"] and data["cases"] == 2


@pytest.mark.usefixtures("in_process")
def test_a_failure_is_kept_when_making_it_small_is_interrupted(
    tilewright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(worker: Here, case: Case) -> Outcome:
        calls.append(case)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return Outcome("error", "planted")

    calls: list[Case] = []
    monkeypatch.setattr(Here, "check", check)
    out = tmp_path / "failures"
    done = tilewright("verify", "--cases", "9", "--only", "rows", *HERE, "--out", str(out))
    assert done.code == 1 and "planted" in done.out and "interrupted" in done.out, done
    (file,) = out.iterdir()
    assert "message: planted" in file.read_text(encoding="utf-8")


@pytest.mark.usefixtures("in_process")
def test_refused_cases_are_no_calls_and_their_reasons_are_told(
    tilewright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Here, "check", lambda *_: Outcome("refused", "no such thing: here"))
    path = tmp_path / "certificate.json"
    done = tilewright("verify", "--cases", "5", "--only", "rows", *HERE, "--certificate", str(path))
    assert done.code == 0, done
    assert "refused  5 cases: no such thing" in done.out
    assert "nothing of rows was verified on interpreter" in done.out
    data = certificate_of(path)
    assert data["calls"] == 0 and data["cases"] == 5


def test_a_program_of_any_size_that_no_machine_holds_is_refused(
    refused: Refused, write: Write
) -> None:
    file = write("huge.tw", SOFTMAX.replace("N x M x f32", "99999999 x 99999999 x f32"))
    for command in ("verify", "bisect"):
        assert "choose smaller sizes" in refused(command, file)


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
    assert "precision: WRONG" in done.err  # as each stage ends


def test_bisect_shows_tile_programs_as_text(
    tilewright: Command, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("softmax.tw", SOFTMAX)
    lowered = bisection.lower_variant

    def wrong(variant: Variant, target: Target) -> Graph:
        return replacing(m.Mul, m.Add)(lowered(variant, target))

    monkeypatch.setattr(bisection, "lower_variant", wrong)
    monkeypatch.setattr("tilewright.runtime.backends.lower_variant", wrong)
    done = tilewright("bisect", file, "-s", "N=3,M=4", *HERE)
    assert done.code == 1 and "first outside of the bound: to_tile" in done.out, done
    assert re.search(r"^\+tile \w+", done.out, re.MULTILINE) and "object at 0x" not in done.out
