"""`import tilewright` works without any optional package, touches no GPU and is quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIONAL = ("triton", "cupy", "numba", "torch_mlir", "mlir", "transformers")
SECONDS_BEYOND_TORCH = 0.5  # of this process's own work: 0.01 in truth
# What takes long to import, and is loaded by what needs it.
HEAVY = (
    *("torch", "numpy", "numba", "llvmlite", "torch_mlir", "mlir", "triton", "cupy", "scipy"),
    *("transformers", "safetensors", "optuna", "hypothesis", "matplotlib", "onnx", "gguf"),
    *("lark", "typer", "click", "rich", "jinja2", "sqlite3", "multiprocessing", "asyncio"),
)
PROGRAM = f"""
import json, sys, time
before = set(sys.modules)
start = time.process_time()
import tilewright
alone = time.process_time() - start
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - before]
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as if it were not installed
import torch
start = time.process_time()
for name in [name for name in sys.modules if name.partition(".")[0] == "tilewright"]:
    del sys.modules[name]
import tilewright
seconds = time.process_time() - start
print(json.dumps({{"seconds": seconds, "alone": alone, "heavy": heavy,
                   "cuda": torch.cuda.is_initialized(), "version": tilewright.__version__}}))
"""


@cache
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


def test_import_loads_nothing_heavy_and_takes_half_a_second_at_most() -> None:
    seen = cold_import()
    assert seen["heavy"] == [], "`import tilewright` loads them; load them where they are used"
    for name in ("seconds", "alone"):
        assert float(str(seen[name])) < SECONDS_BEYOND_TORCH
