"""What ``run`` prints of a call: its tensors, times, errors and kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.cli.output import amount, plural, say, seconds
from tilewright.ir.dtypes import TABLE, Array
from tilewright.ir.errors import SettingError

if TYPE_CHECKING:
    from tilewright.runtime.verification.compare import Comparison

MOST_SECONDS = 5.0  # of repeating


@dataclass(frozen=True)
class RunOptions:
    """What the options of ``run`` say. ``inputs`` are texts such as ``2x8x128x64:f32``."""

    sizes: Sequence[str]
    inputs: Sequence[str]
    dtype: str | None
    seed: int
    check: bool
    backend: str | None
    target: str | None
    repeat: int


def show_times(call: Callable[[], Any], repeat: int) -> Any:
    """Calls once and then ``repeat`` times (5 s at most), says the times, gives the result."""
    start = time.perf_counter()
    result = call()
    first = time.perf_counter() - start
    times: list[float] = []
    while len(times) < repeat and (not times or sum(times) < MOST_SECONDS):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    middle, best = statistics.median(times), min(times)
    say(
        f"time    {seconds(middle)} (median of {len(times)}, best {seconds(best)}); "
        f"first call {seconds(first)}, with compiling or loading"
    )
    return result


def show_tensors(rows: Sequence[tuple[str, str]]) -> None:
    """Name and type, a line each."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, type_ in rows:
        say(f"  {name:<{width}}  {type_}")


def show_errors(
    results: Sequence[tuple[str, Array, Array, str]],
    bounds: Sequence[Comparison] | None = None,
) -> bool:
    """How far results are from the oracle's, and whether rounding explains it.

    Each is (name, result, what the oracle says, dtype of the result). ``bounds``: how they compare
    with the bound of the program (docs/verify.md); else a bound on sanity holds.
    """
    good = True
    for at, (name, got, wanted, dtype) in enumerate(results):
        if got.shape != wanted.shape:
            say(f"error   {name} has the shape {got.shape}, the oracle's {wanted.shape}  WRONG")
            good = False
            continue
        largest, scale = difference(got, wanted)
        label = f" of {name}" if len(results) > 1 else ""
        line = (
            f"error   {largest:.2g}{label}, the largest against the float64 oracle "
            f"(largest result {scale:.3g})"
        )
        if bounds is None:
            allowed = tolerance(dtype) * scale
            verdict = "" if largest <= allowed else f"  WRONG: rounding explains {allowed:.1e}"
        else:
            found = bounds[at]
            line += f"; error ÷ bound {found.ratio:.3g}"
            if found.unspecified:  # whatever differs there is no error
                elements = plural(wanted.size, "element")
                line += f" of what is specified, {found.unspecified} of {elements} are not"
            verdict = f"  WRONG: {found.error:.3g} where {found.bound:.2g} may be"
            verdict = "" if found.good else verdict
        say(line + verdict)
        good = good and not verdict
    return good


def same_count(got: int, wanted: int) -> bool:
    """Whether there are as many results as the oracle has; says it if not."""
    if got != wanted:
        say(f"error   {plural(got, 'result')}, the oracle has {wanted}  WRONG")
    return got == wanted


def difference(got: Array, wanted: Array) -> tuple[float, float]:
    """The largest error, infinite where one is NaN or infinite and the other not; the scale."""
    import numpy as np

    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if not a.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    finite = np.abs(b[np.isfinite(b)])
    return float(error.max()), float(finite.max()) if finite.size else 0.0


def tolerance(dtype: str) -> float:
    """Error that rounding explains, relative to the largest result: a check of sanity, no bound.

    Sums are formed in f32 whatever the dtype, and results rounded to it once.
    """
    known = TABLE.get(dtype)
    own = 4 * known.epsilon if known is not None and known.is_float else 0.0
    return own + 1e-4


def show_kernel(kernel: Mapping[str, Any]) -> None:
    """One line for a kernel and one for each of its compiled forms (a KernelReport as data)."""
    how = "" if kernel["runs_on"] == "compiled" else f" ({kernel['runs_on']})"
    say(f"  {kernel['name']}: {plural(len(kernel['channels']), 'channel')} of constant depth{how}")
    for form in kernel["variants"]:
        made = "loaded from the disk cache" if form["from_cache"] else "compiled"
        fixed = "".join(f", {k} = {n}" for k, n in form["static_sizes"].items())
        say(
            f"    {form['layout_class']}{fixed}, {form['backend']} for {form['target']}: {made} in "
            f"{seconds(form['seconds'])}, {amount(form['scratch_bytes'])} of scratch a thread"
        )


def no_option(given: object, option: str, why: str) -> None:
    """SettingError if an option is given that has no meaning for this kind of program."""
    if given:
        raise SettingError(f"{option}: {why}")
