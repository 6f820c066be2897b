"""Numbers and judgements as words, the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

from tilewright.bench.method.statistics import Estimate
from tilewright.bench.report.document import Document, ProblemResults, Result, Times

TIMES = "\N{MULTIPLICATION SIGN}"
QUIET, FAIR = 0.1, 0.3  # spreads of the reference kernels
FLOATS = "float weights"
LIKE_WITH_LIKE = (
    "Problems with few bits where the provider has floats for weights are left out of its mean "
    f"and counts; where it has no others, it is marked: {FLOATS}."
)


def seconds_text(seconds: float) -> str:
    """A time in the unit that suits it, to three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995 or unit == "µs":
            return f"{_three(seconds * factor)} {unit}"
    raise AssertionError("every time has a unit")


def bytes_text(count: int | None) -> str:
    if count is None:
        return "\N{EN DASH}"
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{_three(count / (1 << power))} {unit}"
    return f"{count} B"


def ratio_text(ratio: Estimate) -> str:
    return f"{_always_three(ratio.median)}{TIMES}"


def interval_text(found: Estimate) -> str:
    return f"[{_always_three(found.low)}, {_always_three(found.high)}]"


def spread_text(found: Estimate) -> str:
    """Half the interval's width in per cent."""
    return (
        f"± {100 * found.spread:.1f} %"
        if found.spread < 0.0995
        else f"± {100 * found.spread:.0f} %"
    )


def error_text(error: float | None) -> str:
    return "\N{EN DASH}" if error is None else f"{error:.1e}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def verdict(ratio: Estimate) -> str:
    """What an interval says about ours: faster, slower, or that nothing can be said."""
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "undecided"


def rival(document: Document, provider: str) -> str:
    """A provider as summaries name it: what its ratios compare with, if not with the same."""
    return f"{provider}, {FLOATS}" if document.with_floats(provider) else provider


def verdicts(document: Document, provider: str) -> dict[str, int]:
    """How many problems have each verdict, in the state of the caches that counts."""
    counts = {"faster": 0, "slower": 0, "undecided": 0}
    for _, ratio in document.headline(provider):
        counts[verdict(ratio)] += 1
    return counts


def noise_text(document: Document) -> str:
    """How noisy the machine was, and what follows."""
    noise = document.noise
    numbers = (
        f"a fixed product varied by {percent(noise.compute_spread)}, reading memory by "
        f"{percent(noise.memory_spread)} (10th to 90th percentile)"
    )
    loads = f"load {min(noise.loads):g} to {max(noise.loads):g}" if noise.loads else "load unknown"
    if noise.worst < QUIET:
        return f"The machine was quiet: {numbers}; {loads}."
    if noise.worst < FAIR:
        return f"The machine was fairly quiet: {numbers}; {loads}."
    return (
        f"The machine was noisy: {numbers}; {loads}. Times are those of a busy machine; ratios are "
        "formed within rounds, and their intervals say what the noise leaves of them."
    )


def machine_text(document: Document) -> str:
    here = document.machine
    if here.gpu:
        return f"{here.gpu}; started from {here.model}, {here.cores} cores"
    return f"{here.model}, {here.cores} cores, {here.threads} threads for every provider"


def roofs_text(document: Document) -> str:
    roofs = document.roofs
    peaks = ", ".join(f"{kind} {_rate(peak)}" for kind, peak in roofs.peaks.items())
    return (
        f"memory {_three(roofs.memory / 1e9)} GB/s, last cache ({bytes_text(roofs.cache_bytes)}) "
        f"{_three(roofs.cache / 1e9)} GB/s, {peaks}"
    )


def _rate(operations: float) -> str:
    """Operations in a second, in the unit that suits them."""
    if operations >= 1e13:
        return f"{_three(operations / 1e12)} TFLOP/s"
    return f"{_three(operations / 1e9)} GFLOP/s"


def headline_times(problem: ProblemResults, result: Result) -> Times | None:
    """In the state of the caches that counts for the problem."""
    return result.times(problem.headline)


def status_text(result: Result) -> str:
    words = {"none": "does not have it", "failed": "failed", "wrong": "wrong result"}
    return f"{words.get(result.status, result.status)}: {result.reason}"


def _three(number: float) -> str:
    """Three digits, without an exponent where that is readable."""
    if number >= 999.5 and number < 1e7:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.3g}"


def _always_three(number: float) -> str:
    """1.00, not 1: the digits say how exact it is."""
    return f"{number:#.3g}".rstrip(".") if 1e-3 < number < 999.5 else _three(number)
