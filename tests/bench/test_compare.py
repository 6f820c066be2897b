"""``bench compare``: what it calls a regression, what it refuses, and its exit codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.bench.report_documents import make_document, make_problem
from tilewright import BenchError
from tilewright.bench.method.statistics import Estimate
from tilewright.bench.report import document as d
from tilewright.bench.report.compare import agreement, compare
from tilewright.cli.app import app

A = make_document()


def changed(**result: Any) -> d.Document:
    """A with our result of its first problem changed."""
    first, *others = A.problems
    ours, *peers = first.results
    return replace(A, problems=[replace(first, results=[replace(ours, **result), *peers]), *others])


def slower(by: float) -> d.Document:
    """A with our first problem slower by a factor, warm and cold."""
    ours = A.problems[0].results[0]

    def scaled(times: d.Times | None) -> d.Times:
        assert times is not None
        r = times.reference
        return replace(times, reference=Estimate(r.median * by, r.low * by, r.high * by, r.count))

    return changed(warm=scaled(ours.warm), cold=scaled(ours.cold))


def kinds(b: d.Document, threshold: float = 0.05) -> list[str]:
    return [c.kind for c in compare(A, b, threshold).changes if c.kind != "same"]


def test_the_same_report_has_no_regression() -> None:
    assert kinds(A) == []
    assert len(compare(A, A).changes) == 2 * len(A.problems)


def test_slower_beyond_noise_and_threshold() -> None:
    assert kinds(slower(1.3)) == ["slower", "slower"]
    assert kinds(slower(1.3), threshold=0.4) == []
    assert kinds(slower(1.001), threshold=0.0) == []  # within the intervals
    assert kinds(slower(0.7)) == ["faster", "faster"]


def test_peers_that_change_are_no_regression_of_ours() -> None:
    factors = {"tilewright": 1.0, "torch-eager": 9.0}
    problems = [
        make_problem(p.name, p.section, p.floors["warm"] / 0.6, 3, factors) for p in A.problems
    ]
    assert not compare(A, replace(A, problems=problems)).regressions


def test_less_exact_broken_new_and_gone() -> None:
    assert kinds(changed(error_relative=5e-5)) == ["less exact"]
    assert kinds(changed(error_relative=3e-7)) == []
    assert kinds(changed(status="wrong", warm=None, cold=None)) == ["broken"]
    extra = make_problem("extra", "prefill", 1e-3, 9)
    assert kinds(replace(A, problems=[*A.problems, extra])) == ["new"]
    assert not compare(A, replace(A, problems=A.problems[1:])).regressions


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (replace(A, suite="lowbit"), "different suites: attention and lowbit"),
        (replace(A, machine=replace(A.machine, model="Another")), "different machines.*Another"),
        (
            replace(A, machine=replace(A.machine, threads=8)),
            "8 threads for every provider; --other-machine",
        ),
        (replace(A, method=replace(A.method, quick=True)), "second report is of a --quick run"),
    ],
)
def test_what_cannot_be_compared_is_refused(b: d.Document, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        compare(A, b)


def test_gpus_are_compared_whatever_they_are_in() -> None:
    one = replace(A, machine=replace(A.machine, kind="h100", gpu="NVIDIA H100, sm_90"))
    other = replace(one, machine=replace(one.machine, model="Another", cores=64))
    assert not compare(one, other).regressions
    with pytest.raises(BenchError, match=r"NVIDIA H100, sm_90 and h100: NVIDIA H100 NVL, sm_90"):
        compare(one, replace(other, machine=replace(one.machine, gpu="NVIDIA H100 NVL, sm_90")))


def test_noise_and_other_versions_are_told() -> None:
    noisy = replace(A.noise, compute_spread=0.9)
    newer = replace(A.machine, versions={"torch": "2.14"})
    found = compare(A, replace(A, noise=noisy, machine=newer)).remarks
    assert any("torch: 2.13.0, now 2.14" in line for line in found)
    assert any("90 %" in line for line in found)


def test_two_runs_of_one_build_agree() -> None:
    counts = agreement(A, A)
    rows = sum(2 * (len(p.results) - 2) for p in A.problems)
    assert counts == {"rows": rows, "overlap": rows, "b in a": rows, "a in b": rows}
    far = make_problem(A.problems[0].name, "prefill", 1e-3, 3, {"tilewright": 1.0, "flex": 9.0})
    assert agreement(A, replace(A, problems=[far])) == {
        "rows": 2,
        "overlap": 0,
        "b in a": 0,
        "a in b": 0,
    }


@pytest.mark.parametrize(
    ("b", "options", "code"),
    [
        (A, [], 0),
        (A, ["--agreement"], 0),
        (slower(2.0), [], 1),
        (slower(2.0), ["--threshold", "3"], 0),
        (replace(A, machine=replace(A.machine, model="Another")), [], 2),
        (replace(A, machine=replace(A.machine, model="Another")), ["--other-machine"], 0),
    ],
)
def test_exit_codes(b: d.Document, options: list[str], code: int, tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, document in zip(paths, (A, b), strict=True):
        path.write_text(document.to_json(), encoding="utf-8")
    done = CliRunner().invoke(app, ["bench", "compare", *map(str, paths), *options])
    assert done.exit_code == code, done.output
    if code == 1:
        assert "slower" in done.output and A.problems[0].name in done.output


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{", encoding="utf-8")
    for given in (path, tmp_path / "none.json"):
        assert CliRunner().invoke(app, ["bench", "compare", str(given), str(given)]).exit_code == 2
    assert path.read_text(encoding="utf-8") == "{"
