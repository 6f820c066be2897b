"""Logarithms as arithmetic on bits and a polynomial: the error that the module states, over all
exponents, at the borders of the mantissa's range and where there is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.expand_math import expand_math_graph

TEXT = """tile f<N>(%x: buffer<N x 512 x f32, unit 1>, %o: buffer<N x 512 x f32, unit 1>)
with {grid = [[size(N), 1]], outputs = 1} {
  %i = tile.block {dim = 0}
  %c0 = math.const {value = 0, type = index}
  %a = tile.load %x, %i, %c0 {dims = [0, 1], layout = local(1, 32).spatial(1, 16)}
  %r = math.NAME %a
  tile.store %r, %o, %i, %c0 {dims = [0, 1]}
  return
}"""
NAMES = ("log", "log2")


def expanded(name: str) -> Graph:
    graph = expand_math_graph(parse(TEXT.replace("NAME", name)).main)
    assert not any(isinstance(op, m.Log | m.Log2) for op in graph.body.walk())
    return graph


def run(name: str, x: Any) -> Any:
    """The function of each number; f32."""
    (got,) = evaluate_graph(expanded(name), np.resize(x, (-(-x.size // 512), 512)))
    return got.reshape(-1)[: x.size]


def check(name: str, bits: Any) -> None:
    """``bits`` are those of positive numbers that are not 1."""
    x = bits.astype(np.uint32).view(np.float32)
    got = run(name, x)
    want = getattr(np, name)(x.astype(np.float64))
    error = np.abs(got / want - 1)
    assert error.max() < 2.0**-22, f"{name} {x[error.argmax()]}"  # rounded: as much again


@pytest.mark.parametrize("name", NAMES)
def test_every_exponent(name: str) -> None:
    """Numbers beside a power of two and beside the root between two, subnormal ones too."""
    normal = np.arange(1, 255)[:, None] << 23
    mantissa = np.array([0, 1, 0x3504F2, 0x3504F3, 0x3504F4, 0x400000, 0x7FFFFF])
    every = (normal | mantissa).reshape(-1)
    small = np.concatenate([1 << np.arange(23), (1 << np.arange(1, 24)) - 1])
    bits = np.concatenate([every, small])
    check(name, bits[bits != 127 << 23])


@pytest.mark.parametrize("name", NAMES)
def test_every_mantissa(name: str) -> None:
    """One in 512 of those whose logarithms are nearest to zero."""
    check(name, np.arange(0x3F000000 + 1, 0x40000000, 512))


@pytest.mark.parametrize("name", NAMES)
def test_limits_are_exact(name: str) -> None:
    x = np.array([0, -0.0, -1, -1e-45, np.inf, -np.inf, np.nan, 1], np.float32)
    inf, nan = np.inf, np.nan
    want = np.array([-inf, -inf, nan, nan, inf, nan, nan, 0], np.float32)
    assert np.array_equal(run(name, x), want, equal_nan=True)


def test_powers_of_two_are_exact_to_base_2() -> None:
    powers = np.arange(-149, 128)
    got = run("log2", np.ldexp(np.float32(1), powers))
    assert np.array_equal(got, powers.astype(np.float32))
