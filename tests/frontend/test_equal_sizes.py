"""Sizes that happen to be equal are one symbol for torch: batch, heads and a head's width, too."""

from __future__ import annotations

import pytest
import torch

import tilewright


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 4, 4), (8, 8, 8), (3, 4, 4), (4, 3, 4)])
def test_a_width_that_other_sizes_equal_is_fixed_all_the_same(
    sizes: tuple[int, int, int], turned: bool
) -> None:
    """Folding batch and heads leaves sizes such as (s*s)//s, of which no guard fixes s."""
    batch, heads, width = sizes

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ (k if turned else k.mT)
        return torch.softmax(scores * 0.3, -1) @ v

    rng = torch.Generator().manual_seed(sum(sizes))
    compiled = tilewright.compile(attention)
    for rows, keys in ((1, 16), (5, 16), (5, 9)):
        q = torch.randn(batch, heads, rows, width, generator=rng)
        k, v = (torch.randn(batch, heads, keys, n, generator=rng) for n in (width, width + 6))
        given = k.mT.contiguous() if turned else k
        with torch.no_grad():
            got = compiled(q, given, v)
            want = attention(q.double(), given.double(), v.double())
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    assert "region attention_0: kernel" in str(compiled.explain())
