"""What was checked of the whole: a stranger's first minutes, drawn programs, planted faults, fuzzed
text, as rows for docs/results.md from the newest files of each kind in ``bench/results/``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilewright.bench.records import RESULTS

HEAD = """\
## Checks of the whole

Each is made by a command of its own, whose file in `bench/results/` says when, where and of which
version.

| what | measured | goal |
|---|---|---|
"""


def checks(results: Path = RESULTS) -> str:
    """The section; "" where there is no file."""
    rows = [f"| {what} | {measured} | {goal} |" for what, measured, goal in _rows(results)]
    return HEAD + "\n".join(rows) if rows else ""


def _newest(results: Path, pattern: str) -> dict[str, Any] | None:
    """The file of the latest day; of several of one day the last by name."""
    found = sorted(results.glob(pattern), key=lambda path: (path.stem[-10:], path.stem))
    if not found:
        return None
    data: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return data


def _rows(results: Path) -> Iterator[tuple[str, str, str]]:
    if stranger := _newest(results, "*/stranger-*.json"):
        yield (
            "the README's quick start in an empty environment, downloads included "
            "(`.ci/stranger.py`)",
            f"{stranger['seconds']:.0f} s",
            f"{stranger['must_seconds']:.0f} s",
        )
    if imports := _newest(results, "*/import-*.json"):
        milliseconds = 1e3 * imports["median_wall_seconds"]
        goal = f"{1e3 * imports['must_seconds']:.0f} ms"
        yield "`import tilewright` after `import torch`", f"{milliseconds:.0f} ms", goal
    if lines := _newest(results, "coverage-*.json"):
        share, must = _covered(lines), lines["must"]
        yield (
            "lines of `ir`, `passes`, `frontend`, `runtime` that the tests run",
            f"{share:.1%}",
            f"{must:.0%}{_missed(share >= must)}",
        )
    if mutants := _newest(results, "mutation-*.json"):
        share = mutants["share killed"]
        counts = f"{mutants['killed']} of {mutants['counted']}"
        yield (
            "faults planted in passes and layouts that the tests see ([mutation.md](mutation.md))",
            f"{share:.1%} ({counts})",
            f"80%{_missed(share >= 0.8)}",
        )
    if drawn := _newest(results, "*/verify-*.json"):
        yield (
            "`tilewright verify` ([verify.md](verify.md)): drawn programs on "
            + ", ".join(place.partition(":")[0] for place in drawn["options"]["places"]),
            f"{drawn['cases']:,} cases, {drawn['calls']:,} calls, {drawn['seconds'] / 60:.0f} "
            f"minutes: {len(drawn['failures']) or 'no'} failures",
            f"none{_missed(drawn['passed'])}",
        )
    if runs := _newest(results, "*/bench-agreement-*.json"):
        within = min(runs["share of medians in the other's interval"])
        yield (
            f"two runs of `bench {runs['suite']}` of one build ([measuring.md](measuring.md)): "
            "ratios whose medians lie in the other run's interval",
            f"{within:.0%} of {runs['counts']['rows']}; intervals overlap of "
            f"{runs['share overlapping']:.0%}",
            f"90%{_missed(within >= 0.9)}",
        )
    if fuzzed := _newest(results, "*/fuzz-*.json"):
        others = [x["target"] for x in fuzzed["campaigns"] if x["target"] != "parser"]
        for what, inputs, findings in (
            ("the parser", *_fuzzed(fuzzed, ["parser"])),
            (f"{len(others)} other readers of files", *_fuzzed(fuzzed, others)),
        ):
            must = 10_000_000 if what == "the parser" else 0
            yield (
                f"mutilated inputs of {what}, without a crash or hang",
                f"{inputs:,}, {findings or 'no'} findings" + ", mended" * bool(findings),
                f"{must:,}{_missed(inputs >= must)}" if must else "",
            )


def _covered(data: dict[str, Any]) -> float:
    each = data["lines"].values()
    return float(sum(x["run"] for x in each) / sum(x["lines"] for x in each))


def _fuzzed(data: dict[str, Any], targets: list[str]) -> tuple[int, int]:
    """Inputs and findings of all campaigns of some targets."""
    found = [x for x in data["campaigns"] if x["target"] in targets]
    findings = sum(x["outcomes"].get("finding", 0) for x in found)
    return sum(x["inputs"] for x in found), findings


def _missed(met: bool) -> str:
    return "" if met else ": missed"
