"""What decode steps feel of an adapter that is loaded meanwhile, beside what they feel anyway.

A *window* lasts as long as one load and one unload, made by a thread of its own, and counts the
decode steps in it. Windows in which nothing is loaded, of as many steps, take turns with them:
other work on the machine lengthens the longest step of both.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.bench.timing import Side, timed


@dataclass(frozen=True)
class Window:
    """Seconds of the steps of two neighbouring windows."""

    loading: list[float]
    without: list[float]

    @property
    def longest(self) -> float:
        """While loading, over the median step without."""
        return max(self.loading) / statistics.median(self.without)

    @property
    def longest_without(self) -> float:
        return max(self.without) / statistics.median(self.without)

    @property
    def beside(self) -> float:
        """The longest step while loading over the longest without."""
        return max(self.loading) / max(self.without)


def windows(step: Side, load: Side, count: int) -> list[Window]:
    """``count`` pairs of windows; ``load`` loads and unloads. The window with it comes first in one
    pair and last in the next, after as many steps as the load before it took."""
    found: list[Window] = []
    for at in range(count):
        if at % 2:
            without = [timed(step) for _ in found[-1].loading]
            loading = _while_loading(step, load)
        else:
            loading = _while_loading(step, load)
            without = [timed(step) for _ in loading]
        found.append(Window(loading, without))
    return found


def details(found: Sequence[Window]) -> dict[str, float]:
    """Medians over the windows, and what the steps of all of them together say."""
    loading = sorted(one for w in found for one in w.loading)
    without = sorted(one for w in found for one in w.without)
    median = statistics.median(without)
    return {
        "windows": len(found),
        "steps a window": statistics.median(len(w.loading) for w in found),
        "median ms": median * 1e3,
        "median ms while loading": statistics.median(loading) * 1e3,
        "99th percentile ms": without[int(0.99 * len(without))] * 1e3,
        "99th percentile ms while loading": loading[int(0.99 * len(loading))] * 1e3,
        "longest / median, median of windows": statistics.median(w.longest for w in found),
        "the same without loading": statistics.median(w.longest_without for w in found),
        "longest / longest without, median of windows": statistics.median(w.beside for w in found),
        "longest of all ms": loading[-1] * 1e3,
        "longest of all ms without loading": without[-1] * 1e3,
        "longest of all / median without loading": without[-1] / median,
    }


def _while_loading(step: Side, load: Side) -> list[float]:
    """Seconds of the steps made while another thread loads; at least one. Its error is ours."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            load()
        except BaseException as error:  # raised where it is seen
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    found = [timed(step)]
    while thread.is_alive():
        found.append(timed(step))
    thread.join()
    if errors:
        raise errors[0]
    return found
