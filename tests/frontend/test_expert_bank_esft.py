"""Which experts an adapter should train: from gate scores or token shares up to a threshold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.frontend.expert_models import EXPERTS, layers_of, make
from tilewright.experts import expert_scores, record_choices, select_experts
from tilewright.ir.errors import DataError, SettingError


@given(
    st.integers(1, 12).flatmap(
        lambda e: st.lists(
            st.tuples(st.integers(0, e - 1), st.floats(0.015625, 1.0, width=32)),
            min_size=2,
            max_size=30,
        ).map(lambda pairs: (e, pairs[: len(pairs) // 2 * 2]))
    ),
    st.floats(0.01, 1.0),
    st.sampled_from(["gate", "token"]),
    st.integers(1, 12),
)
def test_the_fewest_experts_that_reach_the_threshold(
    drawn: tuple[int, list[tuple[int, float]]], threshold: float, score: str, most: int
) -> None:
    experts, pairs = drawn
    ids = torch.tensor([e for e, _ in pairs]).reshape(-1, 2)
    weights = torch.tensor([w for _, w in pairs]).reshape(-1, 2)
    share = [0.0] * experts
    for expert, weight in pairs:
        share[expert] += weight if score == "gate" else 1.0
    share = [s / sum(share) for s in share]
    found = expert_scores(ids, weights, experts, score)
    assert found.tolist() == pytest.approx(share)
    chosen = select_experts({"x": (ids, weights)}, experts, threshold, score=score)["x"]
    assert chosen == sorted(set(chosen)) and chosen
    assert sum(share[e] for e in chosen) >= threshold - 1e-9
    least = min(chosen, key=lambda e: share[e])
    assert sum(share[e] for e in chosen) - share[least] < threshold
    assert all(share[e] <= share[least] + 1e-12 for e in set(range(experts)) - set(chosen))
    some = select_experts({"x": (ids, weights)}, experts, threshold, score=score, most=most)["x"]
    assert len(some) == min(most, len(chosen)) and set(some) <= set(chosen)


def test_choices_of_a_model_are_recorded_by_layer() -> None:
    pytest.importorskip("transformers")
    model = make("Qwen3Moe")
    seen: dict[int, list[Any]] = {0: [], 1: []}
    for layer, module in layers_of(model).items():
        module.register_forward_pre_hook(lambda _, given, k=layer: seen[k].append(given))
    with torch.no_grad(), record_choices(model) as choices:
        model(torch.arange(10).reshape(2, 5))
        model(torch.arange(3)[None])
    with torch.no_grad():
        model(torch.arange(4)[None])  # is no longer heard
    for layer, (ids, weights) in choices.items():
        assert isinstance(layer, int)
        assert torch.equal(ids, torch.cat([given[1] for given in seen[layer][:2]]))
        assert torch.equal(weights, torch.cat([given[2] for given in seen[layer][:2]]))
        assert ids.shape == weights.shape == (13, 2)
    chosen = select_experts(choices, EXPERTS, 0.5, most=3)
    assert list(chosen) == [0, 1] and all(1 <= len(experts) <= 3 for experts in chosen.values())


def test_bad_statistics_are_named() -> None:
    ids, weights = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])
    for call, error, message in (
        (lambda: expert_scores(ids, weights, 1), DataError, "0 to 0; 0 to 1"),
        (lambda: expert_scores(ids - 1, weights, 4), DataError, "-1 to 0"),
        (lambda: expert_scores(ids, weights[:, :1], 4), DataError, r"\[1, 2\] and \[1, 1\]"),
        (lambda: expert_scores(ids[:0], weights[:0], 4), DataError, "with tokens"),
        (lambda: expert_scores(ids, weights * 0, 4), DataError, "not all be zero"),
        (lambda: expert_scores(ids, weights, 4, "mean"), SettingError, "gate, token"),
        (lambda: select_experts({0: (ids, weights)}, 4, 0.0), SettingError, "threshold"),
    ):
        with pytest.raises(error, match=message):
            call()
