"""What the suites for a device share, without one: checks, rounds, rows, command lines, shares of
kernels to compile; and that rows are called as their floors are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tilewright.bench import gpu_attention, gpu_decode, gpu_lowbit, roofline
from tilewright.bench.gpu_timing import Call, Suite, run_suite
from tilewright.bench.roofline import Ceilings

HOPPER = Ceilings(3.0e12, 800e12)
FLOORS = roofline.table(HOPPER).keys()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path / "a" / "found.json", 60, dry=True)


def broken() -> Any:
    raise ValueError("no such thing")


def saved(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_checks(suite: Suite) -> None:
    assert suite.check("right", lambda: 1e-3, 1e-2) and suite.found["notes"] == []
    assert not suite.check("wrong", lambda: 1e-2, 1e-2)
    assert not suite.check("no number", lambda: float("nan"), 1.0)
    assert not suite.check("raises", broken, 1.0)
    assert suite.found["notes"] == [
        "WRONG wrong: error 1.00e-02",
        "WRONG no number: error nan",
        "raises: ValueError: no such thing",
        "WRONG raises: error nan",
    ]
    checks = {"right": True, "wrong": False, "no number": False, "raises": False}
    assert saved(suite.path)["checks"] == checks


def test_rounds_are_interleaved_and_what_fails_is_left_out(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a warm-up of all; three rounds, each with one call of each (of two repeats)."""
    order: list[str] = []

    def call(name: str) -> Call:
        return lambda: order.append(name)

    def milliseconds(call: Call, repeats: int = 1) -> float:
        for _ in range(repeats):
            call()
        return len(order) / 1.0

    calls = {"a": call("a"), "broken": broken, "b": call("b")}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(suite, "milliseconds", milliseconds)
    suite.dry = False
    found = suite.times(calls, rounds=3, repeats=2)
    assert "".join(order) == "aaabbb" + 3 * "aabb"
    assert found == {"a": 12.0, "b": 14.0}  # the medians of 8, 12, 16 and of 10, 14, 18
    assert suite.found["notes"] == ["broken: ValueError: no such thing"]


def test_a_dry_round_calls_everything_once_more_than_its_warm_up(suite: Suite) -> None:
    count = {"calls": 0}

    def call() -> None:
        count["calls"] += 1

    assert suite.times({"a": call}, rounds=9, repeats=5).keys() == {"a"} and count["calls"] == 2


def test_a_row_has_times_the_fastest_peer_and_what_else_is_known(suite: Suite) -> None:
    times = {"ours": 2.0, "torch one": 8.0, "torch two": 3.0}
    suite.record("row", times, lambda name, ms: {"per_ms": 1 / ms} if name == "ours" else {})
    suite.record("alone", {"ours": 2.0})
    assert saved(suite.path)["rows"] == {
        "row": {
            "ours": {"ms": 2.0, "per_ms": 0.5, "times_best_peer": 1.5},
            "torch one": {"ms": 8.0, "times_best_peer": 0.375},
            "torch two": {"ms": 3.0, "times_best_peer": 1.0},
        },
        "alone": {"ours": {"ms": 2.0}},
    }


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", *words])


@pytest.mark.parametrize(
    ("work", "status"),
    [
        (lambda suite: suite.check("a", lambda: 0.0, 1.0), 0),
        (lambda suite: suite.check("a", lambda: 2.0, 1.0), 1),
        (lambda suite: broken(), 1),
    ],
)
def test_a_suite_ends_with_whether_all_is_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Callable[[Suite], Any], status: int
) -> None:
    path = tmp_path / "found.json"
    command_line(monkeypatch, str(path), "--dry")
    assert run_suite("what it does", 10.0, work) == status
    found = saved(path)
    assert found["ok"] == (status == 0) and found["torch"] == torch.__version__
    assert ("ValueError: no such thing" in found.get("error", "")) == ("a" not in found["checks"])


def test_switches_schedules_and_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Suite] = []
    command_line(monkeypatch, str(tmp_path / "x.json"), "--dry", "--tune", "--seconds", "7")
    switches = {"tune": "other schedules", "more": "more of it"}
    run_suite("", 99.0, seen.append, switches=switches, dry_schedule=(8, 64, 2, 2))
    assert seen[0].switches == {"tune"} and seen[0].dry_schedule == (8, 64, 2, 2)
    assert seen[0].left() <= 7


def test_a_process_that_compiles_does_its_share_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Jobs 1, 4, 7 of 8 by the second of three; one that fails keeps none of the others."""
    done: list[int] = []

    def job(number: int) -> Call:
        return broken if number == 4 else lambda: done.append(number)

    path = tmp_path / "x.json"
    command_line(monkeypatch, str(path), "--dry", "--processes", "3", "--warm", "1")

    def work(suite: Suite) -> None:
        pytest.fail("nothing is measured")

    assert run_suite("", 9.0, work, jobs=lambda suite: [job(n) for n in range(8)]) == 0
    assert done == [1, 7] and not path.exists()


def test_processes_that_compile_get_half_of_the_time(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's own module once for every share; one that hangs is ended."""
    started: list[list[str]] = []
    waits: list[float] = []
    ended: list[bool] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            started.append(command)

        def wait(self, timeout: float) -> None:
            waits.append(timeout)
            raise subprocess.TimeoutExpired("", timeout)

        def kill(self) -> None:
            ended.append(True)

    monkeypatch.setattr(subprocess, "Popen", Process)
    module = SimpleNamespace(__spec__=SimpleNamespace(name="tilewright.bench.gpu_something"))
    monkeypatch.setitem(sys.modules, "__main__", module)
    suite.compile_all(2)
    path, asked = str(suite.path), ["--processes", "2", "--warm"]
    start = [sys.executable, "-m", "tilewright.bench.gpu_something", path, *asked]
    assert started == [[*start, "0"], [*start, "1"]]
    assert len(ended) == 2 and all(1.0 <= seconds <= 30.0 for seconds in waits)
    assert "compile_seconds" in suite.found


# ---- the names of rows


@pytest.fixture
def as_on_a_device(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Where nothing is called, and all calls take a millisecond."""
    monkeypatch.setattr(suite, "times", lambda calls, *_, **__: dict.fromkeys(calls, 1.0))
    monkeypatch.setattr(suite, "check", lambda *_: True)
    suite.dry = False
    return suite


def test_rows_of_low_bits_are_called_as_their_floors(suite: Suite) -> None:
    times = {"u4": 0.02, "torch bf16": 0.05, "torch int4": 0.04, "f6e3m2": 0.03}
    gpu_lowbit._record(suite, (16, 8192, 57344), times, HOPPER)
    rows = suite.found["rows"]
    assert "u4 M16 K8192 N57344" in rows.keys() & FLOORS and "f6e3m2 M16 K8192 N57344" in rows
    floor = roofline.table(HOPPER)["u4 M16 K8192 N57344"]["ms"]
    assert rows["u4 M16 K8192 N57344"] == {
        "ours": {
            "ms": 0.02,
            "share_of_floor": round(floor / 0.02, 3),
            "times_torch_bf16": 2.5,
            "times_best_peer": 2.0,
        },
        "torch bf16": {"ms": 0.05, "times_best_peer": 0.8},
        "torch int4": {"ms": 0.04, "times_best_peer": 1.0},
    }


def test_rows_of_attention_are_called_as_their_floors(
    as_on_a_device: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = [torch.randn(1, 2, 8, 16) for _ in range(3)]
    monkeypatch.setattr(gpu_attention, "_inputs", lambda *_: tiny)
    for length in (4096, 8192):
        for causal in (False, True):
            gpu_attention.beside_sdpa(as_on_a_device, length, causal)
    rows = as_on_a_device.found["rows"]
    assert rows.keys() == {name for name in FLOORS if "causal" in name}
    work = 4.0 * 2 * 8 * 8 * 16 / 1e9  # 10**9 operations in a millisecond: 10**12 a second
    assert rows["L4096 causal False"]["default"]["tflops"] == round(work, 1)


def test_rows_of_decoding_are_called_as_their_floors(
    as_on_a_device: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HEADS": 4, "KEY_HEADS": 2, "WIDTH": 16, "KEYS": 32}.items():
        monkeypatch.setattr(gpu_decode, name, value)
    codes = SimpleNamespace(nbytes=1 << 10)
    for name in ("ours", "torch_flex"):
        monkeypatch.setattr(gpu_decode.Problem, name, lambda *_, **__: lambda: torch.zeros(1))
    cache = SimpleNamespace(keys=codes, values=codes)
    monkeypatch.setattr(gpu_decode.Problem, "cache", lambda *_: cache)
    as_on_a_device.device = torch.device("cpu")
    as_on_a_device.found["copy_bytes_per_second"] = 1e9
    gpu_decode.times(as_on_a_device, 16)
    rows = as_on_a_device.found["rows"]
    assert {name for name in FLOORS if name.startswith("decode")} <= rows.keys()
    plain = rows["decode bf16"]["default"]
    read = 16 * 2 * 32 * 16 * 2 * 2 + 16 * 4 * 16 * 2 * 2  # keys, values; queries, results
    assert plain["bytes"] == read and plain["share_of_copy"] == round(read / 1e6, 3)
    assert "times_bf16" not in plain and rows["decode u8 u4"]["default"]["times_bf16"] == 1.0
