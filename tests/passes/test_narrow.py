"""Positions in 32 bits: nothing that is narrowed can overflow, and what cannot is narrowed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integer_expressions import Expression, conditions, integers
from tests.passes.stages import streamed
from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Value
from tilewright.ir.dtypes import I32
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.types import StreamType
from tilewright.passes.to_tile.narrow import LONGEST, narrow_positions

MOST = 2**31 - 1


def narrowed(lines: str) -> Graph:
    """The stream graph of ``%e``, made of positions ``%n`` and ``%m``, sizes and ``%table``."""
    text = f"""graph f<N, M, T>(%x: tensor<N x M x i64>, %table: tensor<T x i64>) {{
      %zero = math.const {{value = 0, type = tensor<i64>}}
      %n = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
      %m = tensor.iota {{axis = 1, type = tensor<1 x M x i64>}}
      {lines}
      %y = math.cast %e {{dtype = i64}}
      %r = math.add %x, %y
      return %r
    }}"""
    return narrow_positions(streamed(parse(text)).main)


def values(graph: Graph, at: tuple[int, int], sizes: dict[str, int]) -> dict[Value, int]:
    """What every value that needs no memory is at positions on two axes, in 64 bits."""
    found: dict[Value, Any] = {}
    names = dict.fromkeys(op.axis for op in graph.body.ops if isinstance(op, s.Index))
    axes = dict(zip(names, at, strict=False))
    for op in graph.body.ops:
        if isinstance(op, s.Index):
            found[op.result] = np.int64(axes[op.axis])
        elif isinstance(op, m.SizeValue):
            found[op.result] = np.int64(op.size.evaluate(sizes))
        elif isinstance(op, m.Const):
            found[op.result] = np.int64(op.value)
        elif isinstance(op, m.Cast | s.Repeat) and op.x in found:
            found[op.result] = found[op.x]
        elif "pointwise" in op.traits and all(v in found for v in op.operands):
            found[op.result] = op.reference(*(found[v] for v in op.operands))
    return {value: int(number) for value, number in found.items()}


def is_narrow(value: Value) -> bool:
    return isinstance(value.type, StreamType) and value.type.dtype == I32


def check_fits(graph: Graph, points: list[tuple[int, int]]) -> None:
    for at in points:
        for value, number in values(graph, at, {"N": LONGEST, "M": LONGEST}).items():
            assert not is_narrow(value) or abs(number) <= MOST, (value.hint, at, number)


positions = st.integers(0, LONGEST - 1) | st.sampled_from([0, 1, LONGEST - 1])


@given(integers() | conditions(), st.lists(st.tuples(positions, positions), max_size=3))
@settings(max_examples=60, deadline=None)
def test_what_is_narrowed_fits(expression: Expression, drawn: list[tuple[int, int]]) -> None:
    """At positions near the ends of the longest axes, and between."""
    corners = [(n, k) for n in (0, LONGEST - 1) for k in (0, LONGEST - 1)]
    check_fits(narrowed(expression.lines("e")), [*corners, *drawn])


FACTORS = (-3, -2, -1, 0, 1, 2)
CONSTANTS = (0, 5, -7, LONGEST - 1, LONGEST, -LONGEST, MOST, MOST + 1)


@pytest.mark.parametrize("constant", CONSTANTS)
def test_sizes_are_narrow_exactly_if_they_fit(constant: int) -> None:
    """Polynomials of degree one at all corners; products of sizes never are."""
    for a, b in itertools.product(FACTORS, repeat=2):
        size = Size.of("N") * a + Size.of("M") * b + constant
        if size.constant is not None:
            continue
        graph = narrowed(f"%e = math.size {{size = size({size}), type = tensor<i64>}}")
        (op,) = [op for op in graph.body.ops if isinstance(op, m.SizeValue)]
        ends = itertools.product((0, LONGEST), repeat=2)
        extremes = [abs(size.evaluate({"N": n, "M": k})) for n, k in ends]
        assert is_narrow(op.result) == (max(extremes) <= MOST), str(size)
    graph = narrowed("%e = math.size {size = size(N*M), type = tensor<i64>}")
    assert not any(is_narrow(op.result) for op in graph.body.ops if isinstance(op, m.SizeValue))


USUAL = {
    "sub": "%e = math.sub %n, %m",
    "add": "%e = math.add %n, %m",
    "compare": '%e = math.compare %m, %n {relation = "le"}',
    "min": "%e = math.min %n, %m",
    "neg": "%e = math.neg %m",
    "abs": "%d = math.sub %n, %m\n%e = math.abs %d",
    "div": "%c = math.const {value = 16, type = tensor<i64>}\n%e = math.div %m, %c",
    "mod": "%c = math.const {value = 16, type = tensor<i64>}\n%e = math.mod %m, %c",
    "mul": "%e = math.mul %n, %m",
    "twice": "%e = math.add %m, %m",
    "thrice": "%t = math.add %m, %m\n%e = math.add %t, %m",
    "back": "%l = math.size {size = size(M - N), type = tensor<i64>}\n%e = math.add %n, %l",
    "far": "%l = math.size {size = size(M), type = tensor<i64>}\n%e = math.add %n, %l",
}


@pytest.mark.parametrize("name", USUAL)
def test_what_fits_is_narrowed(name: str) -> None:
    """All that is computed from positions, unless it may be 2^31."""
    graph = narrowed(USUAL[name])
    check_fits(graph, [(n, k) for n in (0, 1, LONGEST - 1) for k in (0, 1, LONGEST - 1)])
    wide = name in ("mul", "thrice")
    work = m.Add | m.Sub | m.Mul | m.Min | m.Neg | m.Abs | m.Div | m.Mod
    made = [op for op in graph.body.ops if isinstance(op, work)][:-1]  # not what memory joins
    assert all(is_narrow(op.result) for op in made) != wide
    taken = [v for op in graph.body.ops if isinstance(op, m.Compare) for v in op.operands]
    assert all(map(is_narrow, taken)) and bool(taken) == (name == "compare")


END = LONGEST - 1
RANGES = {  # the least and greatest of each, over all positions
    "math.sub %n, %m": (-END, END),
    "math.min %n, %m": (0, END),
    "math.max %n, %seven": (7, END),
    "math.neg %m": (-END, 0),
    "math.abs %back": (0, END),
    "math.div %m, %seven": (0, END // 7),
    "math.mod %m, %seven": (0, 6),
    "math.div %back, %seven": (-END // 7, END // 7),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_last_number_that_fits_is_narrow(name: str) -> None:
    """A constant is added that takes an end of the range to the last number of 32 bits, or one
    further."""
    for end, limit in zip(RANGES[name], (-MOST, MOST), strict=True):
        for past in (0, 1):
            constant = limit - end + (past if limit > 0 else -past)
            if abs(constant) >= MOST:
                continue
            graph = narrowed(f"""%seven = math.const {{value = 7, type = tensor<i64>}}
              %back = math.sub %n, %m
              %part = {name}
              %c = math.const {{value = {constant}, type = tensor<i64>}}
              %e = math.add %part, %c""")
            total = next(op for op in graph.body.ops if op.result.hint == "e")
            assert is_narrow(total.result) == (not past)
