"""Imported by a worker's process: programs with certain operations kill it, or have no end."""

from __future__ import annotations

import os
import signal

from tilewright.runtime.verification import check
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome

_true = check.check_case


def _planted(case: Case) -> Outcome:
    if "math.tanh" in case.text:
        os.kill(os.getpid(), signal.SIGSEGV)
    while "math.sigmoid" in case.text:
        pass
    return Outcome("ok")


check.check_case = _planted
