"""torch.func's transforms inside compiled functions: torch computes what is under them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tilewright.frontend.compile import compile


def attended(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT / 2, dim=-1) @ k


def in_place(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b).add_(1.0)


ROWS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "vmap": torch.vmap(attended),
    "vmap of columns": torch.vmap(attended, in_dims=(2, 0)),
    "vmap twice": torch.vmap(torch.vmap(lambda a, b: a * b.softmax(-1))),
    "writes under vmap": torch.vmap(in_place),
    "vmap between products": lambda x, y: attended(torch.vmap(in_place)(attended(x, y), y), x),
    "grad": lambda x, y: torch.func.grad(lambda a: attended(a, y).pow(2).sum())(x),
    "grad under vmap": torch.vmap(torch.func.grad(lambda a, b: attended(a, b).pow(2).sum())),
}


@pytest.mark.parametrize("name", ROWS)
def test_transforms(name: str) -> None:
    """Mamba's scan is such a vmap."""
    torch._dynamo.reset()
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 4, 4, generator=made), torch.randn(4, 4, 4, generator=made)
    expected = ROWS[name](x.clone(), y.clone())
    compiled = compile(ROWS[name])
    torch.testing.assert_close(compiled(x, y), expected, rtol=1e-5, atol=1e-5)
