"""Tuning within a budget: every measured choice is kept at once, and the best ones meet at the end.

The search compares each choice with the default schedule in the same process and rounds, so that
ratios mean something on a busy machine. What wins a search may have been lucky: the few best are
measured again, together and for longer, and only who is still faster than the default replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tilewright.ir.errors import TilewrightError
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.compiled_ranking import compile_ahead, compiled_first
from tilewright.runtime.fingerprint import source_hash
from tilewright.runtime.schedule_forms import KernelForm
from tilewright.runtime.threads import num_threads
from tilewright.runtime.tuning.database import Database, Trial, Winner, choice_text
from tilewright.runtime.tuning.scratch import ScratchFolder
from tilewright.runtime.tuning.search import Search
from tilewright.runtime.tuning.task import KernelTask
from tilewright.runtime.tuning.trial import Effort, small_shapes
from tilewright.runtime.tuning.workers import CUT, Done, Job, Workers

FINALISTS = 3
FINAL_SHARE, FINAL_MOST = 0.25, 10.0  # of a kernel's budget, for the last comparison; seconds
MEASURED = 0.6  # of what is left for it: making the kernels takes the rest
GAIN = 0.98  # of the default's time: what is not faster by more is not worth another form
LOOK_SECONDS = 0.5  # between two looks at the clock
COMPILING_SHARE = 0.2  # of a kernel's budget, for compiling a GPU's first choices ahead
SAME_ERRORS = 4  # first trials that end in the same error: so would all others
SHORTEST_FINAL = 5.0  # seconds that the last comparison may take in any case


@dataclass
class TaskState:
    """How far the tuning of a kernel is."""

    task: KernelTask
    seconds: float  # its part of the budget
    schedules: int = 0  # that can be compiled
    trials: int = 0
    choices: set[str] = field(default_factory=set)  # of these and, to resume, of earlier ones
    failures: dict[str, int] = field(default_factory=dict)  # state: trials
    best: Trial | None = None
    winner: Winner | None = None
    ends: float = 0.0  # by time.monotonic
    reason: str = ""  # why it was not tuned
    errors: set[tuple[str, str]] = field(default_factory=set)  # states and reasons of its trials

    @property
    def tried(self) -> int:
        """Schedules whose time is known: the default's is once there is any trial."""
        return len(self.choices) + bool(self.choices)

    @property
    def left(self) -> float:
        """Seconds until the budget is used up."""
        return max(0.0, self.ends - time.monotonic())


Watcher = Callable[[TaskState], None]


class Tuner:
    """Tunes kernels one after the other with ``workers``; ``watch`` is told after every trial."""

    def __init__(
        self,
        workers: Workers,
        database: Database,
        watch: Watcher = lambda state: None,
        *,
        resume: bool = False,
        effort: Effort = Effort(),  # noqa: B008 - frozen
        seed: int = 0,
        compilers: Callable[[], Workers] = compile_ahead,
    ) -> None:
        self.compilers = compilers  # of a GPU's schedules, on this machine
        self.workers, self.database, self.watch = workers, database, watch
        self.resume, self.effort, self.seed = resume, effort, seed
        self._jobs = 0
        self._longest = 0.0  # seconds of a trial, of late
        self.interrupted = False  # set by a signal's handler: the search ends at the next look

    def run(self, tasks: Sequence[tuple[KernelTask, float]], budget: float) -> list[TaskState]:
        """Tunes each task within its part of ``budget`` seconds: the number beside it over the sum
        of all. What one leaves over, the next have. Whatever ends the search early, Ctrl-C or an
        error, what was measured is kept and decided on."""
        end = time.monotonic() + budget
        states = []
        left = sum(weight for _, weight in tasks)
        for task, weight in tasks:
            part = (end - time.monotonic()) * weight / left if left else 0.0
            left -= weight
            states.append(TaskState(task, max(0.0, part)))
            if part < self._longest:
                states[-1].reason = "no time was left for a trial"
                self.watch(states[-1])
                continue
            try:
                self._tune(states[-1])
            except BaseException:
                with suppress(TilewrightError):
                    self._decide_now(states[-1])
                raise
        return states

    def _tune(self, state: TaskState) -> None:
        task = state.task
        state.ends = time.monotonic() + state.seconds
        try:
            small_shapes(task)
        except TilewrightError as error:
            state.reason = error.message
            self.watch(state)
            return
        form = KernelForm.of(task)
        order = self._order(form, COMPILING_SHARE * state.seconds)
        state.schedules = len(order) + 1
        self.database.add_all(tasks=[task])
        search = Search(form.space, order, self.seed)
        earlier = self._earlier(task)
        if self.resume:
            state.choices |= search.know(earlier)
            for trial in earlier:
                _improve(state, trial)
        self.watch(state)
        with ScratchFolder() as folder:
            final = min(FINAL_MOST, FINAL_SHARE * state.seconds)
            self._search(state, search, folder, final)
            self._final(state, search, folder, self._finalists(task, search))
        self.watch(state)

    def _order(self, form: KernelForm, seconds: float) -> list[Choice]:
        """The schedules other than the default, as the cost model ranks them; the first ones of a
        GPU put right by what they compile to."""
        ranked = [x for x in form.ranked(num_threads()) if x[0] != form.space.default]
        if form.target.gpu:
            with self.compilers() as workers:
                limits = workers, seconds, self._look
                ranked, _ = compiled_first(form.task, form.target, ranked, *limits)
        return [choice for choice, _ in ranked]

    def _earlier(self, task: KernelTask) -> list[Trial]:
        """Trials of the same kernel and device by this very compiler."""
        found = self.database.trials(task.kernel, task.size_class, self.workers.device)
        return [x for x in found if x.compiler == source_hash()]

    def _search(self, state: TaskState, search: Search, folder: str, final: float) -> None:
        """Trials until one more would take from the ``final`` seconds, or no choice is left."""
        running, more = 0, True
        while running or more:
            self._look()
            while more and running < self.workers.slots:
                wanted = self._has_time(state, final) and not state.reason
                choice = search.next() if wanted else None
                more = choice is not None
                if choice is not None:
                    self._submit(state.task, [choice], self.effort, folder, state.left)
                    running += 1
            if running:
                done = self.workers.wait(LOOK_SECONDS)
                running -= len(done)
                for each in done:
                    # the first one starts the server
                    self._longest = max(self._longest / 2, each.seconds)
                    self._keep(state, search, each)
                self.watch(state)

    def _look(self) -> None:
        """An exception that a handler raises may come where it is swallowed: in a destructor, in a
        library's callback. One raised here is not."""
        if self.interrupted:
            raise KeyboardInterrupt

    def _has_time(self, state: TaskState, final: float) -> bool:
        """Whether one more trial leaves enough for the last comparison."""
        return state.left > max(final, self._longest) + self._longest

    def _finalists(self, task: KernelTask, search: Search) -> list[Choice]:
        """The fastest choices of all trials of this compiler, and the winner until now."""
        timed = [x for x in self._earlier(task) if x.state == "ok" and x.ratio is not None]
        timed.sort(key=lambda x: x.ratio or 0.0)
        winners = self.database.winners(task.kernel, task.size_class, self.workers.device)
        choices = [x.choice for x in winners if x.choice and not search.space.why_not(x.choice)]
        unique = {choice_text(x.choice): x.choice for x in timed}
        best = [x for x in unique.values() if set(x) == set(search.space.values)][:FINALISTS]
        return list({choice_text(x): x for x in (*best, *choices)}.values())

    def _final(
        self, state: TaskState, search: Search, folder: str, finalists: list[Choice]
    ) -> None:
        """The best, and the default, in turns; the winner is kept."""
        if not finalists or state.reason or (not state.trials and state.left < self._longest):
            return
        seconds = max(1.0, min(state.left, FINAL_MOST) * MEASURED) / len(finalists)
        left = max(state.left, SHORTEST_FINAL)
        self._submit(state.task, finalists, Effort(seconds, 10_000), folder, left)
        done: Sequence[Done] = ()
        while not done:
            self._look()
            done = self.workers.wait(LOOK_SECONDS)
            self.watch(state)
        trials = self._keep(state, search, done[0])
        timed = [x for x in trials if x.ratio is not None]
        if timed:
            self._win(state, min(timed, key=lambda x: x.ratio or 0.0))
        else:  # one of them may have ended the process
            self._decide_now(state)

    def _decide_now(self, state: TaskState) -> None:
        """Without a last comparison: the best of single trials wins if it is faster by more than
        their noise, and than what has won before."""
        best = state.best
        if state.winner is not None or best is None or best.ratio is None:
            return
        task = state.task
        before = self.database.winners(task.kernel, task.size_class, self.workers.device)
        if best.ratio < min([GAIN**3, *(x.ratio for x in before)]):
            self._win(state, best)

    def _win(self, state: TaskState, best: Trial) -> None:
        assert best.ratio is not None and best.milliseconds is not None
        worth = best.ratio < GAIN
        milliseconds = best.milliseconds if worth else best.milliseconds / best.ratio
        state.winner = Winner(
            best.kernel,
            best.size_class,
            best.device,
            best.choice if worth else {},
            milliseconds,
            best.ratio if worth else 1.0,
        )
        self.database.add_all(winners=[state.winner])

    def _submit(
        self, task: KernelTask, choices: Iterable[Choice], effort: Effort, folder: str, left: float
    ) -> None:
        self._jobs += 1
        self.workers.submit(Job(self._jobs, task, tuple(choices), effort, folder, left))

    def _keep(self, state: TaskState, search: Search, done: Done) -> list[Trial]:
        """Commits the outcomes of a job, but for those that the end of the budget cut short."""
        trials = [
            Trial(
                done.job.task.kernel,
                done.job.task.size_class,
                self.workers.device,
                choice,
                outcome.state,
                outcome.milliseconds,
                outcome.ratio,
                outcome.reason,
                source_hash(),
            )
            for choice, outcome in zip(done.job.choices, done.outcomes, strict=True)
            if outcome.state != CUT
        ]
        self.database.add_all(trials)
        for trial in trials:
            search.tell(trial.choice, trial.ratio)
            state.trials += 1
            state.choices.add(choice_text(trial.choice))
            if trial.state != "ok":
                state.failures[trial.state] = state.failures.get(trial.state, 0) + 1
            _improve(state, trial)
            _give_up(state, trial)
        return trials


def _improve(state: TaskState, trial: Trial) -> None:
    if trial.state == "ok" and trial.ratio is not None:
        before = state.best.ratio if state.best else None
        if before is None or trial.ratio < before:
            state.best = trial


def _give_up(state: TaskState, trial: Trial) -> None:
    """Says why no choice of the kernel can be tried, once the first ones have failed alike."""
    state.errors.add((trial.state, trial.reason))
    alike = len(state.errors) == 1 and trial.state == "error"
    if alike and state.trials == SAME_ERRORS and state.best is None:
        state.reason = f"the first {SAME_ERRORS} schedules failed alike: {trial.reason}"
