"""Scores that choices find hard, and programs compiled once, for the tests of routing kernels."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests.ir.test_ops_routing import Adversary
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

TOKENS = (0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 200, 257, 300)
KINDS = ("different", "few", "halves", "odd", "equal", "rising", "falling", "worst", "worst thirds")
_ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40], np.float32)


@cache
def compiled(text: str, target: str | None = None, backend: str | None = "mlir") -> Program:
    """The program of a tensor-level text: of machine code in all of its kernels."""
    program = Program(parse(text), target=target, backend=backend)
    assert program.supported, [step.reason for step in program.steps]
    return program


def check(text: str, *inputs: Tensor, target: str | None = None, backend: str = "mlir") -> None:
    """A program gives what the text means: integers equal, floats close."""
    found = compiled(text, target, backend)(*inputs)
    wanted = evaluate(parse(text), *[_array(x) for x in inputs])
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        right = torch.from_numpy(np.ascontiguousarray(theirs))
        assert mine.shape == right.shape
        if mine.dtype.is_floating_point:
            tight = 2e-6 if mine.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(
                mine.double(), right.double(), rtol=tight, atol=tight, equal_nan=True
            )
        else:
            assert torch.equal(mine.long(), right.long())


def whole(rng: np.random.Generator, *shape: int, step: float = 1.0) -> Tensor:
    """f32 multiples of ``step``, few of them different: sums are exact, so that ties stay ties."""
    return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32) * np.float32(step))


def _array(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return np.ascontiguousarray(wide.numpy())


def scores(rng: np.random.Generator, tokens: int, experts: int, k: int, kind: str) -> Tensor:
    """f32 [tokens, experts]. ``worst``: rows that defeat the median of three, turned over for every
    second token; ``odd``: NaN, infinities, both zeros, denormal numbers, among others."""
    shape = (tokens, experts)
    if kind == "different":
        found = np.argsort(rng.random(shape), axis=-1).astype(np.float32) - experts // 2
    elif kind == "few":
        found = rng.integers(-2, 3, shape).astype(np.float32)
    elif kind == "halves":
        found = (rng.random(shape) < 0.5).astype(np.float32)
    elif kind == "odd":
        found = rng.standard_normal(shape).astype(np.float32)
        found = np.where(rng.random(shape) < 0.5, rng.choice(_ODD, shape), found)
    elif kind == "equal":
        found = np.repeat(rng.choice(_ODD, (tokens, 1)), experts, axis=1)
    elif kind in ("rising", "falling"):
        found = np.sort(rng.integers(0, max(1, experts // 2) + 1, shape).astype(np.float32), -1)
        found = found if kind == "rising" else found[:, ::-1].copy()
    else:
        row = np.array(worst_row(experts, k), np.float32)
        row = np.floor(row / 3) if kind == "worst thirds" else row
        sign = np.where(np.arange(tokens) % 2, 1, -1)[:, None]
        found = (row[None] * sign).astype(np.float32)
    return torch.from_numpy(found)


@cache
def worst_row(experts: int, k: int) -> tuple[int, ...]:
    """Ranks for which the choice of k of them takes the most steps."""
    adversary = Adversary(experts)
    adversary.top_k(k)
    return tuple(adversary.value)
