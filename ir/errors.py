"""Every error that a user can meet, in one place: a class, its template, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


def close_to(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3)
    if not near:
        return ""
    like = {x: difflib.SequenceMatcher(None, x, word).ratio() for x in near}
    best = max(near, key=lambda x: (like[x], -abs(len(x) - len(word))))  # f32 for f33, not f7e3m3
    return f"; did you mean {best!r}?"


def known_words(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?; known: x, y, z``."""
    known = list(known)
    return f"{close_to(word, known)}; known: {', '.join(known)}"


@dataclass(frozen=True)
class Location:
    """Where an operation comes from: a line of a text file or of a Python file (1-based)."""

    file: str = "<text>"
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return f"{place}:{self.column}" if self.column else place

    def caret(self) -> str:
        """The source line with a caret under the column, or nothing when it is not known."""
        if not self.text:
            return ""
        start = max(0, self.column - 60)
        shown = self.text[start : start + 100]
        return f"\n    {shown}\n    {' ' * max(0, self.column - 1 - start)}^"


class TilewrightError(Exception):
    """Base of all errors raised for a user's mistake or for something not supported."""

    code = "TW000"

    def __init__(self, message: str, location: Location | None = None) -> None:
        self.message = message
        self.location = location
        where = f"{location}: " if location and location.line else ""
        super().__init__(f"{where}{message}{location.caret() if location else ''}")


class ParseError(TilewrightError):
    """The text is not a program: line, column, the text, a caret, what was expected."""

    code = "TW001"


class VerifyError(TilewrightError):
    """An operation breaks its own rule: names the op, its operands' types and the rule."""

    code = "TW002"


class BindError(TilewrightError):
    """Inputs of a call do not fit the program's parameters: names operand, sizes and the rule."""

    code = "TW003"


class UnsupportedError(TilewrightError):
    """Something that no pass or back end can do yet: names the op and what to do instead."""

    code = "TW004"


class FallbackError(TilewrightError):
    """Raised under ``strict=True`` when part of a function would stay with torch."""

    code = "TW005"


class TargetError(TilewrightError):
    """An unknown target name or one whose code generator is not installed."""

    code = "TW006"


class BackendMissingError(TilewrightError):
    """A back end's package is not installed: names the extra to install."""

    code = "TW007"


class EvaluationError(TilewrightError):
    """The interpreter met something a program must not do, such as reading unwritten scratch."""

    code = "TW008"


class SettingError(TilewrightError):
    """An environment variable or an option has a value that means nothing: says what would."""

    code = "TW009"


class DeadlockError(TilewrightError):
    """A stream program cannot go on: names the channels that block each other, and how deep each
    has to be."""

    code = "TW010"


class DataError(TilewrightError):
    """A tensor's shape or contents are not what its format says: names the tensor, what was
    expected and what was found."""

    code = "TW011"


class ExpertError(TilewrightError):
    """Something about an adapter or its memory does not fit the model's experts: names the adapter,
    layer and expert, what was expected, what was found. What was loaded before is unchanged."""

    code = "TW012"


class DeviceError(TilewrightError):
    """A GPU cannot take a call as it is: no driver or an old one, no room in its shared memory, a
    stream that is being captured. Says what was found and what to do."""

    code = "TW013"


class LoadingError(DeviceError):
    """Machine code for a GPU could not be made, or the driver does not take it: another back end's
    may do."""


class KernelCompileError(TilewrightError):
    """A compiler refused generated code: its output, with the lines that it complains about."""

    code = "TW014"


class KernelFaultError(TilewrightError):
    """A kernel did what none may, found while it ran emulated on the host: names kernel, block,
    thread, line, the byte and the other access. The subclasses say what it was."""

    code = "TW015"


class KernelRaceError(KernelFaultError):
    """Two threads touch a byte, one of them writes, and nothing orders them."""


class KernelUninitialisedError(KernelFaultError):
    """A read of shared memory that nobody has written."""


class KernelBoundsError(KernelFaultError):
    """An access outside shared memory or outside every global array."""


class KernelAlignmentError(KernelFaultError):
    """An access at an address that is no multiple of its size."""


class KernelDivergenceError(KernelFaultError):
    """Threads that have to act together are at different places, or have ended."""


class KernelDeadlockError(KernelFaultError):
    """No thread can go on: says where each waits."""


class BundleError(TilewrightError):
    """A bundle of compiled kernels cannot be read, written or used: names the file or the key that
    differs, what was expected, what was found. Nothing was loaded, and no file was changed."""

    code = "TW016"


class NotInBundleError(BundleError):
    """A kernel is not in the bundle in use, and no compiler is here to make it: says which key
    differs from what the bundle holds."""


class ScheduleError(TilewrightError):
    """A choice of a kernel's tile sizes that cannot be compiled: names the field and the limit."""

    code = "TW017"


class TuningError(TilewrightError):
    """What tuning needs or keeps is not usable: an unknown workload, a damaged or newer database, a
    full disk. What was measured before is unchanged."""

    code = "TW018"


class BenchError(TilewrightError):
    """A report of a benchmark, a suite or a provider is not what was asked for: names it, and what
    there is. No report is overwritten."""

    code = "TW019"


class TraceError(TilewrightError):
    """A trace of a program's kernels cannot be written or read: damaged, newer, another kind."""

    code = "TW020"


class MemoryLimitError(TilewrightError, MemoryError):
    """Memory for a call or for compiling cannot be had: names what needs how much, and the limits
    of the process. Nothing was changed, and a smaller call works."""

    code = "TW025"


class DeterminismError(TilewrightError):
    """A level of determinism that was asked for cannot be kept: names the part that does not keep
    it, and what to leave out or which level there is. Nothing was computed."""

    code = "TW026"
