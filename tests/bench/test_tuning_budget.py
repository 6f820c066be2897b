"""What a search chose is held against the fastest of all that were timed in the same rounds."""

from __future__ import annotations

import pytest

from tilewright.bench.tuning_budget import regret, show


def _entry(chosen: list[int], ratios: list[tuple[list[int], float]]) -> dict[str, object]:
    return {"default": [1, 8], "tuned": {"chosen": chosen, "trials": 3, "ratios": ratios}}


def test_the_best_may_be_any_of_the_three() -> None:
    faster, slower = ([2, 8], 0.8), ([4, 4], 1.25)
    assert regret(_entry([2, 8], [faster, slower])) == 1.0
    assert regret(_entry([4, 4], [slower, faster])) == pytest.approx(1.25 / 0.8)
    assert regret(_entry([1, 8], [faster])) == pytest.approx(1 / 0.8)  # it kept the default
    assert regret(_entry([4, 4], [slower])) == pytest.approx(1.25)  # the default was best
    assert regret(_entry([1, 8], [])) == 1.0  # and it was known to be


def test_the_mean_is_held_to_the_goal(capsys: pytest.CaptureFixture[str]) -> None:
    entry = _entry([2, 8], [([2, 8], 0.9), ([4, 4], 0.8)])
    show({"kernels": {"good": _entry([1, 8], []), "bad": entry, "unmeasured": {}}})
    out = capsys.readouterr().out
    assert "geometric mean 1.061 (at most 1.03, missed" in out and "unmeasured" not in out
