"""A failure as a file: the program, and above it what failed and how to see it again."""

from __future__ import annotations

import re
from pathlib import Path

from tilewright.ir.errors import DataError
from tilewright.runtime.verification.campaign import Failure
from tilewright.runtime.verification.case import command
from tilewright.runtime.whole_file import write_whole

WORDS = {
    "wrong": "a result is farther from float64 than its bound",
    "unsteady": "two calls with the same inputs give different bits",
    "error": "compiling or calling raises an error",
    "crash": "the process dies",
    "hang": "there is no end",
}


def file_name(number: int, failure: Failure) -> str:
    """``failure-3-wrong-mlir.tw``"""
    return f"failure-{number}-{failure.outcome.status}-{failure.case.backend}.tw"


def failure_text(failure: Failure, file: str, version: str) -> str:
    """The file's text: comments that say all, then the program."""
    case, outcome = failure.case, failure.outcome
    (call,) = case.calls
    sizes = ", ".join(f"{name} = {number}" for name, number in call.sizes.items()) or "none"
    lines = [
        f"tilewright verify {version}: {WORDS[outcome.status]}",
        f"kind {case.kind}, batch {failure.batch}, back end {case.where}",
        f"seed {call.seed}, sizes {sizes}",
    ]
    lines += [f"input %{name}: {spec}" for name, spec in call.inputs.items()]
    if outcome.status == "wrong":
        found = outcome.comparison
        lines.append(
            f"result {found.result}: error {found.error:.3g}, bound {found.bound:.3g} "
            f"(error ÷ bound {found.ratio:.3g})"
        )
    lines += [f"message: {line}" for line in outcome.message.splitlines()]
    lines.append(f"reproduce: {command(case, call, file)}")
    head = "".join(f"// {line}\n" for line in lines)
    return f"{head}\n{case.text}"


def write_failure(folder: Path, failure: Failure, version: str) -> Path:
    """Writes the file into a folder, which is made if it is not there, under the first number that
    no failure has, of this run or of one before. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [_number(path.name) for path in folder.glob("failure-*.tw")]
    except OSError as problem:
        raise DataError(f"cannot write into {folder}: {problem.strerror or problem}") from None
    path = folder / file_name(1 + max(taken, default=-1), failure)
    write_whole(path, failure_text(failure, str(path), version).encode(), DataError)
    return path


def _number(name: str) -> int:
    found = re.match(r"failure-(\d{1,9})-", name)
    return int(found[1]) if found else -1
