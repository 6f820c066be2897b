"""The turns of a sitting: who is called when, with which caches, on a clock that is made up."""

from __future__ import annotations

import pytest

from tilewright.bench.method.clock import Call, HostClock
from tilewright.bench.method.memory import growth
from tilewright.bench.method.peak import INSTRUCTIONS, measure_peaks
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.method.sitting import Side, sit
from tilewright.bench.method.turns import Effort, shuffled, take_turns, there_and_back
from tilewright.bench.roofline import Work


class MadeUpClock:
    """Seconds by the name that a call appends; everything is written down."""

    most_calls = 100

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seen: list[str] = []
        self._seconds = seconds

    def call(self, name: str) -> Call:
        return lambda: self.seen.append(name)

    def seconds(self, call: Call, calls: int = 1) -> float:
        for _ in range(calls):
            call()
        return self._seconds[self.seen[-1]]

    def launch(self, call: Call, calls: int = 1) -> float:
        self.seen.append("launch")
        return self.seconds(call, calls) / 4

    def evict(self) -> float:
        self.seen.append("evict")
        return 0.25

    def compute(self) -> float:
        self.seen.append("reference")
        return 0.5


def test_a_sitting_measures_warm_and_cold_calls() -> None:
    clock = MadeUpClock({"a": 1.0, "b": 2.0})
    sides = [Side(clock.call("a"), clock.call("wake a")), Side(clock.call("b"))]
    found = sit(sides, clock, Effort(0.0, 3, 3, 2.0), seed=0)
    assert found.warm == found.cold == [[1.0] * 3, [2.0] * 3]
    assert found.compute == [0.5] * 3 and found.memory == [0.25] * 6
    text = " ".join(clock.seen[4:])  # after the trial of either side
    turn_a, turn_b = "a a a evict wake a a", "b b evict b"  # 2 s are two calls of a, one of b
    assert text.count(turn_a) == text.count(turn_b) == text.count("reference") == 3
    assert len(text) == 3 * len(f"{turn_a} {turn_b} reference ") - 1 and "launch" not in text


def test_a_sitting_without_cold_calls() -> None:
    clock = MadeUpClock({"a": 1.0})
    found = sit([Side(clock.call("a"))], clock, Effort(0.0, 2, 2, 0.0), seed=0, cold=False)
    assert found.warm == [[0.25, 0.25]] and found.cold == [] and found.memory == []
    assert clock.seen.count("launch") == 2 and "evict" not in clock.seen


def test_orders_differ_and_results_stay_with_their_sides() -> None:
    seen: list[int] = []
    sides = [lambda at=at: seen.append(at) or at for at in range(5)]  # type: ignore[misc]
    rounds = take_turns(sides, Effort(0.0, 20, 20), shuffled(1))
    assert rounds == [(0, 1, 2, 3, 4)] * 20
    orders = [tuple(seen[5 * at : 5 * at + 5]) for at in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(orders)) > 10
    assert [list(there_and_back(turn, 3)) for turn in (0, 1)] == [[0, 1, 2], [2, 1, 0]]


def test_the_host_empties_more_than_it_is_told() -> None:
    clock = HostClock(1 << 16)
    assert clock.evict() > 0 and clock.compute() > 0
    assert clock.seconds(lambda: None, 10) < 0.1


def test_growth_sees_what_a_call_takes_and_what_stays() -> None:
    size = 64 << 20
    found = growth(lambda: bytearray(b"x") * size)
    if found is None:
        pytest.skip("the system does not say how large a process is")
    assert found.peak > 0.9 * size and found.kept > 0.9 * size
    freed = growth(lambda: len(bytearray(b"x") * size))
    assert freed is not None and freed.peak > 0.9 * size and freed.kept < 0.5 * size


def test_peaks_are_those_of_multiply_adds() -> None:
    found = measure_peaks(1, 0.002, 3)
    assert set(found) <= {instruction.name for instruction in INSTRUCTIONS}
    assert found["f32"] > 1e9
    if "int8" in found:
        assert found["int8"] > 2 * found["f32"]


def test_roofs_bound_by_what_is_slower() -> None:
    roofs = Roofs(1e9, 1e10, 1 << 20, {"f32": 1e11})
    assert roofs.floor(Work(1e5, 1e3), "f32", warm=True) == (1e-5, "bytes")
    assert roofs.floor(Work(1e5, 1e3), "f32", warm=False) == (1e-4, "bytes")
    assert roofs.floor(Work(1e7, 1e3), "f32", warm=True) == (1e-2, "bytes")  # no cache holds it
    assert roofs.floor(Work(1e5, 1e9), "bf16", warm=True) == (1e-2, "operations")
