"""Kernels that compute each row by itself, made once for rows of every length."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fused_text import const, reduce, softmax
from tilewright.ir.parser import parse
from tilewright.runtime.family import KernelFamily
from tilewright.runtime.program import Program
from tilewright.runtime.threads import set_num_threads

Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EPS = 2.0**-24
TARGETS = ("host", "x86-64-v3", "scalar")
NORM = (
    "%size = math.size {size = size(M), type = tensor<i64>}\n%n = math.cast %size {dtype = f32}\n"
    + "%x2 = math.mul %x, %x\n"
    + reduce("sum", "x2")
    + const("eps", 1e-5)
    + "%mean = math.div %sum, %n\n%a = math.add %mean, %eps\n%r = math.rsqrt %a\n"
    + "%y = math.mul %x, %r\n%o = math.mul %y, %w\n"
)
CASES: dict[str, tuple[str, Reference]] = {
    "norm": (NORM, lambda x, w: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w),
    "softmax": (
        "%s = math.mul %x, %w\n" + softmax("s", "o"),
        lambda x, w: torch.softmax(x * w, -1),
    ),
    "distance to the largest": (
        reduce("top", "x", "max") + "%o = math.sub %x, %top\n",
        lambda x, w: x - x.amax(-1, keepdim=True),
    ),
}


@functools.cache
def compiled(name: str, target: str, rows: str, level: str | None = None) -> Program:
    text = f"graph f<N, M>(%x: tensor<{rows} x M x f32>, %w: tensor<M x f32>) {{\n"
    text = text if rows == "N" else text.replace("<N, M>(", "<M>(")
    body = CASES[name][0].replace("tensor<N x M x f32>", f"tensor<{rows} x M x f32>")
    module = parse(f"{text}{body}\nreturn %o }}")
    return Program(module, target=target, deterministic=level, reproducible=level == "batch")


def family(program: Program) -> KernelFamily:
    (step,) = program.steps
    assert step.family is not None
    return step.family


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(CASES)),
    target=st.sampled_from(TARGETS),
    rows=st.integers(1, 20),
    length=st.one_of(st.integers(1, 140), st.integers(1000, 1100)),
    single=st.booleans(),
)
def test_rows_of_any_length(name: str, target: str, rows: int, length: int, single: bool) -> None:
    rows = 1 if single else rows
    program = compiled(name, target, "1" if single else "N")
    random = torch.Generator().manual_seed(length)
    x = torch.randn(rows, length + 3, generator=random)[:, :length]  # what follows is no row's
    w = torch.rand(length, generator=random)
    (got,) = program(x, w)
    exact = CASES[name][1](x.double(), w.double())
    torch.testing.assert_close(got.double(), exact, rtol=64 * EPS, atol=64 * EPS)


@pytest.mark.parametrize("name", CASES)
def test_one_form_serves_all_lengths(name: str) -> None:
    program = compiled(name, "host", "N")
    for length in (1, 16, 100, 129):
        program(torch.randn(3, length), torch.randn(length))
    assert family(program).static_names == () and len(family(program).reports) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_every_width(name: str) -> None:
    """In a fixed order, whatever the length."""
    programs = [compiled(name, target, "N", "batch") for target in TARGETS]
    for length in (1, 15, 63, 64, 65, 300):
        x, w = torch.randn(5, length), torch.randn(length)
        first, *others = (program(x, w)[0] for program in programs)
        assert all(torch.equal(first, other) for other in others)


def test_a_vector_has_no_rows() -> None:
    """It is not an element, which every thread would walk by itself."""
    text = "graph f<M>(%x: tensor<M x f32>) {\n%o = tensor.softmax %x {axis = 0}\nreturn %o }"
    program = Program(parse(text))
    x = torch.randn(1000)
    torch.testing.assert_close(program(x)[0], F.softmax(x, -1))
    assert len(program.steps) > 1


@pytest.mark.parametrize("threads", [1, 3])
def test_every_row_is_computed_once_however_many_are_claimed(threads: int) -> None:
    """Work items of 8 rows, of which one or several are claimed at once."""
    program, w = compiled("norm", "host", "N"), torch.linspace(-1, 1, 5)
    set_num_threads(threads)
    try:
        for items in (1, 127, 128, 129, 255, 256, 257, 1000):
            for rows in (8 * items, 8 * items - 3):
                x = torch.randn(rows, 5)
                torch.testing.assert_close(program(x, w)[0], CASES["norm"][1](x, w))
    finally:
        set_num_threads(None)
