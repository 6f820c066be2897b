"""Every option that the environment can set, in one table; no other file reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tilewright.ir.errors import SettingError

MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Variable:
    """One environment variable: what it does, and what holds when it is not set."""

    name: str
    meaning: str
    default: str


CACHE_DIR = Variable(
    "TILEWRIGHT_CACHE_DIR",
    "folder of compiled kernels",
    "$XDG_CACHE_HOME/tilewright, or ~/.cache/tilewright",
)
CACHE_SIZE = Variable(
    "TILEWRIGHT_CACHE_SIZE",
    "largest size of that folder: bytes, or a number with K, M or G; 0 turns the cache off",
    "512M",
)
NUM_THREADS = Variable(
    "TILEWRIGHT_NUM_THREADS", "threads of a CPU kernel", "what torch.get_num_threads() says"
)
WAIT_POLICY = Variable(
    "OMP_WAIT_POLICY", "how idle OpenMP threads wait (read for reports only)", "the library's own"
)
TRACE = Variable(
    "TILEWRIGHT_TRACE",
    "folder that every process writes the kernels into that it calls (`tilewright trace` sets it)",
    "nothing is written",
)
BUNDLE = Variable(
    "TILEWRIGHT_BUNDLE",
    "folder of a bundle that programs take their kernels from (as tilewright.use_bundle)",
    "kernels are compiled",
)
TUNING = Variable(
    "TILEWRIGHT_TUNING",
    "database of tuned schedules; off: programs use their default schedules",
    "tuning.sqlite3 in the folder of compiled kernels",
)
LOG = Variable(
    "TILEWRIGHT_LOG",
    "least level of what is written to stderr: debug, info, warning or error; off is as unset",
    "nothing is written; the program's own logging gets all of it",
)
DETERMINISTIC = Variable(
    "TILEWRIGHT_DETERMINISTIC",
    "what bits of results may depend on: run, threads, batch or reproducible (docs/determinism.md)",
    "none of them: the fastest form",
)
VARIABLES = (
    CACHE_DIR,
    CACHE_SIZE,
    NUM_THREADS,
    WAIT_POLICY,
    TRACE,
    BUNDLE,
    TUNING,
    LOG,
    DETERMINISTIC,
)
DETERMINISTIC_LEVELS = ("run", "threads", "batch", "reproducible")
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Settings:
    """The options in force. ``num_threads`` is None where torch decides."""

    cache_dir: Path
    cache_size: int
    num_threads: int | None
    wait_policy: str
    trace: Path | None = None
    bundle: Path | None = None
    tuning: Path | None = None  # off
    log: str = ""  # off
    deterministic: str = ""  # none of DETERMINISTIC_LEVELS


@cache
def settings() -> Settings:
    """The options, read from the environment at the first call (SettingError if one is wrong)."""
    return Settings(
        cache_dir=_cache_dir(),
        cache_size=_bytes(CACHE_SIZE),
        num_threads=_count(NUM_THREADS),
        wait_policy=_text(WAIT_POLICY),
        trace=_folder(TRACE),
        bundle=_folder(BUNDLE),
        tuning=_tuning(),
        log=log_level(),
        deterministic=_deterministic(),
    )


def log_level() -> str:
    """One of LEVELS, or "". Raises SettingError. Apart, since it is wanted at the first import,
    where what is wrong with another variable is not yet anybody's concern."""
    chosen = _text(LOG).lower()
    if chosen in {"", "off", "0"}:
        return ""
    if chosen not in LEVELS:
        raise _wrong(LOG, f"one of {', '.join(LEVELS)}")
    return chosen


def as_markdown() -> str:
    """The table of docs/environment.md (`tilewright doctor --variables` prints it)."""
    rows = [f"| `{v.name}` | {v.meaning} | {v.default} |" for v in VARIABLES]
    return "\n".join(["| variable | what it sets | unset |", "|---|---|---|", *rows])


def in_force() -> dict[str, str]:
    """What each variable is set to, "" where its default holds."""
    return {variable.name: _text(variable) for variable in VARIABLES}


def _deterministic() -> str:
    chosen = _text(DETERMINISTIC).lower()
    if chosen and chosen not in DETERMINISTIC_LEVELS:
        raise _wrong(DETERMINISTIC, f"one of {', '.join(DETERMINISTIC_LEVELS)}")
    return chosen


def child_environment(**variables: str) -> dict[str, str]:
    """The environment for a process of ours: this one's, with some variables set."""
    return {**os.environ, **variables}


def _text(variable: Variable) -> str:
    return os.environ.get(variable.name, "").strip()


def _cache_dir() -> Path:
    """The folder by the XDG rules: a relative XDG_CACHE_HOME has to be ignored."""
    chosen = _text(CACHE_DIR)
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        # expanduser keeps "~" where no home is known; the cache then says that it cannot write
        base = Path(os.path.expanduser("~")) / ".cache"
    return base / "tilewright"


def _tuning() -> Path | None:
    if _text(TUNING).lower() in {"off", "0"}:
        return None
    return _folder(TUNING) or _cache_dir() / "tuning.sqlite3"


def _folder(variable: Variable) -> Path | None:
    chosen = _text(variable)
    return Path(chosen).expanduser().absolute() if chosen else None


def _bytes(variable: Variable) -> int:
    text = (_text(variable) or variable.default).upper().removesuffix("B").removesuffix("I")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    number = text[: len(text) - len(unit)].strip()
    if not (number.isascii() and number.isdigit()):
        raise _wrong(variable, "a number of bytes such as 256M")
    return int(number) * _UNITS[unit]


def _count(variable: Variable) -> int | None:
    text = _text(variable)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise _wrong(variable, "a number of at least 1")
    return int(text)


def _wrong(variable: Variable, wanted: str) -> SettingError:
    value = _text(variable)
    message = f"{variable.name}={value!r} ({variable.meaning}) must be {wanted}, or unset"
    return SettingError(f"{message} for the default: {variable.default}")
