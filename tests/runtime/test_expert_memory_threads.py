"""Loading and unloading while other threads read: never a torn read, never a leak, never a wait."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import torch

from tilewright.ir.errors import ExpertError
from tilewright.runtime.expert_memory import memory as memory_module
from tilewright.runtime.expert_memory.linux import LinuxRange
from tilewright.runtime.expert_memory.memory import ExpertMemory
from tilewright.runtime.expert_memory.pace import Pace
from tilewright.runtime.expert_memory.snapshot import Snapshot
from tilewright.runtime.expert_memory.weight import ExpertWeight

Work = Callable[[threading.Event], None]
SECONDS = 3.0
NAMES = "abcde"
SHAPE = (37, 300)


def stamped(name: str, load: int, expert: int) -> torch.Tensor:
    """Numbers that say whose they are in every element: adapter, load, expert."""
    return torch.full(SHAPE, NAMES.index(name) * 1e6 + load * 10 + expert)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the readers are the threads here
    yield
    torch.set_num_threads(before)


def run_all(workers: list[Work], seconds: float = SECONDS) -> None:
    """Runs all until the time is over or one fails; raises what failed."""
    stop, errors = threading.Event(), []

    def guarded(worker: Work) -> None:
        try:
            worker(stop)
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def changer(memory: ExpertMemory, numbers: Iterator[int], seed: int) -> Work:
    """Loads and unloads at random."""
    source = random.Random(seed)

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            name, number = source.choice(NAMES), next(numbers)
            chosen = source.sample(range(6), source.randint(1, 4))
            parts = {0: {e: {"up": stamped(name, number, e)} for e in chosen}}
            try:
                if name in memory.snapshot.adapters:
                    memory.unload(name)
                else:
                    memory.load(name, parts, share=source.choice([1.0, 0.3]))
            except ExpertError as error:  # the other one was first, or a reader has it
                assert any(word in str(error) for word in ("loaded", "in use", "taken"))

    return work


def whole(weight: ExpertWeight, snapshot: Snapshot, name: str) -> None:
    """Every element of an adapter is its own, and of one load."""
    loads = set()
    for expert, place in enumerate(snapshot.maps[0][snapshot.adapters[name].slot].tolist()):
        if place != expert:
            data = weight.tensor[place]
            first = float(data[0, 0])
            assert bool((data == first).all()), "torn"
            assert int(first) // 10**6 == NAMES.index(name), "another adapter's"
            assert int(first) % 10 == expert, "another expert's"
            loads.add(int(first) % 10**6 // 10)
    assert len(loads) == 1, "of two loads"


def test_readers_see_whole_adapters_only() -> None:
    memory = ExpertMemory(3, 4)
    base = torch.full((6, *SHAPE), -1.0)
    weight = memory.add_layer(0, {"up": base})["up"]
    mapped, numbers, reads = weight.mapped_bytes, itertools.count(), itertools.count()

    def read(stop: threading.Event) -> None:
        while not stop.is_set():
            assert torch.equal(weight.base, base)
            for name in list(memory.snapshot.adapters):
                with suppress(ExpertError), memory.lease([name]) as snapshot:  # it may be gone
                    whole(weight, snapshot, name)
                    next(reads)

    run_all([changer(memory, numbers, 1), changer(memory, numbers, 2), read, read])
    assert next(numbers) > 20 and next(reads) > 20
    for name in list(memory.snapshot.adapters):
        memory.unload(name)
    assert weight.mapped_bytes == mapped
    if isinstance(weight._range, LinuxRange):
        assert weight._range.resident_bytes == mapped


def test_readers_never_wait_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a load stands still in the middle of its copies, leases come and go."""
    memory = ExpertMemory(2, 2)
    weight = memory.add_layer(0, {"up": torch.zeros(3, 8)})["up"]
    memory.load("a", {0: {1: {"up": torch.ones(8)}}})
    inside, go = threading.Event(), threading.Event()

    def slow() -> list[torch.Tensor]:
        inside.set()
        assert go.wait(60)
        return [torch.full((8,), 2.0)]

    loader = threading.Thread(target=memory.load, args=("b", {0: {2: {"up": slow}}}))
    loader.start()
    try:
        assert inside.wait(60)
        for _ in range(100):
            with memory.lease(["a"]) as snapshot:
                assert "b" not in snapshot.adapters
                assert torch.equal(snapshot.maps[0][1], torch.arange(3))  # b's row is the base's
                assert float(weight.tensor[3].sum()) == 8
        with pytest.raises(ExpertError, match="'b' is not loaded"), memory.lease(["b"]):
            pass
    finally:
        go.set()
        loader.join()
    with memory.lease(["b"]) as snapshot:
        assert snapshot.maps[0][1].tolist() == [0, 1, 5]
        assert torch.equal(weight.tensor[5], torch.full((8,), 2.0))


def test_nobody_gets_a_lease_while_an_adapter_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment that memory is given back on, the adapter is not there any more."""
    memory = ExpertMemory(1, 1)
    weight = memory.add_layer(0, {"up": torch.zeros(3, 8)})["up"]
    memory.load("a", {0: {1: {"up": torch.ones(8)}}})
    seen: list[bool] = []
    real = type(weight).unmap

    def watched(*arguments: object) -> None:
        with pytest.raises(ExpertError, match="not loaded"), memory.lease(["a"]):
            pass
        seen.append("a" in memory.snapshot.adapters)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(memory_module.ExpertWeight, "unmap", watched)
    memory.unload("a")
    assert seen == [False]


def test_a_small_share_of_a_core_is_a_small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps the loader sleeps what it worked, times (1 / share - 1)."""
    slept: list[float] = []
    real = time.thread_time
    monkeypatch.setattr(time, "sleep", slept.append)
    memory = ExpertMemory(1, 1)
    memory.add_layer(0, {"up": torch.zeros(2, 1 << 19)})
    began = real()
    memory.load("a", {0: {1: {"up": torch.ones(1 << 19)}}}, share=0.2)
    worked = real() - began
    assert len(slept) >= 8  # 2 MiB in steps of 256 KiB, and then the steps of mapping
    assert 0 < sum(slept) <= 4 * worked


def test_waiting_for_a_core_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that others kept from its core for a second rests as if they had not."""
    had, slept = iter([1.0, 1.25, 5.0, 5.5]), list[float]()
    monkeypatch.setattr(time, "thread_time", lambda: next(had))
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("counts what others did"))
    monkeypatch.setattr(time, "sleep", slept.append)
    assert list(Pace(0.2).steps(0, 5, 3)) == [(0, 3), (3, 5)]
    assert slept == pytest.approx([1.0, 2.0])
