"""The figures of bundles: loading one and calling a kernel of it first, with no compiler there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tilewright.bench.programs import attention_text
from tilewright.bench.records import Goal, Quantity

_MAIN = (sys.executable, "-c", "from tilewright.cli import main; main()")
_SIZES = ("B=1,K=8,G=1,N=64,M=64", "B=1,K=8,G=1,N=1,M=1")


def bundle_calls(runs: int = 5) -> list[Quantity]:
    """What the first call of an attention kernel in a bundle takes in a new process without MLIR,
    LLVM, Numba, Lark and Triton, from torch imported on, and from NumPy alone: the fastest of
    ``runs``. Parts are in the details."""
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        bundle = make_bundle(Path(folder))
        found = {
            kind: min(
                (new_process(bundle, kind) for _ in range(runs)),
                key=lambda parts: float(parts["load_bundle"] + parts["first_call"]),
            )
            for kind in ("torch", "numpy")
        }
    return [
        Quantity(
            f"bundle of {kind} without compiler: loading and first call",
            (parts["load_bundle"] + parts["first_call"]) * 1e3,
            "ms",
            Goal(50.0),
            parts,
        )
        for kind, parts in found.items()
    ]


def make_bundle(folder: Path) -> Path:
    """A bundle of attention over heads of 64 numbers."""
    (folder / "attention.tw").write_text(attention_text(64), encoding="utf-8")
    options = [part for sizes in _SIZES for part in ("--sizes", sizes)]
    command = [*_MAIN, "bundle", str(folder / "attention.tw"), *options, "-o"]
    subprocess.run([*command, str(folder / "b")], check=True, capture_output=True)
    return folder / "b"


def new_process(bundle: Path, kind: str) -> dict[str, Any]:
    """What ``bundle_call`` prints."""
    command = [sys.executable, "-m", "tilewright.bench.bundle_call", str(bundle), kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    parts: dict[str, Any] = json.loads(done.stdout)
    assert not parts["loaded"], f"a compiler was loaded: {parts['loaded']}"
    return parts
