"""Rounds in turns, and a summary of them."""

from __future__ import annotations

from tilewright.bench.timing import QUICK, Effort, interleaved, summary


def test_the_sides_take_turns() -> None:
    seen: list[str] = []
    effort = Effort(seconds=0.0, fewest=3, most=3, shortest=0.0)
    interleaved(lambda: seen.append("a"), lambda: seen.append("b"), effort)
    warm_up, rounds = "".join(seen[:4]), "".join(seen[4:])
    assert (warm_up, rounds) == ("aabb", "abbaab")


def test_rounds_end_with_the_time_or_the_number() -> None:
    ours, _ = interleaved(lambda: None, lambda: None, QUICK)
    assert ours.rounds == QUICK.fewest
    ours, _ = interleaved(lambda: None, lambda: None, Effort(60.0, 1, 5, 0.0))
    assert ours.rounds == 5


def test_the_summary_has_median_and_least() -> None:
    timing = summary([3.0, 1.0, 2.0, 9.0])
    assert (timing.median, timing.least, timing.rounds) == (2.5, 1.0, 4)
