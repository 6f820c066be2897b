"""Each reorder rule by itself: what it is for, the depth it removes, and its numbers in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fused_text import COUNT, Case, const, exponentials, lse, reduce, softmax
from tests.fused_variations import ALL, BORDERS
from tests.passes.stages import kernels, streamed
from tilewright.ir.core import Module
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels import find_channels
from tilewright.passes.reorder import RULES, Rule, reorder, reorder_graph

BY_NAME = {rule.name: rule for rule in RULES}
RNG = np.random.default_rng(0)


def program(body: str, out: str = "%o") -> Module:
    """A stream program over %x and %y [N, M] and %r [N, 1]."""
    params = "%x: tensor<N x M x f32>, %y: tensor<N x M x f32>, %r: tensor<N x 1 x f32>"
    # computed, so that all uses share one axis
    head = f"graph f<N, M>({params}) {{\n%s = math.tanh %x\n"
    return streamed(parse(f"{head}{body}\nreturn {out} }}"))


def inputs(rows: int = 3, length: int = 6) -> list[Any]:
    x, y = RNG.standard_normal((2, rows, length))
    return [x, y, RNG.uniform(0.5, 2.0, (rows, 1))]


def deep(module: Module) -> int:
    return sum(channel.deep for channel in find_channels(module.main))


def apply(rule: Rule, module: Module) -> Module:
    return Module((canonicalise_graph(rule.apply(module.main)),))


def same_numbers(after: Module, before: Module, given: list[Any], tolerance: float = 1e-12) -> None:
    want = evaluate(before, *given, precision="f64")
    for a, b in zip(evaluate(after, *given, precision="f64"), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


MEAN = COUNT + reduce("sum", "s") + "%mean = math.div %sum, %n\n%d = math.sub %s, %mean\n"
# rules, program, deep channels before and after those rules alone
ALONE: dict[str, tuple[str, str, int, int]] = {
    "a maximum of shifted values": (
        "hoist",
        reduce("sum", "s") + "%d = math.sub %s, %sum\n" + reduce("o", "d", "max"),
        1,
        0,
    ),
    "a maximum of values added to a shift": (
        "hoist",
        reduce("sum", "s") + "%d = math.add %sum, %s\n" + reduce("o", "d", "max"),
        1,
        0,
    ),
    "log of a probability": (
        "logarithm",
        exponentials()
        + "%p = math.div %e, %l\n%g = math.log %p\n%w = math.mul %g, %y\n"
        + reduce("o", "w"),
        2,
        2,
    ),
    "variance": ("moments", MEAN + "%w = math.mul %d, %d\n" + reduce("o", "w"), 1, 0),
    "variance, scaled": (
        "moments",
        MEAN + const("c", -3.0) + "%a = math.mul %d, %c\n%w = math.mul %a, %d\n" + reduce("o", "w"),
        1,
        0,
    ),
    "covariance": (
        "moments",
        MEAN
        + "%g = math.exp %s\n"
        + reduce("sum2", "g")
        + "%mean2 = math.div %sum2, %n\n%d2 = math.sub %g, %mean2\n%w = math.mul %d, %d2\n"
        + reduce("o", "w"),
        2,
        0,
    ),
    "deviations weighted": (
        "distribute factor",
        MEAN + "%w = math.mul %d, %y\n" + reduce("o", "w"),
        1,
        0,
    ),
    "deviations where a test holds": (
        "distribute factor",
        MEAN
        + const("z", 0.0)
        + '%c = math.compare %y, %z {relation = "lt"}\n%w = math.select %c, %d, %z\n'
        + reduce("o", "w"),
        1,
        0,
    ),
    "an exponential less a log-sum-exp": (
        "maximum",
        lse()
        + "%g = math.sub %s, %lse\n%p = math.exp %g\n%w = math.mul %p, %y\n"
        + reduce("o", "w"),
        2,
        3,
    ),
    "a divisor": (
        "factor",
        reduce("sum", "s") + "%p = math.div %s, %sum\n%w = math.mul %p, %y\n" + reduce("o", "w"),
        1,
        0,
    ),
    "a sum of exponentials": ("running", exponentials() + "%o = math.log %l", 1, 0),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_rule_alone(name: str) -> None:
    """The rule changes the program, keeps its numbers, and removes the depth that it is for."""
    names, body, before, left = ALONE[name]
    module = after = program(body)
    for rule in names.split():
        unchanged, after = after, apply(BY_NAME[rule], after)
        assert str(after) != str(unchanged)
    assert (deep(module), deep(after)) == (before, left)
    same_numbers(after, module, inputs())
    same_numbers(after, module, inputs(2, 1))


def test_what_is_constant_is_computed_once_a_row() -> None:
    module = parse("""stream f<N, M>(%x: tensor<N x M x f32>, %r: tensor<N x f32>) {
      %x1 = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
      %r1 = stream.source %r {dims = [["n"]], type = stream<n=N; f32>}
      %r2 = stream.repeat %r1 {axis = axis(m, M)}
      %two = math.const {value = 2.0, type = stream<; f32>}
      %a = math.exp %r2
      %b = math.mul %a, %two
      %c = math.add %b, %r2
      %d = math.mul %x1, %c
      %o = stream.sink %d {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
      return %o }""")
    after = apply(BY_NAME["hoist"], module)
    inside = [op.name for op in after.main.body.ops if op.name.startswith("math.")]
    types = [str(op.results[0].type) for op in after.main.body.ops if op.name in inside]
    assert sum("m=M" in t for t in types) == 1  # only the product with x is left in the loop
    same_numbers(after, module, [inputs()[0], RNG.standard_normal(3)])


@pytest.mark.parametrize("name", ALONE)
def test_all_rules_leave_nothing_deep(name: str) -> None:
    module = program(ALONE[name][1])
    after = reorder(module)
    assert deep(after) == 0
    same_numbers(after, module, inputs())


@pytest.mark.parametrize("name", ALL)
def test_listed_programs_become_one_kernel(name: str) -> None:
    """One kernel whose channels are of constant depth, whatever the length of the row."""
    graphs = kernels(parse(ALL[name].text))
    assert len(graphs) == 1
    assert all(channel.depth.constant is not None for channel in find_channels(graphs[0]))


@pytest.mark.parametrize("name", ALL)
def test_listed_programs_keep_their_numbers(name: str) -> None:
    """In float64, to the rounding errors of the longer way; lengths down to one."""
    case = ALL[name]
    module = streamed(parse(case.text))
    after = reorder(module)
    for rows, length in ((3, 7), (2, 1), (1, 40)):
        given = [x.numpy() for x in case.inputs(rows, length)]
        same_numbers(after, module, given, 1e-10)


@pytest.mark.parametrize("name", BORDERS)
def test_programs_of_more_kernels_keep_their_numbers(name: str) -> None:
    """What crosses a border is never relative to a running maximum: run one after another."""
    count, case = BORDERS[name]
    graphs = kernels(parse(case.text))
    assert len(graphs) == count
    for rows, length in ((3, 7), (1, 40)):
        given = case.inputs(rows, length)
        values = dict(zip(case.names, (x.numpy() for x in given), strict=True))
        sizes = {"N": rows, "M": length}
        for graph in graphs:
            found = [values[p.hint] for p in graph.params]
            out = evaluate_graph(graph, *found, precision="f64", sizes=sizes)
            values.update(zip([v.hint for v in graph.results], out, strict=True))
        want = case.reference(*(x.double() if x.is_floating_point() else x for x in given))
        whole = streamed(parse(case.text)).main.results
        for result, exact in zip(whole, want if isinstance(want, tuple) else (want,), strict=True):
            np.testing.assert_allclose(values[result.hint], exact, rtol=1e-10, atol=1e-10)


def test_the_rules_come_to_an_end() -> None:
    for case in ALL.values():
        once = reorder_graph(streamed(parse(case.text)).main)
        assert str(Module((reorder_graph(once),))) == str(Module((once,)))


UNCHANGED: dict[str, tuple[str, str]] = {
    "an early constant in a sum": ("distribute", "%w = math.add %s, %r\n" + reduce("o", "w")),
    "a product of two deviations": (
        "distribute",
        MEAN + "%a = math.mul %d, %d\n%w = math.mul %a, %y\n" + reduce("o", "w"),
    ),
    "a function of a deviation": (
        "distribute",
        MEAN + "%a = math.tanh %d\n%w = math.add %a, %s\n" + reduce("o", "w"),
    ),
    "deviations with weights": (
        "moments",
        MEAN + "%a = math.mul %d, %d\n%w = math.mul %a, %y\n" + reduce("o", "w"),
    ),
    "deviations from something early": (
        "moments",
        "%d = math.sub %s, %r\n%w = math.mul %d, %d\n" + reduce("o", "w"),
    ),
    "an exponential that a result needs": (
        "maximum",
        lse() + "%g = math.sub %s, %lse\n%o = math.exp %g\n",
    ),
    "an exponential of a product": (
        "maximum",
        reduce("top", "s", "max") + "%d = math.mul %s, %top\n%e = math.exp %d\n" + reduce("o", "e"),
    ),
    "a logarithm of a sum": (
        "logarithm",
        "%e = math.exp %s\n%a = math.add %e, %y\n%b = math.log %a\n" + reduce("o", "b"),
    ),
    "a maximum of values taken from a shift": (
        "hoist",
        reduce("sum", "s") + "%d = math.sub %sum, %s\n" + reduce("o", "d", "max"),
    ),
    "an early constant in a maximum": (
        "hoist",
        "%w = math.add %s, %r\n" + reduce("o", "w", "max"),
    ),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_a_rule_leaves_alone(name: str) -> None:
    rule, body = UNCHANGED[name]
    module = program(body)
    assert str(apply(BY_NAME[rule], module)) == str(module)
    same_numbers(reorder(module), module, inputs())


@pytest.mark.parametrize("shape", ["M", "N x M"])
@pytest.mark.parametrize("term", ["%a = math.sub %c, %p", "%a = math.add %p, %c"])
def test_a_number_in_a_sum_that_is_distributed(shape: str, term: str) -> None:
    """The number runs in no loop, and its own sum in all of them."""
    axis, names = shape.count("x"), ", ".join(shape.split(" x "))
    body = const("c", 0.5) + f"%p = tensor.softmax %x {{axis = {axis}}}\n{term}\n"
    summed = f'%o = tensor.reduce %a {{kind = "sum", axis = {axis}}}'
    module = streamed(
        parse(f"graph f<{names}>(%x: tensor<{shape} x f32>) {{\n{body}{summed}\nreturn %o }}")
    )
    x = RNG.standard_normal((3, 6)[1 - axis :])
    changed = apply(BY_NAME["distribute"], module)
    assert str(changed) != str(module)
    for after in (changed, reorder(module)):
        same_numbers(after, module, [x])


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0, math.inf])
def test_a_factor_between_the_maximum_and_the_exponential(factor: float) -> None:
    """Negative and zero factors too: before the first element there is nothing to rescale."""
    module = program(
        reduce("top", "s", "max")
        + const("c", factor)
        + "%d = math.sub %s, %top\n%a = math.mul %d, %c\n%e = math.exp %a\n"
        + reduce("o", "e")
    )
    same_numbers(reorder(module), module, inputs())
    rows = streamed(
        parse(
            "graph f<N, M>(%x: tensor<N x M x f32>, %t: tensor<N x 1 x f32>) {\n%s = math.tanh %x\n"
            + reduce("top", "s", "max")
            + "%d = math.sub %s, %top\n%a = math.mul %d, %t\n%e = math.exp %a\n"
            + reduce("o", "e")
            + "return %o }"
        )
    )
    if math.isfinite(factor):
        same_numbers(reorder(rows), rows, [inputs()[0], np.array([[factor], [1.0], [factor]])])


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("row", [[0] * 6, [0, 0, 0, 1, 0, 1], [1] * 6])
def test_masked_rows_of_an_entropy(safe: bool, row: list[int]) -> None:
    """A row of which nothing is left is NaN where it was, and 0 where the softmax is safe and the
    scores are taken where the mask lets them through."""
    body = (
        const("no", "-inf")
        + const("zero", 0.0)
        + "%t = math.select %c, %x, %no\n"
        + softmax("t", safe=safe)
        + "%w0 = math.mul %p, %x\n%w = math.select %c, %w0, %zero\n"
        + reduce("o", "w")
    )
    params = "%x: tensor<N x M x f32>, %c: tensor<N x M x bool>"
    module = streamed(parse(f"graph f<N, M>({params}) {{\n{body}\nreturn %o }}"))
    after = reorder(module)
    assert "stream.scan" in str(after)
    given = [inputs()[0], np.array([row] * 3, bool)]
    want = evaluate(module, *given, precision="f64")[0]
    got = evaluate(after, *given, precision="f64")[0]
    if safe or any(row):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    else:  # 0 / 0 outside of the sum, NaN inside of it where the mask holds
        assert np.isnan(got).all() or np.allclose(got, 0)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(ALL)),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.floats(-3, 3),
)
def test_drawn_values(name: str, rows: int, length: int, seed: int, shift: float) -> None:
    """All programs on drawn sizes and values; normal numbers are moved, so that means matter."""
    case: Case = ALL[name]
    moved = [
        x.numpy() + (shift if not dict(case.kinds) and x.is_floating_point() else 0)
        for x in case.inputs(rows, length, seed)
    ]
    module = streamed(parse(case.text))
    same_numbers(reorder(module), module, moved, 1e-8)
