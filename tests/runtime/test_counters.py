"""Counters of work items: who gets which, on GPUs that are CPU memory here."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tilewright.passes.to_tile.whole_blocks.lowbit.program import COUNTERS
from tilewright.runtime.cuda.counters import AT_A_TIME, Counters
from tilewright.runtime.cuda.gpus import gpus

GPUS = torch.device("cuda:0"), torch.device("cuda:1")


class OnTheCpu(Counters):
    """Counts how often memory was made, and when it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def _zeros(self, device: torch.device, sets: int) -> torch.Tensor:
        self.made.append(sets)
        return torch.zeros((sets, COUNTERS), dtype=torch.int32)

    def _wait(self, device: torch.device) -> None:
        self.made.append(0)


class Now:
    """The current stream, and whether it is captured."""

    stream, captured = 0, False


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[Now]:
    now = Now()
    monkeypatch.setitem(gpus.__dict__, "stream", lambda device: now.stream)
    monkeypatch.setitem(gpus.__dict__, "captured", lambda: now.captured)
    yield now


def test_every_stream_of_every_device_has_its_own(now: Now) -> None:
    made = OnTheCpu()
    found = {}
    for _ in range(2):
        for device in GPUS:
            for now.stream in range(5):
                it = made.of(device)
                assert it.shape == (COUNTERS,) and it.dtype == torch.int32 and not it.any()
                key = device.index, now.stream
                assert found.setdefault(key, it.data_ptr()) == it.data_ptr()
    assert len(set(found.values())) == 10
    assert made.made == [AT_A_TIME, 0] * 2  # once for each device, and waited for


def test_threads_that_come_first_at_once_get_the_same(now: Now) -> None:
    """One of them makes what a stream has, the others wait for it."""
    made, found = OnTheCpu(), []
    threads = [threading.Thread(target=lambda: found.append(made.of(GPUS[0]))) for _ in range(8)]
    with made._guard.lock:
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert len({x.data_ptr() for x in found}) == 1 and len(found) == 8


def test_captured_calls_keep_theirs_for_good(now: Now) -> None:
    """Also when nobody but the graph knows the address; and when those made before are used up."""
    made = OnTheCpu()
    own = made.of(GPUS[0]).data_ptr()
    now.captured = True
    seen = [made.of(GPUS[0]).data_ptr() for _ in range(AT_A_TIME - 1)]
    assert len({own, *seen}) == AT_A_TIME and made.made == [AT_A_TIME, 0]
    (kept,) = made._kept
    first = kept.data_ptr()
    assert {own, *seen} == {first + 4 * COUNTERS * at for at in range(AT_A_TIME)}
    made.of(GPUS[0])
    assert made.made == [AT_A_TIME, 0, 1]  # set to 0 by the graph itself, nothing to wait for
    now.captured = False
    assert made.of(GPUS[0]).data_ptr() == own
    now.stream = 1
    assert made.of(GPUS[0]).data_ptr() not in {own, *seen}


def test_an_interpreter_gets_new_ones(now: Now) -> None:
    made = OnTheCpu()
    a, b = (made.of(torch.device("cpu")) for _ in range(2))
    assert a.data_ptr() != b.data_ptr() and not made.made
