"""The programs of ``fused_programs`` through MLIR: one kernel each, close to float64."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fused_text import Case
from tests.fused_variations import ALL, BORDERS
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

TARGETS = ("host", "x86-64-v3")
EPS = 2.0**-23
PROGRAMS = {**ALL, **{name: case for name, (_, case) in BORDERS.items()}}
KERNELS = {name: kernels for name, (kernels, _) in BORDERS.items()}
FIXED = ((1, 1), (1, 777), (30, 7), (70, 777))  # two classes of rows; drawn sizes have the others


@functools.cache
def compiled(name: str, target: str) -> Program:
    return Program(parse(PROGRAMS[name].text), target=target)


def results(case: Case, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = case.reference(*given)
    return out if isinstance(out, tuple) else (out,)


def check(name: str, target: str, rows: int, length: int, seed: int = 0) -> None:
    check_program(name, compiled(name, target), rows, length, seed)


def check_program(name: str, program: Program, rows: int, length: int, seed: int = 0) -> None:
    """Within a few times the error of the same program in torch's f32, or of rounding the largest
    number once for every doubling of the row."""
    case = PROGRAMS[name]
    given = case.inputs(rows, length, seed)
    exact = results(case, *(x.double() if x.is_floating_point() else x for x in given))
    single = results(case, *given)
    for got, want, other in zip(program(*given), exact, single, strict=True):
        assert got.shape == want.shape and torch.isfinite(got).all()
        size = float(want.abs().max()) if want.numel() else 0.0
        bound = 16 * EPS * (1 + size) * max(1, length).bit_length()
        bound += 8 * float((other - want).abs().max()) if want.numel() else 0.0
        assert float((got - want).abs().max()) <= bound, (name, rows, length)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_fixed_sizes(name: str, target: str) -> None:
    program = compiled(name, target)
    assert len(program.steps) == KERNELS.get(name, 1) and program.supported
    for rows, length in FIXED:
        check(name, target, rows, length)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(PROGRAMS)),
    rows=st.sampled_from([2, 5, 15]),
    length=st.one_of(st.integers(1, 40), st.integers(100, 500)),
    seed=st.integers(0, 2**31),
)
def test_drawn_sizes(target: str, name: str, rows: int, length: int, seed: int) -> None:
    check(name, target, rows, length, seed)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mean", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_variance_of_numbers_far_from_zero(target: str, mean: float, rows: int) -> None:
    """One pass, and no cancellation: at mean 1e4 and deviation 1, where f32 numbers lie 1e-3 apart,
    the relative error stays below 1e-3."""
    program = compiled("mean and variance", target)
    for length in (2, 7, 777, 20_000):
        (x,) = PROGRAMS["mean and variance"].inputs(rows, length, 1)
        x = x + mean
        found, variance = program(x)
        exact = x.double()
        torch.testing.assert_close(
            found.double(), exact.mean(-1, True), rtol=1e-6, atol=2e-6 * length**0.5
        )
        want = exact.var(-1, correction=0, keepdim=True)
        assert float(((variance - want) / want).abs().max()) < max(3e-6, 1e-7 * mean)


@pytest.mark.parametrize("target", TARGETS)
def test_rows_of_which_nothing_is_left(target: str) -> None:
    """A row masked everywhere gives zeros from the safe softmax, and nothing else is disturbed."""
    case = PROGRAMS["attention, masked by a tensor"]
    program = compiled("attention, masked by a tensor", target)
    for rows, length in ((1, 7), (30, 777)):
        q, k, v, mask = case.inputs(rows, length)
        mask[0] = False
        mask[-1, : length // 2] = False
        (got,) = program(q, k, v, mask)
        want = results(case, q.double(), k.double(), v.double(), mask)[0]
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
        if rows > 1:
            assert (got[0] == 0).all()


@pytest.mark.parametrize("target", TARGETS)
def test_cross_entropy_with_long_rows(target: str) -> None:
    """Hidden rows that do not fit into registers or the nearest cache: products in parts."""
    case = PROGRAMS["cross-entropy"]
    for hidden in (192, 193, 500):
        text = case.text.replace("x 16 x", f"x {hidden} x")
        program = Program(parse(text), target=target)
        for rows, length in ((1, 300), (5, 130), (50, 777)):
            rng = torch.Generator().manual_seed(hidden)
            x = torch.randn(rows, hidden, generator=rng)
            w = torch.randn(length, hidden, generator=rng) * hidden**-0.5
            labels = torch.randint(0, length, (rows, 1), generator=rng)
            (got,) = program(x, w, labels)
            want = results(case, x.double(), w.double(), labels)[0]
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


NARROW = {"bf16": torch.bfloat16, "f16": torch.float16}
NARROWED = [
    "attention and its statistics",
    "cross-entropy",
    "entropy as it is defined",
    "difference of two attentions",
    "cross-entropy of a normalised row",
    "LayerNorm and a product",
    "LayerNorm of a long row and a product",
    "mean and variance",
]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NARROWED)
def test_narrow_inputs(name: str, dtype: str) -> None:
    """Inputs of 16 bits are widened where they are read: the errors are those of f32."""
    case = PROGRAMS[name]
    program = Program(parse(case.narrow(dtype).text))
    assert len(program.steps) == 1 and program.supported
    for rows, length in ((1, 40), (60, 300)):
        given = [
            x.to(NARROW[dtype]) if x.is_floating_point() else x for x in case.inputs(rows, length)
        ]
        exact = results(case, *(x.double() if x.is_floating_point() else x for x in given))
        for got, want in zip(program(*given), exact, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-4)
