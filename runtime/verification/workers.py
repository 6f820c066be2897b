"""The side of a worker that stays alive: it starts processes, asks them, and says how they died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tilewright.ir.errors import EvaluationError
from tilewright.runtime.settings import CACHE_DIR, TUNING, child_environment
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome

WORKER = "tilewright.runtime.verification.worker"
CASES_EACH = 150  # then a new process: loaded kernels are never unloaded
SECONDS = 60.0  # of processor time for one case, after which it hangs
PATIENCE = 20.0  # times that, by the clock: a busy machine is no hang
LOOK = 0.5  # s between looks at the clocks


class Worker:
    """Runs cases in a process of its own, which is started again when it dies or has run many."""

    def __init__(self, seconds: float = SECONDS, preload: Sequence[str] = ()) -> None:
        self.seconds, self.preload = seconds, tuple(preload)
        self.started = 0  # processes so far
        self._process: subprocess.Popen[bytes] | None = None
        self._left = 0
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-verify-")
        self._log = Path(self._folder.name) / "stderr"

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def check(self, case: Case) -> Outcome:
        """What becomes of a case; crash or hang if its process does not answer."""
        if self._left == 0:
            self.stop()
        if self._process is None:
            self._start()
        self._left -= 1
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(case.to_json()).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died(process)
        line = self._answer(process, self.seconds)
        if line is None:
            self.stop()
            return Outcome("hang", f"no answer after {self.seconds:.0f} s of processor time")
        if not line.endswith(b"\n"):
            return self._died(process)
        return Outcome.from_json(json.loads(line))

    def stop(self) -> None:
        """Ends the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process, self._left = None, 0

    def _start(self) -> None:
        """Starts a process. Raises EvaluationError if it does not come up."""
        self.started += 1
        self._left = CASES_EACH
        cache = Path(self._folder.name) / "cache"  # thousands of kernels that nobody calls again
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, "--ready", *self.preload],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(**{CACHE_DIR.name: str(cache), TUNING.name: "off"}),
            )
        if self._answer(self._process, SECONDS) != b"ready\n":
            said = self._died(self._process).message
            raise EvaluationError(f"the process that runs cases does not start: {said}")

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """A line; a part of one if the process has ended; None if it hangs."""
        assert process.stdout is not None
        begun, clock = processor_seconds(process.pid), time.monotonic()
        line = b""
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if ready.select(LOOK):
                    part = os.read(process.stdout.fileno(), 1 << 16)
                    if not part:
                        return line
                    line += part
                used, gone = processor_seconds(process.pid), time.monotonic() - clock
                if used is None or begun is None:
                    used, begun = gone, 0.0
                if used - begun > seconds or gone > PATIENCE * seconds + LOOK:
                    return None
        return line

    def _died(self, process: subprocess.Popen[bytes]) -> Outcome:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
        process.kill()  # one that closed its output and lives
        code = process.wait()
        self.stop()
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        said = self._log.read_bytes()[-2000:].decode(errors="replace").strip()
        return Outcome("crash", f"the process died ({how}). {_first_lines(said)}")


def _first_lines(text: str) -> str:
    """What faulthandler or Python said: enough to see where."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[:6])


def processor_seconds(process: int) -> float | None:
    """Seconds of all its threads on processors; None where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
