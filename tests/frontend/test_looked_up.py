"""Positions outside: compiled functions raise what torch raises, and read what torch reads."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.frontend.standin import translate_whole
from tests.integer_expressions import Expression, integers, values
from tilewright.frontend.compile import compile
from tilewright.frontend.op_map.positions import RULES, Range, range_of
from tilewright.ir.core import Op
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size

Function = Callable[[Tensor, Tensor], Tensor]
X = torch.sin(torch.arange(24.0)).reshape(4, 6)

BY_POSITION: dict[str, Function] = {
    "gather": lambda x, i: x.gather(1, i),
    "gather of sums": lambda x, i: x.gather(1, i + 1),
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i, 1),
    "scatter": lambda x, i: x.scatter(1, i, 0.5),
    "scatter_add": lambda x, i: x.scatter_add(1, i, torch.ones_like(i, dtype=x.dtype)),
    "index_add": lambda x, i: x.index_add(1, i[0], x[:, :2]),
    "index_put": lambda x, i: x.sum(0).index_put((i[0],), torch.ones(2)),
    "index_select": lambda x, i: x.index_select(1, i[0]),
    "index": lambda x, i: x[:, i[0]],
    "index of two": lambda x, i: x[i // 2, i],
    "one_hot": lambda x, i: F.one_hot(i, 6),
}


def outcome(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Results, or what was raised."""
    try:
        return function(*inputs)
    except (RuntimeError, IndexError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", BY_POSITION)
def test_compiled_functions_raise_and_read_as_torch_does(name: str) -> None:
    def function(x: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return BY_POSITION[name](x, i), *x.topk(2)

    compiled = compile(function)
    with torch.no_grad():
        for position in (0, 3, 5, 6, 100, -1, -6, -7):
            ids = torch.tensor([[position, 1]] * 4)
            ours, theirs = outcome(compiled, X, ids), outcome(function, X, ids)
            if isinstance(theirs[0], type):
                assert ours == theirs, position
            else:
                torch.testing.assert_close(ours, theirs)
    (region,) = compiled.explain().graphs[0].regions
    assert region.status == "kernel"


def test_positions_of_a_dimension_that_changes() -> None:
    def function(x: Tensor, i: Tensor) -> Tensor:
        return torch.logsumexp(x, -1) - x.gather(-1, i)[:, 0]

    compiled = compile(function)
    with torch.no_grad():
        for width in (8, 11, 30):
            x, ids = torch.randn(5, width), torch.full((5, 1), width - 1)
            torch.testing.assert_close(compiled(x, ids), function(x, ids))
            with pytest.raises(RuntimeError, match=f"index {width} is out of bounds"):
                compiled(x, ids + 1)
        assert compiled(x[:0], ids[:0]).shape == (0,)


def test_tensors_of_no_elements_stay_with_torch() -> None:
    def function(x: Tensor) -> Tensor:
        hot = F.one_hot(x.topk(1, -1).indices, 8).sum(-2)
        return hot.index_select(0, hot.flatten() % hot.shape[0]) / x.amax(-1, keepdim=True)[:1]

    compiled = compile(function)
    with torch.no_grad():
        x = X.repeat(1, 2)[:, :8]
        torch.testing.assert_close(compiled(x), function(x))
        assert compiled(torch.zeros(0, 8)).shape == (0, 8)
    assert compiled.explain().graphs[1].regions[0].status == "torch"


INSIDE: dict[str, Function] = {
    "a choice": lambda x, i: x.gather(1, x.topk(3).indices),
    "an order": lambda x, i: x.gather(1, x.argsort(1, descending=True)),
    "the place of the largest": lambda x, i: F.one_hot(x.argmax(1), 6),
    "a clamp": lambda x, i: x.gather(1, i.clamp(0, 5)),
    "a clamp from below, and a remainder": lambda x, i: x.gather(1, i.clamp(min=0) % 6),
    "an iota": lambda x, i: x.index_select(1, torch.arange(6) // 2 + torch.arange(6) % 3),
    "from the end": lambda x, i: x[:, i.clamp(-6, 5)],
    "a table of what is inside": lambda x, i: x.gather(1, x.argsort(1).gather(1, i.clamp(1, 4))),
    "either": lambda x, i: x.gather(1, torch.where(i > 2, i.clamp(0, 5), 5 - x.argmax(1, True))),
    "narrow": lambda x, i: x.gather(1, (i.clamp(0, 5).to(torch.int8)).long()),
}
SIZES: dict[str, Function] = {
    "a choice": INSIDE["a choice"],
    "an order": INSIDE["an order"],
    "from the end": lambda x, i: x[:, -1 - x.argsort(1)],
    "a clamp": lambda x, i: x.gather(1, torch.minimum(i.clamp(min=0), x.argmax(1, True))),
}
OUTSIDE: dict[str, Function] = {
    "given": lambda x, i: x.gather(1, i),
    "one too many": lambda x, i: x.gather(1, i.clamp(0, 6)),
    "below 0": lambda x, i: x.gather(1, i.clamp(-1, 5)),
    "too far from the end": lambda x, i: x[:, i.clamp(-7, 5)],
    "wrapped around": lambda x, i: x.gather(1, (i.clamp(0, 400).to(torch.int8) // 80).long()),
    "either": lambda x, i: x.gather(1, torch.where(i > 2, i, 5 - x.argmax(1, True))),
    "a choice of more": lambda x, i: x.T.gather(1, x.argmax(1) * i.new_ones(6, 1)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_certainly_inside_is_not_looked_at(name: str) -> None:
    built, _ = translate_whole(INSIDE[name], X, torch.ones(4, 5, dtype=torch.long), dynamic=False)
    assert not built.look_ups


@pytest.mark.parametrize("name", SIZES)
def test_what_is_inside_for_all_sizes_is_not_looked_at(name: str) -> None:
    built, _ = translate_whole(SIZES[name], X, torch.ones(4, 5, dtype=torch.long))
    assert not built.look_ups and built.module.main.sizes


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_may_be_outside_is(name: str) -> None:
    built, _ = translate_whole(OUTSIDE[name], X, torch.ones(4, 5, dtype=torch.long), dynamic=False)
    assert len(built.look_ups) == 1


@given(integers(), st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 255), min_size=1))
def test_ranges_hold_what_integers_are(
    expression: Expression, rows: int, columns: int, table: list[int]
) -> None:
    """Over positions n < N, m < M and a table of bytes, for drawn N and M."""
    text = f"""graph g<N, M, L>(%bytes: tensor<L x u8>) {{
  %table = math.cast %bytes {{dtype = i64}}
  %n = tensor.iota {{axis = 0, type = tensor<N x 1 x i64>}}
  %m = tensor.iota {{axis = 1, type = tensor<1 x M x i64>}}
  %zero = math.const {{value = 0, type = tensor<i64>}}
  {expression.lines("e")}
  return %e
}}"""
    graph = parse(text).main
    found = range_of(graph.body.ops, graph.results[0])
    sizes = {"N": rows, "M": columns}
    numbers = values(expression, (0, rows - 1, 0, columns - 1), table)
    if found.low is not None:
        assert found.low.evaluate(sizes) <= min(numbers)
    if found.high is not None:
        assert found.high.evaluate(sizes) >= max(numbers)


NUMBERS = range(-3, 4)
MEANING: dict[str, Callable[..., int]] = {
    "math.add": operator.add,
    "math.sub": operator.sub,
    "math.mul": operator.mul,
    "math.div": lambda a, b: a // b if b else 0,
    "math.mod": lambda a, b: a % b if b else a,
    "math.max": max,
    "math.min": min,
    "math.neg": operator.neg,
    "math.abs": abs,
}


@pytest.mark.parametrize("op", RULES, ids=lambda op: op.name)
def test_rules_of_all_small_ranges(op: type[Op]) -> None:
    """Every result of numbers in the operands' ranges lies in what the rule says, ends that are
    not known included; and something is said of most pairs of ranges with two ends."""
    meaning, said = MEANING[op.name], []
    count = 1 if op.name in ("math.neg", "math.abs") else 2
    ends = [(a, b) for a in (*NUMBERS, None) for b in (*NUMBERS, None)]
    ranges = [(a, b) for a, b in ends if a is None or b is None or a <= b]
    for pair in itertools.product(ranges, repeat=count):
        found = RULES[op](*(Range(*(None if e is None else Size.of(e) for e in r)) for r in pair))
        spans = [[x for x in NUMBERS if _is_in(x, *r)] for r in pair]
        numbers = [meaning(*x) for x in itertools.product(*spans)]
        assert found.low is None or found.low.evaluate({}) <= min(numbers), pair
        assert found.high is None or found.high.evaluate({}) >= max(numbers), pair
        if all(e is not None for r in pair for e in r):
            said.append(found.high is not None)
    assert sum(said) > 0.05 * len(said)


def _is_in(x: int, low: int | None, high: int | None) -> bool:
    return (low is None or low <= x) and (high is None or x <= high)
