"""A sitting in a process of its own, and what it tells brought back as it comes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any

from tilewright import BenchError
from tilewright.bench.one_sitting import Doing, Task, Tell, in_this_process

LAST_WORDS = 200  # characters of what a process said before it died
SECONDS_TO_END = 10
_END = "end"
_GO_ON = b"+"


def in_own_process(task: Task, tell: Tell) -> None:
    """As ``in_this_process``, in a new one that ends with the sitting; what it and its providers
    print goes nowhere.

    Raises BenchError with what it was doing and its last words if it dies: providers are native
    code of others.
    """
    doing = "its start"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the run, which then ends this process
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            try:
                pickle.dump(task, process.stdin)
                while True:
                    process.stdin.flush()
                    if (event := pickle.load(process.stdout)) == _END:
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(SECONDS_TO_END)
                        return
                    if isinstance(event, BenchError):
                        raise event
                    if isinstance(event, Doing):
                        doing = event.what
                    tell(event)
                    process.stdin.write(_GO_ON)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError) as problem:
                raise BenchError(_died(process.wait(), doing, said)) from problem
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            _end(process)
            process.stdout.close()


def command() -> list[str]:
    """Of the other side: it finds modules where this process does."""
    where = f"import sys; sys.path[:] = {sys.path!r}"
    return [sys.executable, "-c", f"{where}; from {__name__} import main; main()"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """And of all that it has started, such as compilers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _died(code: int, doing: str, said: IO[bytes]) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")[-LAST_WORDS:]
    words = f"; its last words: {last}" if last else ""
    return (
        f"the process of a sitting ended with {how} at {doing!r}{words}. Find the provider with "
        "--only and --vs, and leave it out"
    )


def main() -> None:
    """The other side: a task comes by standard input, what is told goes out where standard output
    was; what anybody prints goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        task: Task = pickle.load(sys.stdin.buffer)

        def tell(event: Any) -> None:
            """Waits until whoever shows it has: drawing beside a measurement would be noise."""
            pickle.dump(event, out)
            out.flush()
            if event != _END and not sys.stdin.buffer.read(1):
                raise SystemExit("the run is gone")

        try:
            in_this_process(task, tell)
        except BenchError as problem:
            tell(problem)
        else:
            tell(_END)
