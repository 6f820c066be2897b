"""Intervals of integer expressions over boxes of positions, against all values in the box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integer_expressions import Expression, conditions, integers, values
from tests.passes.stages import streamed
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.target import named_target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.intervals import Interval, Intervals
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.schedule import choose_schedule
from tilewright.passes.to_tile.state import LoweringState

ENDS = ("N0", "N1", "M0", "M1")
TABLES = st.lists(st.integers(-20, 20), min_size=1, max_size=30)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n, m = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    return n, n + draw(st.integers(0, 8)), m, m + draw(st.integers(0, 8))


def bounds_program(expression: Expression) -> Graph | None:
    """A tile program that writes the interval over the box that its sizes name; None: unknown."""
    text = f"""graph f<N, M, T>(%x: tensor<N x M x i64>, %table: tensor<T x i64>) {{
      %zero = math.const {{value = 0, type = tensor<i64>}}
      %n = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
      %m = tensor.iota {{axis = 1, type = tensor<1 x M x i64>}}
      {expression.lines("e")}
      %none = math.mul %x, %zero
      %y = math.cast %e {{dtype = i64}}
      %z = math.add %none, %y
      return %z
    }}"""
    stream = streamed(parse(text)).main
    info = analyse(stream)
    table = Value(BufferType((Size.of("T"),), I64, 0), "table")
    out = Value(BufferType((Size.of(2),), I64, 0), "out")
    schedule = choose_schedule(named_target("scalar"), 0)
    state = LoweringState(info, schedule, {stream.params[1]: table})
    b = state.build
    ends = [b.size(Size.of(name)) for name in ENDS]
    box = {"n": Interval(*ends[:2]), "m": Interval(*ends[2:])}
    axes = {a.name for a in (info.inner, *info.rows, *info.grid)}
    assert len(axes) == 2
    named = dict(zip(sorted(axes, key=lambda a: a != _row(info)), box.values(), strict=True))
    total = stream.producers()[stream.results[0]].operands[0]
    value = stream.producers()[total].operands[1]
    found = Intervals(state).of(value, named)
    if found is None:
        return None
    for at, end in enumerate((found.low, found.high)):
        b.store(b.splat(end, rank=1), out, [b.index(at)], [-1])
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 1, "target": "scalar"}
    body = Region((table, out), tuple(b.top.ops))
    return Graph("tile", "f", ("T", *ENDS), body, attrs)


def _row(info: object) -> str:
    """The outer axis: n is declared first."""
    rows = (*info.grid, *info.rows)  # type: ignore[attr-defined]
    return str(rows[0].name)


def interval(expression: Expression, box: tuple[int, ...], table: list[int]) -> list[int] | None:
    program = bounds_program(expression)
    if program is None:
        return None
    sizes = dict(zip(ENDS, box, strict=True))
    (out,) = evaluate_graph(program, np.array(table), sizes=sizes)
    return [int(x) for x in out]


def _leaf(name: str) -> Expression:
    return Expression(name)


def _number(x: int) -> Expression:
    return Expression("const", number=x)


DISTANCE = Expression("sub", (_leaf("n"), _leaf("m")))
CROSSING = {
    "the next multiple": Expression("mod", (_leaf("m"), _number(5))),
    "below zero": Expression("div", (DISTANCE, _number(3))),
    "a remainder below zero": Expression("mod", (DISTANCE, _number(4))),
    "zero": Expression("abs", (DISTANCE,)),
    "a product's corners": Expression(
        "mul", (DISTANCE, Expression("sub", (_leaf("m"), _number(7))))
    ),
    "a condition": Expression(
        "select", (Expression("lt", (_leaf("n"), _leaf("m"))), _leaf("n"), DISTANCE)
    ),
    "the table's end": Expression("gather", (Expression("add", (_leaf("n"), _leaf("m"))),)),
}


@given(st.sampled_from(sorted(CROSSING)), boxes(), TABLES)
@settings(max_examples=120, deadline=None)
def test_boxes_that_cross(name: str, box: tuple[int, int, int, int], table: list[int]) -> None:
    found, all_values = interval(CROSSING[name], box, table), values(CROSSING[name], box, table)
    assert found is not None
    assert found[0] <= min(all_values) and max(all_values) <= found[1]


@given(integers() | conditions(), boxes(), TABLES)
@settings(max_examples=150, deadline=None)
def test_every_value_lies_inside(
    expression: Expression, box: tuple[int, int, int, int], table: list[int]
) -> None:
    found, all_values = interval(expression, box, table), values(expression, box, table)
    if found is not None:
        assert found[0] <= min(all_values) and max(all_values) <= found[1]


@given(integers() | conditions(), st.integers(0, 12), st.integers(0, 12), TABLES)
@settings(max_examples=80, deadline=None)
def test_one_position_gives_the_value(
    expression: Expression, n: int, m: int, table: list[int]
) -> None:
    found = interval(expression, (n, n, m, m), table)
    if found is not None:
        assert found == [expression.value(n, m, table)] * 2


TIGHT = {
    "distance": DISTANCE,
    "window": Expression("lt", (Expression("abs", (DISTANCE,)), _number(3))),
    "document": Expression(
        "eq", (Expression("gather", (_leaf("n"),)), Expression("gather", (_leaf("m"),)))
    ),
    "column": Expression("mod", (_leaf("m"), _number(64))),
    "line": Expression("div", (_leaf("m"), _number(5))),
    "either": Expression(
        "or", (Expression("lt", (_leaf("m"), _number(4))), Expression("lt", (DISTANCE, _number(0))))
    ),
}


@given(st.sampled_from(sorted(TIGHT)), boxes(), TABLES)
@settings(max_examples=80, deadline=None)
def test_usual_masks_are_decided_exactly(
    name: str, box: tuple[int, int, int, int], table: list[int]
) -> None:
    """Where every position occurs once in the expression, or documents do not come back, no block
    is computed that has nothing visible."""
    table = sorted(table)
    found, all_values = interval(TIGHT[name], box, table), values(TIGHT[name], box, table)
    assert found is not None
    if name == "either":  # both sides see m: certain may be missed, possible not
        assert found[1] == max(all_values)
    elif name == "document":
        assert found[0] == min(all_values)
    else:
        assert found == [min(all_values), max(all_values)]


def test_what_is_not_integer_is_unknown() -> None:
    assert bounds_program(Expression("div", (_leaf("n"), _leaf("m")))) is None


def _constant(low: int, high: int) -> st.SearchStrategy[Expression]:
    return st.integers(low, high).map(_number)


def _stretched(leaf: str) -> st.SearchStrategy[Expression]:
    """Functions of one position that give all integers between two of their values."""

    def more(part: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        def with_number(op: str) -> st.SearchStrategy[Expression]:
            both = st.tuples(part, _constant(1, 6) if op == "div" else _constant(-9, 15))
            return st.builds(Expression, st.just(op), both)

        alone = st.builds(Expression, st.sampled_from(["neg", "abs"]), st.tuples(part))
        return alone | st.sampled_from(["add", "sub", "min", "max", "div"]).flatmap(with_number)

    return st.recursive(st.just(_leaf(leaf)), more, max_leaves=3)


def _seen_once() -> st.SearchStrategy[Expression]:
    """Conditions and numbers in which every position occurs once."""
    n, m = _stretched("n"), _stretched("m")
    both = st.tuples(n, m) | st.tuples(m, n)
    compared = st.builds(Expression, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), both)
    several = st.tuples(n | m, _constant(-9, 15))
    conditions = compared | st.builds(Expression, st.sampled_from(["lt", "eq", "ne"]), several)
    return st.one_of(
        st.builds(Expression, st.sampled_from(["add", "sub", "min", "max"]), both),
        st.builds(Expression, st.just("mod"), st.tuples(n | m, _constant(1, 9))),
        conditions | st.builds(Expression, st.just("not"), st.tuples(conditions)),
        st.builds(Expression, st.sampled_from(["neg", "abs"]), st.tuples(n | m)),
    )


@given(_seen_once(), boxes())
@settings(max_examples=60, deadline=None)
def test_positions_that_occur_once_are_decided_exactly(
    expression: Expression, box: tuple[int, int, int, int]
) -> None:
    all_values = values(expression, box, [0])
    assert interval(expression, box, [0]) == [min(all_values), max(all_values)]


@pytest.mark.parametrize("op", ["neg", "abs", "not"])
def test_one_operand_over_all_small_boxes(op: str) -> None:
    """From below zero to above it, of one position and of several."""
    inside = Expression("sub", (_leaf("n"), _number(4)))
    inside = Expression("lt", (inside, _number(0))) if op == "not" else inside
    expression = Expression(op, (inside,))
    for n in range(9):
        for more in range(4):
            box = n, n + more, 0, 0
            all_values = values(expression, box, [0])
            assert interval(expression, box, [0]) == [min(all_values), max(all_values)]
