"""Kernels of experts: the plan of a call and the sums of its results, on every target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dtypes import BF16, F32, I32, I64
from tilewright.ir.errors import BindError
from tilewright.passes.to_tile.experts.combine import combine_program
from tilewright.passes.to_tile.experts.plan import plan_program
from tilewright.runtime.experts import Rerouting
from tilewright.runtime.experts.plan import plan
from tilewright.runtime.experts.segments import route
from tilewright.runtime.targets import resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

TORCH = {F32: torch.float32, BF16: torch.bfloat16}
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


@pytest.mark.parametrize("where", PLACES, ids=str)
@pytest.mark.parametrize("dtype", [I32, I64])
def test_the_plan_on_every_target(dtype: Any, where: tuple[str, str]) -> None:
    ids = torch.tensor([[2, 0], [0, 3], [9, -1]]).to({I32: torch.int32, I64: torch.int64}[dtype])
    weights = torch.rand(3, 2)
    kernel = made(plan_program(4, 2, dtype, F32, 0, resolve_target(where[0])), where)
    active, starts, tokens, places, scales, wrong = kernel(ids, weights)
    assert active.tolist()[:3] == [0, 2, 3] and starts.tolist() == [0, 3, 4, 5, 5, 5]
    assert tokens.tolist() == [0, 1, 2, 0, 1, 2] and places.tolist() == [[3, 0], [1, 4], [5, 2]]
    assert wrong.tolist() == [1, 1]
    assert torch.equal(scales[places.long()], weights)


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_the_plan_of_tokens_with_adapters(where: tuple[str, str]) -> None:
    """Looking up what ids mean while they are sorted gives the plan of what they mean."""
    rng = torch.Generator().manual_seed(0)
    with_map = made(plan_program(20, 3, I64, F32, 6, resolve_target(where[0])), where)
    plain = made(plan_program(20, 3, I64, F32, 0, resolve_target(where[0])), where)
    for tokens, adapters in ((1, 1), (7, 2), (40, 5)):
        ids = torch.randint(0, 6, (tokens, 3), generator=rng)
        weights = torch.rand(tokens, 3, generator=rng)
        adapter = torch.randint(-1, adapters, (tokens,), generator=rng).int()
        table = torch.randint(0, 20, (adapters, 6), generator=rng).int()
        found = with_map(ids, weights, adapter, table)
        wanted = plain(Rerouting(adapter, table).apply(ids), weights)
        for ours, other in zip(found, wanted, strict=True):
            assert torch.equal(ours, other)
        ids[0, 0], ids[0, 2] = 6, -1  # of no base expert, whatever the map has
        assert with_map(ids, weights, adapter, table)[-1].tolist()[0] == 2
