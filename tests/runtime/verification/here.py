"""A worker that runs cases in the tests' own process, where bugs can be planted."""

from __future__ import annotations

from tilewright.runtime.verification import check
from tilewright.runtime.verification.campaign import Campaign, Plan, Tally
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome, check_case
from tilewright.runtime.verification.grammar.cases import Place

INTERPRETED = Place("interpreter", None)


class Here:
    """Has what ``Campaign`` asks of a worker."""

    started = 1

    def __init__(self, *_: object) -> None:
        check._program.cache_clear()  # what was compiled before a bug was planted

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        check._program.cache_clear()

    def check(self, case: Case) -> Outcome:
        return check_case(case)


def run(kind: str, cases: int, seed: int = 0, place: Place = INTERPRETED) -> Tally:
    """A campaign in this process."""
    with Here() as worker:
        plan = Plan((place,), (kind,), seed, cases=cases, shrink=float("inf"), most=1)
        return Campaign(plan, worker).run()
