"""Products of activations with weights of 1 to 8 bits, in groups of 32 with f16 scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tilewright.bench.lowbit_workloads import activations, decoded
from tilewright.bench.roofline import Work
from tilewright.bench.suites.problem import FLOATS, Problem, Suite

GROUP = 32
TOLERANCES = {"float": 1e-2, "int8": 3e-2}  # products in bf16, and activations rounded to int8
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LowBit:
    """[rows, inner] in ``floats`` times weights [outputs, inner] of unsigned codes in groups of
    ``group``, their zero in the middle."""

    rows: int
    bits: int
    activation: str  # float, or int8 where a provider may round activations to it
    outputs: int
    inner: int
    group: int = GROUP
    floats: str = "f32"
    device: str = "cpu"

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return 1 << self.bits - 1

    def work(self) -> Work:
        weights = self.outputs * self.inner * (self.bits / 8 + 2 / self.group)
        size = FLOATS[self.floats].itemsize
        moved = weights + size * self.rows * (self.inner + self.outputs)
        return Work(moved, 2.0 * self.rows * self.outputs * self.inner)


@dataclass(frozen=True)
class Weights:
    """x [rows, inner]; codes uint8 [outputs, inner]; scales f32 (of f16 values) [outputs, groups];
    ``zero``: the code that stands for 0."""

    x: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zero: int

    def values(self, some: slice = slice(None)) -> torch.Tensor:
        """What the codes of some outputs stand for, f32."""
        return decoded(self.codes[some], self.scales[some], self.zero)

    def arrays(self) -> tuple[Array, Array]:
        """Codes and scales for those who know no torch."""
        return self.codes.numpy(), self.scales.numpy()


@lru_cache(maxsize=1)
def _codes(outputs: int, inner: int, bits: int) -> tuple[Array, Array]:
    random = np.random.default_rng(bits)
    codes = random.integers(0, 1 << bits, (outputs, inner), dtype=np.uint8)
    scales = random.random((outputs, inner // GROUP)) * 0.01 + 0.001
    return codes, scales.astype(np.float16).astype(np.float32)


def inputs(case: LowBit) -> Weights:
    codes, scales = (torch.from_numpy(x) for x in _codes(case.outputs, case.inner, case.bits))
    return Weights(activations(case.rows, case.inner), codes.clone(), scales.clone(), case.zero)


def exact(given: Weights) -> torch.Tensor:
    """In f64, a part of the outputs at a time."""
    parts = []
    for first in range(0, len(given.codes), 1024):
        values = given.values(slice(first, first + 1024))
        parts.append(given.x.double() @ values.double().T)
    return torch.cat(parts, dim=1)


def lowbit_problem(
    section: str,
    case: LowBit,
    name: str = "",
    series: str = "",
    make: Callable[[LowBit], Weights] = inputs,
) -> Problem:
    """A problem of this suite, or of its counterpart for GPUs, which makes its inputs there."""
    return Problem(
        suite="lowbit",
        section=section,
        name=name or f"u{case.bits}, {case.activation} activations, M{case.rows}",
        case=case,
        work=case.work(),
        arithmetic="int8" if case.activation == "int8" else case.floats,
        make=lambda: make(case),
        exact=exact,
        tolerance=TOLERANCES[case.activation],
        parameters={
            "rows": case.rows,
            "bits": case.bits,
            "activations": case.activation,
            "outputs": case.outputs,
            "inner": case.inner,
            "group": case.group,
        },
        size=float(case.bits if "bits" in series else case.rows),
        series=series,
        headline="cold",  # weights come from memory: the layers before them took the cache
    )


def problems(quick: bool) -> list[Problem]:
    """One row with every width, several rows with four bits."""
    shape = (256, 512) if quick else (14336, 4096)
    rows = 8 if quick else 256
    found = [
        lowbit_problem("one row", LowBit(1, bits, "int8", *shape), series="bits, one row, int8")
        for bits in range(1, 9)
    ]
    found += [lowbit_problem("one row", LowBit(1, bits, "float", *shape)) for bits in (3, 4)]
    found += [
        lowbit_problem("several rows", LowBit(m, 4, "int8", *shape), series="rows, u4, int8")
        for m in (4, 16, rows)  # one row is above
    ]
    return [*found, lowbit_problem("several rows", LowBit(rows, 4, "float", *shape))]


def smallest(section: str) -> Problem:
    return lowbit_problem(section, LowBit(1, 4, "int8", 32, 64), "next to nothing")


SUITE = Suite("lowbit", "Products with weights of few bits", problems, smallest)
