"""The suites by name, imported when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tilewright import BenchError

if TYPE_CHECKING:  # importing a command must not import torch
    from tilewright.bench.devices import Device
    from tilewright.bench.suites.problem import Suite

SUITES = {
    "attention": "prefill, decode, and masks and scores",
    "lowbit": "products with weights of 1 to 8 bits",
    "experts": "mixtures of experts in f32, bf16 and few bits, and their routing",
    "fused": "row-wise neighbours of products: norms, gates, softmax, losses",
    "models": "a small Llama: a prompt, and one token after another",
}


def suite(name: str, device: Device | None = None) -> Suite:
    """The suite of a name, for the processor or another device. Raises BenchError that says what
    exists."""
    if name not in SUITES:
        raise BenchError(unknown("suite", name, SUITES))
    found: Suite = importlib.import_module(f"tilewright.bench.suites.{name}").SUITE
    if device is None or device.kind == "cpu":
        return found
    there = importlib.import_module(f"tilewright.bench.suites.on_gpu.{name}")
    problems, smallest = (
        partial(function, device.tensors, device.floats)
        for function in (there.problems, there.smallest)
    )
    return replace(found, problems=problems, smallest=smallest)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """There is no such thing; what there is, and what was probably meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 2, 0.55)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    between = "; " if any("," in each for each in known) else ", "
    return f"there is no {kind} {name!r}{meant or ';'} there are {between.join(known)}"
