"""The tuner's loop: budget, resuming, the last comparison, interruption; trials are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.tuning.kernels import attention, gpu_attention, prefill, softmax
from tests.runtime.tuning.made_up import Clock, MadeUp
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.compiled_ranking import Compiled, Resources
from tilewright.runtime.tuning import trial, tuner
from tilewright.runtime.tuning.database import Database
from tilewright.runtime.tuning.trial import Outcome
from tilewright.runtime.tuning.tuner import SAME_ERRORS, SHORTEST_FINAL, TaskState, Tuner
from tilewright.runtime.tuning.workers import CUT, Job


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(tuner, "time", found)
    monkeypatch.setattr(MadeUp, "clock", found)
    return found


def best_at_sixteen(choice: Choice) -> Outcome:
    """Better the nearer the rows are to 16, which no default has; 32 rows crash."""
    if choice["rows"] == 32:
        return Outcome("crash", reason="ended by SIGSEGV")
    ratio = 0.7 + 0.1 * abs(choice["rows"].bit_length() - 5)
    return Outcome("ok", 10 * ratio, ratio)


def test_the_best_wins_and_is_kept_with_all_trials(tmp_path: Path) -> None:
    workers, database = MadeUp(best_at_sixteen), Database(tmp_path / "file")
    seen: list[int] = []

    def watch(state: TaskState) -> None:
        seen.append(state.trials)

    task = softmax(64, 50)
    (state,) = Tuner(workers, database, watch).run([(task, 1.0)], 20.0)
    assert state.winner is not None and state.winner.choice["rows"] == 16
    assert state.winner.ratio == pytest.approx(0.7)
    assert [x.choice for x in database.winners()] == [state.winner.choice]
    every = {tuple(sorted(x.choice.items())) for x in database.trials()}
    assert len(every) == state.schedules - 1  # all but the default
    assert state.failures["crash"] > 0 and seen == sorted(seen)
    assert len(workers.jobs[-1].choices) > 1, "the best were not measured together"


def test_a_choice_that_is_not_faster_leaves_the_default(tmp_path: Path) -> None:
    workers = MadeUp(lambda choice: Outcome("ok", 9.9, 0.99))
    database = Database(tmp_path / "file")
    (state,) = Tuner(workers, database).run([(softmax(64, 50), 1.0)], 5.0)
    assert state.winner is not None
    assert (state.winner.choice, state.winner.ratio) == ({}, 1.0)
    assert state.winner.milliseconds == pytest.approx(10.0)


def test_luck_in_the_search_does_not_win(tmp_path: Path) -> None:
    """A choice that looks fast alone and is slow among the best is not taken."""
    lucky = True

    def judge(choice: Choice) -> Outcome:
        ratio = 0.5 if lucky else 1.2
        return Outcome("ok", 10 * ratio, ratio)

    class Sobering(MadeUp):
        def submit(self, job: Job) -> None:
            nonlocal lucky
            lucky = len(job.choices) == 1
            super().submit(job)

    (state,) = Tuner(Sobering(judge), Database(tmp_path / "file")).run([(softmax(9, 9), 1.0)], 5.0)
    assert state.winner is not None and state.winner.choice == {}


@pytest.mark.parametrize("lasting", [0.05, 0.4])
def test_the_budget_is_kept_and_shared_by_weight(
    tmp_path: Path, clock: Clock, lasting: float
) -> None:
    workers = MadeUp(lambda choice: Outcome("ok", 10.0, 1.0), lasting)
    tasks = [(prefill(), 3.0), (attention(9, 800), 1.0)]
    first, second = Tuner(workers, Database(tmp_path / "file")).run(tasks, 12.0)
    assert first.seconds == 9.0 and clock.now <= 12.0
    assert first.trials > second.trials > 0


def test_resuming_measures_nothing_twice(tmp_path: Path) -> None:
    database, task = Database(tmp_path / "file"), prefill()
    first = MadeUp(best_at_sixteen, lasting=0.06)
    Tuner(first, database).run([(task, 1.0)], 1.0)
    second = MadeUp(best_at_sixteen)
    (state,) = Tuner(second, database, resume=True).run([(task, 1.0)], 10.0)
    alone = [set(workers.tried[:-1]) for workers in (first, second)]  # but for the final
    assert alone[0] and alone[1] and not alone[0] & alone[1]
    assert state.tried > len(alone[0])
    assert state.winner is not None and state.winner.choice["rows"] == 16


def test_an_interruption_keeps_what_was_measured_and_decides(tmp_path: Path) -> None:
    count = 0

    def judge(choice: Choice) -> Outcome:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        return Outcome("ok", 5.0, 0.5)

    database = Database(tmp_path / "file")
    with pytest.raises(KeyboardInterrupt):
        Tuner(MadeUp(judge), database).run([(prefill(), 1.0)], 10.0)
    assert len(database.trials()) == 8
    assert [x.ratio for x in database.winners()] == [0.5]


def test_several_slots_are_all_used(tmp_path: Path) -> None:
    workers = MadeUp(best_at_sixteen, lasting=0.01, slots=3)
    most = 0

    class Counting(MadeUp):
        def submit(self, job: Job) -> None:
            nonlocal most
            super().submit(job)
            most = max(most, len(self.waiting))

    workers = Counting(best_at_sixteen, lasting=0.01, slots=3)
    Tuner(workers, Database(tmp_path / "file")).run([(softmax(64, 50), 1.0)], 5.0)
    assert most == 3


def test_first_choices_of_a_gpu_are_put_right_by_what_they_compile_to(tmp_path: Path) -> None:
    """The model's first one spills, its second one does not start: neither is tried first."""
    compiled: list[Choice] = []

    def compile_(choice: Choice) -> Outcome:
        compiled.append(choice)
        takes = {1: Resources(255, 1000, 0), 2: Resources(99, 0, 1 << 20)}
        return Compiled("ok", resources=takes.get(len(compiled), Resources(99, 0, 0)))

    workers = MadeUp(lambda choice: Outcome("ok", 10.0, 1.0), lasting=1.0)
    task = gpu_attention("triton")
    database = Database(tmp_path / "file")
    Tuner(workers, database, compilers=lambda: MadeUp(compile_, slots=99)).run([(task, 1.0)], 10.0)
    spilling, too_large, good, *_ = compiled
    tried = [dict(x.choices[0]) for x in workers.jobs]
    assert tried[0] == good and too_large not in tried[:4]
    assert spilling not in tried[: len(compiled) - 2]


def test_a_kernel_that_cannot_be_checked_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "ORACLE_WORK", 1.0)
    workers, database = MadeUp(best_at_sixteen), Database(tmp_path / "file")
    (state,) = Tuner(workers, database).run([(softmax(64, 50), 1.0)], 5.0)
    assert "small enough to be checked" in state.reason
    assert not workers.jobs and state.winner is None


def test_what_fails_alike_from_the_first_trials_on_ends_the_search(tmp_path: Path) -> None:
    workers = MadeUp(lambda choice: Outcome("error", reason="no such thing"), lasting=0.01)
    (state,) = Tuner(workers, Database(tmp_path / "a")).run([(softmax(64, 50), 1.0)], 5.0)
    assert state.trials == SAME_ERRORS and state.winner is None
    assert "failed alike: no such thing" in state.reason

    def differing(choice: Choice) -> Outcome:
        return Outcome("error", reason=f"no {choice['rows']}")

    (state,) = Tuner(MadeUp(differing), Database(tmp_path / "b")).run([(softmax(64, 50), 1.0)], 5.0)
    assert state.trials == state.schedules - 1 and not state.reason


def test_no_trial_may_take_longer_than_what_is_left(tmp_path: Path, clock: Clock) -> None:
    """One that the end of the budget cuts short is not kept: it says nothing of the choice."""

    class Counting(MadeUp):
        def submit(self, job: Job) -> None:
            super().submit(job)
            assert job.seconds <= max(4.0 - clock.now, SHORTEST_FINAL * (len(self.jobs) > 1))
            assert job.limit(30.0) <= job.seconds

    cut = 0

    def judge(choice: Choice) -> Outcome:
        nonlocal cut
        cut += clock.now > 1.0
        return Outcome(CUT) if clock.now > 1.0 else Outcome("ok", 10.0, 1.0)

    database = Database(tmp_path / "file")
    workers = Counting(judge, lasting=0.2)
    (state,) = Tuner(workers, database).run([(prefill(), 1.0)], 4.0)
    assert cut and {x.state for x in database.trials()} == {"ok"}
    assert len(database.trials()) == state.trials == 5  # of 0.2 s each until the first second
