"""Everything for a lent GPU in one command: ``bench/gpu_session.sh OUT`` (``--dry``: here, tiny).

First all suites and the GPU's tests at once, for as long as kernels take to compile, whose caches
the rest then finds warm; then one suite after the other, each in a process of its own, most
important first. Writes OUT/session.json after each, so that a run cut off leaves what it has. A
suite that is not there yet, or for which no time is left, is named as such. The exit status is 1 if
any failed. ``--reports`` measures the suites of ``tilewright bench`` instead, which are kept as
OUT/bench_NAME.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_SECONDS = 70.0  # in which most kernels are compiled where nothing is measured yet
DRY_SECONDS = 600.0  # for a suite where no GPU is lent: a busy machine may take its time
ROOT = Path(__file__).resolve().parent.parent
MODULES = "tilewright.bench"


@dataclass(frozen=True)
class Suite:
    """A module of this folder run with OUT.json, --seconds N and perhaps --dry; ``tests`` says
    which tests to run instead, ``report`` which suite of ``tilewright bench``. ``least`` seconds
    are needed to begin; ``compilers``: processes that compile its kernels at first (0: a short run
    of it does)."""

    name: str
    seconds: float
    least: float = 10.0
    tests: str = ""
    compilers: int = 0
    report: str = ""


# In order of importance. Others' suites are called as soon as their module is there.
SUITES = (
    Suite("roofline", 10),
    Suite("gpu_attention", 75, least=40, compilers=5),
    Suite("gpu_lowbit", 75, least=30, compilers=5),
    Suite("gpu_decode", 40, least=15),
    Suite("gpu_moe", 45, least=20, compilers=4),
    Suite("gpu_routing", 20),
    Suite("gpu_launch", 20),
    Suite("gpu_tests", 90, tests="gpu"),
)
REPORTS = (
    Suite("bench_attention", 170, least=60, report="attention"),
    Suite("bench_lowbit", 120, least=60, report="lowbit"),
    Suite("bench_experts", 90, least=45, report="experts"),
    Suite("bench_fused", 80, least=45, report="fused"),
    Suite("bench_models", 60, least=45, report="models"),
)
SITTINGS = 3  # the fewest of which intervals know what differs between them
REPORT_SECONDS = 1.5  # for each problem
LAST_SECONDS = 20.0  # in which a report is written after Ctrl-C


def main() -> int:
    """Runs the suites that fit: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder for JSON and logs")
    parser.add_argument("--dry", action="store_true", help="tiny, without a GPU")
    parser.add_argument("--seconds", type=float, help="for everything (520; dry: no limit)")
    parser.add_argument("--only", default="", help="only suites with this in their name")
    parser.add_argument("--reports", action="store_true", help="the suites of tilewright bench")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    suites = REPORTS if options.reports else SUITES
    whole = options.seconds or (DRY_SECONDS * len(suites) if options.dry else 520.0)
    end = time.monotonic() + whole
    found: dict[str, Any] = {"dry": options.dry, "suites": {}}
    wanted = [suite for suite in suites if options.only in suite.name]
    if not (options.dry or options.reports):  # reports begin with empty caches
        found["warm_seconds"] = warm(wanted, out, min(WARM_SECONDS, whole / 3))
    for suite in wanted:
        found["suites"][suite.name] = row = run(suite, out, end, options.dry)
        _save(out, found)
        print(f"{suite.name}: {row['state']} in {row['seconds']:.0f} s", flush=True)
    found["ok"] = all(row["ok"] for row in found["suites"].values())
    found["shares"] = shares(out)
    _save(out, found)
    for name, share in found["shares"].items():
        print(f"  {name:40} {share:6.1%} of the floor's speed")
    return 0 if found["ok"] else 1


def _save(out: Path, found: dict[str, Any]) -> None:
    (out / "session.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def warm(suites: Sequence[Suite], out: Path, seconds: float) -> float:
    """Runs everything at once for so long, for what it compiles; the seconds that it took. Logs are
    in OUT/warm, numbers mean nothing."""
    began, folder = time.monotonic(), out / "warm"
    folder.mkdir(exist_ok=True)
    started = []
    for name, words in warming(suites, folder):
        started.append(_started(words, folder / f"{name}.log", dry=False))
    for process in started:
        _ended(process, max(0.1, began + seconds - time.monotonic()))
    return round(time.monotonic() - began, 1)


def warming(suites: Sequence[Suite], folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What is started at once: names, and how."""
    for suite in suites:
        plain = command(suite, folder, 5.0, False)
        for number in range(suite.compilers):
            share = ["--processes", str(suite.compilers), "--warm", str(number)]
            yield f"{suite.name}-{number}", [*plain[:6], *share]
        if not suite.compilers:
            yield suite.name, plain


def run(suite: Suite, out: Path, end: float, dry: bool) -> dict[str, Any]:
    """One suite: what became of it and how long it took. Its output is OUT/NAME.log."""
    left = end - time.monotonic()
    own = not (suite.tests or suite.report)
    if own and importlib.util.find_spec(f"{MODULES}.{suite.name}") is None:
        return {"state": "not there yet", "ok": True, "seconds": 0.0}
    if left < suite.least:
        return {"state": "no time left", "ok": False, "seconds": 0.0}
    seconds = min(DRY_SECONDS if dry else suite.seconds, left - 3)
    began = time.monotonic()
    process = _started(command(suite, out, seconds, dry), out / f"{suite.name}.log", dry)
    # a suite keeps to its seconds, give or take what is under way
    if suite.report:
        code = _ended(process, max(5.0, min(seconds, left) - LAST_SECONDS), interrupt=True)
    else:
        code = _ended(process, max(5.0, min(seconds * 1.5, left)))
    state = {0: "good", None: "cut off"}.get(code, f"failed ({code})")
    return {"state": state, "ok": code == 0, "seconds": round(time.monotonic() - began, 1)}


def _started(words: list[str], log: Path, dry: bool) -> subprocess.Popen[bytes]:
    """A process whose output goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment(dry), stdout=file, stderr=subprocess.STDOUT
        )


def _ended(process: subprocess.Popen[bytes], seconds: float, interrupt: bool = False) -> int | None:
    """Its exit status; None if it took longer, and was killed: after Ctrl-C and some time to keep
    what it has, with ``interrupt``."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if interrupt:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LAST_SECONDS)
        process.kill()
        process.wait()
        return None


def command(suite: Suite, out: Path, seconds: float, dry: bool) -> list[str]:
    """How a suite is started."""
    if suite.tests:
        marked = [
            str(path.relative_to(ROOT))
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if f"mark.{suite.tests}" in path.read_text(encoding="utf-8")
        ]
        more = ["--collect-only"] if dry else []
        return [sys.executable, "-m", "pytest", "-q", "-m", suite.tests, *marked, *more]
    path = str(out / f"{suite.name}.json")
    if suite.report:
        words = [sys.executable, "-m", "tilewright", "bench", suite.report, "--device", "cuda"]
        limits = ["--sittings", str(SITTINGS), "--seconds", str(REPORT_SECONDS)]
        return [*words, "--json", path, *limits, *(["--dry"] if dry else [])]
    more = ["--dry"] if dry else ["--processes", "0"] if suite.compilers else []
    return [
        *(sys.executable, "-m", f"{MODULES}.{suite.name}", path),
        *("--seconds", f"{seconds:.0f}", *more),
    ]


def environment(dry: bool) -> dict[str, str]:
    """This process's, with the checkout and the carried packages before all others."""
    paths = [str(ROOT), str(ROOT / "build" / "gpu_site"), os.environ.get("PYTHONPATH", "")]
    if dry:  # this machine has its own packages
        paths = paths[:1] + paths[2:]
    more = {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}
    return os.environ | more | ({"TRITON_INTERPRET": "1"} if dry else {})


def shares(out: Path) -> dict[str, float]:
    """The share of the floor's speed that each measured row with a known floor reaches."""
    try:
        floors = json.loads((out / "roofline.json").read_text(encoding="utf-8"))["floors"]
    except (OSError, KeyError, ValueError):
        return {}
    found = {}
    for path in sorted(out.glob("gpu_*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8")).get("rows", {})
        except (OSError, ValueError):
            continue
        for name, row in rows.items():
            for way, values in row.items() if isinstance(row, dict) else ():
                if name in floors and isinstance(values, dict) and values.get("ms"):
                    found[f"{name}: {way}"] = floors[name]["ms"] / values["ms"]
    return found


if __name__ == "__main__":
    sys.exit(main())
