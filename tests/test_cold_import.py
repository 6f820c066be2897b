"""`import tilewright` works without any optional package, touches no GPU and is quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ("triton", "cupy", "numba", "torch_mlir", "mlir", "transformers")
SECONDS_BEYOND_TORCH = 1.0
PROGRAM = f"""
import json, sys, time
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as if it were not installed
import torch
start = time.perf_counter()
import tilewright
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "cuda": torch.cuda.is_initialized(),
                   "version": tilewright.__version__}}))
"""


def cold_import() -> dict[str, object]:
    """What a new process saw when it imported torch and then tilewright."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_import_needs_no_optional_package_and_touches_no_gpu() -> None:
    seen = cold_import()
    assert seen["cuda"] is False
    assert seen["version"]


def test_import_takes_under_a_second_beyond_torch() -> None:
    seen: list[float] = []
    for _ in range(3):  # a busy machine slows some runs, slow code slows all of them
        seen.append(float(str(cold_import()["seconds"])))
        if seen[-1] < SECONDS_BEYOND_TORCH:
            return
    pytest.fail(f"importing tilewright took {seen} s beyond torch's own import")
