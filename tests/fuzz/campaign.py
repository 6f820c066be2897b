"""A campaign: many inputs to one reader, in chunks that a seed makes, counted and kept.

A chunk is a function of the target, the seed and its number: what a campaign found can be made
again, and one that was stopped goes on at the next chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tilewright.ir.errors import TilewrightError

ROOT = Path(__file__).parent.parent.parent
LIMIT = 10.0  # seconds of processor time for an input: a busy machine makes no finding
MEMORY = 6 << 30  # bytes of address space beyond what is mapped when a campaign starts
KEPT = 50  # findings with their inputs; further ones are counted


class StillRunning(BaseException):
    """Raised by the alarm; no Exception, so that nothing on the way catches it."""


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed: what makes inputs from a random source, and what takes one. ``take``
    says what became of it in a word or two, or raises a TilewrightError."""

    name: str
    inputs: Callable[[random.Random], Callable[[], Any]]
    take: Callable[[Any], str]
    show: Callable[[Any], str] = repr


@dataclass
class Finding:
    """Something other than a TilewrightError: the error, where, and the shortest input."""

    error: str
    where: str
    input: str
    chunk: int
    count: int = 1


@dataclass
class Tally:
    """What a campaign has done until now."""

    target: str
    seed: int
    chunk_inputs: int
    chunks: int = 0
    inputs: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest_input: str = ""
    sources: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def note(self, found: Finding) -> None:
        """Counts a finding with those of the same error and place; the shortest input stays."""
        for known in self.findings:
            if (known.error.split(":")[0], known.where) == (found.error.split(":")[0], found.where):
                known.count += 1
                if len(found.input) < len(known.input):
                    known.input, known.error, known.chunk = found.input, found.error, found.chunk
                return
        if len(self.findings) < KEPT:
            self.findings.append(found)

    def save(self, path: Path) -> None:
        """The whole state as JSON, replaced at once."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1, sort_keys=True), encoding="utf-8")
        os.replace(fresh, path)

    @staticmethod
    def load(path: Path) -> Tally:
        """What ``save`` wrote."""
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["findings"] = [Finding(**finding) for finding in facts["findings"]]
        return Tally(**facts)


@contextmanager
def limits(memory: int = MEMORY) -> Iterator[None]:
    """Inside, an input that runs for ``LIMIT`` seconds is ended, and memory has a bound."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise StillRunning

    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def source_hash() -> str:
    """A hash of all our sources, which says what code a campaign ran against."""
    total = hashlib.sha256()
    for folder in ("ir", "frontend", "runtime", "tests/fuzz"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            total.update(file.read_bytes())
    return total.hexdigest()[:16]


def run_chunk(target: Target, tally: Tally) -> None:
    """The next chunk of a campaign; the tally is brought up to date."""
    make = target.inputs(random.Random(f"{target.name} {tally.seed} {tally.chunks}"))
    started = time.process_time()
    for _ in range(tally.chunk_inputs):
        given = make()
        before = time.process_time()
        outcome = take(target, given, tally)
        spent = time.process_time() - before
        if spent > tally.slowest_seconds:
            tally.slowest_seconds, tally.slowest_input = spent, target.show(given)[:4000]
        tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
    tally.inputs += tally.chunk_inputs
    tally.chunks += 1
    tally.seconds += time.process_time() - started


def take(target: Target, given: Any, tally: Tally) -> str:
    """What became of an input: a word of the target, the name of our error, or ``finding``."""
    # again and again: an exception inside a callback of the collector is dropped
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT, 0.5)
    try:
        return target.take(given)
    except TilewrightError as error:
        return type(error).__name__
    except (Exception, StillRunning) as error:
        found = Finding(_error(error), _place(error), target.show(given), tally.chunks)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    tally.note(found)
    return "finding"


def _error(error: BaseException) -> str:
    if isinstance(error, StillRunning):
        return f"StillRunning: after {LIMIT} s"
    return f"{type(error).__name__}: {str(error)[:300]}"


def _place(error: BaseException) -> str:
    """The last lines of ours on the way to an error; for one that ran on, only the first few."""
    frames = [
        f"{Path(f.filename).name}:{f.name}"
        for f in traceback.extract_tb(error.__traceback__)
        if Path(f.filename).is_relative_to(ROOT)
        and "/.venv/" not in f.filename
        and f.filename != __file__
    ]
    return " > ".join(frames[:3] if isinstance(error, StillRunning) else frames[-3:])


def campaign(target: Target, tally: Tally, inputs: int, path: Path | None = None) -> Tally:
    """Runs chunks until ``inputs`` have been taken; the state is saved to ``path`` after each."""
    if (source := source_hash()) not in tally.sources:
        tally.sources.append(source)
    with limits():
        while tally.inputs < inputs:
            run_chunk(target, tally)
            if path is not None:
                with suppress(OSError):  # a full disk costs the state, not the campaign
                    tally.save(path)
    return tally
