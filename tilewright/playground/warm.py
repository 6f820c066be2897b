"""What the fork server imports, so that a request's process has it at once.

It starts no thread and compiles nothing in parallel: a process with threads cannot be forked.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import tilewright.backends.numba.emit
import tilewright.backends.triton.emit
import tilewright.cli.explanation
import tilewright.cli.run_file
import tilewright.cli.simulate
import tilewright.playground.work
import tilewright.runtime.program
import tilewright.runtime.simulator.plot
import tilewright.runtime.targets  # noqa: F401
from tilewright.playground.answers import forms, simulated
from tilewright.playground.request import Request

_PROGRAM = Path(__file__).parent / "programs" / "naive.tw"


def _warm() -> None:
    """Grammar, passes and the simulator's machine code, which are the same for all programs."""
    request = Request("forms", _PROGRAM.read_text(encoding="utf-8"), sizes={"N": 8})
    with suppress(Exception):  # whatever is wrong, requests tell it; this would end them all
        forms.answer(request)
        simulated.answer(request)


_warm()
