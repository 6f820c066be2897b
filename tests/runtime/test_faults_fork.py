"""Processes forked after use: children call old and new kernels, with the right bits, and none
hangs, whatever other threads were at when it was forked."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.runtime.fake_gpu import FakeDriver
from tests.runtime.faults import FORKS, Rows, in_child
from tilewright.backends.cuda import host
from tilewright.frontend import programs
from tilewright.frontend.attention import plans
from tilewright.runtime import locks, native, threads, tuned
from tilewright.runtime.backends import default_backend, kernel_target
from tilewright.runtime.cuda.descriptions import Descriptions
from tilewright.runtime.cuda.driver import Driver
from tilewright.runtime.cuda.forms import Forms
from tilewright.runtime.expert_memory.memory import ExpertMemory
from tilewright.runtime.once import Once

pytestmark = FORKS
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def old() -> Rows:
    """A kernel that this process has called on several threads of torch's pool."""
    threads.set_num_threads(2)
    rows = Rows()
    assert not rows.wrong()
    return rows


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread holds a lock."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def call_both(old: Rows) -> None:
    """What was compiled before the fork, and what was not."""
    assert not old.wrong()
    assert not Rows().wrong()


def test_children_and_their_children_call_old_and_new_kernels(old: Rows) -> None:
    def work() -> None:
        call_both(old)
        threads.set_num_threads(4)  # slots of scratch for threads that do not come
        assert not old.wrong(1000)
        assert in_child(lambda: call_both(old)) == 0

    assert in_child(work) == 0
    assert not old.wrong()


def test_torch_does_not_hang_in_a_child_either(old: Rows) -> None:
    """Its operators run on the pool that our kernels have started."""
    x = torch.ones(1000, 1000)
    assert torch.get_num_threads() > 1 or os.cpu_count() == 1

    def work() -> None:
        assert float((x + 1).sum()) == 2e6

    assert in_child(work, seconds=60) == 0
    assert torch.get_num_threads() > 1 or os.cpu_count() == 1  # the parent's stays


def test_a_lock_that_another_thread_holds_is_free_in_the_child(old: Rows) -> None:
    family = old.program.steps[0].family
    once: Once[int, int] = Once(lambda key: key + 1)
    assert family is not None
    program: Any = SimpleNamespace(params=())
    plain: Any = SimpleNamespace(strides=())
    experts = ExpertMemory(1, 1)
    of_gpus = Driver(FakeDriver()), Forms(program, plain, None, {}, []), Descriptions(())
    guards = (
        *(family.guard, once.guard, programs._guard, plans._guard, tuned.TUNED._guard),
        *(experts._loading, experts._state),
        *(of_gpus[0]._guard, of_gpus[1].guard, of_gpus[2].guard),
    )

    def work() -> None:
        family.forms.clear()  # it has to be made again
        call_both(old)
        assert once[3] == 4
        programs.forget_programs()
        plans.forget_plans()
        for guard in guards:
            assert guard.lock.acquire(timeout=0)

    for guard in guards:
        with held(guard.lock):
            assert in_child(work) == 0


def test_a_fork_waits_for_the_code_generators() -> None:
    """LLVM's locks cannot be given back in a child."""
    order: list[str] = []
    started = threading.Event()

    def generate() -> None:
        with locks.GENERATORS.lock:
            started.set()
            threading.Event().wait(0.2)
            order.append("generated")

    def work() -> None:
        assert order == ["generated"]
        assert locks.GENERATORS.lock.acquire(timeout=0)

    thread = threading.Thread(target=generate)
    thread.start()
    started.wait()
    assert in_child(work) == 0
    thread.join()
    with locks.GENERATORS.lock:  # the parent's is free again, and a thread's own does not stop it
        assert in_child(lambda: None) == 0
    with held(locks.GENERATORS.lock), pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks.GENERATORS, "fork_waits", 0.05)  # nobody waits for ever
        assert in_child(lambda: None) == 0
    assert locks.GENERATORS.lock.acquire(timeout=0)
    locks.GENERATORS.lock.release()


def test_forks_while_a_thread_compiles(old: Rows) -> None:
    stop, wrong = threading.Event(), []

    def compile_on() -> None:
        while not stop.is_set():
            wrong.append(Rows().wrong())

    thread = threading.Thread(target=compile_on)
    thread.start()
    codes = [in_child(lambda: call_both(old)) for _ in range(3)]
    stop.set()
    thread.join()
    assert codes == [0, 0, 0] and not any(wrong)


_FIRST_CALL = """
import itertools, os, sys, threading, time
import tilewright
from tests.runtime import faults

parent, came, held = os.getpid(), threading.Event(), []

class Slow:
    \"\"\"Modules that take their time, and say so when their import begins.\"\"\"
    @staticmethod
    def find_spec(name, path=None, target=None):
        if os.getpid() == parent and name in sys.argv[1:]:
            held.append(name)
            came.set()
            time.sleep(0.3)

def call():  # a kernel that no other process has cached
    faults._numbers = itertools.count(2 + len(codes) + (os.getpid() != parent))
    assert not faults.Rows().wrong()

sys.meta_path.insert(0, Slow)
codes = []
first = threading.Thread(target=call)
first.start()
came.wait(100)
codes.append(faults.in_child(call, seconds=40))
first.join()
print(held == sys.argv[1:], codes == [0] * len(held), held, codes)
"""
_IMPORTED = {
    "mlir": ("runtime.program", "backends.mlir.emit"),
    "numba": ("runtime.program", "backends.numba.kernel"),
}


@pytest.mark.parametrize("at", [0, 1])
def test_a_fork_while_a_thread_imports_at_its_first_call(at: int, tmp_path: Path) -> None:
    """A child keeps the import's locks: the fork has to wait."""
    name = f"tilewright.{_IMPORTED[default_backend()][at]}"
    environment = os.environ | {"TILEWRIGHT_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _FIRST_CALL, name]
    done = subprocess.run(
        command, check=False, env=environment, cwd=ROOT, capture_output=True, timeout=200
    )
    assert done.stdout.startswith(b"True True"), (done.stdout + done.stderr).decode()


_ASKING = """
import os, sys, threading, time
import tilewright
from tilewright.runtime.locks import GENERATORS

import logging
from concurrent.futures import ThreadPoolExecutor

GENERATORS.fork_waits = 5.0
held, ended = threading.Event(), []

def work():
    with GENERATORS.lock:
        held.set()
        time.sleep(0.3)  # by then the other thread is in its fork
        logging.getLogger("new") if sys.argv[1] == "logging" else ThreadPoolExecutor(1).submit(int)
        ended.append(True)

threading.Thread(target=work).start()
held.wait()
child = os.fork()
if not child:
    os._exit(0 if ended else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("what", ["logging", "executors"])
def test_a_fork_takes_no_lock_that_it_waits_behind(what: str) -> None:
    """Python's own modules take theirs in a fork, too: whoever is waited for may ask for them."""
    command = [sys.executable, "-c", _ASKING, what]
    assert subprocess.run(command, check=False, cwd=ROOT, timeout=100).returncode == 0


def test_a_fork_waits_for_llvmlite_outside_of_compiling_too(old: Rows) -> None:
    """It has a lock around each of its calls, of which a child would keep one as held."""
    llvm = pytest.importorskip("llvmlite.binding")
    inside, order = threading.Event(), []
    asked = llvm.get_host_cpu_name

    def slow() -> str:
        inside.set()
        threading.Event().wait(0.2)
        order.append("asked")
        return str(asked())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "get_host_cpu_name", slow)
        thread = threading.Thread(target=native.host_cpu)
        thread.start()
        inside.wait()
        assert in_child(lambda: (_ for _ in ()).throw(SystemExit) if not order else 0) == 0
        thread.join()


def test_a_child_runs_the_emulator_that_another_thread_was_in() -> None:
    order: list[str] = []
    started = threading.Event()

    def emulate() -> None:
        with host._running.lock:
            started.set()
            threading.Event().wait(0.2)
            order.append("ran")

    def work() -> None:
        assert order == ["ran"]
        assert host._running.lock.acquire(timeout=0)

    thread = threading.Thread(target=emulate)
    thread.start()
    started.wait()
    assert in_child(work) == 0
    thread.join()
    assert in_child(lambda: None) == 0  # and the parent's is free again
    with held(host._running.lock), pytest.MonkeyPatch.context() as patch:
        patch.setattr(host._running, "fork_waits", 0.05)
        assert in_child(lambda: host._running.lock.acquire(timeout=0) or os._exit(1)) == 0
    assert host._running.lock.acquire(timeout=0)
    host._running.lock.release()


def test_a_child_of_a_thread_that_traces_collects_garbage() -> None:
    inside, done = threading.Event(), threading.Event()

    def trace() -> None:
        with plans._no_collection():
            inside.set()
            done.wait()

    thread = threading.Thread(target=trace)
    thread.start()
    inside.wait()
    try:
        assert not gc.isenabled()
        assert in_child(lambda: (_ for _ in ()).throw(SystemExit) if not gc.isenabled() else 0) == 0
    finally:
        done.set()
        thread.join()
    assert gc.isenabled()


def call_there(queue: multiprocessing.SimpleQueue[list[bool]]) -> None:
    """In another process: a kernel of its own, on all its threads."""
    rows = Rows()
    queue.put([rows.wrong(), rows.wrong(1000), threads.num_threads() >= 1])


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_multiprocessing(method: str, old: Rows) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=call_there, args=(queue,))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    assert queue.get() == [False, False, True]


class Sums(torch.utils.data.Dataset[bool]):
    """Items that workers of a data loader compute with kernels."""

    def __init__(self, old: Rows) -> None:
        self.old = old

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> bool:
        return self.old.wrong() or Rows().wrong() or kernel_target().lanes < 1


def test_workers_of_a_data_loader(old: Rows) -> None:
    loader = torch.utils.data.DataLoader(Sums(old), batch_size=2, num_workers=2, timeout=100)
    assert [batch.tolist() for batch in loader] == [[False, False]] * 2
