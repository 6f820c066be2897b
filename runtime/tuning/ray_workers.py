"""Trials on the workers of a Ray cluster, each of which isolates them as this machine does.

A worker is an actor that holds all processors of its node, or one GPU, so that nothing else that
Ray runs disturbs its times. It runs a trial in a process of its own (local.py): what a candidate
does costs one trial, not the worker. A worker that is lost all the same, with its process or its
whole machine, gives its trial back, and another one takes it.
"""

from __future__ import annotations

import importlib
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tilewright.ir.errors import BackendMissingError, TuningError
from tilewright.runtime.fingerprint import source_hash
from tilewright.runtime.tuning.device import device_fingerprint
from tilewright.runtime.tuning.ray_actor import Facts, TrialActor
from tilewright.runtime.tuning.ray_nodes import Place, places
from tilewright.runtime.tuning.trial import run_trial
from tilewright.runtime.tuning.workers import Done, Job, Run, failed

RETRIES = 2  # of a trial whose worker was lost: it may be the trial that does it
LOSSES = 3  # of one node, after which it is not used any more
FIRST_SECONDS = 120.0  # for workers to start: they may have to wait for other work of the cluster
LATER = 0.25  # of it, for the others once there is one
ANSWER_SECONDS = 10.0  # for the cluster to take a connection
CLOSE_SECONDS = 3.0
LOOK_SECONDS = 2.0  # between two looks at the cluster
SILENT_SECONDS = 120.0  # beyond a trial's limit, after which a worker counts as lost


class WorkersWarning(UserWarning):
    """Part of a cluster is not used for this run, or was lost."""


@dataclass(frozen=True)
class _Worker:
    place: Place
    actor: Any
    facts: Facts


@dataclass(frozen=True)
class _Waiting:
    job: Job
    lost_at: tuple[str, ...] = ()  # nodes that were lost with it


@dataclass(frozen=True)
class _Running:
    worker: _Worker
    waiting: _Waiting
    start: float


class RayWorkers:
    """One job at a time on each worker that the cluster at ``address`` offers ("local": one that is
    started here and ends with this). A trial may take ``timeout`` seconds. All workers are of one
    kind, the most frequent; those of another kind are not used, which a warning says.

    Raises BackendMissingError without Ray; TuningError where there is no such cluster, no fitting
    worker in it or a worker with another Tilewright, and when the last worker has been lost.
    """

    def __init__(
        self,
        address: str,
        timeout: float = 30.0,
        gpu: bool = False,
        *,
        run: Run = run_trial,
        describe: Callable[[bool], str] = device_fingerprint,
        patience: float = FIRST_SECONDS,
    ) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise BackendMissingError(
                "--ray needs Ray here and on every worker: pip install 'tilewright[ray]'"
            ) from None
        self.address, self.timeout, self.gpu, self.patience = address, timeout, gpu, patience
        self.device = ""  # known when entered
        self._what = run, describe
        self._connected = False
        self._waiting: list[_Waiting] = []
        self._running: dict[Any, _Running] = {}  # by Ray's reference to the outcome
        self._starting: dict[Any, tuple[Place, Any]] = {}  # by that to the facts
        self._workers: list[_Worker] = []
        self._lost: Counter[str] = Counter()  # by node
        self._unused: set[str] = set()  # nodes
        self._look_at = self._alone_since = 0.0

    @property
    def slots(self) -> int:
        """Workers; while there is none, one may come."""
        return max(1, len(self._workers))

    def __enter__(self) -> RayWorkers:
        try:
            self._connect()
            self._start_workers()
            self._first_workers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        busy = [each.worker for each in self._running.values()]
        self._close([worker.actor for worker in self._workers if worker not in busy])
        self._waiting.clear()
        self._running.clear()
        actors = [actor for _, actor in self._starting.values()]
        actors += [worker.actor for worker in self._workers]
        self._starting.clear()
        self._workers.clear()
        for actor in actors:
            self._kill(actor)
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def submit(self, job: Job) -> None:
        """Starts a job, or has it wait for a free worker."""
        self._waiting.append(_Waiting(job))
        self._start_jobs()

    def wait(self, seconds: float) -> Sequence[Done]:
        """The jobs that have ended; after ``seconds`` at the latest."""
        end = time.monotonic() + seconds
        while True:
            found = self._ended(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
            if time.monotonic() > self._look_at:
                self._start_workers()
            self._start_jobs()
            if found or time.monotonic() >= end or not (self._running or self._waiting):
                return found
            self._see_that_somebody_is_left()

    def _connect(self) -> None:
        if self._ray.is_initialized():  # by the program that uses us
            there = self._ray.get_runtime_context().gcs_address
            if self.address in ("auto", "local", there):
                return
            raise TuningError(
                f"no Ray cluster at {self.address!r}: this process is connected to {there!r}"
            )
        self._see_that_somebody_answers()
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            quiet["include_dashboard"] = False
        try:
            self._ray.init(address=self.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise self._nobody_there(error) from None
        self._connected = True

    def _see_that_somebody_answers(self) -> None:
        """Ray itself tries for minutes where there is no machine."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if port.isdigit():
            try:
                socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
            except (OSError, OverflowError) as error:
                raise self._nobody_there(error) from None

    def _nobody_there(self, error: Exception) -> TuningError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return TuningError(
            f"no Ray cluster at {self.address!r}: {reason} "
            "(`ray start --head` starts one; --ray local makes one here)"
        )

    def _start_workers(self) -> None:
        """An actor for each place of the cluster that has none; they answer when they can. Idle
        workers whose machines have gone are forgotten: the busy ones' trials say so themselves."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        nodes = self._ray.nodes()
        found, other = places(nodes, self.gpu)
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        busy = [each.worker for each in self._running.values()]
        self._workers = [x for x in self._workers if x in busy or x.place.node in alive]
        if other and not self._workers and not self._starting:
            _warn(f"not used: {', '.join(other)} (all workers have to be of one kind)")
        taken = [place for place, _ in self._starting.values()]
        taken += [worker.place for worker in self._workers]
        for place in found:
            if place not in taken and place.node not in self._unused:
                actor = self._actor(place)
                self._starting[actor.facts.remote()] = place, actor

    def _actor(self, place: Place) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        there = strategies.NodeAffinitySchedulingStrategy(node_id=place.node, soft=False)
        kind = self._ray.remote(TrialActor).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            resources=dict(place.resources),
            scheduling_strategy=there,
            max_restarts=0,
        )
        run, describe = self._what
        return kind.remote(self.timeout, self.gpu, int(place.cpus), run, describe)

    def _first_workers(self) -> None:
        """Waits for workers and settles on a kind; those that are busy now may come later."""
        if not self._starting:
            kind = "GPU" if self.gpu else "processor"
            raise TuningError(f"the Ray cluster at {self.address!r} has no {kind} to run trials on")
        end = time.monotonic() + self.patience
        facts: list[tuple[Place, Any, Facts]] = []
        while self._starting and time.monotonic() < end:
            more = self._answers(1.0)
            if more and not facts:
                end = min(end, time.monotonic() + LATER * self.patience)
            facts += more
        if not facts:
            raise TuningError(
                f"no worker of the Ray cluster at {self.address!r} came within "
                f"{self.patience:.0f} s: `ray status` says what its machines are busy with"
            )
        counts = Counter(each.device for _, _, each in facts)
        self.device = min(counts, key=lambda device: (-counts[device], device))
        for place, actor, each in facts:
            self._take(place, actor, each)

    def _answers(self, seconds: float) -> list[tuple[Place, Any, Facts]]:
        """What actors say that have started meanwhile with the same Tilewright as this one."""
        ready, _ = self._ray.wait(list(self._starting), num_returns=1, timeout=seconds)
        found = []
        for reference in ready:
            place, actor = self._starting.pop(reference)
            try:
                facts = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._not_started(place, error)
                continue
            if facts.source == source_hash():
                found.append((place, actor, facts))
                continue
            self._kill(actor)
            self._refuse(
                place,
                f"{place.name} has another Tilewright than this machine: "
                "install the same version on all (times of different compilers do not compare)",
            )
        return found

    def _not_started(self, place: Place, error: Exception) -> None:
        """A machine that goes while an actor starts is lost; without Tilewright it is of no use."""
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            last = str(error).strip().splitlines()[-1]
            self._refuse(place, f"{place.name} cannot run trials: {last}")
        else:
            self._count_loss(place)

    def _refuse(self, place: Place, reason: str) -> None:
        """A machine that is no good: a mistake at first, of no matter once there are others."""
        if not self.device:
            raise TuningError(reason)
        self._unused.add(place.node)
        _warn(f"not used: {reason}")

    def _take(self, place: Place, actor: Any, facts: Facts) -> None:
        if facts.device == self.device:
            self._workers.append(_Worker(place, actor, facts))
            return
        self._kill(actor)
        if place.node not in self._unused:
            self._unused.add(place.node)
            _warn(f"{place.name} is not used: it is {facts.device}, others are {self.device}")

    def _start_jobs(self) -> None:
        """Jobs to free workers; one that was lost goes to another machine if there is any."""
        busy = [each.worker for each in self._running.values()]
        free = [worker for worker in self._workers if worker not in busy]
        for waiting in tuple(self._waiting):
            elsewhere = [x for x in self._workers if x.place.node not in waiting.lost_at]
            fitting = [x for x in free if x in elsewhere or not elsewhere]
            if fitting:
                free.remove(fitting[0])
                self._waiting.remove(waiting)
                reference = fitting[0].actor.run.remote(waiting.job)
                self._running[reference] = _Running(fitting[0], waiting, time.monotonic())

    def _ended(self, seconds: float) -> list[Done]:
        """Outcomes that are there within ``seconds``; sees to workers that are lost, or come."""
        references = [*self._running, *self._starting]
        if not references:
            time.sleep(min(seconds, 0.1))
            return []
        ready, _ = self._ray.wait(references, num_returns=1, timeout=seconds)
        if any(reference in self._starting for reference in ready):
            for place, actor, facts in self._answers(0.0):
                self._take(place, actor, facts)
        silent = [x for x, each in self._running.items() if self._is_silent(each)]
        found = [self._result(x) for x in {*ready, *silent} if x in self._running]
        return [done for done in found if done is not None]

    def _is_silent(self, each: _Running) -> bool:
        job = each.waiting.job
        limit = job.limit(self.timeout)
        return time.monotonic() > each.start + limit + SILENT_SECONDS

    def _result(self, reference: Any) -> Done | None:
        """A job's outcomes; None if its worker is lost and another one shall try."""
        each = self._running.pop(reference)
        job, seconds = each.waiting.job, time.monotonic() - each.start
        exceptions = self._ray.exceptions
        try:
            outcomes = self._ray.get(reference, timeout=1.0)
            return Done(job, tuple(outcomes), seconds)
        except exceptions.RayTaskError as error:  # of the worker's own code, which goes on
            reason = (str(error).strip().splitlines() or ["?"])[-1]
            return failed(job, "error", reason, seconds)
        except (exceptions.RayError, TimeoutError):
            pass
        self._workers.remove(each.worker)
        self._kill(each.worker.actor)
        self._count_loss(each.worker.place)
        lost_at = *each.waiting.lost_at, each.worker.place.node
        if len(lost_at) > RETRIES:
            count = len(lost_at)
            reason = f"{count} worker{'s were' if count > 1 else ' was'} lost with it"
            return failed(job, "lost", reason, seconds)
        self._waiting.insert(0, _Waiting(job, lost_at))
        return None

    def _count_loss(self, place: Place) -> None:
        self._lost[place.node] += 1
        if self._lost[place.node] >= LOSSES and place.node not in self._unused:
            self._unused.add(place.node)
            _warn(f"{place.name} is not used any more: {LOSSES} workers were lost there")

    def _see_that_somebody_is_left(self) -> None:
        now = time.monotonic()
        if self._workers:
            self._alone_since = 0.0
        elif not self._alone_since:
            self._alone_since = now
        elif now > self._alone_since + self.patience:
            raise TuningError(
                f"all workers of the Ray cluster at {self.address!r} are gone; "
                "what was measured is kept (go on with --resume)"
            )

    def _close(self, actors: list[Any]) -> None:
        """Lets workers tidy up; those that do not answer are killed as they are."""
        with suppress(Exception):
            closing = [actor.close.remote() for actor in actors]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)

    def _kill(self, actor: Any) -> None:
        """Its processes end with it."""
        with suppress(Exception):  # it may be gone, and the cluster with it
            self._ray.kill(actor)


def _warn(text: str) -> None:
    warnings.warn(text, WorkersWarning, stacklevel=3)
