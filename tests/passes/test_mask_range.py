"""Masks as intervals, against brute force: nothing that counts lies outside, no mask is dropped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.passes.reorder import reorder
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.mask_range import MaskRange, find_mask_range

RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SIZES = {"H": 2, "N": 5, "M": 7}


@dataclass(frozen=True)
class Comparison:
    """a*h + b*n + c*m + constant <relation> 0, written as two sides."""

    h: int
    n: int
    m: int
    constant: int
    relation: str

    def holds(self, h: int, n: int, m: int) -> bool:
        left = self.h * h + self.n * n + self.m * m + self.constant
        return bool(eval(f"{left} {RELATIONS[self.relation]} 0"))

    def text(self, name: str) -> str:
        """Operations that compute it: each axis on the side where its sign is positive."""
        lines, sides = [], {1: "%zero", -1: "%zero"}
        for axis in "hnm":
            factor = getattr(self, axis)
            for time in range(abs(factor)):
                side = 1 if factor > 0 else -1
                value = f"%{name}_{axis}_{time}"
                lines.append(f"{value} = math.add {sides[side]}, %{axis}")
                sides[side] = value
        lines.append(f"%{name}_c = math.const {{value = {self.constant}, type = tensor<i64>}}")
        lines.append(f"%{name}_l = math.add {sides[1]}, %{name}_c")
        lines.append(
            f'%{name} = math.compare %{name}_l, {sides[-1]} {{relation = "{self.relation}"}}'
        )
        return "\n".join(lines)


def kernel(condition: str, select: str, after: str = "%t") -> Graph:
    text = f"""graph f<H, N, M>(%q: tensor<H x N x 4 x f32>, %k: tensor<H x M x 4 x f32>,
                               %v: tensor<H x M x 3 x f32>, %w: tensor<H x N x M x bool>) {{
      %s = tensor.contract %q, %k {{equation = "hnd,hmd->hnm"}}
      %zero = math.const {{value = 0, type = tensor<i64>}}
      %h = tensor.iota {{axis = 0, type = tensor<H x 1 x 1 x i64>}}
      %n = tensor.iota {{axis = 1, type = tensor<1 x N x 1 x i64>}}
      %m = tensor.iota {{axis = 2, type = tensor<1 x 1 x M x i64>}}
      %no = math.const {{value = -inf, type = tensor<f32>}}
      %c0 = math.const {{value = 0.0, type = tensor<f32>}}
      {condition}
      {select}
      %p = tensor.softmax {after} {{axis = 2, safe = true}}
      %o = tensor.contract %p, %v {{equation = "hnm,hme->hne"}}
      return %o
    }}"""
    return reorder(streamed(parse(text))).main


def found(graph: Graph) -> MaskRange:
    return find_mask_range(analyse(graph))


def inside(mask: MaskRange, h: int, n: int, m: int) -> bool:
    """True if a position satisfies all bounds."""
    at = {"h": h, "n": n}
    for bound in mask.bounds:
        limit = sum(c * at[a] for a, c in bound.terms) + bound.constant.evaluate(SIZES)
        if (m > limit) if bound.upper else (m < limit):
            return False
    return True


def comparisons(inner: tuple[int, ...] = (-1, 1)) -> st.SearchStrategy[Comparison]:
    return st.builds(
        Comparison,
        h=st.integers(-1, 1),
        n=st.integers(-2, 2),
        m=st.sampled_from(inner),
        constant=st.integers(-4, 4),
        relation=st.sampled_from(sorted(RELATIONS)),
    )


SELECT = "%t = math.select %a, %s, %no"


@given(comparisons())
@settings(max_examples=60)
def test_one_comparison_is_exactly_its_bounds(comparison: Comparison) -> None:
    mask = found(kernel(comparison.text("a"), SELECT))
    assert len(mask.bounds) == 1 and len(mask.conditions) == 1
    for h, n, m in itertools.product(*map(range, SIZES.values())):
        assert inside(mask, h, n, m) == comparison.holds(h, n, m)


@given(st.lists(comparisons((-2, -1, 0, 1, 2)), min_size=2, max_size=3))
@settings(max_examples=60)
def test_conjunctions(many: list[Comparison]) -> None:
    """All that counts is inside; where a condition is dropped, only that is."""
    names = [f"a{i}" for i in range(len(many))]
    text = "\n".join(c.text(n) for c, n in zip(many, names, strict=True))
    joined = "%b0 = math.and %a0, %a1"
    joined += "\n%b1 = math.and %b0, %a2" if len(many) == 3 else "\n%b1 = math.and %b0, %a0"
    mask = found(kernel(f"{text}\n{joined}", "%t = math.select %b1, %s, %no"))
    for h, n, m in itertools.product(*map(range, SIZES.values())):
        counts = all(c.holds(h, n, m) for c in many)
        if counts:
            assert inside(mask, h, n, m)
        if mask.conditions and not mask.tests:
            assert inside(mask, h, n, m) == counts


@given(comparisons(), comparisons())
@settings(max_examples=30)
def test_two_masks_one_after_the_other(first: Comparison, second: Comparison) -> None:
    graph = kernel(
        first.text("a") + "\n" + second.text("b"), SELECT + "\n%u = math.select %b, %t, %no", "%u"
    )
    mask = found(graph)
    assert mask.bounds and not mask.tests
    for h, n, m in itertools.product(*map(range, SIZES.values())):
        assert inside(mask, h, n, m) or not (first.holds(h, n, m) and second.holds(h, n, m))


CAUSAL = Comparison(0, -1, 1, 0, "le").text("a")


def test_a_condition_that_masks_twice_bounds_once() -> None:
    twice = SELECT + "\n%d = math.add %t, %t\n%u = math.select %a, %d, %no"
    mask = found(kernel(CAUSAL, twice, "%u"))
    assert len(mask.bounds) == 1 and len(mask.conditions) == 1


NOT_MASKS = {
    "the other choice is finite": (CAUSAL, "%t = math.select %a, %s, %c0", "%t"),
    "the choices are exchanged": (CAUSAL, "%t = math.select %a, %no, %s", "%t"),
    "a mask joined by or": (CAUSAL, "%b = math.or %a, %w\n%t = math.select %b, %s, %no", "%t"),
    "a cap after the mask": (CAUSAL, SELECT + "\n%u = math.tanh %t", "%u"),
    "the sign changes after the mask": (CAUSAL, SELECT + "\n%u = math.neg %t", "%u"),
    "the mask replaces a chosen value": (
        CAUSAL,
        *(SELECT + "\n%x = math.select %w, %t, %c0", "%x"),
    ),
}


@pytest.mark.parametrize("name", NOT_MASKS)
def test_what_bounds_nothing(name: str) -> None:
    mask = found(kernel(*NOT_MASKS[name]))
    assert not mask.bounds and not mask.conditions


TESTED = {
    "its negation": (CAUSAL, "%b = math.not %a\n%t = math.select %b, %s, %no"),
    "equality": (CAUSAL.replace('"le"', '"eq"'), SELECT),
    "twice the position": (Comparison(0, -1, 2, 0, "le").text("a"), SELECT),
    "either of two": (
        CAUSAL + "\n" + Comparison(0, 0, 1, -2, "le").text("c"),
        "%b = math.or %a, %c\n%t = math.select %b, %s, %no",
    ),
    "a narrow integer": (
        CAUSAL
        + "\n%m8 = math.cast %m {dtype = i8}\n%n8 = math.cast %n {dtype = i8}"
        + '\n%b = math.compare %m8, %n8 {relation = "le"}',
        "%t = math.select %b, %s, %no",
    ),
}


@pytest.mark.parametrize("name", TESTED)
def test_what_no_bound_describes_is_tested(name: str) -> None:
    mask = found(kernel(*TESTED[name], "%t"))
    assert not mask.bounds and len(mask.tests) == len(mask.conditions) == 1


def test_part_of_a_mask_bounds_though_data_joins_it() -> None:
    mask = found(kernel(CAUSAL, "%b = math.and %a, %w\n%t = math.select %b, %s, %no", "%t"))
    assert len(mask.bounds) == 1 and not mask.conditions and not mask.tests


TWO = "\n%two = math.const {value = 2.0, type = tensor<f32>}\n%u = math.mul %t, %two"
BIAS = "\n%f = math.cast %m {dtype = f32}\n%u = math.add %t, %f"
MASKS = {
    "scaled after": (SELECT + TWO, "%u"),
    "a bias after": (SELECT + BIAS, "%u"),
    "a data mask before": (
        "%r = math.select %w, %s, %no\n%t = math.select %a, %r, %no",
        "%t",
    ),
    "a data mask after": (SELECT + "\n%u = math.select %w, %t, %no", "%u"),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_still_bounds(name: str) -> None:
    mask = found(kernel(CAUSAL, *MASKS[name]))
    assert [str(b) for b in mask.bounds] == [
        "Bound(upper=True, terms=(('n', 1),), constant=Size(0))"
    ]


def test_another_result_that_needs_all_positions() -> None:
    """A sum over unmasked scores, or a result per position, forbids to skip any."""
    text = """graph f<N, M>(%q: tensor<N x 4 x f32>, %k: tensor<M x 4 x f32>) {
      %s = tensor.contract %q, %k {equation = "nd,md->nm"}
      %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
      %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
      %a = math.compare %m, %n {relation = "le"}
      %no = math.const {value = -inf, type = tensor<f32>}
      %t = math.select %a, %s, %no
      %x = tensor.reduce %t {kind = "max", axis = 1}
      MORE
      return %x, %y
    }"""
    for more in (
        '%y = tensor.reduce %s {kind = "sum", axis = 1}',
        '%y = tensor.reduce %t {kind = "min", axis = 1}',
    ):
        mask = found(reorder(streamed(parse(text.replace("MORE", more)))).main)
        assert not mask.bounds
    mask = found(reorder(streamed(parse(text.replace("MORE", "").replace(", %y", "")))).main)
    assert len(mask.bounds) == 1


def test_positions_of_bounds_are_integers() -> None:
    half = CAUSAL.replace("%a = ", "%b = ") + (
        "\n%mf = math.cast %m {dtype = f32}\n%hf = math.const {value = 2.5, type = tensor<f32>}"
        '\n%a = math.compare %mf, %hf {relation = "le"}'
    )
    mask = found(kernel(half, SELECT))
    for m in range(7):
        assert not mask.bounds or inside(mask, 0, 0, m) == (np.float32(m) <= 2.5)
