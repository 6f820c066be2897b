"""Which schedules a kernel may have: the fields that can be chosen, their values, and why not.

A *choice* names fields of the kernel's schedule (``Schedule``, ``PackedSchedule`` or
``BlockSchedule``) and their values; what it does not name stays as the analytic model
has it. Choices are plain numbers under names, so that they can be searched, kept and sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tilewright.ir.errors import ScheduleError

Choice = Mapping[str, int]
DEFAULT: Choice = {}
S = TypeVar("S")


def with_choice(schedule: S, choice: Choice) -> S:
    """The schedule with the chosen fields. Raises ScheduleError for a field that it has not."""
    if not choice:
        return schedule
    kinds = {f.name: type(getattr(schedule, f.name)) for f in fields(schedule)}  # type: ignore[arg-type]
    unknown = [name for name in choice if name not in kinds]
    if unknown:
        known = ", ".join(kinds)
        raise ScheduleError(f"unknown field {unknown[0]!r} of a schedule; known: {known}")
    changed: dict[str, Any] = {name: kinds[name](value) for name, value in choice.items()}
    return replace(schedule, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Space:
    """The schedules of one kernel. ``default``: the fields as the analytic model has them;
    ``values``: what each may be; ``why_not``: why a whole choice cannot be compiled ('' if it
    can)."""

    default: dict[str, int]
    values: dict[str, tuple[int, ...]]
    why_not: Callable[[Choice], str]

    def __iter__(self) -> Iterator[dict[str, int]]:
        """Every choice that can be compiled, the default first."""
        yield dict(self.default)
        for values in itertools.product(*self.values.values()):
            choice = dict(zip(self.values, values, strict=True))
            if choice != self.default and not self.why_not(choice):
                yield choice

    def check(self, choice: Choice) -> None:
        """Raises ScheduleError if the choice has fields or values that are not the space's, or
        cannot be compiled; fields that it leaves out are the default's."""
        for name, value in choice.items():
            if name not in self.values:
                raise ScheduleError(f"{name!r} is none of {', '.join(self.values)}")
            if value not in self.values[name]:
                known = ", ".join(map(str, self.values[name]))
                raise ScheduleError(f"{name} {value} of a schedule is none of {known}")
        reason = self.why_not({**self.default, **choice})
        if reason:
            raise ScheduleError(reason)


def space_around(
    schedule: object,
    values: Mapping[str, Iterable[int]],
    why_not: Callable[[Choice], str] = lambda choice: "",
) -> Space:
    """The space of fields of a default schedule: with its own values among the others, and itself
    never refused."""
    default = {name: int(getattr(schedule, name)) for name in values}
    whole = {name: tuple(sorted({*some, default[name]})) for name, some in values.items()}

    def reason(choice: Choice) -> str:
        return "" if dict(choice) == default else why_not(choice)

    return Space(default, whole, reason)
