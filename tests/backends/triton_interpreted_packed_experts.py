"""Layers of experts with quantised weights through Triton in its interpreter, and their programs in
the tile interpreter, which also sees whether something outside of a buffer is read.
``test_triton_experts.py`` runs this file in its own process, with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.expert_lowbit_cases import CASES, EXPERTS, Case, choices, exact_layer
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate_graph
from tilewright.runtime.experts import ExpertsForm, Product, experts_forward, gpu_packed
from tilewright.runtime.experts.gpu_grouped import why_not
from tilewright.runtime.gpu_targets import using_schedule
from tilewright.runtime.once import Once
from tilewright.runtime.quantized.tensor import QuantizedTensor

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # the interpreter is slow: no shrinking
BOUNDS = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}


def check(form: ExpertsForm, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
    with using_schedule(16, 32, 4, 2):
        assert why_not(form, x) == ""
        got = experts_forward(form, x, ids, weights)
    want = exact_layer(form, x, ids, weights)
    bound = BOUNDS[x.dtype] * float(want.abs().max() + 1)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


def given_rows(case: Case, tokens: int, chosen: int, seed: int) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, case.hidden, generator=made).to(case.x)
    ids = choices(tokens, chosen, EXPERTS, seed)
    return x, ids, torch.rand(tokens, chosen, generator=made)


@pytest.mark.parametrize("at", range(len(CASES)))
def test_every_kind_of_weights(at: int) -> None:
    """One row of an expert, and more than a block of them."""
    case = CASES[at]
    form = case.form()
    for tokens, chosen in ((1, 2), (45, 3)):
        check(form, *given_rows(case, tokens, chosen, tokens))


def evaluated(program: Graph, target: Any, backend: str) -> Any:
    def call(*tensors: torch.Tensor) -> list[torch.Tensor]:
        wide = (t.float() if t.dtype == torch.bfloat16 else t for t in tensors)
        return [torch.from_numpy(y) for y in evaluate_graph(program, *(t.numpy() for t in wide))]

    return call


def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products get the schedule that a GPU would: half a block of weights with so few rows."""
    monkeypatch.setattr(gpu_packed, "forced_product", lambda forced: None)


@pytest.mark.parametrize("at", [0, 3, 5, 7])
def test_default_schedules(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by_default(monkeypatch)
    check(CASES[at].form(), *given_rows(CASES[at], 9, 2, 4))


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("at", range(len(CASES)))
def test_nothing_outside_of_a_buffer_is_read(
    at: int, default: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_packed, "gpu_call", evaluated)
    monkeypatch.setattr(gpu_packed, "_PRODUCTS", Once(gpu_packed._made))
    if default:
        by_default(monkeypatch)
    case = replace(CASES[at], x=torch.float32)
    check(case.form(), *given_rows(case, 9, 2, 1))


@settings(max_examples=12, deadline=None, phases=QUICK)
@given(
    dtype=st.sampled_from(
        ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "i3", "i5", "f4e2m1", "f6e3m2", "f8e5m2"]
    ),
    group=st.sampled_from([8, 32, 64, 4096]),
    zero=st.booleans(),
    lies=st.sampled_from(["apart", "halves", "pairs", "two", "one"]),
    x=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    inner=st.integers(1, 80),
    hidden=st.integers(2, 100),
    seed=st.integers(0, 1000),
)
def test_drawn_layers(
    dtype: str,
    group: int,
    zero: bool,
    lies: str,
    x: torch.dtype,
    inner: int,
    hidden: int,
    seed: int,
) -> None:
    options: tuple[tuple[str, Any], ...] = (("group", group),)
    if not zero:
        options += (("symmetric", True),)
    case = Case(dtype, lies, "float", bias=bool(seed % 2), x=x, inner=inner, hidden=hidden,
                options=options)  # fmt: skip
    check(case.form(), *given_rows(case, 1 + seed % 30, 1 + seed % 4, seed))


def test_columns_in_another_order() -> None:
    """As GPTQ packs weights by activations: x is read in that order."""
    made = torch.Generator().manual_seed(0)

    def product(rows: int, length: int) -> Product:
        codes = torch.randint(0, 16, (EXPERTS, rows, length), generator=made, dtype=torch.uint8)
        scales = torch.rand(EXPERTS, rows, length // 16, generator=made) / 8
        order = torch.randperm(length, generator=made)
        return Product(
            QuantizedTensor.from_codes(
                codes, scales, dtype="u4", group=16, order=order, zero_point=8
            )
        )

    form = ExpertsForm((product(48, 64),), product(64, 24 * 2), columns="all")
    check(form, *given_rows(CASES[0], 20, 2, 5))


def test_floats_beside_codes() -> None:
    """Only one of both products quantised."""
    case = CASES[0]
    packed = case.form()
    wide = [
        Product(torch.stack([w.dequantize(torch.float32).flatten(0, -2) for w in p.each]))
        for p in (*packed.first, packed.down)
    ]
    rows = given_rows(case, 20, 2, 3)
    want = exact_layer(packed, *rows)
    for form in (
        ExpertsForm(packed.first, wide[-1], packed.gate, packed.columns),
        ExpertsForm(tuple(wide[:-1]), packed.down, packed.gate, packed.columns),
    ):
        with using_schedule(16, 32, 4, 2):
            assert why_not(form, rows[0]) == ""
            got = experts_forward(form, *rows)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4 * float(want.abs().max()))


def test_weights_that_change_are_packed_again() -> None:
    case = replace(CASES[1], hidden=32, inner=32)
    form = case.form()
    rows = given_rows(case, 5, 2, 2)
    check(form, *rows)
    with torch.no_grad():
        for product in (*form.first, form.down):
            assert isinstance(product.weight, QuantizedTensor)
            product.weight.words.bitwise_not_()
            product.weight.words.bitwise_and_(0x0F0F0F0F)
    fresh = ExpertsForm(
        tuple(Product(p.weight, p.bias) for p in form.first),
        Product(form.down.weight, form.down.bias),
        form.gate,
        form.columns,
    )
    want = exact_layer(fresh, *rows)
    with using_schedule(16, 32, 4, 2):
        got = experts_forward(form, *rows)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * float(want.abs().max() + 1))


def test_what_no_kernel_reads_stays_with_torch() -> None:
    turned = QuantizedTensor.from_float(torch.randn(EXPERTS, 48, 48), "u4", 32, axis=-2)
    form = ExpertsForm((Product(turned),), Product(turned), columns="all")
    with using_schedule(16, 32, 4, 2):
        assert "packed along their rows" in why_not(form, torch.randn(2, 48))
