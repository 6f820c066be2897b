"""``verify=True``: which calls are checked, and that a wrong one is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.verification.test_campaign import replacing, wrong_pass
from tilewright.ir import ops_math as m
from tilewright.ir.errors import EvaluationError, SettingError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program
from tilewright.runtime.verification import first_calls
from tilewright.runtime.verification.first_calls import FEW, call_class

SOFTMAX = parse(
    "graph softmax<N, M>(%x: tensor<N x M x f32>) {"
    '%e = math.exp %x %l = tensor.reduce %e {kind = "sum", axis = 1} return %l }'
)


def of(verify: bool | str) -> Program:
    return Program(SOFTMAX, backend="interpreter", verify=verify)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that were checked."""
    seen: list[tuple[int, ...]] = []
    true: Callable[..., None] = first_calls.check_results

    def check(module: object, inputs: tuple[torch.Tensor, ...], results: object) -> None:
        seen.append(tuple(inputs[0].shape))
        true(module, inputs, results)

    monkeypatch.setattr(first_calls, "check_results", check)
    return seen


def test_first_calls_alone_are_checked(checks: list[tuple[int, ...]]) -> None:
    program = of(True)
    for shape in ((2, 3), (2, 3), (3, 2), (40, 3), (60, 3), (2, 3), (70, 3)):
        program(torch.randn(shape))
    program(torch.randn(3, 2).T)  # another dimension of stride one
    assert checks == [(2, 3), (3, 2), (40, 3), (70, 3), (2, 3)]


def test_always_and_never(checks: list[tuple[int, ...]]) -> None:
    for verify, count in ((False, 0), ("always", 3)):
        checks.clear()
        program = of(verify)
        for _ in range(3):
            program(torch.randn(2, 3))
        assert len(checks) == count
    with pytest.raises(SettingError, match="verify is False, True"):
        of("sometimes")


def test_a_wrong_kernel_is_seen_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_pass(monkeypatch, "canonicalise", replacing(m.Exp, m.Tanh))
    program = of(True)
    for _ in range(2):  # what was wrong once counts as not checked
        with pytest.raises(EvaluationError, match=r"%l of softmax is .* is the bound"):
            program(torch.ones(2, 3))


@given(st.integers(0, 100), st.integers(0, 100))
def test_sizes_that_choose_forms_are_told_apart(a: int, b: int) -> None:
    same = call_class([torch.empty(a, 2)]) == call_class([torch.empty(b, 2)])
    if min(a, b) <= FEW:
        assert same == (a == b)
    else:
        assert same == (a.bit_length() == b.bit_length())


def test_dtypes_are_told_apart() -> None:
    x = torch.empty(2, 2)
    assert call_class([x]) != call_class([x.half()])
