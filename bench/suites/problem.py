"""A problem that several providers can be given, and what they give for it: no timing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tilewright.bench.roofline import Work

Call = Callable[[], Any]
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
Read = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """One row of a suite. ``case`` is what the suite's providers understand; ``make()`` gives equal
    inputs at new addresses in every call; ``exact(inputs)`` is the result in float64."""

    suite: str
    section: str
    name: str
    case: Any
    work: Work
    arithmetic: str  # the kind of instruction that it may be done with: f32, bf16, int8
    make: Callable[[], Any]
    exact: Callable[[Any], torch.Tensor]
    tolerance: float  # of the error's norm over the result's: beyond it a result is wrong
    parameters: Mapping[str, Any] = field(default_factory=dict)
    size: float = 0.0  # where it stands on its series' axis
    series: str = ""  # problems that differ in size only
    headline: str = "warm"  # the state of the caches that counts: weights are cold in a model


@dataclass(frozen=True)
class Form:
    """One way of a provider to do a problem. ``make()`` prepares it (packs, compiles) and gives a
    call without arguments; ``read`` makes a tensor of what the call gives; ``float_weights``: its
    weights are floats where the problem's are codes of few bits."""

    name: str
    make: Callable[[], Call]
    read: Read = torch.as_tensor
    float_weights: bool = False


class NotOffered(Exception):
    """A provider has nothing for a problem: says why, in a few words."""


@dataclass(frozen=True)
class Suite:
    """``problems(quick)`` in the order of the report; ``smallest(section)`` has next to no data:
    its time is what calling costs."""

    name: str
    about: str
    problems: Callable[[bool], list[Problem]]
    smallest: Callable[[str], Problem]


def errors_of(result: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The largest absolute error, and the norm of the error over the norm of the exact result."""
    if result.shape != exact.shape:
        return float("inf"), float("inf")
    off = result.double() - exact
    if not bool(torch.isfinite(off).all()):
        return float("inf"), float("inf")
    size = float(exact.norm())
    return float(off.abs().max()), float(off.norm()) / size if size else float(off.norm())
