"""The process that is under load in the soak: ``python -m tilewright.bench.soak_load FOLDER``.

Threads call cases at random and hold each result to the one that another process computed alone.
Threads end and others start; one more thread damages, removes and empties the kernel cache, another
forks children that call old and new kernels. What happened is printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tilewright.bench.soak_cases import Case, Tensors, fixed_cases, late_cases

EXPECTED = "expected.pt"
LATE_UNTIL = 0.6  # of the time: afterwards nothing is new, and memory must not grow
SAMPLES = 60
MOST_ERRORS = 20
LIFE = (40, 400)  # calls of a thread, until another takes its place
CHILD_SECONDS = 900  # until a child counts as hanging
_PATIENCE = 1800.0  # seconds for all threads to end


@dataclass
class Load:
    """The state that all threads share. ``cases`` grows while it runs."""

    cases: list[Case]
    late: list[Case]
    expected: dict[str, Tensors]
    seconds: float
    start: float = field(default_factory=time.monotonic)
    calls: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    failures: int = 0
    warned: Counter[str] = field(default_factory=Counter)
    forks: int = 0
    damage: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def share(self) -> float:
        """What of the time is over."""
        return (time.monotonic() - self.start) / self.seconds

    def failed(self, what: str) -> None:
        """Remembers an error, and shows the first ones at once."""
        with self.lock:
            self.failures += 1
            if len(self.errors) < MOST_ERRORS:
                self.errors.append(what)
                sys.stderr.write(f"{self.share:.1%}: {what}\n")

    def known(self) -> Sequence[Case]:
        """The cases that may be called by now: late ones come one after the other."""
        count = int(len(self.late) * min(1.0, self.share / LATE_UNTIL))
        return (*self.cases, *self.late[:count])


def work(load: Load, seed: int) -> None:
    """A thread's life."""
    draw, done = random.Random(seed), Counter[str]()
    torch.set_num_threads(draw.choice((1, 2, 3)))  # of this thread alone
    with torch.inference_mode():
        for number in range(draw.randint(*LIFE)):
            if number and load.share >= 1.0:  # on a busy machine, too, each calls something
                break
            case = draw.choice(load.known())
            try:
                wrong = case.why_wrong(load.expected[case.name])
            except Exception:
                wrong = f"{case.name}: {traceback.format_exc(limit=-4)}"
            done[case.name] += 1
            if wrong:
                load.failed(wrong)
    with load.lock:
        load.calls.update(done)


def damage_cache(load: Load, folder: Path, seed: int) -> None:
    """Removes entries, damages some, and takes the whole folder away, until the time is over."""
    draw = random.Random(seed)
    while load.share < 1.0:
        time.sleep(min(2.0, load.seconds / 50))
        with suppress(OSError):
            entries = sorted(folder.glob("*.twk"))
            kind = draw.choice(("removed", "damaged", "folder"))
            if kind == "folder":
                shutil.rmtree(folder)
            elif entries:
                path = draw.choice(entries)
                if kind == "removed":
                    path.unlink()
                else:
                    path.write_bytes(path.read_bytes()[: draw.randint(0, 5000)])
            load.damage[kind] += 1


def fork_children(load: Load, seed: int) -> None:
    """Children call what this process has called, and something new to it."""
    draw, cases = random.Random(seed), [case for case in load.cases if case.in_children]
    while load.share < 1.0:
        time.sleep(min(5.0, load.seconds / 20))
        chosen = [*draw.sample(cases, 4), draw.choice(load.late)]
        child = os.fork()
        if not child:
            _in_child(load, chosen)
        status = os.waitpid(child, 0)[1]
        load.forks += 1
        if status:
            names = ", ".join(case.name for case in chosen)
            load.failed(f"a forked child ended with status {status} after {names}")


def _in_child(load: Load, chosen: Sequence[Case]) -> None:
    """Ends the process: 0 if all was right. A hang ends with SIGALRM."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        with torch.inference_mode():
            wrong = [why for case in chosen if (why := case.why_wrong(load.expected[case.name]))]
        code = 2 if wrong else 0
        if wrong:
            os.write(2, f"{wrong}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run(load: Load, threads: int, helpers: Sequence[threading.Thread] = ()) -> dict[str, Any]:
    """Keeps so many threads at work until the time is over; what happened."""
    before, started = sample(load), 0
    samples: list[dict[str, float]] = []
    for helper in helpers:
        helper.start()
    crew: list[threading.Thread] = []
    while load.share < 1.0:
        crew = [thread for thread in crew if thread.is_alive()]
        while len(crew) < threads:
            crew.append(threading.Thread(target=work, args=(load, started), daemon=True))
            crew[-1].start()
            started += 1
        if load.share >= len(samples) / SAMPLES:
            samples.append(sample(load))
        time.sleep(min(0.05, load.seconds / 200))
    end = time.monotonic() + _PATIENCE
    for thread in (*crew, *helpers):
        thread.join(max(0.0, end - time.monotonic()))
    hanging = sum(thread.is_alive() for thread in (*crew, *helpers))
    return {
        "calls": load.calls.total(),
        "cases": dict(sorted(load.calls.items())),
        "failures": load.failures,
        "errors": load.errors,
        "warnings": dict(load.warned),
        "damage_to_the_cache": dict(load.damage),
        "forks": load.forks,
        "threads_started": started,
        "threads_hanging": hanging,
        "before": before,
        "samples": samples,
        "after": sample(load),
    }


def sample(load: Load) -> dict[str, float]:
    """Time over, MiB of memory, threads and open files of this process."""
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines()
    )
    return {
        "share": round(load.share, 4),
        "memory": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_text("utf-8").count("\n"),
    }


def _listen(load: Load) -> None:
    """Counts warnings instead of showing them."""

    def heard(message: Warning | str, category: type[Warning], *more: Any) -> None:
        load.warned[category.__name__] += 1
        if category.__name__ not in ("CacheWarning", "DeprecationWarning"):
            sys.stderr.write(f"{category.__name__}: {message}\n")

    warnings.simplefilter("always")
    warnings.showwarning = heard  # type: ignore[assignment]


def main(
    folder: Annotated[Path, typer.Argument(help="Where expected results are.")],
    seconds: Annotated[float, typer.Option(min=0.1)] = 600.0,
    threads: Annotated[int, typer.Option(min=1)] = 64,
    late: Annotated[int, typer.Option(min=1, help="New kernels in the middle.")] = 24,
    alone: Annotated[bool, typer.Option("--alone", help="Compute what is expected.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Load this process, or compute each case alone."""
    with torch.inference_mode():
        fixed, fresh = fixed_cases(), late_cases(late)
        if alone:
            found = {case.name: case.call() for case in (*fixed, *fresh)}
            torch.save(found, folder / EXPECTED)
            return
    random.Random(seed).shuffle(fresh)
    expected = torch.load(folder / EXPECTED, weights_only=True)
    load = Load(fixed, fresh, expected, seconds)
    _listen(load)
    helpers = [
        threading.Thread(
            target=damage_cache, args=(load, Path(os.environ["TILEWRIGHT_CACHE_DIR"]), seed)
        ),
        threading.Thread(target=fork_children, args=(load, seed)),
    ]
    print(json.dumps(run(load, threads, helpers)), flush=True)
    os._exit(0)  # what hangs is counted, and must not hang this


if __name__ == "__main__":
    typer.run(main)
