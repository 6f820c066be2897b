"""What campaigns have done, as one file: counts, seeds, versions, findings."""

from __future__ import annotations

import ast
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import ROOT, Finding, Tally, limits, take
from tests.fuzz.targets import TARGETS

PACKAGES = ("lark", "numpy", "torch", "safetensors", "gguf", "onnx")


def record(states: Sequence[Path]) -> dict[str, Any]:
    """The campaigns of these states; ``inputs`` counts those that were really taken."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "campaigns": [_campaign(Tally.load(path)) for path in states],
    }


def _campaign(tally: Tally) -> dict[str, Any]:
    return {
        "target": tally.target,
        "seed": tally.seed,
        "chunk_inputs": tally.chunk_inputs,
        "inputs": tally.inputs,
        "processor_seconds": round(tally.seconds, 1),
        "slowest_seconds": round(tally.slowest_seconds, 3),
        "outcomes": dict(sorted(tally.outcomes.items(), key=lambda item: -item[1])),
        "sources": tally.sources,
        "findings": [
            {**vars(found), "now": outcome_now(tally.target, found)} for found in tally.findings
        ],
    }


def outcome_now(target: str, found: Finding) -> str:
    """What this version makes of an input that was a finding once."""
    if target not in TARGETS:
        return "unknown"
    with limits():
        return take(TARGETS[target], ast.literal_eval(found.input), Tally(target, 0, 1))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(states: Sequence[Path], out: Path) -> None:
    """Writes the record; its folder is made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record(states), indent=1) + "\n", encoding="utf-8")
