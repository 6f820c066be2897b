"""What our provider runs for the problems of a suite, for ``tilewright tune SUITE[/PROBLEM]``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tilewright import BenchError
from tilewright.bench.providers.catalogue import OURS, PROVIDERS, Offer
from tilewright.bench.suites.catalogue import SUITES, suite, unknown
from tilewright.bench.suites.problem import NotOffered, Problem


def calls_of(name: str) -> list[Callable[[], None]]:
    """A call for each problem of a suite, or for those that have the text after the slash in their
    name or section (as in ``tilewright bench SUITE --only``). Inputs are made by the call, and gone
    after it. Raises BenchError that says what exists."""
    first, _, text = name.partition("/")
    if first not in SUITES:
        raise BenchError(
            f"{unknown('workload', first, SUITES)} (SUITE or SUITE/PROBLEM); "
            "a program's name ends in .tw, a trace's in .json"
        )
    problems = suite(first).problems(False)
    found = [x for x in problems if text in x.name or text in x.section]
    if not found:
        raise BenchError(unknown(f"problem of {first}", text, [x.name for x in problems]))
    (ours,) = (x for x in PROVIDERS if x.name == OURS)
    offer = ours.offers()[first]
    return [_call(problem, offer) for problem in found]


def _call(problem: Problem, offer: Offer) -> Callable[[], None]:
    def run() -> None:
        inputs = problem.make()
        with contextlib.suppress(NotOffered):
            for form in offer(problem, inputs):
                form.make()()

    return run
