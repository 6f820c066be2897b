"""Functions that a level of determinism leaves with torch: bits depend on the number alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.frontend.full_vectors import _FUNCTIONS, BLOCK, _in_full_vectors

SIZES = st.integers(0, 3 * BLOCK)


def named(name: str) -> object:
    function = getattr(torch, name, None) or getattr(F, name)
    return (lambda x: torch.pow(x, 0.3)) if name == "pow" else function


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(_FUNCTIONS))
@settings(max_examples=15, deadline=None)
@given(count=SIZES, at=st.integers(0, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_number_has_one_result(name: str, count: int, at: int, dtype: torch.dtype) -> None:
    """Wherever it lies, however many lie beside it, and however many threads there are."""
    numbers = torch.linspace(-4, 4, 3 * BLOCK + 41).to(dtype)
    run = _in_full_vectors(named(name))  # type: ignore[arg-type]
    whole = run(numbers)
    part = numbers[at : at + count]
    torch.set_num_threads(1)
    alone = run(part.clone())
    torch.set_num_threads(2)
    torch.testing.assert_close(alone, whole[at : at + count], rtol=0, atol=0, equal_nan=True)
    turned = run(numbers[: 64 * 33].view(64, 33).mT)
    assert turned.stride() == (1, 33)
    torch.testing.assert_close(
        turned, whole[: 64 * 33].view(64, 33).mT, rtol=0, atol=0, equal_nan=True
    )
    theirs = named(name)(part)  # type: ignore[operator]
    torch.testing.assert_close(
        alone, theirs, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-5, equal_nan=True
    )


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_layer_norm_computes_each_row_by_itself(width: int, rows: int, seed: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    weight, bias = torch.rand(2, width)
    whole = F.layer_norm(x, (width,), weight, bias)
    torch.set_num_threads(1)
    for at in range(rows):
        assert torch.equal(F.layer_norm(x[at : at + 1], (width,), weight, bias)[0], whole[at])
    torch.set_num_threads(2)
