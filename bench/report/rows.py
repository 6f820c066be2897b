"""The rows of a report's tables as words: what the terminal, Markdown and the page share."""

from __future__ import annotations

from tilewright.bench.report import words as w
from tilewright.bench.report.document import OURS, Document, ProblemResults, Result

NONE = "\N{EN DASH}"  # in a cell that has nothing to say
NUMBERS = (
    "warm",
    "ratio warm",
    "cold",
    "ratio cold",
    "roof warm",
    "roof cold",
    "error",
    "largest error",
    "first call",
    "peak memory",
    "kept",
)


def result_rows(problem: ProblemResults) -> list[list[str]]:
    """Provider, form and NUMBERS of everything that has times."""
    return [
        [result.provider, result.form, *_numbers(result)]
        for result in problem.results
        if result.warm is not None
    ]


def _numbers(result: Result) -> list[str]:
    times: list[str] = []
    for found in (result.warm, result.cold):
        if found is None:
            times += [NONE, NONE]
            continue
        times.append(f"{w.seconds_text(found.time.median)} {w.spread_text(found.time)}")
        ratio = found.ratio
        times.append(f"{w.ratio_text(ratio)} {w.interval_text(ratio)}" if ratio else NONE)
    roofs = [NONE if t is None else w.percent(t.roof) for t in (result.warm, result.cold)]
    first = NONE if result.first_call is None else w.seconds_text(result.first_call)
    return [
        *times,
        *roofs,
        w.error_text(result.error_relative),
        w.error_text(result.error_max),
        first,
        w.bytes_text(result.peak_bytes),
        w.bytes_text(result.kept_bytes),
    ]


def without_times(problem: ProblemResults) -> list[str]:
    """A line for each provider that was not timed, and why."""
    return [f"{x.provider}: {w.status_text(x)}" for x in problem.results if x.warm is None]


def brief(problem: ProblemResults) -> str:
    """Our time and the closest rival, in the state of the caches that counts."""
    ours = problem.of(OURS)
    times = w.headline_times(problem, ours) if ours else None
    if times is None:
        return "not measured with Tilewright"
    rivals = [(x, w.headline_times(problem, x)) for x in problem.results if x.provider != OURS]
    ratios = [(t.ratio, x.provider) for x, t in rivals if t and t.ratio]
    text = w.seconds_text(times.time.median)
    if ratios:
        ratio, name = min(ratios, key=lambda pair: pair[0].median)
        text += f" · {w.ratio_text(ratio)} against {name}"
    return text


def facts(problem: ProblemResults) -> str:
    """Sizes, work, what bounds it."""
    sizes = ", ".join(f"{name} {value}" for name, value in problem.parameters.items())
    work = f"{problem.operations / 1e9:.3g} Gop, {problem.bytes / 1e6:.3g} MB"
    floors = ", ".join(
        f"{state} {w.seconds_text(floor)} by {problem.bounds[state]}"
        for state, floor in problem.floors.items()
    )
    return f"{sizes}. {work}; at the roofs: {floors}. Caches {problem.headline} count."


def launch_rows(document: Document) -> list[list[str]]:
    """A row for each provider, a column for each section."""
    found = {(x.section, x.provider): x.time for x in document.launches}
    names = dict.fromkeys(x.provider for x in document.launches)
    rows = []
    for name in names:
        times = [found.get((section, name)) for section in document.sections]
        rows.append([name, *(NONE if t is None else w.seconds_text(t.median) for t in times)])
    return rows


def provider_rows(document: Document) -> list[list[str]]:
    rows = []
    for state in document.providers:
        versions = ", ".join(f"{package} {number}" for package, number in state.versions.items())
        said = state.status if not state.reason else f"{state.status}: {state.reason}"
        rows.append([state.name, said, versions or NONE, state.install or NONE])
    return rows


def method_lines(document: Document) -> list[str]:
    """What was done, in sentences."""
    method, here = document.method, document.machine
    where = "each in a process of its own, " if method.processes else ""
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    return [
        f"{method.sittings} sittings, {where}in each of which inputs and weights are made anew; "
        "within one, rounds in which every provider has a turn, in a new random order each.",
        "Warm: a call that is not timed, then as many as take 2 ms. Cold: one call after "
        f"{w.bytes_text(method.evicted_bytes)} were read, with the provider's threads awake.",
        f"Intervals: {w.percent(method.confidence)}, bootstrap over sittings. Ratios are formed "
        "within rounds and only within this run.",
        "Every provider goes on with its fastest form whose result is right; a wrong one has no "
        "time.",
        f"At most (measured in this run): {w.roofs_text(document)}.",
        w.noise_text(document),
        f"Versions: {versions}. OMP_WAIT_POLICY: {here.wait_policy}. Compiled kernels at the "
        f"start: {method.caches}. The whole run took {w.seconds_text(document.seconds)}.",
        "docs/measuring.md in the repository says why it is done this way.",
    ]
