"""Many threads: every result has the right bits, each form is compiled once, whatever is changed
meanwhile; and a short form of the soak (bench/soak.py)."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.faults import Rows
from tilewright.bench import soak, soak_load
from tilewright.bench.soak_cases import Case
from tilewright.runtime import family as family_module
from tilewright.runtime import native_code, threads
from tilewright.runtime.cache import Cache
from tilewright.runtime.lowbit import linear as linear_module
from tilewright.runtime.quantized.tensor import QuantizedTensor
from tilewright.runtime.settings import settings
from tilewright.runtime.tuned import BySize, TunedSchedules
from tilewright.runtime.tuning.database import Database

MANY = 64


def in_threads(works: Sequence[Callable[[], object]]) -> list[object]:
    """All at once, each in a thread; what they gave or raised."""
    found: list[object] = [None] * len(works)
    begin = threading.Barrier(len(works))

    def run(at: int) -> None:
        begin.wait()
        try:
            found[at] = works[at]()
        except BaseException as error:
            found[at] = error

    crew = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(works))]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(120)
    assert not any(thread.is_alive() for thread in crew), "a thread hangs"
    return found


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Again and again in a thread, until the block ends."""
    done, errors = threading.Event(), []

    def run() -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not errors, errors


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are compiled, each slowly enough for others to come by."""
    names: list[str] = []
    real = native_code.machine_code

    def counted(program: Any, target: Any) -> bytes:
        names.append(program.name)
        time.sleep(0.05)
        return real(program, target)

    monkeypatch.setattr(native_code, "machine_code", counted)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: Cache(limit=0))
    return names


def test_a_form_is_compiled_once_by_many_threads(compiled: list[str]) -> None:
    kernels = [Rows(), Rows()]
    found = in_threads([kernels[at % 2].wrong for at in range(MANY)])
    assert found == [False] * MANY
    assert sorted(compiled) == sorted(x.program.module.main.name for x in kernels)
    families = [x.program.steps[0].family for x in kernels]
    assert [len(family.reports) for family in families if family] == [1, 1]


def test_a_schedule_by_size_is_made_once_by_many_threads() -> None:
    made = []

    def make(choice: Any) -> Any:
        made.append(choice)
        time.sleep(0.02)
        return lambda *tensors: tensors

    by_size = BySize({(3,): {"rows": 4}, (5,): {"rows": 8}}, ((0, 0),), make)

    def length(n: int) -> int:
        return len(by_size(torch.ones(n))[0])

    lengths = [8 if at % 2 else 32 for at in range(MANY)]
    found = in_threads([partial(length, n) for n in lengths])
    assert found == lengths
    assert sorted(x["rows"] for x in made) == [4, 8]


def test_a_weight_is_packed_again_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = QuantizedTensor.from_float(torch.randn(32, 64), "u4", group=32)
    made, real = [], QuantizedTensor.with_layout

    def counted(self: QuantizedTensor, packing: Any) -> QuantizedTensor:
        made.append(packing)
        time.sleep(0.02)
        return real(self, packing)

    monkeypatch.setattr(QuantizedTensor, "with_layout", counted)
    kept = type(linear_module._repacked)()
    repacked = linear_module.repacked
    found = in_threads([lambda: repacked(weight, lambda: weight.layout, kept)] * MANY)
    assert len(made) == 1 and all(x is found[0] for x in found)


def test_numbers_of_threads_that_change_during_calls() -> None:
    rows = Rows()
    counts = iter(range(1, 1 << 30))

    def change() -> None:
        threads.set_num_threads(next(counts) % 9 or None)
        time.sleep(1e-4)

    def call() -> bool:
        torch.set_num_threads(1 + next(counts) % 4)
        return any(rows.wrong(1 + 97 * n) for n in range(12))

    with meanwhile(change), meanwhile(change):
        assert in_threads([call] * MANY) == [False] * MANY


def test_threads_that_python_has_not_made() -> None:
    """As a server's in C: they have no thread state until they call."""
    rows, new, found = Rows(), Rows(), []
    library = ctypes.CDLL(None)
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

    @kind  # type: ignore[untyped-decorator]
    def body(_: int | None) -> None:
        found.append(rows.wrong() or new.wrong())

    handles = [ctypes.c_ulong() for _ in range(8)]
    for handle in handles:
        assert not library.pthread_create(ctypes.byref(handle), None, body, None)
    for handle in handles:
        library.pthread_join(handle, None)
    assert found == [False] * 8


def test_tuned_schedules_that_come_and_go_during_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms are forgotten while others call and make them."""
    schedules = TunedSchedules()
    monkeypatch.setattr(family_module, "TUNED", schedules)
    rows = Rows()

    def change() -> None:
        schedules._known = {} if schedules._known else {"a device": {"a kernel": {(3,): {}}}}
        schedules.number += 1
        time.sleep(1e-3)

    def call() -> bool:
        wrong, n = False, 0
        while n < 20 or schedules.number <= 3:
            wrong, n = wrong or rows.wrong(1 + n % 5), n + 1
        return wrong

    with meanwhile(change):
        assert in_threads([call] * MANY) == [False] * MANY
    assert schedules.number > 3
    family = rows.program.steps[0].family
    assert family is not None
    rows.wrong()
    assert family.known == schedules.number  # what was made by older ones is not called any more


def test_one_thread_looks_at_the_database_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_TUNING", str(tmp_path / "file"))
    settings.cache_clear()
    schedules = TunedSchedules()
    looking, done, readers = threading.Event(), threading.Event(), []

    def winners(self: Database) -> list[Any]:
        readers.append(threading.get_ident())
        looking.set()
        done.wait(60)
        return []

    monkeypatch.setattr(Database, "winners", winners)
    (tmp_path / "file").write_bytes(b"x")
    slow = threading.Thread(target=schedules.look)
    slow.start()
    looking.wait(60)
    schedules.look()  # returns, although the other one is still at it
    assert len(readers) == 1
    done.set()
    slow.join()


# ---- the soak


def exact(rows: Rows, size: int) -> Case:
    x = (torch.arange(size * 37) % 11).float().view(size, 37)
    return Case(f"{rows.factor} {size}", lambda: rows.program(x))


def test_a_short_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With damage to the cache, children, and kernels that are new in the middle."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    settings.cache_clear()
    small = Cache(tmp_path, 20_000)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: small)
    monkeypatch.setattr(soak_load, "LIFE", (5, 50))
    old, late = [Rows() for _ in range(4)], [Rows() for _ in range(4)]
    cases = [exact(rows, size) for rows in old for size in (1, 50)]
    fresh = [exact(rows, 50) for rows in late]
    expected: dict[str, tuple[torch.Tensor, ...]] = {}
    for rows, size in [(r, s) for r in old for s in (1, 50)] + [(r, 50) for r in late]:
        x = (torch.arange(size * 37) % 11).float().view(size, 37)
        expected[f"{rows.factor} {size}"] = (x.sum(1) * rows.factor,)
    load = soak_load.Load(cases, fresh, expected, seconds=2.0)
    helpers = [
        threading.Thread(target=soak_load.damage_cache, args=(load, tmp_path, 1), daemon=True),
        threading.Thread(target=soak_load.fork_children, args=(load, 1), daemon=True),
    ]
    found = soak_load.run(load, MANY, helpers)
    assert found["errors"] == [] and found["threads_hanging"] == 0
    assert found["calls"] >= MANY and found["forks"] >= 1
    assert found["after"]["files"] <= found["before"]["files"]
    names = {quantity.name: quantity for quantity in soak.quantities(found)}
    assert names["wrong or failed calls and children"].met


def test_the_soak_sees_what_is_wrong() -> None:
    """A result that is off by a bit, one that raises, and one of another shape."""
    one = torch.ones(3)

    def fails() -> Any:
        raise ValueError("no such thing")

    calls: dict[str, Callable[[], Any]] = {
        "off": lambda: (torch.nextafter(one, one + 1),),
        "raises": fails,
        "short": lambda: (one[:2],),
        "equal": lambda: (one,),
        "near": lambda: (torch.nextafter(one, one + 1),),
    }
    cases = [Case(name, call, 1e-5 if name == "near" else 0.0) for name, call in calls.items()]
    expected: dict[str, tuple[torch.Tensor, ...]] = {case.name: (one,) for case in cases}
    load = soak_load.Load(cases, [], expected, seconds=0.2)
    found = soak_load.run(load, 2)
    text = "\n".join(found["errors"])
    assert all(word in text for word in ("off: result 0 is off by", "no such thing", "short: "))
    assert "equal: " not in text and "near: " not in text
    wrong = next(q for q in soak.quantities(found) if "wrong" in q.name)
    assert wrong.met is False
