"""Writes docs/results.md, all that has been measured: ``python -m tilewright.bench.results_page``.

It takes the newest results of every command and machine class; ``tilewright bench readme`` writes
it together with the README's table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilewright.bench.checks import checks
from tilewright.bench.records import RESULTS, Comparison, Goal, Quantity, Record, newest_records
from tilewright.bench.report.kept import newest_reports
from tilewright.bench.report.markdown import summary
from tilewright.bench.tables import seconds_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
_TIMES = "\N{MULTIPLICATION SIGN}"
TOPICS = {
    "attention": "Attention",
    "masks": "Masks and scores",
    "kv_cache": "Keys and values in few bits",
    "lowbit": "Weights in few bits",
    "demo": "A small Llama",
    "experts": "Layers of experts",
    "routing": "Routing",
    "expert_memory": "Memory of experts",
    "placement": "Experts on several devices",
    "cross_entropy": "Cross-entropy",
    "simulator": "The simulator",
    "schedules": "Default schedules, and what a search finds",
    "tuning-kills": "Tuning that is killed",
    "soak": "Many threads at once",
    "determinism": "What levels of determinism cost",
}
HEAD = """\
# Measured results

<!-- Written by `tilewright bench readme` from bench/results/; a test compares. -->

What Tilewright was measured to do, with the losses. Both sides run on the same machine in the
same process, in turns; times are medians, and a ratio above 1 says that Tilewright is faster.
*Goal* is the figure that we set ourselves before measuring; a missed one says so. How we measure,
and what could mislead: [measuring.md](measuring.md). `tilewright bench figures TOPIC` measures a
topic again, here or on your machine; the files are in `bench/results/`, one a run. Others' own
figures are not on this page, and none of ours are from another machine than the one named.

## Machines

| class | is |
|---|---|
"""
SUITES_HEAD = """\
## Beside everything that is installed

Whole runs of `tilewright bench SUITE`: every provider in turns with ours, in sittings, each in its
fastest form. *Speed-up* is the geometric mean of their time over ours; *undecided*: the interval
of 99 % holds 1.
"""
GPU_HEAD = """\
## {title} on a GPU

{device}, torch {torch}, Triton {triton}; {about}. The default schedule, measured by CUDA events in
interleaved rounds, caches flushed (`python -m tilewright.bench.{suite}`). Below 1 the peer is
faster.

| workload | ours | beside | their time | ratio |
|---|---|---|---|---|
"""
GPU_SUITES = {  # titles, and what was measured
    "gpu_attention": ("Attention", "bf16, B 4, H 16, D 128"),
    "gpu_decode": (
        "Decode steps",
        "32 query heads over 8 of keys, D 128, batch 16, 8,192 keys; codes of caches as they were "
        "before planes, which [gpu.md](gpu.md) has",
    ),
    "gpu_lowbit": ("Low-bit products", "bf16 activations, groups of 128"),
    "gpu_moe": (
        "Mixture-of-experts layers",
        "bf16, 128 experts, N 704, K 2,816, top 8, with the blocks of before for 4,096 tokens "
        "(128 x 128 are the default since)",
    ),
    "gpu_routing": ("Routing of tokens", "128 experts, top 8, adapters' maps, counts and places"),
}


def results_page(results: Path = RESULTS) -> str:
    """Markdown: machines, then a section for each topic, a table for each machine class."""
    records = {topic: newest_records(topic, results) for topic in TOPICS}
    kinds = {record.machine.kind: record for found in records.values() for record in found}
    lines = [HEAD + "\n".join(_machine(record) for _, record in sorted(kinds.items()))]
    for topic, found in records.items():
        if found:
            lines += [f"\n## {TOPICS[topic]}\n", *(_record(record) for record in found)]
    lines += ["", *_suites(results), "", *_gpu(results), "", checks(results)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _machine(record: Record) -> str:
    here = record.machine
    return f"| **{here.kind}** | {here.model}, {here.cores} cores, {here.threads} threads a side |"


def _record(record: Record) -> str:
    versions = record.machine.versions
    reads = record.machine.read_gb_per_s
    speed = f", memory reads at {reads:.0f} GB/s" if reads else ""
    torch = versions.get("torch", "?")
    parts = [f"**{record.machine.kind}**, {record.date[:10]}, torch {torch}{speed}.\n"]
    if record.comparisons:
        parts += ["| what | beside | ratio | ours | theirs | goal |", "|---|---|---|---|---|---|"]
        parts += map(_comparison, record.comparisons)
        parts.append("")
    if record.quantities:
        parts += ["| what | value | goal |", "|---|---|---|"]
        parts += map(_quantity, record.quantities)
        parts.append("")
    return "\n".join(parts)


def _comparison(row: Comparison) -> str:
    bound = f"; reading the bytes alone: {row.bound:.2f}{_TIMES}" if row.bound is not None else ""
    told = bound if row.met is False else ""
    return _line(
        row.name,
        row.peer,
        f"{row.ratio:.2f}{_TIMES}",
        seconds_text(row.ours.median),
        seconds_text(row.theirs.median),
        _goal(row.goal, row.met, "≥", _TIMES) + told,
    )


def _quantity(row: Quantity) -> str:
    return _line(
        row.name, f"{row.value:.3g} {row.unit}".rstrip(), _goal(row.goal, row.met, "≤", "")
    )


def _goal(goal: Goal, met: bool | None, sign: str, unit: str) -> str:
    if goal.must is None:
        return ""
    return f"{sign} {goal.must:g}{unit}, " + ("met" if met else "**missed**")


def _suites(results: Path) -> Iterator[str]:
    """A summary of each suite's newest run, with links to all of its rows."""
    reports = newest_reports(results)
    if reports:
        yield SUITES_HEAD
    for path, document in reports:
        kind, name = document.machine.kind, path.with_suffix("")
        at = f"../bench/results/{name.parent.name}/{name.name}"
        yield (
            f"**{kind}**, {document.suite}, {document.date[:10]}: "
            f"[every row]({at}.md), [as a page]({at}.html), [all samples]({at}.json).\n"
        )
        yield "\n".join(summary(document)) + "\n"


def _gpu(results: Path) -> Iterator[str]:
    """A section for each suite and GPU that it ran on."""
    for suite, (title, about) in GPU_SUITES.items():
        for _, data in gpu_runs(suite, results):
            rows = [line for name, row in data["rows"].items() for line in _gpu_row(name, row)]
            if rows:
                head = GPU_HEAD.format(**data, title=title, about=about, suite=suite)
                yield head + "\n".join(rows) + "\n"


def gpu_runs(suite: str, results: Path = RESULTS) -> Iterator[tuple[str, dict[str, Any]]]:
    """The newest results of a suite for each machine class, and its name."""
    for folder in sorted(results.glob("*")):
        newest = max(folder.glob(f"{suite}-*.json"), default=None)
        if newest is not None:
            yield folder.name, json.loads(newest.read_text(encoding="utf-8"))


def gpu_peers(row: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float, float]]:
    """Each peer of a workload with its milliseconds and ours."""
    ours = row.get("default") or row.get("ours")
    for peer, values in row.items():
        if ours is not None and peer.startswith(("torch", "published")):
            yield peer, values["ms"], ours["ms"]


def _gpu_row(name: str, row: dict[str, Any]) -> Iterator[str]:
    """A line for each peer of a workload."""
    for peer, theirs, ours in gpu_peers(row):
        ratio = f"{theirs / ours:.2f}{_TIMES}"
        yield _line(name, f"{ours:.3g} ms", peer, f"{theirs:.3g} ms", ratio)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(results_page(), encoding="utf-8")
    print(PAGE)
