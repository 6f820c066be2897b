"""The one loop that all measurements go through: rounds in which every side has its turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Order = Callable[[int, int], Sequence[int]]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds until ``seconds`` have passed, within these numbers."""

    seconds: float = 4.0
    fewest: int = 7
    most: int = 101
    shortest: float = 2e-3  # a measurement repeats calls until it takes about this long

    def __post_init__(self) -> None:
        assert 0 < self.fewest <= self.most, "at least one round"


def there_and_back(turn: int, sides: int) -> Sequence[int]:
    """a b c | c b a | a b c | …: what went first in a round goes last in the next."""
    return range(sides) if turn % 2 == 0 else range(sides - 1, -1, -1)


def shuffled(seed: int) -> Order:
    """A new random order in each round, the same in every run: nobody always follows the same."""
    source = random.Random(seed)
    return lambda _turn, sides: source.sample(range(sides), sides)


def take_turns(
    sides: Sequence[Callable[[], T]], effort: Effort, order: Order = there_and_back
) -> list[tuple[T, ...]]:
    """What each side gives, round by round, in the order of ``sides`` whatever their turns were."""
    rounds: list[tuple[T, ...]] = []
    start = time.perf_counter()
    while len(rounds) < effort.most:
        if len(rounds) >= effort.fewest and time.perf_counter() - start > effort.seconds:
            break
        found = {at: sides[at]() for at in order(len(rounds), len(sides))}
        rounds.append(tuple(found[at] for at in range(len(sides))))
    return rounds
