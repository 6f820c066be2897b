"""What suites for a CUDA device share: findings as JSON, and times in interleaved rounds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from tilewright.gpu import using_schedule

Call = Callable[[], object]
FLUSHED = 256 << 20  # bytes: more than any second-level cache


class Suite:
    """What was found so far, and how long the whole may take. ``dry``: tiny problems on CPU tensors
    in Triton's interpreter."""

    def __init__(self, path: Path, seconds: float, dry: bool) -> None:
        self.path, self.dry = path, dry
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

    def kernels(self) -> AbstractContextManager[None]:
        """Where CPU tensors get GPU kernels, for a dry run."""
        return using_schedule(16, 16, 4, 2) if self.dry else nullcontext()

    def check(self, key: str, error: Callable[[], float], bound: float) -> None:
        """Keeps whether an error is below its bound; what fails is wrong."""
        try:
            found = error()
        except Exception as problem:
            self.note(f"{key}: {type(problem).__name__}: {problem}"[:600])
            found = float("nan")
        self.found["checks"][key] = found < bound
        print(f"{key}: error {found:.2e}", flush=True)
        self.save()

    def rounds(self, key: str, calls: dict[str, Call], rounds: int = 9, flush: bool = True) -> None:
        """Median milliseconds of interleaved calls, the caches flushed before each; a call that
        fails is left out. Calls named "torch …" are peers."""
        usable = {name: call for name, call in calls.items() if self._works(name, call)}
        times: dict[str, list[float]] = {name: [] for name in usable}
        for _ in range(1 if self.dry else rounds):
            for name, call in usable.items():
                times[name].append(self._milliseconds(call, flush))
        medians = {name: statistics.median(each) for name, each in times.items()}
        peers = [ms for name, ms in medians.items() if name.startswith("torch")]
        row: dict[str, Any] = {name: {"ms": round(ms, 5)} for name, ms in medians.items()}
        for name, ms in medians.items() if peers else ():
            row[name]["times_best_peer"] = round(min(peers) / ms, 3)
        self.found["rows"][key] = row
        self.save()
        print(f"{key}: " + "; ".join(f"{n} {ms:.4f} ms" for n, ms in medians.items()), flush=True)

    def _works(self, name: str, call: Call) -> bool:
        try:
            for _ in range(1 if self.dry else 3):
                call()
            if not self.dry:
                torch.cuda.synchronize()
        except Exception as problem:
            self.note(f"{name}: {type(problem).__name__}: {problem}"[:600])
            return False
        return True

    def _milliseconds(self, call: Call, flush: bool) -> float:
        """Of the device, between two events; the call's own start is not waited for, since what
        flushes the caches is still under way."""
        if self.dry:
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e3
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        assert self.noise is not None
        for _ in range(4 if flush else 1):
            self.noise.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def run_suite(text: str | None, seconds: float, work: Callable[[Suite], None]) -> int:
    """Reads OUT, --seconds and --dry, does the work, saves: 1 if a check failed."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    suite = Suite(Path(options.path), options.seconds, options.dry)
    suite.found["torch"] = torch.__version__
    try:
        if not suite.dry:
            suite.found["device"] = torch.cuda.get_device_name()
        with suite.kernels(), torch.inference_mode():
            work(suite)
        suite.found["ok"] = all(suite.found["checks"].values())
    except BaseException:
        suite.found["ok"] = False
        suite.found["error"] = traceback.format_exc()
        print(suite.found["error"], flush=True)
    suite.save()
    return 0 if suite.found["ok"] else 1
