"""Layers of experts through Triton in its interpreter. ``test_triton_experts.py`` runs this file in
its own process, with TRITON_INTERPRET=1: Triton reads the variable when it is imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.grouped_cases import DTYPES, ERRORS, exact, layers, routings
from tilewright.ir.errors import BindError
from tilewright.ir.target import named_target
from tilewright.runtime.experts import ExpertsForm, Product, Rerouting, experts_forward
from tilewright.runtime.experts.gpu_grouped import why_not
from tilewright.runtime.experts.gpu_plan import BlockPlan, most_blocks, planner
from tilewright.runtime.experts.segments import route
from tilewright.runtime.gpu_targets import using_schedule

SM90 = named_target("cuda-sm90")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # the interpreter is slow: no shrinking
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def run(form: ExpertsForm, *given: Any, **more: Any) -> torch.Tensor:
    with using_schedule(16, 16, 4, 2):
        assert not why_not(form, given[0])
        return experts_forward(form, *given, **more)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    bound = ERRORS[NAMES[got.dtype]] * float(want.abs().max() + 1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


@settings(max_examples=8, deadline=None, phases=QUICK)
@given(st.data())
def test_drawn_layers(data: st.DataObject) -> None:
    form = data.draw(layers())
    x, ids, weights = data.draw(routings(form.experts, form.hidden))
    assert isinstance(form.down.weight, torch.Tensor)
    x = x.to(form.down.weight.dtype)
    got = run(form, x, ids, weights)
    close(got, exact(form, x, ids, weights))
    assert got.dtype == x.dtype and torch.equal(got, run(form, x, ids.int(), weights))


def check(made: BlockPlan, ids: torch.Tensor, weights: torch.Tensor, experts: int) -> None:
    """A plan: a stable sort by expert, in blocks that are each one expert's."""
    chosen = ids.shape[1]
    order, counts = route(ids.clamp(max=experts), experts)
    flat = made.places.flatten().long()
    some = ids.flatten() < experts
    assert torch.equal(made.tokens.long(), order // chosen)
    assert torch.equal(made.scales, weights.float().flatten()[order])
    assert torch.equal(flat[order][some[order]], torch.arange(int(some.sum())))
    assert (flat[~some] == ids.numel()).all()
    want = [
        (e, start, min(start + made.rows, end))
        for e, (end, count) in enumerate(
            zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True)
        )
        for start in range(end - count, end, made.rows)
    ]
    blocks = made.blocks.tolist()
    assert [tuple(block) for block in blocks[: len(want)]] == want
    assert all(first == last for _, first, last in blocks[len(want) :])
    assert len(blocks) == most_blocks(ids.numel(), experts, made.rows)


@settings(max_examples=8, deadline=None, phases=QUICK)
@given(
    tokens=st.integers(1, 400),
    chosen=st.integers(1, 5),
    experts=st.integers(5, 150),
    beyond=st.integers(0, 3),
    rows=st.sampled_from([16, 128]),
    seed=st.integers(0, 1000),
)
def test_plans(tokens: int, chosen: int, experts: int, beyond: int, rows: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, experts + beyond, generator=made).topk(chosen).indices
    weights = torch.rand(tokens, chosen, generator=made).to(
        [torch.float32, torch.bfloat16][seed % 2]
    )
    with using_schedule(16, 16, 4, 2):
        check(
            planner(ids, weights, experts, rows, SM90, skip=True)(ids, weights),
            ids,
            weights,
            experts,
        )


def test_many_choices_share_parts() -> None:
    """More than one chunk of choices for each part."""
    ids = torch.randint(0, 9, (2900, 3), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2900, 3)
    with using_schedule(16, 16, 4, 2):
        check(planner(ids, weights, 9, 64, SM90)(ids, weights), ids, weights, 9)


@pytest.mark.parametrize("tokens", [5, 90])
def test_adapters_are_looked_up_on_the_way(tokens: int) -> None:
    rng = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, 6, generator=rng).topk(3).indices
    weights = torch.rand(tokens, 3, generator=rng)
    adapters = torch.randint(-1, 4, (tokens,), generator=rng).int()
    table = torch.randint(0, 20, (4, 6), generator=rng).int()
    rerouting = Rerouting(adapters, table)
    with using_schedule(16, 16, 4, 2):
        made = planner(ids, weights, 20, 16, SM90, rerouting=rerouting)(ids, weights, rerouting)
    check(made, rerouting.apply(ids), weights, 20)


@pytest.mark.parametrize("wrong", [-1, 4, 1 << 40])
def test_ids_of_no_expert(wrong: int) -> None:
    """Nothing is read for them: their tokens become NaN; with ``skip`` they count for nothing."""
    made = torch.Generator().manual_seed(0)
    first, down = torch.randn(4, 16, 8, generator=made), torch.randn(4, 8, 8, generator=made)
    form = ExpertsForm((Product(first),), Product(down))
    ids = torch.tensor([[0, 1], [3, wrong], [2, 1]])
    x, weights = torch.randn(3, 8, generator=made), torch.rand(3, 2, generator=made)
    got = run(form, x, ids, weights)
    want = exact(form, x, ids.clamp(0, 3), weights)
    assert got[1].isnan().all()
    close(got[[0, 2]], want[[0, 2]])
    if wrong > 0:
        skipping = ExpertsForm((Product(first),), Product(down), skip=True)
        close(run(skipping, x, ids, weights), exact(skipping, x, ids, weights))


def test_gates_norms_and_kinds_that_one_kernel_does_not_have() -> None:
    made = torch.Generator().manual_seed(0)
    gate, up, down = (
        torch.randn(4, *shape, generator=made) * 0.2 for shape in ((24, 40), (24, 40), (40, 24))
    )
    x, ids = torch.randn(9, 40, generator=made), torch.rand(9, 4, generator=made).topk(2).indices
    weights = torch.rand(9, 2, generator=made)
    turned = Product(up.mT.contiguous(), transposed=True)
    for other in (turned, Product(up.bfloat16()), Product(up, torch.randn(4, 24, generator=made))):
        form = ExpertsForm((Product(gate), other), Product(down))
        close(run(form, x, ids, weights), exact(form, x, ids, weights))
    normed = ExpertsForm((Product(gate), Product(up)), Product(down), after=lambda y: y / 2)
    plain = ExpertsForm((Product(gate), Product(up)), Product(down))
    close(run(normed, x, ids, weights), exact(plain, x, ids, weights) / 2)


def test_what_does_not_fit() -> None:
    form = ExpertsForm((Product(torch.randn(4, 16, 8)),), Product(torch.randn(4, 8, 8)))
    ids, weights = torch.zeros(3, 2, dtype=torch.int64), torch.rand(3, 2)
    with pytest.raises(BindError, match="x must be"):
        run(form, torch.randn(3, 9), ids, weights)
    with using_schedule(16, 16, 4, 2):
        assert "float64" in why_not(form, torch.randn(3, 8).double())
    assert "on cpu" in why_not(form, torch.randn(3, 8))
    empty = run(form, torch.randn(0, 8), ids[:0], weights[:0])
    assert empty.shape == (0, 8)
