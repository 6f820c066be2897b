"""Kernels of experts: the plan of a call, grouped products and their sums, on every target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dtypes import BF16, F16, F32, I32, I64
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.passes.activation_functions import ACTIVATIONS
from tilewright.passes.to_tile.experts.combine import combine_program
from tilewright.passes.to_tile.experts.floating import FloatForm, grouped_program, tile_rows
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.plan import plan_program
from tilewright.runtime.experts import by_expert, grouped
from tilewright.runtime.experts.form import HALVES, ExpertsForm, Gate, Product
from tilewright.runtime.experts.plan import plan
from tilewright.runtime.experts.segments import route
from tilewright.runtime.targets import resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

TORCH = {F32: torch.float32, BF16: torch.bfloat16, F16: torch.float16}
PLACES = [("host", "mlir"), ("x86-64-v3", "mlir"), ("host", "interpreter"), ("scalar", "numba")]


def choices(tokens: int, chosen: int, experts: int, seed: int) -> torch.Tensor:
    """ids [tokens, chosen], a token's experts all different."""
    made = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(experts, generator=made)[:chosen] for _ in range(tokens)]
    return torch.stack(rows) if rows else torch.zeros(0, chosen, dtype=torch.int64)


@given(
    tokens=st.integers(1, 40),
    chosen=st.integers(1, 5),
    experts=st.integers(5, 20),
    beyond=st.integers(0, 3),
    narrow=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_plans(
    tokens: int, chosen: int, experts: int, beyond: int, narrow: bool, seed: int
) -> None:
    """A stable sort by expert, with the rows of no expert last."""
    ids = choices(tokens, chosen, experts + beyond, seed)
    weights = torch.rand(tokens, chosen)
    made = plan(ids.int() if narrow else ids, weights, experts, skip=True)
    order, counts = route(ids.clamp(max=experts), experts)
    assert torch.equal(made.tokens.long(), order // chosen)
    assert torch.equal(made.places.long().flatten()[order], torch.arange(tokens * chosen))
    assert torch.equal(made.scales, weights.flatten()[order])
    hit = counts.nonzero().flatten()
    assert len(made.active) == min(experts, tokens * chosen) == len(made.starts) - 1
    assert torch.equal(made.active[: len(hit)].long(), hit)
    ends = counts.cumsum(0)
    assert made.starts[0] == 0 and torch.equal(made.starts[1 : len(hit) + 1].long(), ends[hit])
    assert (made.starts[len(hit) :] == ends[-1]).all(), "nothing past the last active one"


@pytest.mark.parametrize("wrong", [-1, 4, 1 << 40])
def test_an_id_of_no_expert_is_refused_before_weights_are_read(wrong: int) -> None:
    ids = torch.tensor([[0, 1], [3, wrong]])
    with pytest.raises(BindError, match=f"no expert {wrong}"):
        plan(ids, torch.rand(2, 2), 4)
    if wrong > 0:
        assert plan(ids, torch.rand(2, 2), 4, skip=True).starts[-1] == 3


def made(program: Any, where: tuple[str, str]) -> Any:
    if where[1] == "numba":
        pytest.importorskip("numba")
    return make_tile_kernel(program, resolve_target(where[0]), where[1])


@pytest.mark.parametrize("where", PLACES, ids=str)
@pytest.mark.parametrize("case", range(6))
def test_grouped_products(case: int, where: tuple[str, str]) -> None:
    """Every gate, one product and two, biases, scales, rows and columns that fill no tile."""
    target = resolve_target(where[0])
    dtype, narrow = (F32, BF16, F16)[case % 3], (F32, BF16)[case % 2]
    length, width = (16, 37, 5)[case % 3], (64, 3, 70)[case % 3]
    gate = GateFunction(ACTIVATIONS[case % 5], limit=0.5 if case == 5 else None)
    bias = dtype if case % 2 else None
    form = FloatForm(length, dtype, narrow, 1 + case % 2, gate, bias, case % 3 == 0)
    random = torch.Generator().manual_seed(case)
    experts, counts = 5, (3, 0, 1, 9, 0)
    rows = sum(counts)
    x = torch.randn(rows, length, generator=random).to(TORCH[narrow])
    weights = [
        torch.randn(experts, width, length, generator=random).to(TORCH[dtype])
        for _ in range(form.products)
    ]
    biases = [torch.randn(experts, width, generator=random).to(TORCH[dtype]) for _ in weights]
    scale = torch.rand(rows, generator=random)
    active, starts = torch.tensor([0, 2, 3, 0]).int(), torch.tensor([0, 3, 4, 13, 13]).int()
    owner = torch.repeat_interleave(torch.arange(experts), torch.tensor(counts))
    parts = []
    for weight, b in zip(weights, biases, strict=True):
        part = (weight[owner].double() @ x.double()[:, :, None])[:, :, 0]
        parts.append(part + b[owner].double() if bias else part)
    function = {**dict.fromkeys(ACTIVATIONS, lambda v: v), "silu": torch.nn.functional.silu}
    function |= {"relu": torch.relu, "relu2": lambda v: torch.relu(v).square()}
    function["gelu_tanh"] = lambda v: torch.nn.functional.gelu(v, approximate="tanh")
    if gate.limit is not None and len(parts) == 2:
        parts = [parts[0].clamp(max=0.5), parts[1].clamp(-0.5, 0.5)]
    want = function[gate.function](parts[0])
    for part in parts[1:]:
        want = want * part
    want = want * scale[:, None].double() if form.scaled else want
    for tile in {1, 2, tile_rows(target, 100)} if target.lanes >= 4 else {1}:
        kernel = made(grouped_program(form, target, tile), where)
        more = ([*biases] if bias else []) + ([scale] if form.scaled else [])
        got = kernel(active, starts, x, *weights, *more)[0]
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_sums_of_a_tokens_experts(where: tuple[str, str]) -> None:
    """In the order of its choices; rows of no expert, whatever they hold, count for nothing."""
    y = torch.randn(8, 70)
    y[6:] = float("nan")
    places, starts = torch.tensor([[5, 0, 7], [2, 6, 1]]).int(), torch.tensor([0, 2, 6, 6]).int()
    want = torch.stack([y[5] + y[0], y[2] + y[1]])
    for dtype in (F32, BF16):
        kernel = made(combine_program(3, 70, dtype, resolve_target(where[0])), where)
        got = kernel(y, places, starts)[0]
        assert torch.equal(got, want.to(TORCH[dtype]))


@pytest.mark.parametrize("tokens", [1, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_the_same_in_every_call_and_as_one_expert_after_the_other(
    tokens: int, dtype: torch.dtype
) -> None:
    w1, w2 = (torch.randn(8, 48, 40) * 0.2).to(dtype), (torch.randn(8, 40, 24) * 0.2).to(dtype)
    form = ExpertsForm((Product(w1),), Product(w2), Gate("silu"), HALVES)
    x, ids = torch.randn(tokens, 40).to(dtype), choices(tokens, 3, 8, tokens)
    weights = torch.rand(tokens, 3)
    assert not grouped.why_not(form, x)
    got = grouped.run(form, x, ids, weights)
    bound = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, by_expert.run(form, x, ids, weights), rtol=bound, atol=bound)
    assert all(torch.equal(got, grouped.run(form, x, ids, weights)) for _ in range(3))


def test_what_has_no_grouped_kernel_says_why() -> None:
    turned = Product(torch.randn(4, 16, 32), transposed=True)
    form = ExpertsForm((turned,), Product(torch.randn(4, 16, 16)))
    assert "side by side" in grouped.why_not(form, torch.randn(2, 16))
    plain = ExpertsForm((Product(torch.randn(4, 32, 16)),), Product(torch.randn(4, 16, 16)))
    assert "float64" in grouped.why_not(plain, torch.randn(2, 16).double())
    with pytest.raises(UnsupportedError, match="'mish'"):
        GateFunction("mish")


@pytest.mark.parametrize("where", PLACES, ids=str)
@pytest.mark.parametrize("dtype", [I32, I64])
def test_the_plan_on_every_target(dtype: Any, where: tuple[str, str]) -> None:
    ids = torch.tensor([[2, 0], [0, 3], [9, -1]]).to({I32: torch.int32, I64: torch.int64}[dtype])
    weights = torch.rand(3, 2)
    kernel = made(plan_program(4, 2, dtype, F32, resolve_target(where[0])), where)
    active, starts, tokens, places, scales, wrong = kernel(ids, weights)
    assert active.tolist()[:3] == [0, 2, 3] and starts.tolist() == [0, 3, 4, 5, 5, 5]
    assert tokens.tolist() == [0, 1, 2, 0, 1, 2] and places.tolist() == [[3, 0], [1, 4], [5, 2]]
    assert wrong.tolist() == [1, 1]
    assert torch.equal(scales[places.long()], weights)
