"""The certificate of a campaign: what was run, where, how much, and how near to the bound it came.

A JSON file; docs/verify.md says what its fields mean. ``FORMAT`` changes when one of them does.
"""

from __future__ import annotations

import json
import math
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tilewright.ir.errors import DataError
from tilewright.runtime.fingerprint import source_hash
from tilewright.runtime.native import host_cpu
from tilewright.runtime.threads import num_threads
from tilewright.runtime.tuning.device import cpu_fingerprint
from tilewright.runtime.verification.campaign import Plan, Tally
from tilewright.runtime.verification.rounded import ROUNDINGS
from tilewright.runtime.whole_file import write_whole

FORMAT = 2
PACKAGES = ("torch", "numpy", "llvmlite", "torch-mlir", "numba", "hypothesis")

_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_RATIO = {"type": "number", "minimum": 0}
_WORST = {"anyOf": [_RATIO, {"const": "infinite"}]}
_TEXT = {"type": "string"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these fields, all of them and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMA = _object(  # a JSON schema of the whole
    {
        "format": {"const": FORMAT},
        "made": _TEXT,
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "device": _object(
            {"processor": _TEXT, "llvm_cpu": _TEXT, "threads": _COUNT, "system": _TEXT}
        ),
        "options": {"type": "object"},
        "cases": _COUNT,
        "calls": _COUNT,
        "elements": _COUNT,
        "unspecified_elements": _COUNT,
        "interpreted": _COUNT,
        "refused": _COUNTS,
        "undrawn": _COUNTS,
        "by_kind_and_place": {
            "type": "array",
            "items": _object(
                {
                    "kind": _TEXT,
                    "where": _TEXT,
                    "cases": _COUNT,
                    "outcomes": _COUNTS,
                    "worst_error_over_bound": _WORST,
                }
            ),
        },
        "worst_error_over_bound": _WORST,
        "explained": _COUNTS,
        "failures": {
            "type": "array",
            "items": _object(
                {
                    "file": {"type": ["string", "null"]},
                    "kind": _TEXT,
                    "where": _TEXT,
                    "status": {"enum": ["wrong", "unsteady", "error", "crash", "hang"]},
                    "message": _TEXT,
                    "error_over_bound": _WORST,
                    "batch": _COUNT,
                    "call": {"type": "object"},
                }
            ),
        },
        "repeated_failures": _COUNT,
        "processes": _COUNT,
        "seconds": _RATIO,
        "interrupted": {"type": "boolean"},
        "passed": {"type": "boolean"},
    }
)


def certificate(plan: Plan, tally: Tally, version: str, files: dict[int, Path]) -> dict[str, Any]:
    """All of it as data. ``files``: where the failures (by their places) were written."""
    places = [
        {
            "kind": kind,
            "where": where,
            "cases": sum(counts.values()),
            "outcomes": dict(sorted(counts.items())),
            "worst_error_over_bound": _finite(tally.worst.get((kind, where), 0.0)),
        }
        for (kind, where), counts in sorted(tally.by_place.items())
    ]
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(plan, version),
        "device": _device(),
        "options": {
            "kinds": list(plan.kinds),
            "places": [f"{p.backend}:{p.target or 'host'}" for p in plan.places],
            "seed": plan.seed,
            "cases": plan.cases,
            "seconds": plan.seconds,
            "roundings": ROUNDINGS,
        },
        "cases": tally.cases,
        "calls": tally.calls,
        "elements": tally.elements,
        "unspecified_elements": tally.unspecified,
        "interpreted": tally.interpreted,
        "refused": dict(tally.refused.most_common()),
        "undrawn": dict(tally.undrawn.most_common()),
        "by_kind_and_place": places,
        "worst_error_over_bound": _finite(max(tally.worst.values(), default=0.0)),
        "explained": dict(sorted(tally.explained.items())),
        "failures": [_failure(tally, at, files) for at in range(len(tally.failures))],
        "repeated_failures": tally.repeated,
        "processes": tally.processes,
        "seconds": round(tally.seconds, 1),
        "interrupted": tally.interrupted,
        "passed": tally.passed,
    }


def _finite(ratio: float) -> float | str:
    return ratio if math.isfinite(ratio) else "infinite"


def _versions(plan: Plan, version: str) -> dict[str, str]:
    found = {"tilewright": version, "sources": source_hash(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if any(place.backend == "cuda-host" for place in plan.places):
        from tilewright.backends.cuda.host import compiler_version

        found["c++"] = compiler_version()
    return found


def _device() -> dict[str, Any]:
    return {
        "processor": cpu_fingerprint(num_threads()),
        "llvm_cpu": host_cpu()[0],
        "threads": num_threads(),
        "system": platform.platform(),
    }


def _failure(tally: Tally, at: int, files: dict[int, Path]) -> dict[str, Any]:
    failure = tally.failures[at]
    (call,) = failure.case.calls
    return {
        "file": str(files[at]) if at in files else None,
        "kind": failure.case.kind,
        "where": failure.case.where,
        "status": failure.outcome.status,
        "message": failure.outcome.message,
        "error_over_bound": _finite(failure.outcome.comparison.ratio),
        "batch": failure.batch,
        "call": call.to_json(),
    }


def write_certificate(path: Path, data: dict[str, Any]) -> None:
    """Writes it, over an older one."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode(), DataError, force=True)
