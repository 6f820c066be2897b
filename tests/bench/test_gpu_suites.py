"""Suites for GPUs: their problems, and a rehearsal without a device."""

from __future__ import annotations

import html
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.interpreted import run_interpreted
from tilewright.bench.devices import Cuda, Rehearsal
from tilewright.bench.report.document import load
from tilewright.bench.suites import catalogue as suites


@pytest.mark.parametrize("name", suites.SUITES)
def test_problems_are_well_formed(name: str) -> None:
    small = suites.suite(name, Rehearsal())
    assert small.name == name
    for quick in (True, False):
        problems = small.problems(quick)
        assert len({p.name for p in problems}) == len(problems)  # none counts twice
        for problem in problems:
            assert problem.suite == name and problem.headline in ("warm", "cold")
            assert problem.work.bytes > 0 and problem.work.operations >= 0
            assert problem.parameters and problem.tolerance < 1
            assert problem.case.device == "cpu"


@pytest.mark.parametrize("name", ["lowbit", "experts", "fused", "models"])
def test_on_a_device_floats_are_bf16_and_tensors_lie_there(name: str) -> None:
    """Attention's masks need the device to be there."""
    for problem in suites.suite(name, Cuda(1)).problems(False):
        assert problem.case.device == "cuda:1"
        assert problem.arithmetic == "bf16" or problem.section == "routing"


def test_ours_is_right_in_the_interpreter() -> None:
    run_interpreted("../bench/interpreted_suites.py")


def test_a_rehearsal_is_a_whole_report(tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "report.html"
    words = ["bench", "lowbit", "--device", "cuda", "--dry", "--only", "u3, M1 "]
    more = ["--vs", "torch-eager,cublas,openvino", "--json", str(path), "--html", str(page)]
    environment = os.environ | {"COLUMNS": "200"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "tilewright", *words, *more],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = load(path)
    assert document.machine.kind == "rehearsal" and "interpreter" in document.machine.gpu
    for text in (html.unescape(page.read_text()), done.stdout):
        assert document.machine.gpu in text
    assert document.measured == ["tilewright", "torch-eager"] and document.method.quick
    states = {state.name: state for state in document.providers}
    assert "rehearsal" in states["cublas"].reason and states["cublas"].install == ""
    assert "not on GPUs" in states["openvino"].reason
    assert len(document.problems) == 2
    for problem in document.problems:
        errors = [result.error_relative for result in problem.results if result.status == "ok"]
        assert len(errors) == 2 and all(error is not None and error < 1e-5 for error in errors)
        assert problem.parameters["group"] == 128 and problem.arithmetic == "f32"
