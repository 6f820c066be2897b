"""The demo runs a tiny model on both sides and finds the same tokens."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tilewright.bench.demo_output import show_demo, tokens_line
from tilewright.bench.generation import first_difference
from tilewright.bench.llama import prompt

pytestmark = pytest.mark.usefixtures("two_threads")
NO_TIES = {"number": 4, "distinct": 3, "smallest_gap": 0.1}


def test_a_tiny_model_gives_a_whole_record() -> None:
    pytest.importorskip("transformers")
    from tilewright.bench.demo import run
    from tilewright.bench.llama import TINY

    record = run(TINY, length=40, steps=3, repeats=1)
    details = record.details
    tokens = details["tokens"]
    assert tokens["number"] == len(tokens["ours"]) == 4
    assert tokens["equal"] or tokens["gap_at_difference"] < 1e-3
    assert record.quantities[0].details["ours"] < 1e-3
    assert details["graphs"] == 2, "a decode step was captured more than once"
    assert details["kernels"] and details["kernels"][0]["depths"]
    assert [row.ours.rounds for row in record.comparisons] == [1, 3]
    assert json.loads(record.to_json())["command"] == "demo"
    shown = io.StringIO()
    show_demo(record, Console(file=shown))
    assert "demo model, one decode step" in shown.getvalue()


def test_the_prompt_is_the_text_s_bytes() -> None:
    ids = prompt(1024)
    assert ids.shape == (1, 1024)
    assert int(ids.min()) > 0
    assert int(ids.max()) < 128


def test_where_tokens_part() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 9]) == 1


@pytest.mark.parametrize(
    ("gap", "says"), [(1e-6, ": a near tie"), (0.5, "NOT a near tie")], ids=["tie", "wrong"]
)
def test_different_tokens_are_not_hidden(gap: float, says: str) -> None:
    tokens = {**NO_TIES, "equal": False, "first_difference": 2, "gap_at_difference": gap}
    line = tokens_line(tokens, error=1e-6)
    assert "DIFFERENT from number 3 on" in line
    assert says in line
