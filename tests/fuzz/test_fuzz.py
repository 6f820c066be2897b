"""Every reader takes damaged inputs for a moment, from fixed seeds: errors of ours or results,
nothing else. ``python -m tests.fuzz`` runs for hours; docs/safety.md says how."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import Target, run_chunk
from tests.fuzz.record import record
from tests.fuzz.targets import TARGETS
from tilewright.ir.errors import ParseError, TilewrightError
from tilewright.ir.parser import parse

FOUND = Path(__file__).parent / "corpus" / "parser" / "found.tw"
INPUTS = {"parser": 1500, "programs": 300, "checkpoints": 120, "bundles": 60, "reports": 60}
TAKEN = {"program", "ran", "read", "opened, 1 read"}  # what becomes of an input that is right


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_errors(name: str) -> None:
    tally = campaign.Tally(name, 2026, INPUTS.get(name, 100))
    campaign.campaign(TARGETS[name], tally, tally.chunk_inputs)
    assert not tally.findings, tally.findings
    assert tally.inputs == sum(tally.outcomes.values()) == tally.chunk_inputs
    assert TAKEN & tally.outcomes.keys(), "no input is right: the corpus is out of date"
    assert len(tally.outcomes) > 1, "no input is wrong"


@pytest.mark.parametrize("text", re.split(r"\n\n", FOUND.read_text(encoding="utf-8")))
def test_what_was_found_once(text: str) -> None:
    try:
        printed = str(parse(text))
    except TilewrightError as error:
        assert error.location is not None and error.location.line
    else:
        assert str(parse(printed)) == printed


def planted(take: Callable[[int], str]) -> campaign.Tally:
    """A campaign of the numbers 0 to 9."""
    target = Target("planted", lambda source: iter(range(10)).__next__, take)
    tally = campaign.Tally("planted", 1, 10)
    return campaign.campaign(target, tally, 10)


def test_what_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(number: int) -> str:
        if number in (7, 8):
            raise ValueError(f"number {number}")
        if number == 3:
            raise ParseError("ours")
        if number == 5:
            bytearray(campaign.MEMORY * 2)
        while number == 4:
            pass
        return "fine"

    monkeypatch.setattr(campaign, "LIMIT", 0.05)
    found = planted(take)
    assert found.outcomes == {"fine": 5, "finding": 4, "ParseError": 1}
    errors = {each.error.split(":")[0]: (each.count, each.input) for each in found.findings}
    assert errors == {"ValueError": (2, "7"), "MemoryError": (1, "5"), "StillRunning": (1, "4")}


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """The same inputs, whether in one run or in two; what is recorded is what was taken."""
    seen: list[float] = []
    target = Target("t", lambda source: source.random, lambda x: seen.append(x) or "seen")
    whole = campaign.Tally("t", 3, 5)
    campaign.campaign(target, whole, 20)
    path, first = tmp_path / "state.json", campaign.Tally("t", 3, 5)
    campaign.campaign(target, first, 10, path)
    again = campaign.Tally.load(path)
    run_chunk(target, again), run_chunk(target, again)
    assert seen[:20] == seen[20:] and again.inputs == whole.inputs == 20
    (kept,) = record([path])["campaigns"]
    assert (kept["inputs"], kept["seed"], kept["outcomes"]) == (10, 3, {"seen": 10})
    assert kept["sources"] == [campaign.source_hash()]


def test_a_record_says_what_has_become_of_findings(tmp_path: Path) -> None:
    tally = campaign.Tally("parser", 3, 5)
    tally.note(campaign.Finding("TypeError: two locs", "core.py:__init__", repr("graph f("), 0))
    tally.save(tmp_path / "state.json")
    (kept,) = record([tmp_path / "state.json"])["campaigns"]
    assert [found["now"] for found in kept["findings"]] == ["ParseError"]


def test_inputs_follow_from_the_seed() -> None:
    for target in TARGETS.values():
        first, second = (target.inputs(random.Random("same")) for _ in range(2))
        assert [first() for _ in range(20)] == [second() for _ in range(20)], target.name
