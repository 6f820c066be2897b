"""The search: every choice of a space once and no other, whatever it is told in between."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.errors import BackendMissingError, ScheduleError
from tilewright.ir.target import named_target
from tilewright.passes.to_tile.choices import Choice, Space, with_choice
from tilewright.passes.to_tile.schedule import Schedule, row_schedule
from tilewright.runtime.tuning.database import Trial, choice_text
from tilewright.runtime.tuning.search import SEEDS, Search

VALUES = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True).map(tuple)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    values = {name: tuple(sorted(draw(VALUES))) for name in names}
    default = {name: draw(st.sampled_from(some)) for name, some in values.items()}
    modulus = draw(st.integers(2, 5))

    def why_not(choice: Choice) -> str:
        return "" if choice == default or sum(choice.values()) % modulus else "no"

    return Space(default, values, why_not)


@settings(max_examples=40)
@given(spaces(), st.data())
def test_every_valid_choice_is_proposed_once(space: Space, data: st.DataObject) -> None:
    valid = [choice_text(x) for x in space]
    ranked = data.draw(st.permutations([x for x in space if x != space.default]))
    search = Search(space, ranked)
    known = data.draw(st.lists(st.sampled_from(ranked), max_size=3)) if ranked else []
    search.know(Trial("k", (), "cpu", x, "ok", 1.0, 1.0) for x in known)
    proposed = []
    while (choice := search.next()) is not None:
        proposed.append(choice_text(choice))
        if data.draw(st.booleans()):  # others are under way
            search.tell(choice, data.draw(st.none() | st.floats(0.5, 3.0)))
    left_out = {choice_text(space.default), *map(choice_text, known)}
    assert sorted(proposed) == sorted(set(valid) - left_out)
    first = [choice_text(x) for x in ranked[:SEEDS] if choice_text(x) not in left_out]
    assert proposed[: len(first)] == first


def test_what_was_told_decides_what_comes_next() -> None:
    """Of 400 choices the best is found within a tenth, from the ratios alone."""
    values = tuple(range(20))
    space = Space({"a": 0, "b": 0}, {"a": values, "b": values}, lambda choice: "")
    search = Search(space, [])
    best = []
    for _ in range(40):
        choice = search.next()
        assert choice is not None
        ratio = 1.0 + abs(choice["a"] - 13) / 20 + abs(choice["b"] - 6) / 20
        best.append(ratio)
        search.tell(choice, ratio)
    assert min(best) < 1.11


def test_fields_that_a_schedule_has_not_and_values_of_no_space_are_refused() -> None:
    schedule = row_schedule(named_target("x86-64-v3"))
    assert isinstance(schedule, Schedule)
    assert with_choice(schedule, {"rows": 2}).rows == 2
    with pytest.raises(ScheduleError, match="unknown field 'columns'"):
        with_choice(schedule, {"columns": 2})
    space = Space({"rows": 8}, {"rows": (4, 8, 16)}, lambda x: "too many" * (x["rows"] > 8))
    space.check({"rows": 4})
    space.check({})
    for wrong in ({"rows": 7}, {"rows": 16}, {"unroll": 1}, {"rows": 4, "unroll": 1}):
        with pytest.raises(ScheduleError):
            space.check(wrong)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendMissingError, match=r"tilewright\[tune\]"):
        Search(Space({"a": 1}, {"a": (1, 2)}, lambda choice: ""), [])
