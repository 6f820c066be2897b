"""Two reports of one suite: what is slower, or less exact, by more than noise.

What is compared is Tilewright's time over that of a fixed kernel in the same rounds: another hour
of the same machine changes both. A row is a regression where the intervals do not overlap and the
medians are apart by more than a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright import BenchError
from tilewright.bench.method.statistics import Estimate
from tilewright.bench.report.document import OURS, STATES, Document, ProblemResults, Result
from tilewright.bench.report.words import machine_text

THRESHOLD = 0.05
ERROR_GROWTH = 2.0
NOISE_OF_ERRORS = 1e-7  # relative: below it, an error twice as large is no news


@dataclass(frozen=True)
class Change:
    """One row: medians of the time over the reference, in A and in B. ``kind``: slower, faster,
    same, less exact, broken (had times, has none), new, gone."""

    section: str
    problem: str
    state: str
    kind: str
    before: Estimate | None = None
    after: Estimate | None = None
    reason: str = ""

    @property
    def bad(self) -> bool:
        return self.kind in ("slower", "less exact", "broken")

    @property
    def factor(self) -> float:
        """B's median over A's; 1 where one of them is missing."""
        return self.after.median / self.before.median if self.before and self.after else 1.0


@dataclass(frozen=True)
class Comparison:
    """All rows, and what one should know before believing them."""

    changes: list[Change]
    remarks: list[str]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.bad]


def compare(
    a: Document, b: Document, threshold: float = THRESHOLD, other_machine: bool = False
) -> Comparison:
    """Whether B is worse than A. Raises BenchError for different suites or machines, and for a
    trial run."""
    _require_comparable(a, b, other_machine)
    before = {(p.section, p.name): p for p in a.problems}
    after = {(p.section, p.name): p for p in b.problems}
    changes = []
    for key in dict.fromkeys((*before, *after)):
        if key not in after or key not in before:
            kind = "gone" if key in before else "new"
            changes.append(Change(*key, "", kind))
            continue
        changes += _changes(before[key], after[key], threshold)
    return Comparison(changes, _remarks(a, b))


def _require_comparable(a: Document, b: Document, other_machine: bool) -> None:
    if a.suite != b.suite:
        raise BenchError(f"the reports are of different suites: {a.suite} and {b.suite}")
    for document, name in ((a, "first"), (b, "second")):
        if document.method.quick:
            raise BenchError(f"the {name} report is of a --quick run, whose numbers mean nothing")
    texts = [f"{d.machine.kind}: {d.machine.gpu or machine_text(d)}" for d in (a, b)]
    if texts[0] != texts[1] and not other_machine:
        raise BenchError(
            f"the reports are of different machines, {texts[0]} and {texts[1]}; --other-machine "
            "compares them all the same"
        )


def _changes(a: ProblemResults, b: ProblemResults, threshold: float) -> list[Change]:
    """Of one problem: both states of the caches, and its error."""
    ours, theirs = a.of(OURS), b.of(OURS)
    row = Change(a.section, a.name, "", "same")
    if ours is None or ours.warm is None:
        return []
    if theirs is None or theirs.warm is None:
        reason = f"{theirs.status}: {theirs.reason}" if theirs else "not measured"
        return [replace(row, kind="broken", reason=reason)]
    found = []
    for state in STATES:
        mine, yours = ours.times(state), theirs.times(state)
        if mine and yours:
            same = a.bounds.get(state) == b.bounds.get(state)  # one reference, or the plain times
            was, now = (mine.reference, yours.reference) if same else (mine.time, yours.time)
            reason = "" if same else "bound by something else now: plain times are compared"
            kind = _kind(was, now, threshold)
            found.append(replace(row, state=state, kind=kind, before=was, after=now, reason=reason))
    return [*found, *_less_exact(row, ours, theirs)]


def _kind(a: Estimate, b: Estimate, threshold: float) -> str:
    if b.low > a.high and b.median > a.median * (1 + threshold):
        return "slower"
    if b.high < a.low and b.median < a.median / (1 + threshold):
        return "faster"
    return "same"


def _less_exact(row: Change, a: Result, b: Result) -> list[Change]:
    was, now = a.error_relative, b.error_relative
    if was is None or now is None or now <= max(was * ERROR_GROWTH, NOISE_OF_ERRORS):
        return []
    return [replace(row, kind="less exact", reason=f"relative error {was:.1e}, now {now:.1e}")]


def _remarks(a: Document, b: Document) -> list[str]:
    """Versions that differ, and noise that hides what is small."""
    remarks = []
    for name in sorted({*a.machine.versions, *b.machine.versions}):
        old, new = a.machine.versions.get(name), b.machine.versions.get(name)
        if old != new:
            remarks.append(f"{name}: {old or 'absent'}, now {new or 'absent'}")
    worst = max(a.noise.worst, b.noise.worst)
    if worst >= 0.3:
        remarks.append(
            f"the machine was noisy (a fixed kernel varied by {100 * worst:.0f} %): only large "
            "changes can be seen"
        )
    few = min(a.method.sittings, b.method.sittings)
    if few < 3:
        remarks.append(f"only {few} sittings: the intervals do not know what differs between runs")
    return remarks


def agreement(a: Document, b: Document) -> dict[str, int]:
    """Of two runs of one build: how many ratios there are in both, how many have overlapping
    intervals, and how many of B lie in A's and of A in B's."""
    counts = {"rows": 0, "overlap": 0, "b in a": 0, "a in b": 0}
    for problem in a.problems:
        other = next(
            (p for p in b.problems if (p.section, p.name) == (problem.section, problem.name)), None
        )
        for result in problem.results if other else ():
            beside = other.of(result.provider) if other else None
            for state in STATES:
                mine, yours = result.times(state), beside.times(state) if beside else None
                if mine and yours and mine.ratio and yours.ratio:
                    counts["rows"] += 1
                    counts["overlap"] += mine.ratio.overlaps(yours.ratio)
                    counts["b in a"] += yours.ratio.median in mine.ratio
                    counts["a in b"] += mine.ratio.median in yours.ratio
    return counts
