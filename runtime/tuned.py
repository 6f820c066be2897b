"""Schedules that tuning has found, where running programs look them up.

Nothing is read unless the database exists; then its winners for this device are read once, and
again when the file has changed. A database that cannot be read costs a warning, and the default
schedules are used.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from tilewright.ir.errors import TilewrightError
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.gpu_targets import chosen_by_caller
from tilewright.runtime.locks import GENERATORS, Guard
from tilewright.runtime.settings import settings

LOOK_SECONDS = 1.0  # between two looks at the file: a call in between costs a comparison
AGAIN_SECONDS = 60.0  # until the next one at a file that could not be read
WAIT_SECONDS = 0.2  # for another process's transaction: a call waits meanwhile
FARTHEST = 2  # of a size class that lends its schedule, in powers of two, all lengths together

SizeClass = tuple[int, ...]
State = tuple[object, ...]  # of the file
Known = Mapping[SizeClass, Choice]
Call = Callable[..., tuple[torch.Tensor, ...]]


class TuningWarning(UserWarning):
    """Tuned schedules cannot be read; programs use their defaults."""


class TunedSchedules:
    """The winners of this process's devices. ``number`` changes with what is known."""

    def __init__(self) -> None:
        self.number = 0
        self.look_at = 0.0  # the time of the next look, by time.monotonic
        self.off = False
        self._known: dict[str, dict[str, dict[SizeClass, Choice]]] = {}  # device, kernel
        self._seen: State = ()
        self._guard = Guard()
        self._complained = False

    def look(self) -> None:
        """Sees whether the database has changed, if it is time to."""
        if time.monotonic() < self.look_at or self.off:
            return
        self.look_at = time.monotonic() + LOOK_SECONDS  # first: calls of other threads go on
        with self._guard.lock:
            seen = _state(settings().tuning)
            if seen != self._seen:
                before = self._known
                self._known, self._seen = self._read(seen)
                self.number += before != self._known

    def of(self, kernel: str, gpu: bool) -> Known:
        """The choices that won for a kernel on this device, by size class."""
        if not self._known:
            return {}
        with GENERATORS.lock:
            from tilewright.runtime.tuning.device import device_fingerprint

        return self._known.get(device_fingerprint(gpu), {}).get(kernel, {})

    @property
    def any(self) -> bool:
        """Whether anything is known, for any device."""
        return bool(self._known)

    def _read(self, seen: State) -> tuple[dict[str, dict[str, dict[SizeClass, Choice]]], State]:
        """What the file in a state knows, and the state to compare the next with."""
        with GENERATORS.lock:
            from tilewright.runtime.tuning.database import Database

        known: dict[str, dict[str, dict[SizeClass, Choice]]] = {}
        try:
            for winner in Database(settings().tuning, WAIT_SECONDS).winners():
                of_kernel = known.setdefault(winner.device, {}).setdefault(winner.kernel, {})
                of_kernel[winner.size_class] = winner.choice
        except TilewrightError as error:
            self.look_at = time.monotonic() + AGAIN_SECONDS
            if not self._complained:
                text = f"{error.message}; programs go on with the schedules that they have"
                warnings.warn(text, TuningWarning, stacklevel=5)
            self._complained = True
            return self._known, ("unreadable",)
        return known, seen


def nearest(known: Known, wanted: SizeClass) -> Choice | None:
    """The choice of a size class or of the one nearest to it, None if all are far away."""
    found = known.get(wanted)
    if found is not None:
        return found
    distances = [
        (sum(abs(a - b) for a, b in zip(each, wanted, strict=True)), each)
        for each in known
        if len(each) == len(wanted)
    ]
    distance, best = min(distances, default=(FARTHEST + 1, ()))
    return known[best] if distance <= FARTHEST else None


class BySize:
    """A form of a kernel with schedules by size class: each compiled at its first call."""

    def __init__(
        self,
        known: Known,
        dimensions: tuple[tuple[int, int], ...],
        make: Callable[[Choice], Call],
    ) -> None:
        self.known, self.make = known, make
        self.dimensions = dimensions
        self._guard = Guard()
        self._calls: dict[SizeClass, Call] = {}
        self._made: dict[tuple[tuple[str, int], ...], Call] = {}

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.form(tensors)(*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors (runtime/cuda/repeat.py)."""
        from tilewright.runtime.cuda.repeat import bound

        return bound(self.form(tensors), tensors)

    def form(self, tensors: tuple[torch.Tensor, ...]) -> Call:
        """The form for these sizes."""
        lengths = (tensors[at].shape[dim] - 1 for at, dim in self.dimensions)
        wanted = tuple(max(0, length).bit_length() for length in lengths)
        call = self._calls.get(wanted)
        if call is None:
            call = self._calls[wanted] = self._of(nearest(self.known, wanted) or {})
        return call

    def _of(self, choice: Choice) -> Call:
        """The form with a choice, made by one thread."""
        key = tuple(sorted(choice.items()))
        with self._guard.lock:
            if key not in self._made:
                self._made[key] = self.make(choice)
            return self._made[key]

    def made(self) -> dict[SizeClass, Call]:
        """The forms that calls of some size class have made so far (for bundles)."""
        return dict(self._calls)

    def make_all(self) -> None:
        """Makes the forms of all size classes that there are schedules for (for bundles)."""
        for size_class, choice in self.known.items():
            self._calls[size_class] = self._of(choice)


def _state(path: Path | None) -> State:
    """What changes whenever something is committed; () without a database."""
    found: list[object] = []
    for name in (path, path.with_name(path.name + "-wal")) if path else ():
        with suppress(OSError):
            status = os.stat(name)
            found += [status.st_mtime_ns, status.st_size, status.st_ino]
    return tuple(found)


TUNED = TunedSchedules()


def depends_on() -> object:
    """What repeated calls on a device depend on besides their tensors."""
    TUNED.look()
    return chosen_by_caller(), TUNED.number
