"""``tilewright trace``: runs a command and writes down which kernels it calls, with which sizes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.cli.output import note, plural, seconds
from tilewright.ir.errors import SettingError, TraceError
from tilewright.runtime.settings import TRACE
from tilewright.runtime.tracing.file import read_trace, write_trace
from tilewright.runtime.tracing.kernels import Trace


def trace(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND ARGUMENT…", help="What to run: -- python script.py …"),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.json", help="The file to write.")
    ] = Path("trace.json"),
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Run a command and record the kernels and sizes that it uses, for `tune` and `bundle`.

    All its processes are recorded, also those that are killed. The exit code is the command's.
    """
    _check_place(out, force)
    parts = _folder_beside(out)
    code = _run(command, {**os.environ, TRACE.name: str(parts)})
    found = read_trace(parts)
    try:
        write_trace(found, out, force)
    except TraceError as error:
        raise TraceError(f"{error.message}; what was recorded is in {parts}") from None
    shutil.rmtree(parts, ignore_errors=True)
    note(_summary(found, out))
    raise typer.Exit(code)


def _check_place(out: Path, force: bool) -> None:
    """Refuses before the command runs what could not be written after it."""
    if out.is_dir():
        raise SettingError(f"{out} is a folder; name a file in it")
    if out.exists() and not force:
        raise TraceError(f"{out} exists: name another file, or --force to replace it")
    if not out.absolute().parent.is_dir():
        raise SettingError(f"there is no folder {str(out.absolute().parent)!r}")


def _folder_beside(out: Path) -> Path:
    """Where the processes write: beside the file, so that nothing is lost if we are killed."""
    place = out.absolute()
    try:
        return Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".parts", dir=place.parent))
    except OSError as error:
        raise SettingError(f"cannot write in {place.parent}: {error.strerror}") from None


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """The command's exit code; 128 + the signal's number if one ended it, as shells say it."""
    with _PassingOn() as passing:
        try:
            process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            shutil.rmtree(environment[TRACE.name], ignore_errors=True)
            raise SettingError(f"cannot run {command[0]!r}: {error.strerror}") from None
        passing.to(process)
        code = process.wait()
    return code if code >= 0 else 128 - code


class _PassingOn:
    """Requests to end are passed on to the command unless the terminal has told it itself, also
    those that come before it runs; we live on, to write down what it did."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _PassingOn:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # the command ignores it, too
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """The command runs now."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _came(self, number: int, _frame: object) -> None:
        if number in (signal.SIGINT, signal.SIGHUP) and _in_foreground():
            return  # the terminal has told the command, too
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)


def _in_foreground() -> bool:
    """Whether this process group is the one that the terminal sends signals to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _summary(found: Trace, out: Path) -> str:
    programs, tiles = found.at("graph"), found.at("tile")
    calls = sum(k.count for k in (*programs, *tiles))
    if not calls:
        return f"wrote {out}: the command called no kernel of Tilewright"
    texts, others = ({k.program for k in rows} for rows in (programs, tiles))
    what = f"{plural(len(texts), 'program')} in {plural(len(programs), 'size')}"
    if others:
        what += f", and of {plural(len(others), 'kernel')} of the runtime"
    took = seconds(sum(k.seconds for k in programs))
    return f"wrote {out}: {plural(calls, 'call')} of {what}; {took} in {_processes(found)}"


def _processes(found: Trace) -> str:
    return "1 process" if found.processes == 1 else f"{found.processes} processes"
