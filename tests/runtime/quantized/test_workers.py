"""Chunks in threads: all are done once, torch's threads stay as they were, errors arrive."""

from __future__ import annotations

import threading

import pytest
import torch

from tilewright.runtime.quantized.workers import in_threads


@pytest.fixture
def three_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_chunk_once(three_threads: object, count: int) -> None:
    done: list[tuple[int, int]] = []
    in_threads(lambda *chunk: done.append(chunk), [(i, i + 1) for i in range(count)])
    assert sorted(done) == [(i, i + 1) for i in range(count)]


def test_each_thread_runs_operations_alone_and_nothing_remains(three_threads: object) -> None:
    inside: list[int] = []
    in_threads(lambda *_: inside.append(torch.get_num_threads()), [(i, i) for i in range(50)])
    assert set(inside) == {1}
    assert torch.get_num_threads() == 3
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_the_first_error_is_raised_and_work_ends(three_threads: object) -> None:
    done: list[int] = []

    def work(first: int, _: int) -> None:
        if first == 3:
            raise ValueError("three")
        done.append(first)

    with pytest.raises(ValueError, match="three"):
        in_threads(work, [(i, i) for i in range(10_000)])
    assert len(done) < 10_000 - 1
