"""``compile(verify=…)``: which calls are compared with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.frontend.test_compile import attend, inputs
from tilewright.frontend import region_call
from tilewright.frontend.compile import compile
from tilewright.frontend.verify import check_against
from tilewright.ir.errors import EvaluationError, Location, SettingError


@pytest.mark.parametrize(("verify", "expected"), [(True, 2), ("always", 4), (False, 0)])
def test_the_first_call_of_every_class(
    verify: bool | str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(region_call, "check_against", lambda *args: seen.append(args))
    compiled = compile(attend, verify=verify)
    with torch.no_grad():
        for rows in (20, 20, 21, 70):
            compiled(*(_rows(x, rows) for x in inputs((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8))))
    assert len(seen) == expected


def _rows(x: Tensor, rows: int) -> Tensor:
    """Queries [1, 2, rows, 8]; keys and values as they are."""
    return torch.randn(1, 2, rows, 8) if x.shape[2] == 4 else x


def test_other_values_are_refused() -> None:
    with pytest.raises(SettingError, match=r'False, True .first calls. or "always", not 1'):
        compile(attend, verify=1)  # type: ignore[call-overload]


Function = Callable[[Tensor], Tensor]
X = torch.linspace(-4, 4, 3 * 64).view(3, 64)
# torch itself leaves the range of its dtype here, or has few right digits
LIMITS: dict[str, tuple[Function, Tensor]] = {
    "overflow": (lambda x: torch.exp(x) * 1, X * 30),
    "overflow below": (lambda x: -torch.exp(x), X * 30),
    "narrowed": (lambda x: torch.exp(x).half(), X * 3),
    "between": (lambda x: torch.log(torch.exp(x) * 2), X * 30),
    "not a number": (lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True), X * 30),
    "underflow": (lambda x: (x * x).neg().exp().log(), X * 4),
    "cancellation": (lambda x: (x * x).mean(-1) - x.mean(-1) ** 2, X + 1e4),
}


def check(function: Function, x: Tensor, result: Tensor) -> None:
    traced = torch.fx.symbolic_trace(lambda x: (function(x),))
    check_against(traced, (x,), (result,), Location())


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_the_dtype_are_no_errors_of_a_kernel(name: str) -> None:
    """Neither torch's numbers nor better ones."""
    function, x = LIMITS[name]
    plain = function(x)
    exact = function(x.double()).to(plain.dtype)
    check(function, x, plain)
    check(function, x, exact)
    check(function, x, torch.where(exact.isfinite(), exact, plain))


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: torch.full_like(x, 5.0),
    "another sign": torch.neg,
    "not a number": lambda x: torch.full_like(x, torch.nan),
    "infinite": lambda x: torch.full_like(x, torch.inf),
}


@pytest.mark.parametrize("name", ["overflow", "overflow below", "narrowed"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("finite", [True, False])
def test_errors_beside_infinities_are_found(name: str, wrong: str, finite: bool) -> None:
    """In one number that the dtype holds or does not hold."""
    function, x = LIMITS[name]
    result = function(x)
    at = tuple(torch.nonzero(result.isfinite() == finite)[-1].tolist())
    numbers = result[result.isfinite()].abs()
    if finite:  # the largest, for an error that is relative to it
        at = tuple(torch.nonzero(result.abs() == numbers.max())[0].tolist())
    result[at] = WRONG[wrong](result[at])
    if torch.equal(result.nan_to_num(7), function(x).nan_to_num(7)):
        return  # infinite where it was
    with pytest.raises(EvaluationError, match="away from torch in float64"):
        check(function, x, result)


def test_choices_that_torch_makes_are_no_errors() -> None:
    """Numbers that are equal in f32 and not in f64."""
    function: Function = lambda x: (x + 1e-9 * torch.arange(64).double()).float().argmax(-1)  # noqa: E731
    x = torch.ones(3, 64)
    check(function, x, function(x))
    with pytest.raises(EvaluationError):
        check(function, x, function(x) + 1)
