"""The document of one run. ``schema.json`` beside this file describes its JSON.

A ratio is a provider's time over ours in the same round: above 1, ours is faster.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tilewright import BenchError
from tilewright.bench.machine import Load, Machine
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.method.statistics import Estimate, Positive, geometric_mean
from tilewright.bench.report.reading import made

FORMAT, VERSION = "tilewright-bench", 1
SCHEMA = Path(__file__).with_name("schema.json")
OURS = "tilewright"
STATES = ("warm", "cold")


@dataclass(frozen=True)
class Times:
    """Of one provider on one problem with caches warm or cold: seconds, the ratio (None for ours
    and where ours was not measured), the time over the reference kernel's of the same round
    (reading memory for what is bound by bytes), the share of the roofline, seconds
    [sitting][round]."""

    time: Estimate
    ratio: Estimate | None
    reference: Estimate
    roof: float
    samples: list[list[Positive]]


@dataclass(frozen=True)
class Result:
    """What one provider did with a problem. ``status``: ok, wrong (its error is beyond the
    problem's tolerance: no times), failed, none (it has nothing for it). ``tried``: seconds of a
    call of every form, of which ``form`` was measured; ``float_weights``: with floats for weights
    where the problem has codes. Bytes: at the highest during a call, and kept before it."""

    provider: str
    status: Annotated[str, ("ok", "wrong", "failed", "none")]
    form: str = ""
    reason: str = ""
    tried: dict[str, float] = field(default_factory=dict)
    error_max: float | None = None
    error_relative: float | None = None
    first_call: float | None = None
    peak_bytes: int | None = None
    kept_bytes: int | None = None
    warm: Times | None = None
    cold: Times | None = None
    float_weights: bool = False

    def times(self, state: str) -> Times | None:
        return self.warm if state == "warm" else self.cold


@dataclass(frozen=True)
class ProblemResults:
    """One problem and all results. Floors: the least seconds that the roofs allow, by state, and
    what they come from (``bytes`` or ``operations``)."""

    name: str
    section: str
    parameters: dict[str, Any]
    operations: float
    bytes: float
    arithmetic: str
    size: float
    series: str
    headline: Annotated[str, STATES]
    tolerance: Positive
    floors: dict[str, float]
    bounds: dict[str, Annotated[str, ("bytes", "operations")]]
    results: list[Result]

    def of(self, provider: str) -> Result | None:
        return next((r for r in self.results if r.provider == provider), None)


@dataclass(frozen=True)
class ProviderState:
    """``status``: measured, absent (``reason``, ``install``), failed (it could not be loaded)."""

    name: str
    title: str
    status: Annotated[str, ("measured", "absent", "failed")]
    versions: dict[str, str]
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class Launch:
    """Seconds of a provider's call on next to no data."""

    section: str
    provider: str
    form: str
    time: Estimate


@dataclass(frozen=True)
class Noise:
    """The reference kernels in all rounds: median seconds, and the distance of the 90th and the
    10th percentile as a share of it; the load of the machine, from the first to the last
    sitting."""

    compute_seconds: float
    compute_spread: float
    memory_seconds: float
    memory_spread: float
    loads: list[Load]

    @property
    def worst(self) -> float:
        return max(self.compute_spread, self.memory_spread)


@dataclass(frozen=True)
class Method:
    """How it was measured: docs/measuring.md says what the numbers mean."""

    sittings: int
    seconds: float
    confidence: Positive
    evicted_bytes: int
    quick: bool
    caches: str  # of compiled kernels at the start: new, or as found
    processes: bool = False  # each sitting had one of its own


@dataclass(frozen=True)
class Document:
    """One run of one suite."""

    format: str
    version: int
    suite: str
    about: str
    date: str
    seconds: float
    machine: Machine
    roofs: Roofs
    method: Method
    noise: Noise
    providers: list[ProviderState]
    launches: list[Launch]
    problems: list[ProblemResults]

    def to_json(self) -> str:
        return json.dumps(rounded(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

    @property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(problem.section for problem in self.problems))

    @property
    def measured(self) -> list[str]:
        """Providers with at least one time, ours first."""
        timed = {r.provider for p in self.problems for r in p.results if r.warm}
        return [state.name for state in self.providers if state.name in timed]

    def headline(self, provider: str) -> Iterator[tuple[ProblemResults, Estimate]]:
        """Its problems with their ratios, in the state of the caches that counts for each. Those
        where its weights are floats and ours codes only if it has no others: such ratios say what
        few bits gain, not who has the better kernel."""
        floats = self.with_floats(provider)
        for problem in self.problems:
            result = problem.of(provider)
            times = result.times(problem.headline) if result else None
            if result and times and times.ratio and result.float_weights == floats:
                yield problem, times.ratio

    def with_floats(self, provider: str) -> bool:
        """Whether all of its times are with floats for weights where the problem has codes."""
        found = (problem.of(provider) for problem in self.problems)
        return all(result.float_weights for result in found if result and result.warm)

    def mean_ratio(self, provider: str) -> float:
        return geometric_mean([ratio.median for _, ratio in self.headline(provider)])


def rounded(data: Any) -> Any:
    """Numbers to six digits: more than any of them means; what is not finite as null."""
    if isinstance(data, float):
        return float(f"{data:.6g}") if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [rounded(value) for value in data]
    return data


# ---- files


def load(path: Path) -> Document:
    """A report from its file. Raises BenchError if it is none, damaged, or of a newer version."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot read the report {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"{path} is no report: not UTF-8 text") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """A report from its text; ``name`` is for messages."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{name} is no report, or is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        hint = (
            " (a record of `bench figures` has no ratios by rounds)"
            if "comparisons" in data
            else ""
        )
        raise BenchError(
            f'{name} is no report of `tilewright bench`: "format" is not {FORMAT}{hint}'
        )
    if data.get("version") != VERSION:
        given = data.get("version")
        todo = "update it" if str(given) > str(VERSION) else "measure again"
        raise BenchError(
            f"{name} has version {given!r} of the format, this Tilewright reads {VERSION}: {todo}"
        )
    try:
        document: Document = made(Document, data, "report")
        _check(document)
    except ValueError as error:
        raise BenchError(f"{name} is damaged: {error}; measure again") from error
    return document


def _check(document: Document) -> None:
    """What one part says of another. Raises ValueError."""
    known = {state.name for state in document.providers}
    for at, launch in enumerate(document.launches):
        _require(launch.provider in known, f"launches[{at}].provider", launch.provider)
    for at, problem in enumerate(document.problems):
        where = f"problems[{at}]"
        if problem.series and not problem.size:
            raise ValueError(
                f"report.{where}.size is 0.0; in a series a number above 0 is expected"
            )
        for part in ("floors", "bounds"):
            if missing := set(STATES) - set(getattr(problem, part)):
                raise ValueError(f"report.{where}.{part} has no {', '.join(sorted(missing))}")
        for number, result in enumerate(problem.results):
            _require(
                result.provider in known, f"{where}.results[{number}].provider", result.provider
            )


def _require(known: bool, where: str, name: str) -> None:
    if not known:
        raise ValueError(f"report.{where} is {name!r}, which is not among report.providers")
