"""The README's table comes from the results and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import make_record
from tilewright.bench.readme import BEGIN, END, figures_text, with_figures
from tilewright.bench.records import Goal, Quantity


def test_a_column_for_each_machine_class(tmp_path: Path) -> None:
    make_record(ours=1.0).save(tmp_path)
    make_record("demo", "avx2", ours=4.0).save(tmp_path)
    lines = figures_text(tmp_path).splitlines()
    assert "|  | avx2 | avx512-zen5 |" in lines
    x = "\N{MULTIPLICATION SIGN}"
    assert f"| long, torch SDPA | 1.00{x} (goal missed) (4 s) | 4.00{x} (1 s) |" in lines
    assert sum(line.startswith("- **") for line in lines) == 2


def test_goals_of_all_figures_are_counted_and_those_without_one_are_left_out(
    tmp_path: Path,
) -> None:
    record = make_record(ours=4.0)
    (row,) = record.comparisons
    free = replace(row, name="free", goal=Goal())
    over = Quantity("too much", 3.0, "MB", Goal(must=2.0))
    record = replace(record, comparisons=(row, free), quantities=(*record.quantities, over))
    record.save(tmp_path)
    text = figures_text(tmp_path)
    assert "free" not in text
    met = sum(q.met is True for q in record.quantities)
    judged = 1 + sum(q.met is not None for q in record.quantities)
    assert f"{met} of {judged} goals are met. Missed: long, torch SDPA; too much." in text


def test_a_missed_goal_is_told_beside_what_memory_allows(tmp_path: Path) -> None:
    for kind, ours in (("avx2", 4.0), ("avx512-zen5", 1.0)):
        record = make_record(kind=kind, ours=ours)
        rows = tuple(replace(row, bound=1.25) for row in record.comparisons)
        replace(record, comparisons=rows).save(tmp_path)
    x = "\N{MULTIPLICATION SIGN}"
    missed = f"1.00{x} (goal missed) (4 s); reading the bytes alone: 1.25{x}"
    assert f"| long, torch SDPA | {missed} | 4.00{x} (1 s) |" in figures_text(tmp_path).splitlines()


def test_without_results_it_says_so(tmp_path: Path) -> None:
    assert "Nothing has been measured" in figures_text(tmp_path)


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest\n"
    once = with_figures(text, "new\n")
    assert once == f"# Title\n{BEGIN}\nnew\n{END}\nrest\n"
    assert with_figures(once, "new\n") == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_readme_without_the_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="figures"):
        with_figures(text, "new\n")
