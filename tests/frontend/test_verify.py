"""``compile(verify=…)``: which calls are compared with torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.frontend.test_compile import attend, inputs
from tilewright.frontend import region_call
from tilewright.frontend.compile import compile
from tilewright.ir.errors import SettingError


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
