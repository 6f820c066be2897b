"""Layers of experts and routings drawn for tests of grouped kernels, and what they mean in f64."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tilewright.runtime.experts import ALL, HALVES, PAIRS, ExpertsForm, Gate, Product, by_expert

GPT_OSS = Gate("silu", alpha=1.702, limit=0.5, shift=1.0)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ERRORS = {"f32": 2e-5, "f16": 4e-3, "bf16": 3e-2}  # of the largest number, rounded four times


@st.composite
def layers(draw: Any) -> ExpertsForm:
    """Any sizes, layout, dtype, function, with or without biases."""
    experts, inner, hidden = (draw(st.integers(1, most)) for most in (20, 40, 70))
    columns, transposed = draw(st.sampled_from([HALVES, PAIRS, ALL])), draw(st.booleans())
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    biased, seed = draw(st.booleans()), draw(st.integers(0, 1000))
    made = torch.Generator().manual_seed(seed)

    def product(rows: int, length: int) -> Product:
        weight = torch.randn(experts, rows, length, generator=made) * length**-0.5
        weight = weight.mT.contiguous() if transposed else weight
        bias = torch.randn(experts, rows, generator=made) * 0.1
        return Product(weight.to(dtype), bias.to(dtype) if biased else None, transposed)

    function = draw(st.sampled_from(["silu", "gelu_tanh", "relu2"]))
    gate = GPT_OSS if columns == PAIRS else Gate(function)
    wide = inner if columns == ALL else 2 * inner
    return ExpertsForm((product(wide, hidden),), product(hidden, inner), gate, columns)


@st.composite
def routings(draw: Any, experts: int, hidden: int) -> tuple[torch.Tensor, ...]:
    """x [T, H], ids and weights [T, k]: a token's experts all different, many on a few experts or
    spread, some experts without any."""
    tokens, chosen = draw(st.integers(1, 60)), draw(st.integers(1, min(4, experts)))
    skew, seed = draw(st.sampled_from([0.0, 1.0, 8.0])), draw(st.integers(0, 1000))
    made = torch.Generator().manual_seed(seed)
    likely = torch.randn(experts, generator=made) * skew
    scores = likely + torch.rand(tokens, experts, generator=made)
    ids = scores.topk(chosen).indices
    x, weights = torch.randn(tokens, hidden, generator=made), torch.rand(tokens, chosen)
    return x, ids, weights


def exact(form: ExpertsForm, x: torch.Tensor, ids: Any, weights: torch.Tensor) -> torch.Tensor:
    """The layer in f64, one expert after the other."""
    first = tuple(_wide(product) for product in form.first)
    wide = ExpertsForm(first, _wide(form.down), form.gate, form.columns, skip=form.skip)
    return by_expert.run(wide, x.double(), ids, weights.double())


def _wide(product: Product) -> Product:
    assert isinstance(product.weight, torch.Tensor)
    bias = None if product.bias is None else product.bias.double()
    return Product(product.weight.double(), bias, product.transposed)
