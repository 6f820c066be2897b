"""Trials on a Ray cluster: of three machines in one, workers and machines are lost in mid-trial."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from tests.runtime.tuning.kernels import prefill
from tilewright.ir.errors import BackendMissingError, TuningError
from tilewright.runtime.tuning import ray_workers
from tilewright.runtime.tuning.database import Database
from tilewright.runtime.tuning.ray_nodes import places
from tilewright.runtime.tuning.ray_workers import RayWorkers, WorkersWarning
from tilewright.runtime.tuning.trial import Effort
from tilewright.runtime.tuning.tuner import Tuner
from tilewright.runtime.tuning.workers import Done, Job

SMALL: dict[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}


class Cluster:
    """Two machines with one processor each and one with two, which is of another kind."""

    def __init__(self, marks: Path) -> None:
        from ray.cluster_utils import Cluster

        self.marks = marks
        kinds = [{"accelerator_type:A100": 1}, {"accelerator_type:H100": 1}, {}]
        machines = [
            {"num_cpus": cpus, "num_gpus": gpus, "resources": kind, **SMALL}
            for cpus, gpus, kind in zip((1, 1, 2), (1, 2, 0), kinds, strict=True)
        ]
        self.cluster = Cluster(initialize_head=True, head_node_args=machines[0])
        self.nodes = [self.cluster.add_node(**each) for each in machines[1:]]
        self.address = self.cluster.address

    def hold(self) -> None:
        """Trials that begin wait from now on."""
        (self.marks / "go").unlink(missing_ok=True)

    def let_go(self) -> None:
        """They go on."""
        (self.marks / "go").touch()

    def begun(self, *numbers: int) -> list[int]:
        """How often the trials have begun."""
        files = [self.marks / str(number) for number in numbers]
        return [file.stat().st_size if file.exists() else 0 for file in files]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    marks, here = tmp_path_factory.mktemp("marks"), Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_OF_RAY", str(marks))
        patch.setenv("PYTHONPATH", f"{here}:{here.parents[2]}")  # of the machines
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(str(here))
        made = Cluster(marks)
        yield made
        made.cluster.shutdown()


def entered(cluster: Cluster, **more: Any) -> RayWorkers:
    import planted

    return RayWorkers(cluster.address, 60.0, run=planted.candidate, **more)


@pytest.fixture(scope="module")
def workers(cluster: Cluster) -> Iterator[RayWorkers]:
    told = pytest.warns(WorkersWarning, match=r"is not used: it is .* 2 threads, others are")
    with told, entered(cluster) as found:
        yield found


def job(number: int, **choice: int) -> Job:
    return Job(number, prefill(), (choice,), Effort(0.0, 1))


def collect(workers: RayWorkers, count: int) -> list[Done]:
    done: list[Done] = []
    end = time.monotonic() + 120
    while len(done) < count and time.monotonic() < end:
        done += workers.wait(1.0)
    assert not workers.wait(0.0)
    return sorted(done, key=lambda x: x.job.number)


def until_begun(cluster: Cluster, workers: RayWorkers, *numbers: int) -> None:
    end = time.monotonic() + 60
    while not all(cluster.begun(*numbers)) and time.monotonic() < end:
        assert not workers.wait(0.1)


def test_workers_of_one_kind_are_used(workers: RayWorkers) -> None:
    assert workers.slots == 2 and workers.device.endswith(" 1 threads")


def test_a_candidate_that_crashes_costs_its_trial_and_no_worker(workers: RayWorkers) -> None:
    before = [worker.facts.process for worker in workers._workers]
    for number, choice in enumerate(({"crash": 1}, {"ms": 7}, {"raise": 1})):
        workers.submit(job(number, **choice))
    assert [x.outcomes[0].state for x in collect(workers, 3)] == ["crash", "ok", "error"]
    assert [worker.facts.process for worker in workers._workers] == before


def test_real_trials_reach_the_database(workers: RayWorkers, tmp_path: Path) -> None:
    database = Database(tmp_path / "file")
    (state,) = Tuner(workers, database).run([(prefill(), 1.0)], 8.0)
    trials = database.trials()
    assert len(trials) == state.trials > 0 and {x.device for x in trials} == {workers.device}
    assert any(x.state == "ok" for x in trials)


def test_gpus_are_taken_by_their_kind(cluster: Cluster, workers: RayWorkers) -> None:
    import planted

    before = set(Path(gettempdir()).glob("tilewright-tune-*"))
    with (
        pytest.warns(WorkersWarning, match="1 GPU of kind A100"),
        entered(cluster, gpu=True, describe=planted.fake_gpu) as found,
    ):
        assert found.slots == 2 and found.device == "GPU of the test"
        assert {worker.place.node for worker in found._workers} == {cluster.nodes[0].node_id}
        found.submit(job(1, ms=3))
        assert collect(found, 1)[0].outcomes[0].milliseconds == 3
        made = set(Path(gettempdir()).glob("tilewright-tune-*")) - before
        assert len(made) >= 2  # of these workers, and perhaps of other processes
    assert len([folder for folder in made if folder.exists()]) <= len(made) - 2


def test_another_tilewright_on_a_worker_is_refused(
    cluster: Cluster, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import planted

    monkeypatch.setattr(ray_workers, "source_hash", lambda: "another")
    with (
        pytest.warns(WorkersWarning),
        pytest.raises(TuningError, match="another Tilewright than this machine"),
        entered(cluster, gpu=True, describe=planted.fake_gpu),
    ):
        pass


def test_a_lost_worker_costs_no_trial_and_none_comes_twice(
    cluster: Cluster, workers: RayWorkers
) -> None:
    numbers = 1, 2, 3, 4, 5
    cluster.hold()
    for number in numbers:
        workers.submit(job(number, ms=number, mark=number))
    until_begun(cluster, workers, 1, 2)
    victim = next(iter(workers._running.values()))
    lost = victim.waiting.job.number
    os.kill(victim.worker.facts.process, signal.SIGKILL)
    cluster.let_go()
    done = collect(workers, 5)
    assert [x.job.number for x in done] == [*numbers]
    assert [x.outcomes[0].milliseconds for x in done] == [*numbers]
    assert cluster.begun(*numbers) == [1 + (number == lost) for number in numbers]


def test_a_lost_machine_costs_no_trial(
    cluster: Cluster, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: the machine does not come back. A trial that loses too many is given up."""
    numbers = 11, 12, 13
    cluster.hold()
    while workers.slots < 2:  # the test before has taken one
        workers.wait(1.0)
    for number in numbers:
        workers.submit(job(number, ms=number, mark=number))
    until_begun(cluster, workers, 11, 12)
    cluster.cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    end = time.monotonic() + 60
    while workers.slots > 1 and time.monotonic() < end:
        assert not workers.wait(0.5)
    assert workers.slots == 1
    cluster.let_go()
    done = collect(workers, 3)
    assert [x.job.number for x in done] == [*numbers]
    assert [x.outcomes[0].milliseconds for x in done] == [*numbers]
    monkeypatch.setattr(ray_workers, "RETRIES", 0)
    cluster.hold()
    workers.submit(job(14, mark=14))
    until_begun(cluster, workers, 14)
    os.kill(workers._workers[0].facts.process, signal.SIGKILL)
    cluster.let_go()
    (last,) = collect(workers, 1)
    assert last.outcomes[0].state == "lost"
    assert last.outcomes[0].reason == "1 worker was lost with it"


def test_no_cluster_is_a_clear_error() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    for address in (closed, "127.0.0.1:99999", "nonsense"):
        message = f"no Ray cluster at '{address}'"  # whether this process has another one or not
        with pytest.raises(TuningError, match=message), RayWorkers(address):
            pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendMissingError, match=r"tilewright\[ray\]"):
        RayWorkers("local")


def test_places() -> None:
    def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
        offered = {key.replace("_is_", "_type:"): x for key, x in resources.items()}
        return {"NodeID": name, "NodeManagerHostname": name, "Alive": alive, "Resources": offered}

    nodes = [
        node("head", memory=1.0),
        node("cpu", CPU=8.0),
        node("gone", alive=False, CPU=8.0, GPU=8.0, accelerator_is_A100=1.0),
        node("two", CPU=5.0, GPU=2.0, accelerator_is_H100=1.0),
        node("one", CPU=16.0, GPU=1.0, accelerator_is_L4=1.0),
    ]
    found, other = places(nodes, gpu=False)
    assert [(x.node, x.cpus, x.gpus) for x in found] == [
        ("cpu", 8.0, 0.0),
        ("two", 5.0, 0.0),
        ("one", 16.0, 0.0),
    ]
    assert not other
    found, other = places(nodes, gpu=True)
    assert [(x.node, x.number, x.cpus, x.gpus) for x in found] == [
        ("two", 0, 2.0, 1.0),
        ("two", 1, 2.0, 1.0),
    ]
    assert other == ["1 GPU of kind L4"]
    assert places(nodes[:2], gpu=True) == ([], [])
