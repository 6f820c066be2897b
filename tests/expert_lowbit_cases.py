"""Layers with experts' quantised weights of every kind, and what they mean in f64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tilewright.runtime.experts import packed
from tilewright.runtime.experts.floating import combine
from tilewright.runtime.experts.form import (
    ALL,
    HALVES,
    PAIRS,
    ExpertsForm,
    Gate,
    Product,
    merge_columns,
)
from tilewright.runtime.experts.plan import Plan, plan
from tilewright.runtime.quantized.tensor import QuantizedTensor

EXPERTS = 5
SILU = Gate()


@dataclass(frozen=True)
class Case:
    """Two products [E, 2I, H] and [E, H, I]. ``lies``: how gate and up lie, "mixed" with a dtype of
    its own for every second expert, "two" products, or "one" without a gate."""

    dtype: str
    lies: str
    activation: str
    gate: Gate = SILU
    bias: bool = False
    inner: int = 48
    hidden: int = 64
    options: tuple[tuple[str, Any], ...] = ()
    x: torch.dtype = torch.float32
    other: str = "u8"

    @property
    def columns(self) -> str:
        return {"pairs": PAIRS, "one": ALL}.get(self.lies, HALVES)

    def quantised(self, w: torch.Tensor, mixed: bool) -> Any:
        options = {"group": 32, **dict(self.options)}
        if not mixed:
            return QuantizedTensor.from_float(w, self.dtype, **options)
        kinds = [(self.dtype, options), (self.other, {"group": 16})]
        each = [QuantizedTensor.from_float(v, d, **o) for v, (d, o) in zip(w, kinds * 3)]  # noqa: B905
        return tuple(each)

    def form(self, experts: int = EXPERTS) -> ExpertsForm:
        random = torch.Generator().manual_seed(1)

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(experts, *shape, generator=random) * 0.2

        def product(w: torch.Tensor, rows: int) -> Product:
            bias = torch.randn(experts, rows, generator=random) if self.bias else None
            return Product(self.quantised(w, self.lies == "mixed"), bias, False, self.activation)

        inner, hidden = self.inner, self.hidden
        if self.lies == "two":
            first = tuple(product(weight(inner, hidden), inner) for _ in range(2))
        elif self.lies == "one":
            first = (product(weight(inner, hidden), inner),)
        elif self.lies in ("apart", "mixed"):
            first = (product(weight(2, inner, hidden), 2 * inner),)
        else:
            first = (product(weight(2 * inner, hidden), 2 * inner),)
        down = product(weight(hidden, inner), hidden)
        return ExpertsForm(first, down, self.gate, self.columns)


GPT_OSS = Gate("silu", 1.702, 1.0, 1.0)
ZEROS, NVFP4 = (("zero", "float"),), (("group", 16), ("scale_dtype", "f8e4m3"))
CASES = [
    Case("u4", "apart", "int8"),
    Case("u4", "halves", "float", bias=True),
    Case("u4", "apart", "float", x=torch.bfloat16, options=(("symmetric", True),)),
    Case("i3", "pairs", "int8", GPT_OSS, bias=True, inner=24, hidden=40),
    Case("u6", "mixed", "int8", Gate("gelu_tanh"), bias=True, hidden=32, inner=32),
    Case("f4e2m1", "mixed", "float", other="u2", options=NVFP4, inner=16, hidden=48),
    Case("u8", "two", "int8", Gate("relu"), options=ZEROS, inner=20, hidden=36),
    Case("nf4", "one", "float", Gate("relu2"), hidden=7, inner=9),
    Case("i4", "halves", "int8", Gate("gelu"), inner=16, bias=True),
    Case("u2", "pairs", "float", Gate(call=lambda y: y[:, ::2] - y[:, 1::2].abs()), True, 12),
]


def choices(tokens: int, chosen: int, experts: int, seed: int) -> torch.Tensor:
    """ids [tokens, chosen], a token's experts all different."""
    made = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(experts, generator=made)[:chosen] for _ in range(tokens)])


def even(rows: int, columns: int, group: int = 16) -> torch.Tensor:
    """Numbers that become bytes without rounding, in groups of ``group`` and multiples of it."""
    x = torch.randint(-127, 128, (rows, columns)).float()
    x[:, ::group] = 127
    return x / 64


def owners(made: Plan, rows: int) -> torch.Tensor:
    """The expert of each sorted row that has one."""
    starts = made.starts.long()
    return torch.repeat_interleave(made.active.long(), starts.diff())[:rows]


@lru_cache(maxsize=64)
def values(product: Product) -> list[torch.Tensor]:
    """Every expert's matrix in f64, [N, K]."""
    return [w.dequantize(torch.float64).flatten(0, -2) for w in product.each]


def exact(product: Product, x: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """x [P, K] f64 with the weights of ``owner``: [P, N]"""
    each = values(product)
    y = torch.stack([each[e] @ row for e, row in zip(owner.tolist(), x.double(), strict=True)])
    return y if product.bias is None else y + product.bias[owner].double()


def exact_first(form: ExpertsForm, x: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    if len(form.first) == 2:
        return form.gate.apply(*(exact(p, x, owner) for p in form.first))
    y = exact(form.first[0], x, owner)
    if form.columns == PAIRS and form.first[0].apart:
        y = merge_columns(*y.chunk(2, dim=1), PAIRS)
    return form.gate.between(y, form.columns)


def exact_layer(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The layer in f64 with the weights as they are: [T, H]"""
    owner = ids.flatten()
    h = exact_first(form, x.double().repeat_interleave(ids.shape[1], 0), owner)
    y = exact(form.down, h, owner).view(*ids.shape, -1)
    return (y * weights.double()[:, :, None]).sum(1)


def layer(
    form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    made = plan(ids, weights, form.experts, form.skip)
    h = packed.packed_first(form, made, x)
    return combine(made, packed.packed_product(form.down, made, h, made.scales), x.dtype)


def check_products(case: Case, form: ExpertsForm, ids: torch.Tensor) -> None:
    """Both products, each of activations that need no rounding, as close as f32 can be."""
    made = plan(ids, torch.rand(ids.shape), form.experts, form.skip)
    owner = owners(made, ids.numel())
    rows = len(owner)
    x = even(len(ids), case.hidden).to(case.x)
    got = packed.packed_first(form, made, x)
    bound = 1e-2 if got.dtype == torch.bfloat16 else 2e-5
    if rows:
        want = exact_first(form, x[made.tokens.long()][:rows], owner)
        torch.testing.assert_close(got[:rows].double(), want, rtol=bound, atol=bound)
    h = even(ids.numel(), case.inner).to(got.dtype)
    got = packed.packed_product(form.down, made, h, made.scales)
    assert got.shape == (ids.numel(), case.hidden)
    if rows:
        want = exact(form.down, h[:rows], owner) * made.scales[:rows, None].double()
        torch.testing.assert_close(got[:rows].double(), want, rtol=2e-5, atol=2e-5)
