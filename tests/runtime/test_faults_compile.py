"""Compilers that are killed and compilations that are interrupted: an error that says so, or the
exception itself, nothing half made, and the next call works."""

from __future__ import annotations

import importlib
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.faults import Rows
from tilewright.backends import tool
from tilewright.backends.cuda import compile as cuda_compile
from tilewright.backends.cuda import host
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.errors import BundleError, KernelCompileError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.runtime import backends, native, native_code
from tilewright.runtime.bundle import link as link_module
from tilewright.runtime.cache import Cache

# What a compiler's process is sent when the machine runs out of memory.
KILLED = '#!/bin/sh\necho half > "$PWD/half"\nkill -9 $$\n'


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler that is killed as soon as it has begun."""
    path = tmp_path / "compiler"
    path.write_text(KILLED)
    path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    return str(path)


WORDS = "it was ended by SIGKILL, as when memory runs out; nothing of it was kept: call again"


def test_a_killed_compiler_of_the_emulator(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(host, "_folder", lambda: own)
    with monkeypatch.context() as patch:
        patch.setattr(host, "_compiler", lambda: killed)
        with pytest.raises(KernelCompileError, match=f"g.. does not compile a kernel:\n{WORDS}"):
            host._compile(own / "made.so", ["x.cpp"], "a kernel")
    assert not list(own.iterdir())
    source = tmp_path / "x.cpp"
    source.write_text("int x;")
    assert host._compile(own / "made.so", ["-shared", str(source)], "a kernel").exists()


def test_a_killed_nvcc(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compile, "_nvcc", lambda: killed)
    with pytest.raises(KernelCompileError, match=f"nvcc does not compile kernel k:\n{WORDS}"):
        cuda_compile._with_nvcc("", "sm_90", "k", "cubin")


def test_a_killed_linker(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_linker", lambda name: [killed])
    with pytest.raises(BundleError, match=f"does not link kernels.so:\n{WORDS}"):
        link_module.link({}, "kernels.so")


def test_a_killed_ptxas(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    build = importlib.import_module("tilewright.backends.triton.build")
    errors = importlib.import_module("triton.runtime.errors")

    def killed(*_: Any, **__: Any) -> Any:
        raise errors.PTXASError("`ptxas` failed with error code -9")

    monkeypatch.setattr(triton.compiler, "compile", killed)
    text = Path("examples/log_sum_exp.tw").read_text()
    target = named_target("cuda-sm90")
    graph = run_passes(parse(text), TO_KERNELS).graphs[0]
    program = kernel_to_tile(graph, target, 0, {"x": 1})
    with pytest.raises(KernelCompileError, match=r"ptxas does not compile .* error code -9"):
        build.compile_for(
            emit_source(program, "k"), program, build.Chip.of(target), {"num_warps": 4}
        )


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (1, "x.cu: error", "x.cu: error"),
        (3, "", "it ended with exit code 3 and said nothing"),
        (-11, "", "it was ended by SIGSEGV; nothing of it was kept: call again"),
        (-60, "late", "it was ended by signal 60; nothing of it was kept: call again\nlate"),
    ],
)
def test_what_is_said_of_a_tool_that_failed(code: int, output: str, words: str) -> None:
    assert tool.why_failed(subprocess.CompletedProcess([], code, "", output)) == words


# ---- interrupts

Interrupt = Callable[[object, str], None]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """``interrupt(module, name)``: Ctrl-C arrives as the function has done its work, once."""

    def at(place: Any, name: str) -> None:
        real, left = getattr(place, name), [True]

        def interrupted(*arguments: Any, **named: Any) -> Any:
            found = real(*arguments, **named)
            if left.pop() if left else False:
                signal.raise_signal(signal.SIGINT)
            return found

        monkeypatch.setattr(place, name, interrupted)

    return at


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (backends, "lower_variant"),
        (native_code, "native_parts"),
        (native_code, "machine_code"),
        (native_code, "load_object"),
        (native_code, "compile_llvm"),
        (native, "_check_form"),
        (Cache, "get"),
        (Cache, "put"),
        (Cache, "_write"),
        (backends, "_kernel"),
    ],
)
def test_the_call_after_an_interrupted_one_works(
    place: Any, name: str, interrupt: Interrupt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: cache)
    rows = Rows()
    interrupt(place, name)
    with pytest.raises(KeyboardInterrupt):
        rows.wrong()
    assert not rows.wrong()
    assert not list(tmp_path.glob("*.tmp"))
    assert cache.stats().damaged == 0


def test_interrupts_at_any_moment() -> None:
    """By a clock: wherever the compilation is just then."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    try:
        for step in range(4):
            rows = Rows()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.008 * (step + 1))
                rows.wrong()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert not rows.wrong()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted


def test_a_thread_that_waited_for_an_interrupted_one_compiles_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, inside, found = Rows(), threading.Event(), []
    real = native_code.machine_code

    def first_fails(*arguments: Any) -> bytes:
        if not inside.is_set():
            inside.set()
            threading.Event().wait(0.05)  # the other one comes to the lock
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(native_code, "machine_code", first_fails)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: Cache(limit=0))

    def wait() -> None:
        inside.wait()
        found.append(rows.wrong())

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        rows.wrong()
    thread.join(60)
    assert found == [False] and not rows.wrong()


def test_a_signals_handler_may_call_the_kernel_that_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same thread, which holds all the locks."""
    rows, real = Rows(), native_code.machine_code
    handled: list[bool] = []

    def signalled(*arguments: Any) -> bytes:
        if not handled:
            handled.append(True)
            handled[0] = rows.wrong()
        return real(*arguments)

    monkeypatch.setattr(native_code, "machine_code", signalled)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: Cache(limit=0))
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(rows.wrong()), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [False] and handled == [False]
