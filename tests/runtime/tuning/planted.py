"""What candidates may do instead of giving a result. Trials in processes of their own import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.runtime.tuning.trial import Outcome, run_trial


def candidate(task: Any, choices: Any, effort: Any, folder: Any) -> list[Outcome]:
    """Does what the choice says; a real one is tried."""
    if "rows" in choices[0]:
        return run_trial(task, choices, effort, folder)
    for choice in choices:
        if choice.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if choice.get("abort"):
            os.abort()
        if choice.get("hang"):
            time.sleep(3600)
        if choice.get("hungry"):
            kept = []
            while True:
                kept.append(np.empty(1 << 28, np.uint8))  # not touched: quick
        if choice.get("raise"):
            raise RuntimeError("no such luck")
        if choice.get("exit"):
            os._exit(3)
        if choice.get("mark"):
            mark(choice["mark"])
    return [Outcome("ok", float(c.get("ms", 0)), 0.5) for c in choices]


def mark(number: int) -> None:
    """Says that a trial has begun, and how often; goes on when it may."""
    folder = Path(os.environ["TESTS_OF_RAY"])
    with open(folder / str(number), "ab", buffering=0) as file:
        file.write(b"x")
    while not (folder / "go").exists():
        time.sleep(0.02)


def fake_gpu(gpu: bool) -> str:
    """Stands for the fingerprint of a GPU that is not there."""
    assert gpu
    return "GPU of the test"
