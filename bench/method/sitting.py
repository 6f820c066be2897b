"""One sitting: all sides of a problem in rounds, in random order, caches warm and cold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tilewright.bench.method.clock import Call, Clock
from tilewright.bench.method.turns import Effort, shuffled, take_turns


@dataclass(frozen=True)
class Side:
    """``call`` is measured; ``wake`` is a call of the same kind on next to no data, which gets a
    provider's threads out of bed without bringing any of the problem's data into a cache."""

    call: Call
    wake: Call | None = None


@dataclass(frozen=True)
class Sitting:
    """Seconds, round by round. Of sides: ``warm[side][round]``."""

    warm: list[list[float]]
    cold: list[list[float]]
    compute: list[float] = field(default_factory=list)  # the reference kernel
    memory: list[float] = field(default_factory=list)  # reading what no cache holds


def sit(
    sides: Sequence[Side], clock: Clock, effort: Effort, seed: int, cold: bool = True
) -> Sitting:
    """Measures all sides. Each has, in its turn: a call that nobody times and that brings its data
    into the caches, as many calls as ``effort.shortest`` takes; then, with everything evicted and
    its threads awake, a single one. Not ``cold``: what calling costs. The reference kernel takes a
    turn of its own."""
    counts = [_count(side, clock, effort) for side in sides]
    memory: list[float] = []

    def turn(at: int) -> tuple[float, float]:
        side = sides[at]
        side.call()
        if not cold:
            return clock.launch(side.call, counts[at]), 0.0
        warm = clock.seconds(side.call, counts[at])
        memory.append(clock.evict())
        if side.wake is not None:
            side.wake()
        return warm, clock.seconds(side.call)

    def reference() -> tuple[float, float]:
        return clock.compute(), 0.0

    turns: list[Callable[[], tuple[float, float]]] = [
        *(partial(turn, at) for at in range(len(sides))),
        reference,
    ]
    rounds = take_turns(turns, effort, shuffled(seed))
    by_side = list(zip(*rounds, strict=True))
    return Sitting(
        warm=[[warm for warm, _ in side] for side in by_side[:-1]],
        cold=[[cold for _, cold in side] for side in by_side[:-1]] if cold else [],
        compute=[seconds for seconds, _ in by_side[-1]],
        memory=memory,
    )


def _count(side: Side, clock: Clock, effort: Effort) -> int:
    side.call()
    once = clock.seconds(side.call)
    return min(clock.most_calls, max(1, round(effort.shortest / max(once, 1e-7))))
