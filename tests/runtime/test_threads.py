"""Regions on torch's pool: every thread comes once, a forked child survives, the fallback works."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch

from tilewright.ir.errors import SettingError
from tilewright.runtime import threads
from tilewright.runtime.native import NativeFunction
from tilewright.runtime.settings import settings

MakeNative = Callable[[str, str], NativeFunction]

COUNT = """
define void @count(ptr %counter) {
  %old = atomicrmw add ptr %counter, i64 1 monotonic
  ret void
}
"""


@pytest.fixture
def count(make_native: MakeNative) -> int:
    """Address of code that adds one to the number that it is given the address of."""
    return make_native(COUNT, "count").address


def visits(function: int, workers: int) -> int:
    counter = ctypes.c_int64(0)
    threads.run_parallel(function, ctypes.addressof(counter), workers)
    return counter.value


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_worker_runs_the_code_once(count: int, workers: int) -> None:
    assert visits(count, workers) == workers


@pytest.mark.parametrize("workers", [2, 3])
def test_fallback_without_openmp(count: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_candidates", lambda: iter(()))
    monkeypatch.setattr(threads._state, "region", threads._first_region)
    assert visits(count, workers) == workers
    assert threads._state.region is threads._python_threads
    assert threads.pool_name().startswith("Python threads")


def test_pool_is_the_one_that_torch_uses(count: int) -> None:
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc/self/maps to see which libraries are loaded")
    visits(count, 2)
    with open("/proc/self/maps") as file:
        loaded = {line.split()[-1] for line in file if "gomp" in line and "torch" in line}
    assert loaded == {os.path.realpath(threads.pool_name())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_child_runs_serially_and_does_not_hang(count: int) -> None:
    assert visits(count, 2) == 2  # without a pool in the parent the child would not hang anyway
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends with this signal instead of an exit code
        serial = visits(count, 2) == 1 and threads.num_threads() == 1
        os._exit(0 if serial else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert visits(count, 2) == 2  # the parent keeps its pool


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.num_threads() == torch.get_num_threads()
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "5")
    settings.cache_clear()
    assert threads.num_threads() == 5
    threads.set_num_threads(3)
    assert threads.num_threads() == 3
    threads.set_num_threads(None)
    assert threads.num_threads() == 5
    with pytest.raises(SettingError, match=r"set_num_threads\(0\).*at least one"):
        threads.set_num_threads(0)


def test_fallback_where_no_more_threads_can_be_started(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_candidates", lambda: iter(()))
    monkeypatch.setattr(threads._state, "region", threads._first_region)
    started: list[threading.Thread] = []
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert visits(count, 7) == 2  # the caller and one helper, which do all the work


def test_an_interrupted_fallback_waits_for_its_helpers(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they work on is freed when the call has ended."""
    monkeypatch.setattr(threads, "_candidates", lambda: iter(()))
    monkeypatch.setattr(threads._state, "region", threads._first_region)
    ended, calls = [], []

    def slow(address: int) -> None:
        calls.append(address)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(address)

    monkeypatch.setattr(threads, "_entry", lambda address: slow)
    with pytest.raises(KeyboardInterrupt):
        threads.run_parallel(count, 0, 3)
    assert len(calls) == 3 and len(ended) == 2
