"""The problems of ``tilewright bench figures lowbit``: weights in several copies, both sides of
each comparison. Decides no goals and prints nothing."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import tilewright
from tilewright.bench import lowbit_peers as peers
from tilewright.bench.records import Comparison, Goal
from tilewright.bench.timing import Effort, Side, Timing, in_rounds, interleaved, summary
from tilewright.lowbit import finite_codes, prepared

COPIES = 4  # calls go through so many weights, so that no cache holds the next one
READ_BYTES = 256 << 20
FEW_ROWS = 8  # up to so many, products are held to reading the weights
NO_GOAL = Goal()


@dataclass(frozen=True)
class Shape:
    """Weights [rows, length] in groups of ``group``."""

    rows: int = 14336
    length: int = 4096
    group: int = 32

    def bytes(self, bits: int, scale_bits: int = 16) -> float:
        """Bytes of codes and scales."""
        return self.rows * self.length * (bits / 8 + scale_bits / 8 / self.group)


Codes = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@lru_cache(maxsize=2)
def codes_of(shape: Shape, bits: int) -> tuple[Codes, ...]:
    """Codes [rows, length] and scales [rows, groups] of every copy, the same in every run."""
    random = np.random.default_rng(bits)
    size = (shape.rows, shape.length)
    found = []
    for _ in range(COPIES):
        codes = random.integers(0, 1 << bits, size, dtype=np.uint8)
        scales = random.random((shape.rows, shape.length // shape.group)) * 0.01 + 0.001
        found.append((codes, scales.astype(np.float16).astype(np.float32)))
    return tuple(found)


def activations(rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(rows))


def ours(shape: Shape, bits: int, activation: str, dtype: str = "") -> list[Any]:
    """Quantised weights of every copy (zero in the middle for integers)."""
    name = dtype or f"u{bits}"
    zero = 1 << bits - 1 if name[0] in "iu" else 0
    found = []
    numbers = np.array(finite_codes(name), np.uint8)
    for drawn, scales in codes_of(shape, bits):
        given = torch.from_numpy(scales).half()
        codes = numbers[drawn % len(numbers)] if len(numbers) < 1 << bits else drawn
        weight = tilewright.QuantizedTensor.from_codes(
            torch.from_numpy(codes), given, dtype=name, group=shape.group, zero_point=zero
        )
        found.append(prepared(weight, activation))
    return found


def turning(
    products: Sequence[Callable[[torch.Tensor], Any]], x: torch.Tensor
) -> Callable[[], Any]:
    """A call of the next of the products each time."""
    turns = itertools.cycle(products)
    return lambda: next(turns)(x)


def our_products(
    shape: Shape, bits: int, activation: str, dtype: str = ""
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    def product(weight: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: tilewright.linear(x, weight, activation=activation)

    return [product(w) for w in ours(shape, bits, activation, dtype)]


@dataclass(frozen=True)
class Problem:
    """One product: ``rows`` rows of activations, ``bits`` bits of weights, int8 or float
    activations, the peer: ``onnxruntime``, ``torch int4 bf16`` or ``torch f32``."""

    rows: int
    bits: int
    activation: str
    peer: str
    goal: Goal = NO_GOAL

    @property
    def name(self) -> str:
        return f"M={self.rows}, u{self.bits}, {self.activation} activations"


def compare(problem: Problem, shape: Shape, effort: Effort, threads: int) -> Comparison:
    """Our product beside the peer's, with the same codes and scales."""
    rows, bits = problem.rows, problem.bits
    x = activations(rows, shape.length)
    mine = our_products(shape, bits, problem.activation)
    exact = exact_product(shape, bits, x)
    theirs = _peer_products(problem, shape, threads)
    given = x.bfloat16() if problem.peer == "torch int4 bf16" else x
    errors = [worst_error(side[0](given), exact) for side in (mine, theirs)]
    sides = turning(mine, given), turning(theirs, given)
    bound, nbytes = None, shape.bytes(bits)
    if rows <= FEW_ROWS:
        times, bound = beside_reading(sides, nbytes, effort)
        work, unit = nbytes / 1e9, "GB/s"
    else:
        times = interleaved(*sides, effort)
        work, unit = 2e-9 * rows * shape.rows * shape.length, "GFLOP/s"
    return Comparison(
        problem.name,
        problem.peer,
        *times,
        problem.goal,
        work,
        unit,
        our_error=errors[0],
        their_error=errors[1],
        bound=bound,
    )


def beside_reading(
    sides: tuple[Side, Side], nbytes: float, effort: Effort
) -> tuple[tuple[Timing, Timing], float]:
    """Both sides and torch's sum over memory in turns; last the ratio if ours only read its
    ``nbytes``, as fast as that sum, a median over the rounds."""
    found = in_rounds((*sides, _memory().sum), effort)
    ours_, theirs, reading = (list(part) for part in zip(*found, strict=True))
    pairs = zip(theirs, reading, strict=True)
    bound = statistics.median(t / (r * nbytes / READ_BYTES) for t, r in pairs)
    return (summary(ours_), summary(theirs)), bound


def _memory() -> torch.Tensor:
    """What no cache holds."""
    return torch.ones(READ_BYTES // 8, dtype=torch.int64)


def _peer_products(problem: Problem, shape: Shape, threads: int) -> list[Any]:
    given = codes_of(shape, problem.bits)
    if problem.peer == "onnxruntime":
        level = 4 if problem.activation == "int8" else 0
        return [
            peers.matmul_nbits(c, s, problem.bits, accuracy_level=level, threads=threads)
            for c, s in given
        ]
    if problem.peer == "torch int4 bf16":
        return [peers.torch_int4(torch.from_numpy(c), torch.from_numpy(s)) for c, s in given]
    return [dense(values_of(part)) for part in given[:2]]  # either fills the cache many times


def dense(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.nn.functional.linear(x, weight)


def values_of(given: Codes) -> torch.Tensor:
    """f32 values of codes whose zero is in the middle (the largest code tells the width)."""
    codes, scales = (torch.from_numpy(part) for part in given)
    return decoded(codes, scales, 1 << int(codes.max()).bit_length() - 1)


def decoded(codes: torch.Tensor, scales: torch.Tensor, zero: int) -> torch.Tensor:
    """f32 values of codes [rows, length] with scales [rows, groups]."""
    groups = codes.view(*scales.shape, -1).float() - zero
    return (groups * scales[:, :, None]).view(codes.shape)


def exact_product(shape: Shape, bits: int, x: torch.Tensor) -> torch.Tensor:
    """The first copy's product in f64, a part of the rows at a time."""
    codes, scales = codes_of(shape, bits)[0]
    parts = []
    for first in range(0, shape.rows, 1024):
        values = values_of((codes[first : first + 1024], scales[first : first + 1024]))
        parts.append(x.double() @ values.double().T)
    return torch.cat(parts, dim=1)


def worst_error(y: Any, exact: torch.Tensor) -> float:
    return float((torch.as_tensor(y).double() - exact).abs().max())


def against_reading(shape: Shape, bits: int, activation: str, effort: Effort) -> dict[str, float]:
    """One row's product of a width, and torch's sum over memory, in turns: GB/s of both, and the
    time as a multiple of what reading the bytes takes."""
    memory = _memory()
    x = activations(1, shape.length)
    product = turning(our_products(shape, bits, activation), x)
    found = in_rounds((product, memory.sum), effort)
    ours_, reading = (statistics.median(part) for part in zip(*found, strict=True))
    speed = READ_BYTES / reading
    return {
        "value": ours_ / (shape.bytes(bits) / speed),
        "ms": ours_ * 1e3,
        "read_gb_per_s": speed / 1e9,
        "our_gb_per_s": shape.bytes(bits) / ours_ / 1e9,
    }


def against_integer(shape: Shape, dtype: str, bits: int, effort: Effort) -> dict[str, float]:
    """One row's product with a float format and with the integer width of its size, in turns."""
    x = activations(1, shape.length)
    sides = [turning(our_products(shape, bits, "float", name), x) for name in (dtype, f"u{bits}")]
    found = in_rounds(sides, effort)
    ours_, integer = (statistics.median(part) for part in zip(*found, strict=True))
    ratio = statistics.median(a / b for a, b in found)
    return {"value": ratio, "ms": ours_ * 1e3, "integer_ms": integer * 1e3}
