"""Values of size names from the shapes of a call; errors that name operand, sizes and rule."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.bind import bind_sizes
from tilewright.ir.errors import BindError
from tilewright.ir.parser import parse

GRAPH = parse(
    "graph attention<B, K, G, N, M>(%q: tensor<B x (K*G) x N x 8 x f32>, "
    "%k: tensor<B x K x M x 8 x f32>, %v: tensor<B x K x M x 4 x f32>) { return %q }"
).main


def bind(text: str, *shapes: tuple[int, ...], **known: int) -> dict[str, int]:
    params = ", ".join(f"%p{i}: tensor<{t} x f32>" for i, t in enumerate(text.split(",")))
    names = sorted(set(re.findall(r"\b[A-Z]\b", text)))
    graph = parse(f"graph f<{', '.join(names)}>({params}) {{ return }}").main
    return bind_sizes(graph, shapes, known)


@given(*[st.integers(1, 5)] * 5)
def test_all_names_follow_from_the_shapes(b: int, k: int, g: int, n: int, m: int) -> None:
    shapes = [(b, k * g, n, 8), (b, k, m, 8), (b, k, m, 4)]
    assert bind_sizes(GRAPH, shapes) == {"B": b, "K": k, "G": g, "N": n, "M": m}


def test_a_name_given_by_hand() -> None:
    assert bind("(K*G)", (6,), G=2) == {"K": 3, "G": 2}
    assert bind("4, N", (4,), (0,)) == {"N": 0}


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ([(1, 2, 3, 8), (1, 2, 5, 8)], ["attention", "takes 3", "%q, %k, %v", "2 given"]),
        ([(2, 3, 8), (1, 2, 5, 8), (1, 2, 5, 4)], ["%q", "4 dimensions", "has 3", "2 x 3 x 8"]),
        ([(1, 2, 3, 9), (1, 2, 5, 8), (1, 2, 5, 4)], ["dimension 3", "%q", "must be 8", "has 9"]),
        ([(1, 2, 3, 8), (1, 2, 5, 8), (1, 2, 6, 4)], ["dimension 2", "%v", "M = 5", "has 6"]),
        ([(1, 2, 3, 8), (7, 2, 5, 8), (1, 2, 5, 4)], ["dimension 0", "%k", "B = 1", "has 7"]),
        ([(1, 5, 3, 8), (1, 2, 5, 8), (1, 2, 5, 4)], ["%q", "G*K", "multiple of 2", "has 5"]),
        ([(), (1, 2, 5, 8), (1, 2, 5, 4)], ["%q", "4 dimensions", "a single number"]),
    ],
)
def test_errors_name_operand_sizes_and_rule(
    shapes: list[tuple[int, ...]], parts: list[str]
) -> None:
    with pytest.raises(BindError) as caught:
        bind_sizes(GRAPH, shapes)
    for part in parts:
        assert part in str(caught.value)


def test_a_size_that_follows_from_nothing() -> None:
    graph = parse("graph f<N, Z>(%x: tensor<N x f32>) { return %x }").main
    with pytest.raises(BindError, match="size Z follows from no input"):
        bind_sizes(graph, [(3,)])


def test_two_unknown_factors_are_not_guessed() -> None:
    with pytest.raises(BindError, match="follows from no input"):
        bind("(K*G)", (6,))


@pytest.mark.parametrize(
    ("text", "shapes", "wanted"),
    [
        ("(N + 1), N", [(3,), (2,)], {"N": 2}),
        ("(2*N - 1)", [(7,)], {"N": 4}),
        ("(N*N), N", [(9,), (3,)], {"N": 3}),
        ("(K*N + K), K", [(8,), (2,)], {"K": 2, "N": 3}),
    ],
)
def test_a_sum_is_solved(text: str, shapes: list[tuple[int, ...]], wanted: dict[str, int]) -> None:
    assert bind(text, *shapes) == wanted


def test_no_heads_at_all() -> None:
    assert bind("K, (K*G), G", (0,), (0,), (3,)) == {"K": 0, "G": 3}


@pytest.mark.parametrize("known", [{"N": -3}, {"Z": 4}])
def test_wrong_values_by_hand(known: dict[str, int]) -> None:
    with pytest.raises(BindError):
        bind("4, (N*M)", (4,), (12,), M=-4, **known)
