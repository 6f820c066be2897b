"""Suites and providers: problems are well-formed, results are right, names are known."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.bench.toys import offered, toy
from tilewright import BenchError
from tilewright.bench.contender import prepare
from tilewright.bench.devices import Host
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.one_sitting import Options
from tilewright.bench.providers import catalogue as providers
from tilewright.bench.providers import ggml
from tilewright.bench.providers.catalogue import OURS, Provider, chosen, provider
from tilewright.bench.report.document import parse
from tilewright.bench.report.terminal import Display
from tilewright.bench.run_document import document_of
from tilewright.bench.running import Run, run
from tilewright.bench.suites import catalogue as suites
from tilewright.bench.suites import lowbit
from tilewright.bench.suites.problem import Form, NotOffered, Problem, Suite, errors_of
from tilewright.cli.app import app

pytestmark = pytest.mark.usefixtures("two_threads")
ROOFS = Roofs(1e10, 1e11, 1 << 25, {"f32": 1e11})


def first_of_each_section(name: str) -> list[Problem]:
    found = suites.suite(name)
    sections = dict.fromkeys(problem.section for problem in found.problems(True))
    return [found.smallest(section) for section in sections]


@pytest.mark.parametrize("name", suites.SUITES)
def test_problems_are_well_formed(name: str) -> None:
    for quick in (True, False):
        problems = suites.suite(name).problems(quick)
        assert len({p.name for p in problems}) == len(problems)  # none counts twice
        for problem in problems:
            assert problem.suite == name and problem.headline in ("warm", "cold")
            assert problem.work.bytes > 0 and problem.work.operations >= 0
            assert problem.parameters and problem.tolerance < 1


@pytest.mark.parametrize(
    "given",
    [
        *((name, OURS) for name in suites.SUITES),
        *((name, "torch-eager") for name in suites.SUITES),
        ("attention", "torch-sdpa"),
        ("attention", "onnxruntime"),
        ("attention", "openvino"),
        ("lowbit", "onnxruntime"),
        ("lowbit", "openvino"),
        ("lowbit", "torch-int"),
        ("lowbit", "llama.cpp"),
        ("fused", "openvino"),
        ("experts", "transformers"),
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_provider_is_right_or_says_why_not(given: tuple[str, str]) -> None:
    """On the smallest problems; what is not installed is skipped."""
    name, who = given
    if absence := provider(who).absence():
        pytest.skip(absence)
    offer = provider(who).offers()[name]
    found = []
    for problem in first_of_each_section(name):
        inputs = problem.make()
        contender = prepare(problem, inputs, problem.exact(inputs), who, offer, Host())
        found.append(contender)
        assert contender.status in ("ok", "none"), contender.reason
        if contender.status == "ok":
            assert contender.errors is not None and contender.errors[1] <= problem.tolerance
            again = contender.again(problem, problem.make(), offer, Host())
            assert again is not None
        else:
            assert contender.reason
    assert any(contender.status == "ok" for contender in found)


@torch.inference_mode()
def test_experts_in_few_bits_leave_those_of_others_as_they_were() -> None:
    if absence := provider("transformers").absence():
        pytest.skip(absence)
    problem = next(p for p in suites.suite("experts").problems(True) if "u4" in p.name)
    inputs = problem.make()
    exact = problem.exact(inputs)
    for who in (OURS, "transformers"):
        offer = provider(who).offers()["experts"]
        found = prepare(problem, inputs, exact, who, offer, Host())
        assert found.status == "ok", f"{who}: {found.reason}"
        assert found.result(who, None, None).float_weights == (who != OURS)


# ---- what does not work


def no() -> Any:
    raise RuntimeError("first line\nsecond line")


def test_the_fastest_right_form_is_taken() -> None:
    def slow() -> torch.Tensor:
        for _ in range(2000):
            torch.ones(2)
        return torch.full((2,), 2.0)

    forms = [
        Form("wrong", lambda: lambda: torch.ones(2)),
        Form("raises", no),
        Form("slow", lambda: slow),
        Form("quick", lambda: lambda: torch.full((2,), 2.0)),
    ]
    for order in (forms, forms[::-1]):
        problem = toy()
        found = prepare(problem, None, problem.exact(problem.make()), "x", offered(*order), Host())
        assert (found.status, found.form) == ("ok", "quick")
        assert set(found.tried) == {"slow", "quick"}


def test_a_wrong_result_has_no_time_and_a_failure_its_reason() -> None:
    problem = toy()
    exact = problem.exact(problem.make())
    wrong = prepare(
        problem, None, exact, "x", offered(Form("a", lambda: lambda: torch.ones(2))), Host()
    )
    assert (
        wrong.status == "wrong" and wrong.call is None and "relative error 5.0e-01" in wrong.reason
    )
    nan = offered(Form("a", lambda: lambda: torch.full((2,), float("nan"))))
    assert prepare(problem, None, exact, "x", nan, Host()).status == "wrong"
    shape = offered(Form("a", lambda: lambda: torch.full((3,), 2.0)))
    assert prepare(problem, None, exact, "x", shape, Host()).status == "wrong"
    failed = prepare(problem, None, exact, "x", offered(Form("a", no)), Host())
    assert failed.reason == "RuntimeError: first line" and failed.status == "failed"

    def nothing(problem: Problem, inputs: Any) -> list[Form]:
        raise NotOffered("too small")

    none = prepare(problem, None, exact, "x", nothing, Host())
    assert (none.status, none.reason) == ("none", "too small")


def test_errors_are_relative_to_the_result() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert errors_of(exact.float(), exact) == (0.0, 0.0)
    assert errors_of(exact + torch.tensor([0.0, 0.5]), exact) == pytest.approx((0.5, 0.1))


# ---- whole runs, of toys


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite of one problem: ours doubles, a rival does too and fails in its third sitting."""
    calls = {"rival": 0}

    def rival() -> Any:
        calls["rival"] += 1
        if calls["rival"] > 4:  # two sittings of two problems
            raise ValueError("no more")
        return lambda: torch.full((2,), 2.0)

    tables = {
        OURS: {"toys": offered(Form("ours", lambda: lambda: torch.full((2,), 2.0)))},
        "torch-eager": {"toys": offered(Form("rival", rival))},
        "torch-sdpa": {"toys": offered(Form("wrong", lambda: lambda: torch.ones(2)))},
    }
    monkeypatch.setattr(Host, "roofs", lambda *_: ROOFS)
    monkeypatch.setattr(Provider, "offers", lambda self: tables.get(self.name, {}))
    problem = toy()
    return Suite("toys", "Doubling", lambda quick: [problem], lambda section: problem)


def test_a_run_gives_a_whole_document(toys: Suite) -> None:
    shares: list[float] = []
    options = Options(sittings=2, seconds=0.1, quick=True)
    document = document_of(
        run(
            toys,
            chosen(["torch-eager", "torch-sdpa", "gemlite"]),
            options,
            lambda r: shares.append(r.share),
        )
    )
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert parse(document.to_json(), "it").to_json() == document.to_json()
    (problem,) = document.problems
    ours, rival, wrong = problem.results
    assert ours.warm and ours.warm.ratio is None and len(ours.warm.samples) == 2
    assert rival.warm and rival.warm.ratio and rival.cold and rival.cold.ratio
    assert rival.warm.ratio.count == 4
    assert wrong.status == "wrong" and wrong.warm is None
    assert document.providers[-1].status == "absent" and "CUDA" in document.providers[-1].reason
    assert {launch.provider for launch in document.launches} == {OURS, "torch-eager"}
    assert document.measured == [OURS, "torch-eager"]


def test_a_provider_that_fails_later_loses_its_times_and_others_keep_theirs(toys: Suite) -> None:
    options = Options(sittings=3, seconds=0.1, quick=True)
    document = document_of(run(toys, chosen(["torch-eager"]), options))
    ours, rival = document.problems[0].results
    assert ours.warm is not None and len(ours.warm.samples) == 3
    assert rival.status == "failed" and rival.warm is None and "in a later sitting" in rival.reason


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_ctrl_c_keeps_the_sittings_that_were_whole(toys: Suite, whole: int) -> None:
    def end(under_way: Run) -> None:
        if under_way.sitting == whole and under_way.done:
            raise KeyboardInterrupt

    options = Options(sittings=4, seconds=0.1, quick=True)
    if not whole:
        with pytest.raises(KeyboardInterrupt):
            run(toys, chosen(["torch-eager"]), options, end)
        return
    finished = run(toys, chosen(["torch-eager"]), options, end)
    assert finished.interrupted and f"{whole} of 4" in finished.cut_short
    document = document_of(finished)
    assert document.method.sittings == whole and len(document.noise.loads) == whole
    assert document.method.seconds == pytest.approx(0.1 * whole / 4)
    (problem,) = document.problems
    for result in problem.results:
        for times in (result.warm, result.cold):
            assert times is not None and len(times.samples) == whole
    assert parse(document.to_json(), "it").to_json() == document.to_json()


def test_without_a_terminal_every_problem_of_the_first_sitting_is_a_line(toys: Suite) -> None:
    said = io.StringIO()
    with Display(Console(file=said, width=80)) as display:
        run(toys, chosen(["torch-eager"]), Options(3, 0.1, True), display)
    lines = [line.split(", ", 1)[1] for line in said.getvalue().splitlines()]
    assert "sitting 1 of 3: doubling" in lines and lines[-2:] == [
        "sitting 2 of 3",
        "sitting 3 of 3",
    ]


def test_a_provider_that_cannot_be_loaded_is_told(
    toys: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Provider.offers

    def offers(self: Provider) -> Any:
        if self.name == "torch-sdpa":
            raise OSError("broken library")
        return whole(self)

    monkeypatch.setattr(Provider, "offers", offers)
    document = document_of(run(toys, chosen(["torch-sdpa"]), Options(1, 0.1, True)))
    assert document.providers[-1].status == "failed"
    assert "broken library" in document.providers[-1].reason


def test_no_problem_of_that_name(toys: Suite) -> None:
    with pytest.raises(BenchError, match=r"no problem of toys has 'nonsense'.*doubling"):
        run(toys, chosen([]), Options(1, 0.1, True, "nonsense"))


# ---- names


def test_groups_are_of_known_providers_and_ours_is_always_there() -> None:
    known = {p.name for p in providers.PROVIDERS}
    assert all(set(group) <= known for group in providers.GROUPS.values())
    assert [p.name for p in chosen(["flex", "flex"])] == [OURS, "flex"]
    assert {p.name for p in chosen([])} == known


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["atention"], "no suite 'atention'; did you mean 'attention'?"),
        (["zzz"], "there are attention, lowbit, experts, fused, models"),
        (["attention", "--vs", "opnvino"], "did you mean 'openvino'"),
        (["attention", "--vs", "torch,zzz"], "no provider 'zzz'"),
        (["attention", "--quick", "--save"], "only a whole run is saved"),
        (["attention", "--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
        (["figures", "cross_entropi"], "did you mean 'cross_entropy'"),
    ],
)
def test_mistakes_on_the_command_line(
    args: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(app, ["bench", *args])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("args", "sittings", "said"),
    [
        ([], 7, ""),
        (["--sittings", "9"], 9, ""),
        (["--quick"], 2, ""),
        (["--quick", "--sittings", "1"], 1, ""),
        (["--quick", "--sittings", "3"], 2, "--quick has 2 of the 3 sittings; leave it out"),
    ],
)
def test_a_trial_run_says_that_it_has_fewer_sittings(
    args: list[str], sittings: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(suite: Suite, providers: object, options: Options, display: object) -> None:
        raise BenchError(f"asked for {options.sittings}")

    monkeypatch.setattr("tilewright.bench.running.run", told)
    done = CliRunner().invoke(app, ["bench", "lowbit", *args])
    assert f"asked for {sittings}" in done.output
    assert said in done.output and ("sittings;" in done.output) == bool(said)


def test_topics_of_figures_go_on_working(monkeypatch: pytest.MonkeyPatch) -> None:
    for args in (["routing"], ["figures", "attention"], ["readme"]):
        seen: list[list[str]] = []
        module = f"tilewright.bench.{args[-1]}"
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "app", lambda seen=seen: seen.append(sys.argv))
        monkeypatch.setattr(sys, "argv", ["tilewright"])
        done = CliRunner().invoke(app, ["bench", *args, "--quick"])
        assert done.exit_code == 0, done.output
        assert seen == [[f"tilewright bench {args[-1]}", "--quick"]]


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_blocks_of_ggml_hold_the_same_numbers(bits: int) -> None:
    """As the gguf package reads them, whether or not llama.cpp is here to multiply with them."""
    quants = pytest.importorskip("gguf.quants", reason="gguf is not installed")
    constants = pytest.importorskip("gguf.constants", reason="gguf is not installed")
    weights = lowbit.inputs(lowbit.LowBit(1, bits, "int8", 6, 96))
    blocks = ggml._blocks(weights, bits)
    name, number = ggml.FORMATS[bits]
    kind = constants.GGMLQuantizationType[name]
    assert int(kind) == number
    values = quants.dequantize(blocks.reshape(6, -1), kind)
    np.testing.assert_allclose(values, weights.values().numpy(), rtol=1e-3)
