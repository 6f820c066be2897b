"""The session on a lent GPU: suites in order, time kept, what is missing said; floors."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tilewright.bench import gpu_session, roofline
from tilewright.bench.gpu_session import REPORTS, SUITES, Suite
from tilewright.bench.roofline import Ceilings, Work
from tilewright.bench.suites import catalogue as bench_suites

HOPPER = Ceilings(3.0e12, 800e12)


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Suites run this text of Python."""
    monkeypatch.setattr(gpu_session, "command", lambda *facts: [sys.executable, "-c", text])
    monkeypatch.setattr(gpu_session.importlib.util, "find_spec", lambda name: name)


def run(suite: Suite, out: Path, seconds: float) -> dict[str, object]:
    return gpu_session.run(suite, out, time.monotonic() + seconds, dry=True)


def test_what_becomes_of_a_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    suite = Suite("gpu_something", 30, least=1)
    assert run(suite, tmp_path, 60)["state"] == "not there yet"
    script(monkeypatch, "print('said')")
    assert run(suite, tmp_path, 60) | {"seconds": 0} == {"state": "good", "ok": True, "seconds": 0}
    assert (tmp_path / "gpu_something.log").read_text() == "said\n"
    assert run(replace(suite, least=100), tmp_path, 60)["state"] == "no time left"
    script(monkeypatch, "raise SystemExit(3)")
    assert run(suite, tmp_path, 60)["state"] == "failed (3)"
    script(monkeypatch, "import time; time.sleep(60)")
    began = time.monotonic()
    assert run(suite, tmp_path, 5)["state"] == "cut off"
    assert time.monotonic() - began < 30


def test_commands(tmp_path: Path) -> None:
    by_name = {suite.name: suite for suite in SUITES}
    plain = gpu_session.command(by_name["gpu_attention"], tmp_path, 12.3, dry=False)
    assert plain[1:3] == ["-m", "tilewright.bench.gpu_attention"]
    assert plain[3:6] == [str(tmp_path / "gpu_attention.json"), "--seconds", "12"]
    assert plain[6:] == ["--processes", "0"]
    tests = gpu_session.command(by_name["gpu_tests"], tmp_path, 9, dry=True)
    assert "tests/runtime/test_cuda_on_gpu.py" in tests and tests[-1] == "--collect-only"
    assert "TRITON_INTERPRET" in gpu_session.environment(True)
    carried = gpu_session.environment(False)["PYTHONPATH"].split(":")
    assert carried[1].endswith("build/gpu_site")
    whole = gpu_session.WARM_SECONDS + sum(suite.seconds for suite in SUITES)
    assert whole < 540  # a lent machine's command


def test_reports_of_all_suites(tmp_path: Path) -> None:
    assert [suite.report for suite in REPORTS] == list(bench_suites.SUITES)
    assert sum(suite.seconds for suite in REPORTS) <= 520
    for suite in REPORTS:
        words = gpu_session.command(suite, tmp_path, 60, dry=False)
        assert words[1:5] == ["-m", "tilewright", "bench", suite.report]
        assert words[5:9] == ["--device", "cuda", "--json", str(tmp_path / f"{suite.name}.json")]
        assert gpu_session.command(suite, tmp_path, 60, dry=True) == [*words, "--dry"]


def test_a_report_that_takes_too_long_may_keep_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    text = f"""
import pathlib, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(kept)!r}).write_text("some sittings")
"""
    script(monkeypatch, text)
    monkeypatch.setattr(gpu_session, "LAST_SECONDS", 5.0)
    began = time.monotonic()
    assert run(Suite("bench_x", 30, least=1, report="x"), tmp_path, 11)["state"] == "cut off"
    assert kept.read_text() == "some sittings" and time.monotonic() - began < 30


def test_everything_is_compiled_at_once_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, *others = gpu_session.warming(SUITES, tmp_path)
    commands = dict([first, *others])
    shares = [words for name, words in commands.items() if name.startswith("gpu_lowbit-")]
    assert [words[-3:] for words in shares] == [["5", "--warm", str(n)] for n in range(5)]
    assert all(words.count("--processes") == 1 for words in shares)
    assert "gpu_tests" in commands and "gpu_routing" in commands
    script(monkeypatch, "import time; time.sleep(60)")
    assert gpu_session.warm([Suite("a", 1), Suite("b", 1, compilers=2)], tmp_path, 3) < 30
    assert sorted(x.name for x in (tmp_path / "warm").iterdir()) == ["a.log", "b-0.log", "b-1.log"]


def test_shares_of_the_floor(tmp_path: Path) -> None:
    floors = {"floors": roofline.table(HOPPER)}
    (tmp_path / "roofline.json").write_text(json.dumps(floors))
    floor = floors["floors"]["L4096 causal False"]["ms"]
    rows = {"L4096 causal False": {"ours": {"ms": 2 * floor}}, "other": {"x": {"ms": 1}}}
    (tmp_path / "gpu_attention.json").write_text(json.dumps({"rows": rows}))
    assert gpu_session.shares(tmp_path) == {"L4096 causal False: ours": 0.5}
    assert gpu_session.shares(tmp_path / "nowhere") == {}


def test_floors() -> None:
    """Against sums done by hand."""
    work = roofline.attention(4, 16, 4096, 4096, 128)
    assert work == Work(4 * 4 * 16 * 4096 * 128 * 2, 4 * 4 * 16 * 4096 * 4096 * 128)
    assert work.bound(HOPPER) == "operations"
    assert work.seconds(HOPPER) == pytest.approx(4 * 4 * 16 * 4096**2 * 128 / 800e12)
    cache = roofline.decode(16, 32, 8, 8192, 128, (16, 16))
    assert cache.bound(HOPPER) == "bytes"
    assert cache.seconds(HOPPER) == pytest.approx(5.371e8 / 3e12, rel=1e-3)
    weight = roofline.low_bit(1, 8192, 8192, 4)
    assert weight.bytes == 8192 * 8192 / 2 + 2 * 8192 * 64 + 4 * 8192
    one, many = (roofline.experts(m, 8, 128, 2816, 704) for m in (1, 4096))
    assert one.bytes == pytest.approx(8 * 2 * 3 * 2816 * 704, rel=1e-3)
    assert many.bytes == pytest.approx(128 * 2 * 3 * 2816 * 704 + 4 * 4096 * 2816, rel=1e-6)


def test_ceilings_are_measured() -> None:
    found = roofline.measure(torch.device("cpu"), dry=True)
    assert found.bytes_per_second > 1e6 and found.operations_per_second > 1e6
