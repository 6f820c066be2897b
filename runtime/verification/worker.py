"""The process that runs cases: one JSON line in, one out. What it loads and breaks dies with it."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys

from tilewright.runtime.verification import check
from tilewright.runtime.verification.case import Case

READY = "--ready"


def main(arguments: list[str]) -> None:
    """Answers until stdin ends. Generated code may print: its stdout goes to stderr. ``arguments``:
    READY for a line when the first case can come, then modules to import before (tests plant bugs
    with them)."""
    greet, preload = READY in arguments, [name for name in arguments if name != READY]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    faulthandler.enable()
    for name in preload:
        importlib.import_module(name)
    if greet:
        answers.write("ready\n")
        answers.flush()
    for line in sys.stdin:
        outcome = check.check_case(Case.from_json(json.loads(line)))
        answers.write(json.dumps(outcome.to_json()) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
