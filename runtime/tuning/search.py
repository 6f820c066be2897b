"""Which choice to try next: the cost model's best first, then Optuna's tree of Parzen estimators.

Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011), as Optuna has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tilewright.ir.errors import BackendMissingError
from tilewright.passes.to_tile.choices import Choice, Space
from tilewright.runtime.tuning.database import Trial, choice_text

SEEDS = 12  # of the cost model's order, before the sampler knows anything
ENOUGH = 64  # proposals in a row that were known or invalid: the sampler has no more ideas
WORST = 4.0  # the ratio that stands for a choice without a time


class Search:
    """Proposes choices of one space and learns from their ratios to the default's time."""

    def __init__(self, space: Space, ranked: Sequence[Choice], seed: int = 0) -> None:
        self.space = space
        self._queue = [dict(choice) for choice in ranked[:SEEDS]]
        self._rest = [dict(choice) for choice in ranked[SEEDS:]]
        self._seen: set[str] = {choice_text(space.default)}
        self._sampler = _Sampler(space, seed)
        self.refused: dict[str, str] = {}  # choices that were not compiled, and why

    def know(self, trials: Iterable[Trial]) -> set[str]:
        """Learns from earlier trials, whose choices (``choice_text``) are not proposed again."""
        known = set()
        for trial in trials:
            if set(trial.choice) == set(self.space.values):
                known.add(choice_text(trial.choice))
                self.tell(trial.choice, trial.ratio)
        self._seen |= known
        return known

    def tell(self, choice: Choice, ratio: float | None) -> None:
        """A choice's time over the default's; None: there was none."""
        self._sampler.tell(choice, WORST if ratio is None else ratio)

    def next(self) -> Choice | None:
        """A choice that was not proposed before; None if there is no other."""
        while self._queue:
            choice = self._queue.pop(0)
            if self._is_new(choice):
                return choice
        for _ in range(ENOUGH):
            choice = self._sampler.propose()
            if self._is_new(choice):
                return choice
        self._queue, self._rest = self._rest, []  # the sampler repeats itself: in the model's order
        return self.next() if self._queue else None

    def _is_new(self, choice: dict[str, int]) -> bool:
        """Whether to try it; what cannot be compiled is refused here, before anything is made."""
        text = choice_text(choice)
        if text in self._seen:
            return False
        self._seen.add(text)
        reason = self.space.why_not(choice)
        if reason:
            self.refused[text] = reason
            self._sampler.tell(choice, WORST)
        return not reason


class _Sampler:
    """Optuna's sampler over the positions of values in their lists, so that near is similar."""

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise BackendMissingError(
                "tuning needs the search of Optuna: pip install 'tilewright[tune]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._trial = optuna.trial
        self._values = space.values
        self._ranges: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in space.values.items()
        }
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=SEEDS, constant_liar=True
        )
        self._study = optuna.create_study(sampler=sampler)
        self._asked: dict[str, int] = {}  # under way, and Optuna's number of each
        self._told: set[str] = set()

    def propose(self) -> dict[str, int]:
        trial = self._study.ask(self._ranges)
        choice = {name: self._values[name][at] for name, at in trial.params.items()}
        text = choice_text(choice)
        if text in self._asked or text in self._told:
            # nobody will tell: it would stand for a bad one under way from now on
            self._study.tell(trial.number, state=self._trial.TrialState.FAIL)
        else:
            self._asked[text] = trial.number
        return choice

    def tell(self, choice: Choice, ratio: float) -> None:
        """Logarithms, so that half and double count the same."""
        self._told.add(choice_text(choice))
        number = self._asked.pop(choice_text(choice), None)
        if number is not None:
            self._study.tell(number, math.log(ratio))
            return
        if any(choice[name] not in values for name, values in self._values.items()):
            return  # measured in another space of this kernel
        at = {name: values.index(choice[name]) for name, values in self._values.items()}
        self._study.add_trial(
            self._trial.create_trial(params=at, distributions=self._ranges, value=math.log(ratio))
        )
