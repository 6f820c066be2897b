"""Records to render and to keep, made by hand: no test here depends on a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.backends.interpreted import spare_the_interpreter
from tilewright.bench.machine import Machine
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Timing


def make_machine(kind: str = "avx512-zen5") -> Machine:
    return Machine(
        kind, "A processor", 2, 2, {"torch": "2.13.0", "python": "3.11.7"}, "", 0.1, 80.0
    )


def make_record(command: str = "attention", kind: str = "avx512-zen5", ours: float = 2.0) -> Record:
    """One comparison of ratio 4 / ``ours``, held to 1.5, and one quantity that meets its goal."""
    times = Timing(ours, ours / 2, 7), Timing(4.0, 3.0, 7)
    row = Comparison("long", "torch SDPA", *times, Goal(1.5, 1.9), 10.0, "GFLOP/s", 1e-7, 2e-7)
    memory = Quantity("scratch", 1.5, "MB", Goal(16.0), {"length": 32})
    date = "2026-11-24T12:00:00+00:00"
    return Record(command, date, make_machine(kind), (row,), (memory,), {"note": [1, 2]})


@pytest.fixture(scope="session", autouse=True)
def spared_interpreter() -> None:
    """Of the process that ``test_gpu_suites.py`` starts."""
    spare_the_interpreter()


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The benchmarks set the number of threads; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
