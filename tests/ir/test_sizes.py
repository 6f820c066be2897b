"""The algebra of symbolic sizes: a ring that evaluates, prints and parses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import sizes
from tilewright.ir.sizes import Size, largest, parse_size, product

NAMES = ("N", "M", "K", "L_q")


def values() -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({n: st.integers(0, 50) for n in NAMES})


@given(sizes(), sizes(), sizes())
def test_ring_laws(a: Size, b: Size, c: Size) -> None:
    assert a + b == b + a and a * b == b * a
    assert (a + b) + c == a + (b + c) and (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert a - a == Size() and a + 0 == a and a * 1 == a and a * 0 == Size()


@given(sizes(), sizes(), values())
def test_evaluation_is_a_homomorphism(a: Size, b: Size, at: dict[str, int]) -> None:
    assert (a + b).evaluate(at) == a.evaluate(at) + b.evaluate(at)
    assert (a * b).evaluate(at) == a.evaluate(at) * b.evaluate(at)
    assert (a - b).evaluate(at) == a.evaluate(at) - b.evaluate(at)
    assert product([a, b, 3]).evaluate(at) == 3 * a.evaluate(at) * b.evaluate(at)


@given(sizes())
def test_text_parses_back(a: Size) -> None:
    assert parse_size(str(a)) == a


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", Size()),
        ("-N", Size() - "N"),
        ("-3", Size.of(-3)),
        ("2*N*N - M", Size.of(2) * "N" * "N" - "M"),
        ("N + -0", Size.of("N")),
        (" N+M ", Size.of("N") + "M"),
    ],
)
def test_spelling(text: str, wanted: Size) -> None:
    assert parse_size(text) == wanted


@pytest.mark.parametrize("text", ["N**2", "2N", "N/2", "(N)", "N*", "*", "é"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "N +", "+", "N + + M", "- - N"])
def test_what_is_no_size_either(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(sizes(), st.dictionaries(st.sampled_from(NAMES), sizes(), max_size=3), values())
def test_substitution_commutes_with_evaluation(
    a: Size, given_sizes: dict[str, Size], at: dict[str, int]
) -> None:
    inner = {n: given_sizes[n].evaluate(at) if n in given_sizes else at[n] for n in NAMES}
    assert a.substitute(given_sizes).evaluate(at) == a.evaluate(inner)


@given(sizes(), sizes(), values())
def test_at_least_never_promises_too_much(a: Size, b: Size, at: dict[str, int]) -> None:
    if a.at_least(b):
        assert a.evaluate(at) >= b.evaluate(at)


@given(st.lists(sizes(), min_size=1, max_size=4), values())
@settings(max_examples=60)
def test_largest_bounds_all(many: list[Size], at: dict[str, int]) -> None:
    positive = [m * m for m in many]  # sizes are never negative
    top = largest(positive)
    if all(c >= 0 for m in positive for _, c in m.terms):
        assert all(top.evaluate(at) >= m.evaluate(at) for m in positive)


@given(sizes())
def test_a_size_is_factor_times_name_plus_rest(a: Size) -> None:
    factor, rest = a.split("N")
    assert factor * "N" + rest == a
    assert "N" not in rest.names


@given(sizes())
def test_constants_and_names(a: Size) -> None:
    assert (a.constant is not None) == (not a.names)
    assert hash(a) == hash(parse_size(str(a)))
