"""A campaign: batches of drawn cases until the budget is spent, and every failure made small.

Hypothesis draws here, reduce.py makes small, and cases run in a worker's process. A batch follows
from the campaign's seed and its number alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilewright.ir.core import Module
from tilewright.ir.errors import BackendMissingError, VerifyError
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome
from tilewright.runtime.verification.ledger import Entry, explanation
from tilewright.runtime.verification.reduce import reduced
from tilewright.runtime.verification.workers import Worker

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from tilewright.runtime.verification.grammar.cases import Place

BATCH = 50  # cases that one run of Hypothesis draws
SHRINK_SECONDS = 120.0  # for making one failure small
LESS = 4.0  # times less for what looks like a failure that is told already
MOST_FAILURES = 20  # that a campaign goes on after


@dataclass(frozen=True)
class Plan:
    """What to draw and for how long. ``cases`` and ``seconds``: None for no limit of this kind;
    ``shrink``: seconds for making one failure small; ``most``: failures after which it ends."""

    places: tuple[Place, ...]
    kinds: tuple[str, ...]
    seed: int
    cases: int | None = None
    seconds: float | None = None
    shrink: float = SHRINK_SECONDS
    most: int = MOST_FAILURES


@dataclass(frozen=True)
class Failure:
    """A case that failed, made small; its one call is what fails. ``batch``: where it is from."""

    case: Case
    outcome: Outcome
    batch: int

    @property
    def signature(self) -> tuple[str, ...]:
        """Failures of one signature are told once."""
        operations = sorted({w for w in self.case.text.split() if "." in w and w[0].isalpha()})
        return (self.case.backend, self.outcome.status, *operations)


@dataclass
class Tally:
    """What a campaign has seen. ``worst``: error ÷ bound, by kind and place."""

    cases: int = 0
    calls: int = 0
    elements: int = 0
    unspecified: int = 0
    interpreted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    undrawn: Counter[str] = field(
        default_factory=Counter
    )  # batches that a mistake in drawing ended
    by_place: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    worst: dict[tuple[str, str], float] = field(default_factory=dict)
    explained: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    repeated: int = 0  # failures like one that is told already
    processes: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether all that was planned ran, without a failure."""
        return not self.failures and not self.interrupted

    @property
    def unverified(self) -> list[tuple[str, str]]:
        """Kinds of programs and places of which every case was refused."""
        return [key for key, counts in sorted(self.by_place.items()) if set(counts) == {"refused"}]

    def add(self, case: Case, outcome: Outcome) -> None:
        """Counts a case."""
        key = case.kind, case.where
        self.cases += 1
        self.calls += len(case.calls) * (outcome.status != "refused")
        self.elements += outcome.elements
        self.unspecified += outcome.unspecified
        self.interpreted += bool(outcome.interpreted)
        counts = self.by_place.setdefault(key, Counter())
        counts[outcome.status] += 1
        if outcome.status == "refused":
            self.refused[outcome.message.split(":")[0][:100]] += 1
        if outcome.status in ("ok", "wrong"):
            self.worst[key] = max(self.worst.get(key, 0.0), outcome.comparison.ratio)


class Campaign:
    """``run`` draws and checks; ``tally`` fills meanwhile."""

    def __init__(
        self,
        plan: Plan,
        worker: Worker,
        known: Sequence[Entry] = (),
        module: Module | None = None,
    ) -> None:
        self.plan, self.worker, self.known, self.module = plan, worker, tuple(known), module
        self.tally = Tally()
        self._start = time.monotonic()
        self._watch: Callable[[Campaign], None] = lambda _: None
        self._tell: Callable[[int, Failure], None] = lambda *_: None

    def run(
        self,
        watch: Callable[[Campaign], None] = lambda _: None,
        tell: Callable[[int, Failure], None] = lambda *_: None,
    ) -> Tally:
        """Goes on until the plan's end; ``watch`` is called after every case, ``tell`` with the
        number of every failure and itself, as soon as it is small."""
        self._start, self._watch, self._tell = time.monotonic(), watch, tell
        for number in self._batches():
            self._batch(number)
        return self.stopped()

    def stopped(self) -> Tally:
        """The tally as it is now, with its time."""
        self.tally.seconds = self.elapsed
        self.tally.processes = self.worker.started
        return self.tally

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether the plan is fulfilled."""
        plan, tally = self.plan, self.tally
        return (
            (plan.cases is not None and tally.cases >= plan.cases)
            or (plan.seconds is not None and self.elapsed >= plan.seconds)
            or len(tally.failures) >= plan.most
        )

    def _batches(self) -> Iterator[int]:
        number = 0
        while not self.over:
            yield number
            number += 1

    def _strategy(self) -> SearchStrategy[Case]:
        from tilewright.runtime.verification.grammar.cases import cases, cases_of

        if self.module is not None:
            return cases_of(self.module, self.plan.places)
        return cases(self.plan.places, self.plan.kinds)

    def _batch(self, number: int) -> None:
        """Draws one batch, until a case fails: that is made small and kept."""
        import hypothesis
        from hypothesis import HealthCheck, Phase, settings

        left = BATCH if self.plan.cases is None else min(BATCH, self.plan.cases - self.tally.cases)
        failed: list[tuple[Case, Outcome]] = []

        def try_case(case: Case) -> None:
            if failed or self.over:
                return
            outcome = self.check(case)
            if outcome.failed:
                failed.append((case, outcome))

        test = hypothesis.given(self._strategy())(try_case)
        test = hypothesis.seed(self.plan.seed * 1_000_003 + number)(test)
        quiet = settings(
            max_examples=left,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
            verbosity=hypothesis.Verbosity.quiet,
        )
        try:
            quiet(test)()
        except VerifyError as error:  # drawn is what the IR refuses: our mistake, and no end
            self.tally.undrawn[error.message[:200]] += 1
        for case, outcome in failed:
            try:
                found = self._reduced(case, outcome, number)
            except KeyboardInterrupt:  # as it was drawn, rather than not at all
                self._keep(Failure(_only(case, outcome), outcome, number))
                raise
            self._keep(found)

    def _reduced(self, case: Case, outcome: Outcome, batch: int) -> Failure:
        """The failure with a smaller program and one call."""

        def check(case: Case) -> Outcome:
            found = self.worker.check(case)
            known = found.failed and explanation(self.known, case, found) is not None
            return Outcome("explained") if known else found

        until = time.monotonic() + self.patience(outcome, case)
        return Failure(*reduced(_only(case, outcome), outcome, check, until), batch)

    def _keep(self, failure: Failure) -> None:
        if failure.signature in {f.signature for f in self.tally.failures}:
            self.tally.repeated += 1
        else:
            self._tell(len(self.tally.failures), failure)
            self.tally.failures.append(failure)

    def patience(self, outcome: Outcome, case: Case) -> float:
        """Seconds for making a failure small: less for what may be one that is told already."""
        like = (case.backend, outcome.status)
        told = {(f.case.backend, f.outcome.status) for f in self.tally.failures}
        return self.plan.shrink / (LESS if like in told else 1.0)

    def check(self, case: Case) -> Outcome:
        """One case, counted; a failure that the ledger explains counts as explained."""
        outcome = self.worker.check(case)
        entry = explanation(self.known, case, outcome) if outcome.failed else None
        if entry is not None:
            self.tally.explained[entry.name] += 1
            outcome = Outcome("explained", entry.reason)
        self.tally.add(case, outcome)
        self._watch(self)
        return outcome


def _only(case: Case, outcome: Outcome) -> Case:
    """The case with the call that failed alone."""
    return Case(case.kind, case.text, case.backend, case.target, (case.calls[outcome.call],))


def require_hypothesis() -> None:
    """Raises BackendMissingError without it."""
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError:
        raise BackendMissingError(
            "tilewright verify draws programs with Hypothesis, which is not installed: "
            "pip install 'tilewright[verify]'"
        ) from None
