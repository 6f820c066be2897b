"""What ``tilewright tune`` shows: a line per kernel, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tilewright.cli.output import note, plural, say, table
from tilewright.runtime.tuning.tuner import TaskState

_PER_SECOND = 4  # refreshed; more would be work that trials feel
_BAR = 24  # columns


class Live:
    """Shows the states of ``kernels`` kernels that are tuned within ``budget`` seconds: on a
    terminal a line for each, the last one alive, and below it how much of all is done."""

    def __init__(self, kernels: int, budget: float) -> None:
        self.kernels, self.budget = kernels, budget
        self.states: list[TaskState] = []
        self._end = time.monotonic() + budget
        self._said: dict[int, float] = {}
        self._console = Console(stderr=True, highlight=False)
        self._display = Display(
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            get_renderable=self._alive,
        )

    def __enter__(self) -> Live:
        self._end = time.monotonic() + self.budget
        if self._console.is_terminal:
            self._display.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves a line for every kernel."""
        if self._display.is_started:
            self._display.stop()
            if self.states:
                self._console.print(self._line(self.states[-1]))

    def watch(self, state: TaskState) -> None:
        """Shows how far a kernel is."""
        if not self.states or self.states[-1] is not state:
            if self.states and self._display.is_started:
                self._console.print(self._line(self.states[-1]))  # above what is alive
            self.states.append(state)
        if not self._console.is_terminal:
            self._say(state)

    def _alive(self) -> RenderableType:
        """The kernel under way, and all of them."""
        left = max(0.0, self._end - time.monotonic())
        bar = ProgressBar(total=max(self.budget, 1e-9), completed=self.budget - left, width=_BAR)
        below = Table.grid(padding=(0, 1))
        below.add_row(bar, f"kernel {max(1, len(self.states))} of {self.kernels}, {_left(left)}")
        return Group(self._line(self.states[-1], True), below) if self.states else below

    def _line(self, state: TaskState, alive: bool = False) -> Text:
        """Kernel and inputs, shortened to leave room for the facts."""
        best, tried, *failed = _facts(state)
        # columns, so that the lines of several kernels lie below each other
        facts = "  ".join([f"{best:>10}", f"{tried:>13}", *failed, *[_left(state.left)] * alive])
        room = self._console.width - len(facts) - 2
        line = Text(f"{state.task.name} {state.task.shapes}", no_wrap=True)
        line.truncate(max(10, room), overflow="ellipsis", pad=True)
        return line.append(f"  {facts}", "bold" if alive else "dim")

    def _say(self, state: TaskState) -> None:
        """A line for every better choice."""
        ratio = state.best.ratio if state.best else None
        if ratio is not None and ratio < self._said.get(id(state), 1.0):
            self._said[id(state)] = ratio
            note(f"{state.task.name} {state.task.shapes}: {', '.join(_facts(state))}")

    def summary(self) -> None:
        """A table of what was found."""
        rows = []
        for x in self.states:
            failed = ", ".join(f"{count} {name}" for name, count in x.failures.items()) or "none"
            won = x.winner
            schedule = "not decided" if won is None else "the default"
            if won is not None and won.choice:
                schedule = " ".join(f"{k}={v}" for k, v in won.choice.items())
            gain = f"{1 / won.ratio:.2f}x" if won else ""
            tried = f"{x.tried}/{x.schedules}"
            rows.append((x.task.name, x.task.shapes, schedule, gain, tried, failed))
        columns = ("kernel", "inputs", "schedule", "gain", "tried", "failed")
        table(columns, rows, right=("gain", "tried"))
        for x in self.states:
            if x.reason:
                note(f"{x.task.name} {x.task.shapes}: not tuned: {x.reason}")
        better = sum(1 for x in self.states if x.winner and x.winner.choice)
        say(f"{plural(better, 'better schedule')} for {plural(len(self.states), 'kernel')}")


def _left(seconds: float) -> str:
    if seconds <= 0:
        return "finishing"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} left" if minutes else f"{rest} s left"


def _facts(state: TaskState) -> list[str]:
    ratio = state.best.ratio if state.best else None
    best = f"best {1 / min(ratio, 1.0):.2f}x" if ratio else "none yet"  # the default is one of them
    tried = f"{state.tried}/{state.schedules} tried"
    failed = sum(state.failures.values())
    return [best, tried, *([f"{failed} failed"] if failed else [])]
