"""Running a test file in Triton's interpreter, which has to be a process of its own, and making the
interpreter do what its result depends on, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_interpreted(name: str) -> None:
    """All tests of a file beside this one pass under ``TRITON_INTERPRET=1``."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / name)],
        cwd=HERE.parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def spare_the_interpreter() -> None:
    """In such a process: half of its time goes, and no result changes."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    _without_checks_that_nobody_reads(interpreter)
    _patched_once(interpreter)


def _without_checks_that_nobody_reads(interpreter: Any) -> None:
    """The interpreter computes all integer sums and products a second time, in 64 bits, for an
    assertion that its own options leave out (``debug`` is false): a seventh of its time."""
    options = interpreter.interpreter_builder.options
    assert not options.debug, "then the assertions count: leave sanitize_overflow on"
    interpreter.interpreter_builder.options = type(options)(sanitize_overflow=False)


def _patched_once(interpreter: Any) -> None:
    """Every call of a function within a kernel puts the interpreter's functions in the place of the
    language's again, over those that the kernel's start or the call before put there: a quarter of
    its time, and a chain that grows. Once for each of the language's modules is enough until the
    kernel has ended."""
    patch, start = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: list[Any] = []

    def patch_once(fn: Any) -> Any:
        modules = [x for x in fn.__globals__.values() if x in (interpreter.tl, interpreter.tl.core)]
        if modules and all(any(x is y for y in done) for x in modules):
            return None  # what a function's call does not look at
        done.extend(modules)
        return patch(fn)

    def fresh_start(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()
        return start(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, fresh_start
