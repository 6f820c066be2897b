"""Devices that suites are measured on: names, the clock of a CUDA device played in simulated time,
memory, roofs, and what becomes of a run whose device breaks."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.toys import offered, toy
from tilewright import BenchError
from tilewright.bench.contender import prepare
from tilewright.bench.devices import Cuda, Host, Rehearsal, cuda, device
from tilewright.bench.devices.cuda import CYCLES, LONGEST_HEAD_START, CudaClock, gpu_class
from tilewright.bench.method.clock import HostClock
from tilewright.bench.suites import catalogue as suites
from tilewright.bench.suites.problem import Form

# ---- names


def test_names() -> None:
    assert device("cpu") == Host() and device("cuda", dry=True) == Rehearsal()
    with pytest.raises(BenchError, match="no device 'gpu'; there are cpu, cuda and cuda:NUMBER"):
        device("gpu")
    with pytest.raises(BenchError, match="--dry goes with --device cuda"):
        device("cpu", dry=True)
    with pytest.raises(BenchError, match="no device 'cuda:x'"):
        device("cuda:x")


def test_without_a_device_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchError, match=r"no CUDA device here: leave --device out .* --dry"):
        device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device("cuda:1") == Cuda(1) and device("cuda").tensors == "cuda:0"
    with pytest.raises(BenchError, match="no device cuda:2; there are cuda:0 to cuda:1"):
        device("cuda:2")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 NVL", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-PCIE-16GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "amd-instinct-mi300x"),
        ("NVIDIA", "gpu"),
    ],
)
def test_classes_of_devices(name: str, kind: str) -> None:
    """The folders of bench/results."""
    assert gpu_class(name) == kind


def test_a_description_says_what_was_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = types.SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    found = Cuda().describe()
    assert found.kind == "h100" and found.cores == Host().describe().cores
    assert found.gpu.startswith("NVIDIA H100 80GB HBM3, sm_90, 132 multiprocessors, CUDA ")
    assert "triton" in found.versions and "torch" in found.versions


def test_a_device_is_the_current_one_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    @contextmanager
    def current(index: int) -> Iterator[None]:
        seen.append(index)
        yield
        seen.pop()

    monkeypatch.setattr(torch.cuda, "device", current)
    with Cuda(1).kernels():
        assert seen == [1]
    assert not seen


def test_a_run_can_send_devices_and_their_suites_to_other_processes() -> None:
    for place in (Host(), Cuda(1), Rehearsal()):
        assert pickle.loads(pickle.dumps(place)) == place
    for name in suites.SUITES:
        suite = suites.suite(name, Rehearsal())
        again = pickle.loads(pickle.dumps(suite))
        assert [p.name for p in again.problems(True)] == [p.name for p in suite.problems(True)]


# ---- times, in simulated time


class Timeline:
    """A host and a device that works off what the host starts, both in seconds; the device's
    ``_sleep`` takes ``slow`` times as long as its cycles would at the highest clock rate."""

    def __init__(self, slow: float = 1.0) -> None:
        self.host = self.device = 0.0
        self.slow = slow
        self.synchronised = 0

    def start(self, seconds: float) -> None:
        self.device = max(self.device, self.host) + seconds

    def sleep(self, cycles: int) -> None:
        self.start(self.slow * cycles / CYCLES)

    def synchronize(self, _device: Any = None) -> None:
        self.host = max(self.host, self.device)
        self.synchronised += 1

    def call(self, host: float, device_: float) -> Callable[[], None]:
        def call() -> None:
            self.host += host
            self.start(device_)

        return call


@dataclass
class Event:
    timeline: Timeline
    at: float = 0.0

    def record(self) -> None:
        self.at = max(self.timeline.device, self.timeline.host)

    def synchronize(self) -> None:
        self.timeline.synchronize()

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1e3


@contextmanager
def played(slow: float = 1.0) -> Iterator[tuple[Timeline, CudaClock]]:
    timeline = Timeline(slow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(timeline))
        patch.setattr(torch.cuda, "_sleep", timeline.sleep)
        patch.setattr(torch.cuda, "synchronize", timeline.synchronize)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(cuda, "time", types.SimpleNamespace(perf_counter=lambda: timeline.host))
        patch.setattr(cuda, "REFERENCE_SIZE", 8)
        yield timeline, CudaClock("cpu", 64)


@given(
    host=st.floats(1e-6, 1e-3),
    work=st.floats(1e-6, 1e-3),
    calls=st.integers(1, 60),
    slow=st.floats(1.0, 2.0),
)
def test_times_are_the_devices_alone(host: float, work: float, calls: int, slow: float) -> None:
    """Whatever starting a call costs the host, once that is known (and below what is waited for at
    most)."""
    with played(slow) as (timeline, clock):
        call = timeline.call(host, work)
        clock.seconds(call)
        found = clock.seconds(call, calls)
        if 1.5 * host * calls <= LONGEST_HEAD_START:
            assert found == pytest.approx(work, rel=1e-6)
        assert found >= work * (1 - 1e-9)
        assert clock.launch(call, calls) >= max(host, work) * (1 - 1e-9)


def test_a_start_costs_what_the_host_waits() -> None:
    with played() as (timeline, clock):
        call = timeline.call(5e-5, 1e-5)
        timeline.start(1.0)  # somebody else's work: not ours to count
        assert clock.launch(call, 100) == pytest.approx(5e-5, rel=0.01)
        assert timeline.synchronised == 2


def test_caches_are_emptied_by_reading() -> None:
    """As many bytes as were asked for; nothing is written that would have to go back later."""
    with played() as (_, clock):
        assert clock._read() == torch.tensor(64.0 / 4)
        assert clock.evict() >= 0 and clock.compute() >= 0
        assert clock._read() == torch.tensor(64.0 / 4)


# ---- memory


def test_memory_is_what_the_allocator_gave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"now": 100, "peak": 900}

    def reset(_index: int) -> None:
        state["peak"] = state["now"]

    def call() -> str:
        state["peak"], state["now"] = 160, 130
        return "kept"

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: state["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: state["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    grown = Cuda().growth(call)
    assert grown is not None and (grown.peak, grown.kept) == (60, 30)
    assert Cuda().held() == 130


# ---- a device that breaks


@dataclass(frozen=True)
class Breaks(Host):
    """Answers with an error as soon as a call has broken it."""

    broken: Any = None

    def finish(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_who_breaks_the_device_is_named_and_nobody_else_is_blamed() -> None:
    broken: list[bool] = []

    def breaks() -> torch.Tensor:
        broken.append(True)
        return torch.full((2,), 2.0)

    problem = toy()
    exact = problem.exact(problem.make())
    place = Breaks(broken=broken)
    good = offered(Form("good", lambda: lambda: torch.full((2,), 2.0)))
    assert prepare(problem, None, exact, "x", good, place).status == "ok"
    bad = offered(Form("its fast way", lambda: breaks))
    with pytest.raises(BenchError, match=r"'its fast way' has broken the device.*illegal memory"):
        prepare(problem, None, exact, "x", bad, place)


def test_an_error_that_the_device_survives_is_the_providers_alone() -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("out of memory")

    problem = toy()
    bad = offered(Form("large", lambda: fails))
    found = prepare(problem, None, problem.exact(problem.make()), "x", bad, Breaks(broken=[]))
    assert found.status == "failed" and "out of memory" in found.reason


def test_the_processors_calls_cost_what_they_take() -> None:
    clock = HostClock(1 << 10)
    assert clock.launch(lambda: None, 10) < 1
