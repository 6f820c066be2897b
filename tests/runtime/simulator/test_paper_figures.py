"""The figures of PAPERS.md 1.4, exactly, and the paper's claim at N = 1,024 with heads of 64."""

from __future__ import annotations

import pytest

from tilewright.bench import streams
from tilewright.bench.streams import PROGRAMS, ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.what} = {row.cycles}")
def test_figure(row: Row) -> None:
    assert row.run() == row.cycles


@pytest.mark.parametrize("program", ["naive", "memory_free"])
def test_full_throughput_with_memory_that_grows_or_not(program: str) -> None:
    """At N = 1,024: as fast as without limits; places in the channels O(N) and O(1)."""
    places = []
    for size in (64, 1024):
        run = streams.at_analysed_depths(program, size)
        assert run.cycles == streams.simulated(program, size).cycles
        assert size * size / run.cycles > 1 - 3 / size
        places.append(sum(c.capacity or 0 for c in run.channels))
    assert places[1] - places[0] == (960 if program == "naive" else 0)


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_four_compute_attention(program: str) -> None:
    assert streams.largest_error(program, 64) < 1e-12


@pytest.mark.parametrize("program", ["naive", "memory_free"])
def test_results_at_the_papers_size(program: str) -> None:
    assert streams.largest_error(program, 1024) < 1e-12
