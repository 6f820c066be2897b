"""parse(print(m)) == m for modules of all levels, and for odd names and attributes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import NARROW_TO_WIDE, kernels, streamed, tile_program
from tests.strategies import Program, attention_programs, size_names, sizes, tensor_programs
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Builder, Graph, Module, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_attr
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.decompose import decompose


def check_round_trip(module: Module) -> None:
    assert parse(str(module)) == module


@given(tensor_programs())
@settings(max_examples=60)
def test_tensor_programs(program: Program) -> None:
    check_round_trip(program.module)
    check_round_trip(canonicalise(decompose(program.module)))


@given(tensor_programs())
@settings(max_examples=60)
def test_stream_programs(program: Program) -> None:
    try:
        check_round_trip(streamed(program.module))
        for kernel in kernels(program.module):
            check_round_trip(Module((kernel,)))
    except UnsupportedError:
        pass


@given(attention_programs(most_depth=4), st.sampled_from(NARROW_TO_WIDE), st.sampled_from([0, 1]))
@settings(max_examples=12)
def test_tile_programs(program: Program, target: str, rows: int) -> None:
    for kernel in kernels(program.module):
        try:
            module = tile_program(kernel, target, rows)
        except UnsupportedError:
            continue
        # A last vector of one element is replicated: see test_layout on pure replication.
        if re.search(r"reg<1 x 1 x 1 x \w+, replicate\(\d+\)>", str(module)) is None:
            check_round_trip(module)


@given(st.lists(sizes(), min_size=1, max_size=3))
@settings(max_examples=50)
def test_sizes_in_types(shape: list[Size]) -> None:
    type_ = TensorType(tuple(shape), F32)
    module = parse(f"graph f(%x: {type_}) {{ return %x }}")
    assert module.main.params[0].type == type_


@given(st.lists(size_names(), min_size=1, max_size=3, unique=True))
@settings(max_examples=30)
def test_sizes_may_be_called_anything(names: list[str]) -> None:
    shape = tuple(Size.of(n) for n in names)
    x = Value(TensorType(shape, F32), "x")
    build = Builder()
    flat = build(t.Reshape, x, shape=(shape[0], *shape[1:]), hint="y")
    module = Module(
        (Graph("graph", "graph", tuple(names), Region((x,), tuple(build.ops), (flat,))),)
    )
    assert parse(str(module)) == module


def with_hints(hints: list[str]) -> Module:
    """A chain of operations whose results would like these names."""
    x = Value(TensorType((), F32), hints[0])
    build = Builder()
    last = x
    for hint in hints[1:]:
        last = build(m.Exp, last, hint=hint)
    return Module((Graph("graph", "f", (), Region((x,), tuple(build.ops), (last,))),))


@given(
    st.lists(st.sampled_from(["a", "b", "a1", "a2", "a_b", "v", "v1", "A", "x9", "_"]), min_size=1)
)
def test_names_are_unique_and_stable(hints: list[str]) -> None:
    module = with_hints(hints)
    defined = re.findall(r"(%\w+)(?=:| =)", str(module))
    assert len(set(defined)) == len(defined) == len(hints)
    assert parse(str(module)) == module


def test_values_without_a_name() -> None:
    module = with_hints(["x", ""])
    assert parse(str(module)) == module


@pytest.mark.parametrize("hints", [["x1_2"], ["a", "a", "a1_"], ["k1_0", "k", "k"]])
def test_names_with_numbers_inside(hints: list[str]) -> None:
    module = with_hints(hints)
    assert parse(str(module)) == module


@pytest.mark.parametrize("hint", ["self.weight", "l_x-1", "größe", "a b", "%x"])
def test_names_that_the_grammar_does_not_know(hint: str) -> None:
    module = with_hints([hint])
    assert parse(str(module)) == module


def through_text(value: float | str) -> Any:
    """An attribute printed and read."""
    return parse(f"graph f() with {{value = {print_attr(value)}}} {{ return }}").main.attrs["value"]


FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@given(st.one_of(FLOATS, st.integers(-(10**16), 10**16), st.booleans()))
def test_constants(value: float | int | bool) -> None:
    back = through_text(value)
    assert type(back) is type(value)
    assert back == value or (math.isnan(value) and math.isnan(back))
    assert math.copysign(1, back) == math.copysign(1, value) or math.isnan(back)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), -(10**17)])
def test_constants_of_64_bits(value: int) -> None:
    assert through_text(value) == value


def test_constants_from_numpy() -> None:
    import numpy as np

    assert print_attr(np.float64(0.5)) == "0.5"


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12)


@given(TEXTS)
def test_strings(value: str) -> None:
    assert through_text(value) == value


def test_strings_with_line_ends() -> None:
    assert through_text("a\n\r") == "a\n\r"
