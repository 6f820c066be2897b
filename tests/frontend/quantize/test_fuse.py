"""Products with quantised weights in captured graphs: what they take along, and each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tilewright

CALLS = ("quantized_linears", "quantized_gated_linear", "quantized_linear")


class Layers(nn.Module):
    """Some linear layers of one input and how a forward uses them."""

    def __init__(self, use: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(40, 48), nn.Linear(40, 48, bias=False)
        self.c, self.d = nn.Linear(40, 24), nn.Linear(48, 40)
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self, x)


def calls(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, int], float]:
    """How often each kind of call is in the captured graph, and the largest difference from the
    uncaptured model."""
    plan: dict[str, Any] = {"b": "u6", "c": "f4e2m1"}
    tilewright.quantize(model, "u4", group=20, plan=plan)
    with torch.no_grad():
        compiled = tilewright.compile(model)
        difference = float((compiled(x) - model(x)).abs().max())
    rows = [row for graph in compiled.explain().graphs for row in graph.left]
    found = {name: sum(row.count for row in rows if row.op == name) for name in CALLS}
    return {name: count for name, count in found.items() if count}, difference


def twice(y: torch.Tensor) -> torch.Tensor:
    return F.silu(y) * y


CASES: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], dict[str, int]]] = {
    "function": (lambda m, x: F.silu(m.a(x)), {"quantized_linear": 1}),
    "gelu": (lambda m, x: F.gelu(m.a(x)), {"quantized_linear": 1}),
    "gelu, tanh": (lambda m, x: F.gelu(m.a(x), approximate="tanh"), {"quantized_linear": 1}),
    "residual": (lambda m, x: x + m.d(torch.relu(m.a(x))), {"quantized_linear": 2}),
    "gate": (
        lambda m, x: x + m.d(F.silu(m.a(x)) * m.b(x)),
        {"quantized_gated_linear": 1, "quantized_linear": 1},
    ),
    "one input": (
        lambda m, x: torch.cat([m.a(x), m.b(x), m.c(x)], -1),
        {"quantized_linears": 1},
    ),
    "one weight twice": (lambda m, x: F.silu(m.a(x)) * m.a(x), {"quantized_gated_linear": 1}),
    "a product used twice": (
        lambda m, x: twice(m.a(x)),
        {"quantized_linear": 1},
    ),
    "a sum that broadcasts": (lambda m, x: m.d(m.a(x)) + x[:1], {"quantized_linear": 2}),
    "a function with another argument": (
        lambda m, x: torch.add(m.a(x), m.a(x), alpha=2),
        {"quantized_linears": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40)], ids=str)
def test_results_are_those_of_the_layers(case: str, shape: tuple[int, ...]) -> None:
    use, expected = CASES[case]
    torch.manual_seed(0)
    found, difference = calls(Layers(use), torch.randn(shape))
    if not (case == "a sum that broadcasts" and len(shape) == 1):
        assert found == expected
    assert difference < 1e-5


def test_gradients_are_those_of_the_layers() -> None:
    torch.manual_seed(0)
    model = Layers(CASES["gate"][0])
    tilewright.quantize(model, "u4", group=20)
    x = torch.randn(3, 40)
    gradients = []
    for function in (tilewright.compile(model), model):
        given = x.clone().requires_grad_()
        function(given).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
