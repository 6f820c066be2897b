"""Routing through Triton in its interpreter. ``test_triton_routing.py`` runs this file in its own
process, with TRITON_INTERPRET=1: Triton reads the variable when it is imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.routing_inputs import check, scores, whole
from tests.routing_programs import GIVEN, ONE_SORT, SORTED, groups, lowest
from tests.test_routing_choices import Form
from tests.test_routing_kernels import (
    FLAT,
    PIECES,
    ROUTING,
    ids_of,
    pieces,
    routed,
    routing,
)
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

PLACE = {"target": "cuda-sm90", "backend": "triton"}
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # the interpreter is slow: no shrinking
TOKENS = st.sampled_from([1, 2, 5, 17, 130])


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_positions_of_any_kind(tokens: int) -> None:
    """Duplicates, in order; positions outside are clamped where read, passed over where written."""
    text = PIECES.replace("exclusive = true", "exclusive = false")
    check(text, *pieces(np.random.default_rng(tokens), tokens), **PLACE)


def test_running_sums_of_floats_without_their_own_number_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="exclusive running sums of f32"):
        Program(parse(PIECES), **PLACE)


@settings(max_examples=2, deadline=None, phases=QUICK)
@given(seed=st.integers(0, 999), tokens=TOKENS)
def test_counting_sorts(seed: int, tokens: int) -> None:
    """Parts are counted, added up, and ranked."""
    rng = np.random.default_rng(seed)
    check(ONE_SORT, ids_of(rng, (tokens, 3), 9), **PLACE)
    check(FLAT, ids_of(rng, (tokens,), 33, np.int64), **PLACE)


@pytest.mark.parametrize(
    ("hidden", "experts", "k", "function", "tokens"),
    [
        (64, 16, 4, "softmax", 1),
        (130, 20, 3, "softmax", 37),
        (33, 17, 5, "sigmoid", 140),
    ],
)
def test_whole_routings(hidden: int, experts: int, k: int, function: str, tokens: int) -> None:
    """Gate product, scores, choice, the adapter's map, weights that sum to 1, permutation."""
    text = lowest(routing(hidden, experts, k, function))
    check(text, *routed(np.random.default_rng(tokens), tokens, hidden, experts), **PLACE)


def test_the_example() -> None:
    check(ROUTING, *routed(np.random.default_rng(0), 50, 64, 16), **PLACE)


def test_ranks_from_any_offsets() -> None:
    """Below 0 too, over more tokens than there are parts."""
    rng = np.random.default_rng(130)
    given_ = torch.from_numpy(rng.integers(-50, 999, 9))
    check(GIVEN, ids_of(rng, (130, 3), 9), given_, **PLACE)


def test_counts_beside_ranks_of_other_offsets_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="counts and ranks in one kernel"):
        Program(parse(SORTED), **PLACE)


@settings(max_examples=5, deadline=None, phases=QUICK)
@given(seed=st.integers(0, 999), tokens=TOKENS)
def test_groups(seed: int, tokens: int) -> None:
    """Two axes of one element: the best of each group, the best groups, the best of these."""
    text = lowest(groups("%x", "k = 5", "%weights, %ids, %where, %marked"))
    rng = np.random.default_rng(seed)
    check(text, scores(rng, tokens, 12, 2, "few"), whole(rng, 12, step=0.5), **PLACE)


@settings(max_examples=10, deadline=None, phases=QUICK)
@given(
    form=st.sampled_from(
        [
            Form(2, 1, "bf16", ties="lowest"),
            Form(128, 8, ties="lowest"),
            Form(40, 40, ties="lowest"),
            Form(16, 4, "f16", largest=False, ties="lowest"),
        ]
    ),
    kind=st.sampled_from(["different", "few", "odd", "equal", "worst"]),
    seed=st.integers(0, 999),
    tokens=TOKENS,
)
def test_choices(form: Form, kind: str, seed: int, tokens: int) -> None:
    """NaN, infinities, equal numbers: the lower position first."""
    x = scores(np.random.default_rng(seed), tokens, form.experts, form.k, kind)
    check(
        form.text,
        x.to({"bf16": torch.bfloat16, "f16": torch.float16}.get(form.dtype, x.dtype)),
        **PLACE,
    )


def test_a_single_token() -> None:
    text = (
        "graph f(%x: tensor<1 x 40 x f32>) { %p = tensor.softmax %x {axis = 1}\n"
        "%v, %i = tensor.top_k %p {k = 3} return %v, %i }"
    )
    check(text, scores(np.random.default_rng(0), 1, 40, 3, "different") / 8, **PLACE)
