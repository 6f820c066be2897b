"""Routing on whole blocks in the tile interpreter, kernel after kernel, against what a text means:
the interpreter also refuses what reads or writes outside of a buffer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.passes.routing_runs import check, run
from tests.routing_inputs import scores, whole
from tests.routing_programs import GIVEN, ONE_SORT, SORTED, groups, lowest
from tests.test_routing_choices import Form
from tests.test_routing_kernels import FLAT, PIECES, ids_of, pieces, routed, routing
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.whole_blocks.routing import program

PARTS = 20  # of the tokens, instead of hundreds: more than are read at once
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # hundreds of work items: no shrinking
SEEDS, TOKENS = st.integers(0, 999), st.sampled_from([1, 2, 17, 33, 70])
INCLUSIVE = PIECES.replace("exclusive = true", "exclusive = false")


@pytest.fixture(autouse=True)
def few_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "PARTS", PARTS)
        yield


@pytest.mark.parametrize(
    ("hidden", "experts", "k", "function", "dtype", "tokens"),
    [
        (64, 16, 4, "softmax", "f32", 1),
        (130, 20, 3, "softmax", "bf16", 37),
        (33, 17, 5, "sigmoid", "f32", 50),
    ],
)
@pytest.mark.parametrize("parts", [0, PARTS])
def test_whole_routings(
    hidden: int, experts: int, k: int, function: str, dtype: str, tokens: int, parts: int
) -> None:
    """Gate product, scores, choice, the adapter's map, weights that sum to 1, permutation; hidden
    numbers and experts that are no multiple of a block's."""
    text = lowest(routing(hidden, experts, k, function, dtype))
    inputs = routed(np.random.default_rng(tokens), tokens, hidden, experts)
    check(text, *(x.numpy() for x in inputs), parts=parts)


@pytest.mark.parametrize("parts", [0, 3])
@settings(max_examples=2, deadline=None, phases=QUICK)
@given(seed=SEEDS, tokens=TOKENS)
def test_counting_sorts(parts: int, seed: int, tokens: int) -> None:
    """Parts are counted, added up, and ranked; ids of no segment have no place."""
    rng = np.random.default_rng(seed)
    check(ONE_SORT, ids_of(rng, (tokens, 3), 9).numpy(), parts=parts)
    check(FLAT, ids_of(rng, (tokens,), 33, np.int64).numpy(), parts=parts)


@pytest.mark.parametrize("tokens", [3, 130, 250])
def test_ranks_from_any_offsets(tokens: int) -> None:
    """Below 0 too, over fewer tokens than there are parts, as many as a turn has, and more."""
    rng = np.random.default_rng(tokens)
    check(GIVEN, ids_of(rng, (tokens, 3), 9).numpy(), rng.integers(-50, 999, 9))


@pytest.mark.parametrize("segments", [1, 2, 300, 2000, 4000, 9000])
def test_counts_of_many_segments(segments: int) -> None:
    """What parts counted is added up some of them at a time, one where there are most segments."""
    text = f"""graph counts<T>(%ids: tensor<T x 2 x i32>) {{
      %counts = tensor.segment_count %ids {{segments = size({segments})}}
      %double = math.add %counts, %counts
      return %counts, %double
    }}"""
    ids = ids_of(np.random.default_rng(segments), (9, 2), segments).numpy()
    check(text, ids, parts=5)


@settings(max_examples=5, deadline=None, phases=QUICK)
@given(seed=SEEDS, tokens=TOKENS)
def test_positions_of_any_kind(seed: int, tokens: int) -> None:
    """Duplicates, in order; positions outside are clamped where read, passed over where written."""
    check(INCLUSIVE, *(x.numpy() for x in pieces(np.random.default_rng(seed), tokens)))


@settings(max_examples=3, deadline=None, phases=QUICK)
@given(seed=SEEDS, tokens=TOKENS)
def test_groups(seed: int, tokens: int) -> None:
    """Two axes of one element, which memory has as one dimension."""
    text = lowest(groups("%x", "k = 5", "%weights, %ids, %where, %marked"))
    rng = np.random.default_rng(seed)
    x, bias = scores(rng, tokens, 12, 2, "few"), whole(rng, 12, step=0.5)
    check(text, x.numpy(), bias.numpy())


FORMS = [
    Form(2, 1, ties="lowest"),
    Form(128, 8, ties="lowest"),
    Form(40, 40, ties="lowest"),
    Form(16, 4, largest=False, ties="lowest"),
]


@pytest.mark.parametrize("kind", ["different", "few", "odd", "equal", "worst"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_choices(form: Form, kind: str) -> None:
    """NaN, infinities, equal numbers: the lower position first."""
    for tokens in (1, 35):
        x = scores(np.random.default_rng(tokens), tokens, form.experts, form.k, kind)
        check(form.text, x.numpy())


def test_a_single_token() -> None:
    text = (
        "graph f(%x: tensor<1 x 40 x f32>) { %p = tensor.softmax %x {axis = 1}\n"
        "%v, %i = tensor.top_k %p {k = 3} return %v, %i }"
    )
    check(text, scores(np.random.default_rng(0), 1, 40, 3, "different").numpy() / 8)


def test_places_sort_the_choices() -> None:
    """The permutation puts every id at its place: what comes out is a stable sort."""
    ids = torch.randint(0, 33, (90,), generator=torch.Generator().manual_seed(0))
    places, counts = run(FLAT, ids.numpy(), parts=PARTS)
    assert np.array_equal(places, torch.argsort(torch.argsort(ids, stable=True)).numpy())
    assert np.array_equal(counts, torch.bincount(ids, minlength=33).numpy())


def test_what_this_form_does_not_cover_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UnsupportedError, match="exclusive running sums of f32"):
        run(PIECES, *(x.numpy() for x in pieces(rng, 3)))
    with pytest.raises(UnsupportedError, match="counts and ranks in one kernel"):
        run(SORTED, ids_of(rng, (5, 3), 9).numpy(), rng.integers(0, 9, 9))
