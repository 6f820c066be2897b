"""Routing in machine code, from gate products to permutations, against what the text means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.routing_inputs import TOKENS, check, compiled, scores, whole
from tests.routing_programs import SORTED, groups
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program
from tilewright.runtime.threads import set_num_threads

ROUTING = (Path(__file__).parent.parent / "examples" / "routing.tw").read_text(encoding="utf-8")
SEEDS, LENGTHS = st.integers(0, 9999), st.sampled_from(TOKENS)


@contextmanager
def threads(count: int) -> Iterator[None]:
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(None)


def for_lengths(run: Callable[[int, int], None], examples: int = 10) -> None:
    """``run(seed, tokens)`` for few tokens, and for drawn numbers of them."""
    run(0, 4)

    @given(SEEDS, LENGTHS)
    @settings(max_examples=examples)
    def property_(seed: int, tokens: int) -> None:
        run(seed, tokens)

    property_()


# ---- the operations

PIECES = """graph pieces<T, A>(%x: tensor<T x 12 x f32>, %ids: tensor<T x 3 x i32>,
    %source: tensor<T x 3 x f32>, %table: tensor<A x 12 x f32>, %own: tensor<T x i64>) {
  %taken = tensor.take_along %x, %ids {axis = 1}
  %set = tensor.scatter %x, %ids, %source {axis = 1, kind = "set"}
  %sum = tensor.scatter %x, %ids, %source {axis = 1, kind = "sum"}
  %row = tensor.reshape %own {shape = [size(T), 1]}
  %looked = tensor.gather %table, %row, %ids
  %running = tensor.prefix_sum %x {axis = 1}
  %before = tensor.prefix_sum %taken {axis = 1, exclusive = true}
  return %taken, %set, %sum, %looked, %running, %before
}"""

FLAT = """graph flat<T>(%ids: tensor<T x i64>) {
  %counts = tensor.segment_count %ids {segments = size(33)}
  %offsets = tensor.prefix_sum %counts {axis = 0, exclusive = true}
  %places = tensor.segment_rank %ids, %offsets
  return %places, %counts
}"""


def ids_of(
    rng: np.random.Generator, shape: tuple[int, ...], most: int, dtype: type = np.int32
) -> Any:
    """Ids, many of them equal, some outside, some as far outside as the dtype goes."""
    found: Any = rng.integers(-2, most + 3, shape).astype(dtype)
    ends: Any = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, most - 1, most], dtype)
    return torch.from_numpy(np.where(rng.random(shape) < 0.1, rng.choice(ends, shape), found))


def pieces(rng: np.random.Generator, tokens: int) -> list[Tensor]:
    return [
        torch.from_numpy(rng.standard_normal((tokens, 12)).astype(np.float32)),
        ids_of(rng, (tokens, 3), 12),
        whole(rng, tokens, 3, step=0.3),
        torch.from_numpy(rng.standard_normal((rng.integers(1, 5), 12)).astype(np.float32)),
        ids_of(rng, (tokens,), 4, np.int64),
    ]


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_positions_of_any_kind(target: str | None) -> None:
    """Duplicates, in order; positions outside are clamped where read, passed over where written."""
    check(PIECES, *pieces(np.random.default_rng(0), 3), target=target)

    @given(SEEDS, LENGTHS)
    @settings(max_examples=10)
    def property_(seed: int, tokens: int) -> None:
        check(PIECES, *pieces(np.random.default_rng(seed), tokens), target=target)

    property_()


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_sums_of_narrow_numbers_round_once(dtype: str, target: str | None) -> None:
    """Running and into places."""
    narrow = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]

    def run(seed: int, tokens: int) -> None:
        rng = np.random.default_rng(seed)
        x, source = whole(rng, tokens, 12), whole(rng, tokens, 3)
        given = [x.to(narrow), ids_of(rng, (tokens, 3), 12), source.to(narrow)]
        rest = [whole(rng, 3, 12).to(narrow), ids_of(rng, (tokens,), 4, np.int64)]
        check(PIECES.replace("f32", dtype), *given, *rest, target=target)

    for_lengths(run, 4)


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_counting_sorts(target: str | None) -> None:
    """Few tokens in one kernel, many in three: parts are counted, added up, and ranked."""
    check(SORTED, ids_of(np.random.default_rng(0), (3, 3), 9), torch.arange(9), target=target)

    @given(SEEDS, st.one_of(LENGTHS, st.sampled_from([1000, 4097])))
    @settings(max_examples=10)
    def property_(seed: int, tokens: int) -> None:
        rng = np.random.default_rng(seed)
        given_ = torch.from_numpy(rng.integers(-50, 999, 9))
        check(SORTED, ids_of(rng, (tokens, 3), 9), given_, target=target)
        check(FLAT, ids_of(rng, (tokens,), 33, np.int64), target=target)

    property_()


def test_places_sort_the_choices() -> None:
    """The permutation puts every id at its place: what comes out is a stable sort."""
    for tokens in (1, 5, 300, 1000):
        ids = torch.randint(0, 33, (tokens,), generator=torch.Generator().manual_seed(tokens))
        places, counts = compiled(FLAT)(ids)
        assert torch.equal(places.long(), torch.argsort(torch.argsort(ids, stable=True)))
        assert torch.equal(counts.long(), torch.bincount(ids, minlength=33))


# ---- whole routings

SCORES = {
    "softmax": "%p = tensor.softmax %logits {axis = 1}",
    "sigmoid": "%p = math.sigmoid %logits",
    "none": "%p = math.neg %logits",
}


def routing(hidden: int, experts: int, k: int, function: str, dtype: str = "f32") -> str:
    """Gate product, scores, choice, the adapter's map, weights that sum to 1, permutation."""
    product = '%x, %gate {equation = "th,eh->te"}'
    widened = f"%l = tensor.contract {product} %logits = math.cast %l {{dtype = f32}}"
    return f"""graph routing<T, A>(%x: tensor<T x {hidden} x {dtype}>,
    %gate: tensor<{experts} x {hidden} x {dtype}>, %adapter: tensor<T x i32>,
    %map: tensor<A x {experts} x i32>) {{
  {f"%logits = tensor.contract {product}" if dtype == "f32" else widened}
  {SCORES[function]}
  %v, %chosen = tensor.top_k %p {{k = {k}, ties = "torch"}}
  %total = tensor.reduce %v {{kind = "sum", axis = 1, keep = true}}
  %weights = math.div %v, %total
  %own = tensor.reshape %adapter {{shape = [size(T), 1]}}
  %mapped = tensor.gather %map, %own, %chosen
  %none = math.const {{value = 0, type = tensor<i32>}}
  %base = math.compare %own, %none {{relation = "lt"}}
  %ids = math.select %base, %chosen, %mapped
  %counts = tensor.segment_count %ids {{segments = size({3 * experts})}}
  %offsets = tensor.prefix_sum %counts {{axis = 0, exclusive = true}}
  %places = tensor.segment_rank %ids, %offsets
  return %weights, %ids, %counts, %places
}}"""


def routed(rng: np.random.Generator, tokens: int, hidden: int, experts: int) -> list[Tensor]:
    """Numbers with exact sums: equal scores are equal in any order of additions."""
    adapters = int(rng.integers(1, 5))
    return [
        whole(rng, tokens, hidden),
        whole(rng, experts, hidden, step=1 / 16),
        torch.from_numpy(rng.integers(-1, adapters, tokens).astype(np.int32)),
        torch.from_numpy(rng.integers(0, 3 * experts, (adapters, experts)).astype(np.int32)),
    ]


GATES = [
    (64, 16, 4, "softmax", "f32", None),
    (7, 6, 1, "sigmoid", "f32", None),
    (130, 20, 3, "softmax", "f32", "x86-64-v3"),
    (1, 5, 5, "none", "f32", None),
]


@pytest.mark.parametrize(("hidden", "experts", "k", "function", "dtype", "target"), GATES)
def test_whole_routings(
    hidden: int, experts: int, k: int, function: str, dtype: str, target: str | None
) -> None:
    """Programs of up to 4 tokens, of a few hundred, and of any number, counted in 16 parts."""
    text = routing(hidden, experts, k, function, dtype)

    def run(seed: int, tokens: int) -> None:
        inputs = routed(np.random.default_rng(seed), tokens, hidden, experts)
        check(text, *inputs, target=target)

    for_lengths(run)
    run(1, 1000)


PRODUCT = """graph product<T>(%x: tensor<T x H x D>, %gate: tensor<E x H x D>) {
  %logits = tensor.contract %x, %gate {equation = "th,eh->te"}
  %wide = math.cast %logits {dtype = f32}
  %v, %ids = tensor.top_k %wide {k = 2, ties = "torch"}
  return %wide, %v, %ids
}"""


@pytest.mark.parametrize(
    ("hidden", "experts", "dtype", "target"),
    [(200, 7, "bf16", None), (33, 40, "bf16", "x86-64-v3"), (65, 2, "f16", None)],
)
def test_products_of_narrow_numbers(
    hidden: int, experts: int, dtype: str, target: str | None
) -> None:
    """Exact sums are the same whatever they are made of; the product is rounded as it says."""
    words = {"H": str(hidden), "E": str(experts), "D": dtype}
    text = PRODUCT
    for letter, word in words.items():
        text = text.replace(f" {letter} ", f" {word} ").replace(f"<{letter} ", f"<{word} ")
        text = text.replace(f" {letter}>", f" {word}>")
    narrow = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]

    def run(seed: int, tokens: int) -> None:
        rng = np.random.default_rng(seed)
        x, gate = whole(rng, tokens, hidden), whole(rng, experts, hidden)
        check(text, x.to(narrow), gate.to(narrow), target=target)

    for_lengths(run, 8)


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_groups(target: str | None) -> None:
    """Two axes of one element: the best of each group, the best groups, the best of these."""
    choice, results = 'k = 5, ties = "torch", ordered = false', "%weights, %ids, %where, %marked"
    text = groups("%x", choice, results)

    def run(seed: int, tokens: int) -> None:
        rng = np.random.default_rng(seed)
        check(text, scores(rng, tokens, 12, 2, "few"), whole(rng, 12, step=0.5), target=target)

    for_lengths(run)


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_programs_without_any_loop(target: str | None) -> None:
    """Matrices of known sizes, a choice of a single token: all of it is done once."""
    matrices = (
        "graph f(%x: tensor<1 x 40 x f32>, %y: tensor<37 x 1 x f32>) {\n"
        "%a = math.max %x, %y %p = tensor.softmax %x {axis = 1} return %p, %a }"
    )
    choice = (
        "graph f(%x: tensor<1 x 40 x f32>) { %p = tensor.softmax %x {axis = 1}\n"
        '%v, %i = tensor.top_k %p {k = 3, ties = "torch"} return %v, %i }'
    )
    for seed, kind in enumerate(("different", "few", "worst thirds")):
        rng = np.random.default_rng(seed)
        check(matrices, scores(rng, 1, 40, 3, kind), whole(rng, 37, 1), target=target)
        check(choice, scores(rng, 1, 40, 3, kind) / 8, target=target)


# ---- how inputs lie, who works

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second row": lambda x: torch.stack((x, x * 9), 1).flatten(0, 1)[::2],
    "every second column": lambda x: torch.stack((x, x * 9), -1).flatten(-2)[..., ::2],
    "one row for all": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_are_not_contiguous(layout: str) -> None:
    rng = np.random.default_rng(0)
    for tokens in (1, 4, 37, 300):
        x, gate, adapter, table = routed(rng, tokens, 64, 16)
        move = LAYOUTS[layout]
        check(ROUTING, move(x), move(gate), adapter, move(table))


def amid(x: Tensor, worst: float) -> Tensor:
    """The same numbers with others around them in memory, which nobody must use."""
    rows, columns = x.shape
    wide = torch.full((rows + 20, columns + 20), worst).to(x.dtype)
    wide[:rows, :columns] = x
    return wide[:rows, :columns]


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
def test_what_lies_beside_the_inputs_is_not_used(target: str | None) -> None:
    """Neither past the last token nor past the last hidden number: 130 is no multiple of lanes."""
    text, rng = routing(130, 20, 3, "softmax"), np.random.default_rng(0)
    for tokens in (1, 4, 5, 37):
        x, gate, adapter, table = routed(rng, tokens, 130, 20)
        inputs = amid(x, np.nan), amid(gate, np.nan), adapter, amid(table, 99)
        check(text, *inputs, target=target)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_workers_gives_the_same(count: int) -> None:
    text = routing(64, 16, 4, "softmax")
    with threads(count):
        for tokens in (0, 3, 300, 1000, 4097):
            inputs = routed(np.random.default_rng(tokens), tokens, 64, 16)
            check(text, *inputs)
            check(SORTED, ids_of(np.random.default_rng(tokens), (tokens, 3), 9), torch.arange(9))


@pytest.mark.parametrize("backend", ["numba", "interpreter"])
def test_other_back_ends(backend: str) -> None:
    text = routing(7, 6, 2, "softmax").replace('ties = "torch"', 'ties = "lowest"')
    program = Program(parse(text), backend=backend)
    assert program.supported
    for tokens in (0, 1, 9):
        check(text, *routed(np.random.default_rng(tokens), tokens, 7, 6), backend=backend)
    check(SORTED, ids_of(np.random.default_rng(0), (9, 3), 9), torch.arange(9), backend=backend)
    check(PIECES, *pieces(np.random.default_rng(0), 5), backend=backend)


def test_elements_whose_axes_lie_in_two_orders() -> None:
    """b is [i], a [j, i]: their difference came as [i, j], and its vectors were read as [j, i]."""
    text = """graph f(%b: tensor<8 x f32>, %a: tensor<5 x 8 x f32>) {
      %m = tensor.reduce %b {kind = "sum", axis = 0, keep = true}
      %e = math.sub %b, %m
      %d = math.sub %e, %a
      %x = math.add %a, %d
      %y = math.mul %x, %x
      %r = tensor.reduce %y {kind = "sum", axis = 1}
      return %r, %e
    }"""
    module = parse(text)
    b, a = torch.randn(8), torch.randn(5, 8)
    for got, want in zip(Program(module)(b, a), evaluate(module, b, a), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4)
