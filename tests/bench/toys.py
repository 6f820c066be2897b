"""A suite of one problem, doubling two numbers, and rivals that processes of their own can
import."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tilewright.bench.devices import Device
from tilewright.bench.providers.catalogue import OURS, Provider
from tilewright.bench.suites import catalogue as suites
from tilewright.bench.suites.problem import Form, Problem, Suite

Forms = Callable[[Problem, Any], list[Form]]
LOG = "TILEWRIGHT_TEST_TOYS_LOG"  # of a file that gets the process of every preparation


def offered(*forms: Form) -> Any:
    return lambda problem, inputs: list(forms)


def toy(tolerance: float = 1e-3) -> Problem:
    """Doubling two numbers."""
    attention = suites.suite("attention").smallest("prefill")
    return dataclasses.replace(
        attention,
        name="doubling",
        section="all",
        make=lambda: torch.ones(2),
        exact=lambda x: 2 * x.double(),
        tolerance=tolerance,
    )


def _problems(_quick: bool) -> list[Problem]:
    return [toy()]


def _smallest(_section: str) -> Problem:
    return toy()


SUITE = Suite("toys", "Doubling", _problems, _smallest)


def _doubled() -> Callable[[], torch.Tensor]:
    return lambda: torch.full((2,), 2.0)


def _logged() -> Callable[[], torch.Tensor]:
    with Path(os.environ[LOG]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    return _doubled()


def processes() -> list[int]:
    """Those that have prepared ``LOGGED`` so far, in order, each once."""
    path = Path(os.environ[LOG])
    return list(dict.fromkeys(map(int, path.read_text().split()))) if path.exists() else []


def _noisy() -> Callable[[], torch.Tensor]:
    """Prints where a process talks with its run, as libraries do."""
    print("hello from Python", flush=True)
    os.write(1, b"hello from below\n")
    return _logged()


def _killed_in(sitting: int) -> Callable[[], torch.Tensor]:
    call = _logged()
    if len(processes()) > sitting:
        print("out of luck", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return call


def logged(_problem: Problem, _inputs: Any) -> list[Form]:
    return [Form("doubled", _logged)]


def noisy(_problem: Problem, _inputs: Any) -> list[Form]:
    return [Form("noisy", _noisy)]


def killed_at_once(_problem: Problem, _inputs: Any) -> list[Form]:
    return [Form("killed", lambda: _killed_in(0))]


def killed_later(_problem: Problem, _inputs: Any) -> list[Form]:
    return [Form("killed", lambda: _killed_in(1))]


@dataclass(frozen=True)
class Toy(Provider):
    """Always here, with these forms for this suite."""

    forms: Forms = logged

    def absence(self, device: Device | None = None) -> str:
        return ""

    def offers(self) -> dict[str, Any]:
        return {SUITE.name: self.forms}


class LoadedOnce(Toy):
    """Cannot be loaded any more when anybody has been prepared."""

    def offers(self) -> dict[str, Any]:
        if processes():
            raise OSError("broken library")
        return super().offers()


def named(name: str, forms: Forms) -> Toy:
    return Toy(name, name, "", (), forms=forms)


OURSELVES = named(OURS, logged)
NOISY = named("noisy", noisy)
KILLED_AT_ONCE = named("killed", killed_at_once)
KILLED_LATER = named("killed", killed_later)
LOADED_ONCE = LoadedOnce("once", "once", "", (), forms=logged)
