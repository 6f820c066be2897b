"""Tries mutants inside one run of pytest: tests are collected once, each mutant has a forked child.

Tests of a line run from the cheapest to the dearest by what earlier mutants saw of them, those that
found something first. A child is limited in processor time, not in time: a busy machine kills
nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.alone import module_of, try_alone
from tests.mutation.covering import Covering, compiling, function_of, words_in_common
from tests.mutation.patch import LiveFunctions
from tests.mutation.sample import ROOT, Mutant

USUAL = 0.5  # seconds of a test that nothing is known of
LONGEST = 30.0  # seconds of processor time of one test, beside ten times what it takes
MEMORY = 8 << 30
SILENT = 1800.0  # seconds of a child that neither ends nor uses the processor


@dataclass
class Result:
    """What became of a mutant: ``killed`` by a test, ``timeout``, ``survived`` all ``tried`` tests,
    or as many as its share of processor time allowed (``cut``); ``uncovered``: no test runs it."""

    name: str
    before: str
    after: str
    state: str
    killer: str = ""
    tried: int = 0
    covering: int = 0
    seconds: float = 0.0
    alone: bool = False  # in a process of its own, since it changes what runs at import


@dataclass
class Knowledge:
    """What trials have told of tests."""

    seconds: dict[str, float] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)

    def order(self, tests: Iterable[str], sizes: dict[str, int]) -> list[str]:
        """What is likely to find something soon first: kills per second; unknown ones by how few
        lines their functions run."""

        def cost(test: str) -> tuple[float, int]:
            seconds = self.seconds.get(test, USUAL) + 0.01
            return seconds / (1 + 3 * self.kills.get(test, 0)), sizes.get(function_of(test), 0)

        return sorted(tests, key=cost)


class Forks:
    """The plugin. ``tell`` gets every result at once."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        covering: Covering,
        share: float,
        tell: Callable[[Result], None],
        ends: float,
        everything: bool = False,  # other tests after those that run the line
    ) -> None:
        self.mutants, self.covering, self.share, self.tell = mutants, covering, share, tell
        self.known, self.ends, self.everything = Knowledge(), ends, everything
        self.sound: dict[str, bool] = {}  # tests that found something, and do not without a fault

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for mutant in self.mutants:
            importlib.import_module(module_of(mutant.file))
        functions = LiveFunctions()
        for mutant in self.mutants:
            if time.monotonic() > self.ends:
                break
            order = self._tests(mutant, items)
            result = self._tried(mutant, [items[x] for x in order], functions)
            while not self._is_sound(result.killer, items):
                print(f"{result.killer} fails without any fault: left out")
                del items[result.killer]
                order = [x for x in order if x in items]
                result = self._tried(mutant, [items[x] for x in order], functions)
            self.tell(result)
        return True

    def _tests(self, mutant: Mutant, items: Iterable[str]) -> list[str]:
        """Those that run the line, then those of which coverage says nothing and that may."""
        functions = self.covering.functions(mutant)
        running = [x for x in items if function_of(x) in functions]
        sizes = self.covering.sizes
        left = set(items) - set(running)
        others = [x for x in left if self.everything or self.covering.may_run(mutant, x)]
        wanted = compiling(mutant.file)
        hinted = [x for x in others if function_of(x).rpartition(".")[0] in wanted]
        rest = set(others) - set(hinted)
        named = {x for x in rest if words_in_common(mutant.file, x) > 1}  # after the file
        groups = named, running, hinted, rest - named
        return [test for each in groups for test in self.known.order(each, sizes)]

    def _is_sound(self, test: str, items: dict[str, pytest.Item]) -> bool:
        """Whether a test passes in a child without a fault."""
        if test not in items:
            return True
        if test not in self.sound:
            same = Mutant("", 0, 0, "", "", "", "")
            result = Result("", "", "", "")
            self._try(same, [items[test]], None, result)
            self.sound[test] = result.state == "survived"
        return self.sound[test]

    def _tried(self, mutant: Mutant, items: list[pytest.Item], functions: LiveFunctions) -> Result:
        result = Result(mutant.name, mutant.before, mutant.after, "uncovered")
        result.covering = len(items)
        if items:
            self._try(mutant, items, functions, result)
        if result.killer:
            self.known.kills[result.killer] = self.known.kills.get(result.killer, 0) + 1
        return result

    def _try(
        self,
        mutant: Mutant,
        items: list[pytest.Item],
        functions: LiveFunctions | None,
        result: Result,
    ) -> None:
        """``functions`` None: without the fault."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _child(mutant, items, functions, writer, self.share, self.known)
        os.close(writer)
        told = _read(reader, child)
        _, status, used = os.wait4(child, 0)
        result.seconds = used.ru_utime + used.ru_stime
        times = [x for x in told if "seconds" in x]
        result.tried = len(times)
        for x in times:
            before = self.known.seconds.get(x["test"], x["seconds"])
            self.known.seconds[x["test"]] = (before + x["seconds"]) / 2
        self._judge(mutant, items, told, status, result)

    def _judge(
        self,
        mutant: Mutant,
        items: list[pytest.Item],
        told: list[dict[str, Any]],
        status: int,
        result: Result,
    ) -> None:
        under_way = next((x["begun"] for x in reversed(told) if "begun" in x), "")
        states = [x["state"] for x in told if "state" in x]
        if os.WIFSIGNALED(status):
            timeout = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU)
            result.state, result.killer = "timeout" if timeout else "killed", under_way
        elif states == ["alone"]:
            names = [x.nodeid for x in items]
            result.alone = True
            result.state, result.killer, more = try_alone(mutant, names, self.share)
            result.seconds += more
        else:
            result.state = states[-1] if states else "killed"
            result.killer = under_way if result.state == "killed" else ""


def _read(reader: int, child: int) -> list[dict[str, Any]]:
    """What a child tells until it ends; one that is silent is killed."""
    data, heard = b"", time.monotonic()
    while True:
        if select.select([reader], [], [], 5.0)[0]:
            more = os.read(reader, 1 << 16)
            if not more:
                break
            data, heard = data + more, time.monotonic()
        elif time.monotonic() - heard > SILENT:
            os.kill(child, signal.SIGKILL)
            break
    os.close(reader)
    lines = data.decode().splitlines()
    return [json.loads(x) for x in lines if x.endswith("}")]


def _child(
    mutant: Mutant,
    items: list[pytest.Item],
    functions: LiveFunctions | None,
    writer: int,
    share: float,
    known: Knowledge,
) -> None:
    """Runs the tests with the fault until one fails; never returns."""

    def say(**facts: object) -> None:
        os.write(writer, json.dumps(facts).encode() + b"\n")

    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        if functions is not None and not _planted(mutant, functions):
            say(state="alone")
            os._exit(0)
        say(state=_run(items, say, share, known))
    finally:
        os._exit(0)


def _planted(mutant: Mutant, functions: LiveFunctions) -> bool:
    path = str(ROOT / "tilewright" / mutant.file)
    before = (ROOT / mutant.file).read_text(encoding="utf-8")
    return functions.patch(path, before, mutant.source)


def _run(items: list[pytest.Item], say: Callable[..., None], share: float, known: Knowledge) -> str:
    begin = time.process_time()
    for item, after in zip(items, [*items[1:], None], strict=True):
        if time.process_time() - begin > share:
            return "cut"
        usual = known.seconds.get(item.nodeid, USUAL)
        signal.setitimer(signal.ITIMER_PROF, LONGEST + 10 * usual)
        say(begun=item.nodeid)
        start = time.process_time()
        reports = runtestprotocol(item, log=False, nextitem=after)
        say(test=item.nodeid, seconds=time.process_time() - start)
        if any(x.failed for x in reports):
            return "killed"
    return "survived"


def written(file: Path) -> Callable[[Result], None]:
    """Adds each result to a file of lines."""

    def tell(result: Result) -> None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(result)) + "\n")
        print(f"{result.state:9} {result.seconds:6.1f} s  {result.name}  {result.killer}")

    return tell


def known_results(file: Path) -> dict[str, Result]:
    """Results of earlier runs by the names of their mutants."""
    found: dict[str, Result] = {}
    with suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            result = Result(**json.loads(line))
            found[result.name] = result
    return found
