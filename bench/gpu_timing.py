"""What suites for a CUDA device share: findings as JSON, checks, times in interleaved rounds, and
kernels compiled beforehand by several processes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from tilewright.gpu import using_schedule

Call = Callable[[], object]
FLUSHED = 256 << 20  # bytes: more than any second-level cache
FLUSHES = 4  # so long that the call's own start on the host is over before the device is done
WARM_UP = 3  # calls: the first compiles, the second may still pick an algorithm
DRY_SCHEDULE = (16, 16, 4, 2)


class Suite:
    """What was found so far, and how long the whole may take.

    ``dry``: tiny problems on CPU tensors in Triton's interpreter, with kernels of
    ``dry_schedule``. ``switches`` are those that the command line turned on.
    """

    def __init__(
        self,
        path: Path,
        seconds: float,
        dry: bool,
        dry_schedule: tuple[int, int, int, int] = DRY_SCHEDULE,
        switches: Sequence[str] = (),
    ) -> None:
        self.path, self.dry, self.dry_schedule = path, dry, dry_schedule
        self.switches = frozenset(switches)
        self.end = time.perf_counter() + seconds
        self.device = torch.device("cpu" if dry else "cuda")
        self.found: dict[str, Any] = {"checks": {}, "rows": {}, "notes": []}
        self.noise = None if dry else torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def left(self) -> float:
        return self.end - time.perf_counter()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.found["notes"].append(text)

    def failed(self, what: str, problem: Exception) -> None:
        """Notes what raised an error."""
        self.note(f"{what}: {type(problem).__name__}: {problem}"[:600])

    def kernels(self) -> AbstractContextManager[None]:
        """Where CPU tensors get GPU kernels, for a dry run."""
        return using_schedule(*self.dry_schedule) if self.dry else nullcontext()

    def describe(self) -> None:
        """Keeps what it runs with."""
        self.found["torch"] = torch.__version__
        if self.dry:
            return
        import triton

        self.found["triton"] = triton.__version__
        self.found["device"] = torch.cuda.get_device_name()
        self.found["capability"] = list(torch.cuda.get_device_capability())

    # ---- correctness

    def check(self, key: str, error: Callable[[], float], bound: float) -> bool:
        """Keeps whether an error is below its bound; what fails is wrong, and noted."""
        try:
            found = error()
        except Exception as problem:
            self.failed(key, problem)
            found = float("nan")
        self.found["checks"][key] = good = found < bound
        if good:
            print(f"{key}: error {found:.2e}", flush=True)
        else:
            self.note(f"WRONG {key}: error {found:.2e}")
        self.save()
        return good

    # ---- times

    def times(
        self, calls: Mapping[str, Call], rounds: int = 9, repeats: int = 1
    ) -> dict[str, float]:
        """Median milliseconds of interleaved calls; a call that fails is left out, and noted.

        Caches are flushed before each call, as a model's other layers would do. ``repeats`` calls
        one after the other count as one, for calls of milliseconds that no cache helps.
        """
        usable = {name: call for name, call in calls.items() if self._works(name, call)}
        found: dict[str, list[float]] = {name: [] for name in usable}
        for _ in range(1 if self.dry else rounds):
            for name, call in usable.items():
                found[name].append(self.milliseconds(call, repeats))
        return {name: statistics.median(each) for name, each in found.items()}

    def record(
        self,
        key: str,
        times: Mapping[str, float],
        more: Callable[[str, float], Mapping[str, float]] = lambda name, ms: {},
    ) -> None:
        """A row: what every call took, and beside the fastest of those named "torch …"; ``more``
        says what else is known of a call that took so many milliseconds."""
        peers = [ms for name, ms in times.items() if name.startswith("torch")]
        row: dict[str, dict[str, float]] = {}
        for name, ms in times.items():
            row[name] = {"ms": round(ms, 5), **more(name, ms)}
            if peers:
                row[name]["times_best_peer"] = round(min(peers) / ms, 3)
        self.found["rows"][key] = row
        self.save()
        print("\n".join(_lines(key, row)), flush=True)

    def rounds(self, key: str, calls: Mapping[str, Call]) -> None:
        """Times as a row."""
        self.record(key, self.times(calls))

    def _works(self, name: str, call: Call) -> bool:
        try:
            for _ in range(1 if self.dry else WARM_UP):
                call()
            if not self.dry:
                torch.cuda.synchronize()
        except Exception as problem:
            self.failed(name, problem)
            return False
        return True

    def milliseconds(self, call: Call, repeats: int = 1) -> float:
        """Of the device, between two events; the call's own start is not waited for, since what
        flushes the caches is still under way."""
        if self.noise is None:
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e3
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        for _ in range(FLUSHES):
            self.noise.zero_()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / repeats

    # ---- compiling

    def compile_all(self, processes: int) -> None:
        """Fills the caches of Triton and torch by processes that each do their share of the jobs;
        half of the time that is left at most, since what is not compiled then still works."""
        began = time.perf_counter()
        spec = sys.modules["__main__"].__spec__
        assert spec is not None, "a suite is started as a module"
        command = [sys.executable, "-m", spec.name, str(self.path), "--processes", str(processes)]
        started = [subprocess.Popen([*command, "--warm", str(i)]) for i in range(processes)]
        until = began + self.left() / 2
        for process in started:
            try:
                process.wait(timeout=max(1.0, until - time.perf_counter()))
            except subprocess.TimeoutExpired:
                process.kill()
        self.found["compile_seconds"] = round(time.perf_counter() - began, 1)
        print(f"compiled in {self.found['compile_seconds']} s", flush=True)


def run_suite(
    text: str | None,
    seconds: float,
    work: Callable[[Suite], None],
    *,
    jobs: Callable[[Suite], Sequence[Call]] | None = None,
    switches: Mapping[str, str] | None = None,
    dry_schedule: tuple[int, int, int, int] = DRY_SCHEDULE,
) -> int:
    """Reads the command line, does the work, saves: 1 if a check failed.

    ``jobs`` are calls that compile what will be measured, for a suite with so many kernels that one
    process would take too long. ``switches``: more options without a value, and what they say.
    """
    switches = switches or {}
    options = _options(text, seconds, switches)
    on = [name for name in switches if getattr(options, name)]
    suite = Suite(Path(options.path), options.seconds, options.dry, dry_schedule, on)
    with suite.kernels(), torch.inference_mode():
        if options.warm is not None:
            _compile(jobs(suite)[options.warm :: options.processes] if jobs else ())
            return 0
        try:
            suite.describe()
            if jobs and not suite.dry and options.processes:
                suite.compile_all(options.processes)
            work(suite)
            suite.found["ok"] = all(suite.found["checks"].values())
        except BaseException:
            suite.found["ok"] = False
            suite.found["error"] = traceback.format_exc()
            print(suite.found["error"], flush=True)
    suite.save()
    show(suite.found)
    return 0 if suite.found["ok"] else 1


def _options(text: str | None, seconds: float, switches: Mapping[str, str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--dry", action="store_true", help="tiny, without a GPU")
    most = "that compile kernels at first (0: none)"
    parser.add_argument("--processes", type=int, default=12, help=most)
    parser.add_argument("--warm", type=int, help="(a process that compiles its share)")
    for name, what in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=what)
    return parser.parse_args()


def _compile(jobs: Sequence[Call]) -> None:
    """Calls each once; what fails here will be reported where it is measured."""
    for job in jobs:
        try:
            job()
        except Exception as problem:
            print(f"while compiling: {type(problem).__name__}: {problem}"[:300], flush=True)


def show(found: Mapping[str, Any]) -> None:
    """The whole as text, last."""
    bad = [key for key, good in found["checks"].items() if not good]
    print(f"checks: {len(found['checks']) - len(bad)} good, {len(bad)} bad {bad[:6]}")
    for key, row in found["rows"].items():
        print("\n".join(_lines(key, row)))


def _lines(key: str, row: Mapping[str, Mapping[str, float]]) -> list[str]:
    """``key``, and under it every call's milliseconds and whatever else is known of it."""
    lines = [key]
    for name, values in row.items():
        more = "  ".join(f"{what} {value:g}" for what, value in values.items() if what != "ms")
        lines.append(f"  {name:32} {values['ms']:10.4f} ms  {more}")
    return lines
