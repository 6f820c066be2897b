"""The operations of routing: torch's order of ties, plain Python as the oracle, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.errors import EvaluationError, VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.selection import Selection, top_k

NUMBERS = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan])
WHOLE = st.integers(-2, 6)


@st.composite
def rows(draw: st.DrawFn, most: int = 300) -> tuple[Any, int]:
    """A row of 1 to ``most`` numbers, few of them different, and a k, at times below n / 64."""
    length = draw(st.one_of(st.integers(1, 20), st.integers(1, most)))
    different = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 9999))
    rng = np.random.default_rng(seed)
    row = rng.integers(0, different, length).astype(np.float32)
    if draw(st.booleans()):
        row[rng.random(length) < 0.2] = np.nan
    if draw(st.booleans()):
        row = np.sort(row)
    k = draw(st.one_of(st.integers(1, length), st.integers(1, max(1, length // 64))))
    return row, k


@given(rows(), st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=400)
def test_ties_stand_as_torch_leaves_them(
    drawn: tuple[Any, int], largest: bool, ordered: bool, dtype: torch.dtype
) -> None:
    """Also NaN, rows in order, and without ``sorted``, where torch promises nothing."""
    row, k = drawn
    given_ = torch.from_numpy(row).to(dtype)
    wanted = given_.topk(k, largest=largest, sorted=ordered).indices.tolist()
    ours = top_k(given_.float().numpy(), k, largest, torch=True, ordered=ordered)
    assert ours.tolist() == wanted


def test_ties_of_every_small_row_of_two_numbers() -> None:
    """All rows of up to 9 zeros and ones, every k."""
    for length in range(1, 10):
        bits = (np.arange(1 << length)[:, None] >> np.arange(length)) & 1
        table = torch.from_numpy(bits.astype(np.float32))
        for k in range(1, length + 1):
            wanted = table.topk(k).indices
            ours = top_k(table.numpy(), k, largest=True, torch=True, ordered=True)
            assert np.array_equal(ours, wanted.numpy()), (length, k)


class Adversary(Selection):
    """Decides comparisons as late and as badly as it can (McIlroy 1999): afterwards ``value`` is a
    row on which the same algorithm needs the most steps."""

    def __init__(self, count: int) -> None:
        super().__init__([0] * count)
        self.value = [count] * count
        self.solid, self.candidate, self.heaps = 0, 0, 0

    def less(self, a: int, b: int) -> bool:
        free = len(self.value)
        if self.value[a] == self.value[b] == free:
            self.value[a if a == self.candidate else b] = self.solid
            self.solid += 1
        if self.value[a] == free:
            self.candidate = a
        elif self.value[b] == free:
            self.candidate = b
        return self.value[a] < self.value[b]

    def _heap_select(self, first: int, middle: int, last: int) -> None:
        self.heaps += 1
        super()._heap_select(first, middle, last)


@pytest.mark.parametrize("k", [1, 40, 100, 199, 200])
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_on_which_torch_falls_back_to_heaps(k: int, ordered: bool) -> None:
    for length in (200, 200 + k, 512):
        adversary = Adversary(length)
        adversary.top_k(k, ordered)
        assert adversary.heaps, "the row is not bad enough"
        for factor in (1, 3):  # all different, and with ties
            row = -np.array([v // factor for v in adversary.value], np.float32)
            wanted = torch.from_numpy(row).topk(k, sorted=ordered).indices.tolist()
            assert top_k(row, k, largest=True, torch=True, ordered=ordered).tolist() == wanted


class CalmAtFirst(Adversary):
    """Takes the row as one in order while its k largest are found: only their sorting is bad."""

    calm = False

    def nth_element(self, nth: int) -> None:
        self.calm = True
        super().nth_element(nth)
        self.calm, self.heaps = False, 0

    def less(self, a: int, b: int) -> bool:
        return a < b if self.calm else super().less(a, b)


@pytest.mark.parametrize(("length", "k"), [(200, 150), (512, 512)])
def test_rows_whose_largest_torch_sorts_with_heaps(length: int, k: int) -> None:
    adversary = CalmAtFirst(length)
    adversary.top_k(k)
    assert adversary.heaps, "the row is not bad enough"
    values = [*adversary.value[: k - 1], *range(length + 1, 2 * length - k + 2)]
    row = -np.array(values, np.float32)
    wanted = torch.from_numpy(row).topk(k).indices.tolist()
    assert top_k(row, k, largest=True, torch=True, ordered=True).tolist() == wanted
    rank = np.argsort(np.argsort(values, kind="stable")).tolist()
    assert Selection(rank).top_k(k) == wanted


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.data())
def test_top_k_is_a_stable_sort_cut_short(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    key = [(0, 0.0, i) if math.isnan(v) else (1, -v, i) for i, v in enumerate(row)]
    wanted = [i for *_, i in sorted(key)][:k]
    text = f"graph f(%x: tensor<{len(row)} x f64>) {{ %v, %i = tensor.top_k %x {{k = {k}}} "
    values, ids = evaluate(parse(text + "return %v, %i }"), np.array(row))
    assert ids.tolist() == wanted and ids.dtype == np.int32
    assert np.array_equal(values, [row[i] for i in wanted], equal_nan=True)


@given(st.lists(st.lists(WHOLE, min_size=2, max_size=2), max_size=12), st.integers(1, 5))
def test_a_counting_sort_of_them_sorts(ids: list[list[int]], segments: int) -> None:
    """Counts, offsets, places: stable, ids outside nowhere; of no token, too."""
    text = (
        "graph f<T>(%ids: tensor<T x 2 x i64>) {\n"
        f"%counts = tensor.segment_count %ids {{segments = size({segments})}}\n"
        "%offsets = tensor.prefix_sum %counts {axis = 0, exclusive = true}\n"
        "%places = tensor.segment_rank %ids, %offsets\nreturn %counts, %places }"
    )
    array = np.array(ids, np.int64).reshape(-1, 2)
    counts, places = evaluate(parse(text), array)
    flat = [i for pair in ids for i in pair]
    inside = [n for n, i in enumerate(flat) if 0 <= i < segments]
    order = sorted(inside, key=lambda n: flat[n])
    assert counts.tolist() == [flat.count(s) for s in range(segments)]
    wanted = [order.index(n) if n in order else -1 for n in range(len(flat))]
    assert places.reshape(-1).tolist() == wanted


@given(st.lists(st.tuples(st.integers(0, 2), WHOLE, NUMBERS), max_size=12))
def test_scatters_one_after_another(steps: list[tuple[int, int, float]]) -> None:
    """In order: the last of several stays, sums are those of a loop; along either axis."""
    rows_, at, values = (np.array([s[i] for s in steps]) for i in range(3))
    start = np.arange(12.0).reshape(3, 4)
    ids = np.full((3, len(steps)), -1)
    ids[rows_.astype(int), np.arange(len(steps))] = at
    source = np.broadcast_to(values, ids.shape).astype(float)
    for kind in ("set", "sum"):
        wanted = start.copy()
        with np.errstate(all="ignore"):
            for row, place, value in steps:
                if 0 <= place < 4:
                    wanted[row, place] = value + (wanted[row, place] if kind == "sum" else 0)
        for axis in (1, 0):
            shapes = [a.T.shape if axis == 0 else a.shape for a in (start, ids)]
            text = (
                f"graph f(%x: tensor<{shapes[0][0]} x {shapes[0][1]} x f64>, "
                f"%i: tensor<{shapes[1][0]} x {shapes[1][1]} x i64>, "
                f"%s: tensor<{shapes[1][0]} x {shapes[1][1]} x f64>) "
                f'{{ %r = tensor.scatter %x, %i, %s {{axis = {axis}, kind = "{kind}"}} return %r }}'
            )
            given_ = [a.T if axis == 0 else a for a in (start, ids, source)]
            (ours,) = evaluate(parse(text), *given_)
            assert np.array_equal(ours.T if axis == 0 else ours, wanted, equal_nan=True)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5), st.booleans())
def test_sorting_is_torchs_stable_sort(table: list[list[float]], descending: bool) -> None:
    array = np.array(table)
    flag = str(descending).lower()
    for axis in (0, 1):
        text = f"graph f<N>(%x: tensor<N x 3 x f64>) {{ %r = tensor.sort_order %x {{axis = {axis}, "
        (ours,) = evaluate(parse(text + f"descending = {flag}}} return %r }}"), array)
        given_ = torch.from_numpy(array)
        wanted = torch.argsort(given_, dim=axis, descending=descending, stable=True)
        assert np.array_equal(ours, wanted.numpy())


@pytest.mark.parametrize(
    ("types", "line", "rule"),
    [
        ("8 x f32", "tensor.top_k %x {k = 9}", "1 <= k <= 8"),
        ("8 x f32", "tensor.top_k %x {k = 0}", "1 <= k <= 8"),
        ("8 x f32", 'tensor.top_k %x {k = 1, ties = "any"}', "ties is lowest or torch"),
        ("8 x f32", "tensor.top_k %x {k = 1, ordered = false}", "an order of its own"),
        ("f32", "tensor.top_k %x {k = 1}", "a dimension to choose from"),
        ("8 x bool", "tensor.top_k %x {k = 1}", "must be numbers"),
        ("8 x f32, 2 x 2 x i32", "tensor.take_along %x, %y {axis = 0}", "dimensions must agree"),
        ("8 x f32, 2 x f32", "tensor.take_along %x, %y {axis = 0}", "ids must be integers"),
        ("8 x f32", "tensor.sort_order %x {axis = 1}", "axis 1 is not a dimension"),
        ("8 x f32", "tensor.segment_count %x {segments = size(2)}", "ids must be integers"),
        ("8 x i32", "tensor.segment_count %x {segments = size(-2)}", "must not be negative"),
        ("8 x bool", "tensor.prefix_sum %x {axis = 0}", "sums are of numbers"),
        ("8 x i32, 2 x 2 x i32", "tensor.segment_rank %x, %y", "one number for every segment"),
        (
            "8 x f32, 2 x i32, 2 x f64",
            'tensor.scatter %x, %y, %z {axis = 0, kind = "set"}',
            "the dtype of x",
        ),
        (
            "8 x f32, 2 x i32, 3 x f32",
            'tensor.scatter %x, %y, %z {axis = 0, kind = "set"}',
            "the shape of ids",
        ),
        (
            "8 x f32, 2 x i32, 2 x f32",
            'tensor.scatter %x, %y, %z {axis = 0, kind = "max"}',
            "kind is set or sum",
        ),
    ],
)
def test_broken_rules_are_named(types: str, line: str, rule: str) -> None:
    params = ", ".join(f"%{n}: tensor<{t}>" for n, t in zip("xyz", types.split(", "), strict=False))
    results = "%v, %i" if "top_k" in line else "%v"
    with pytest.raises(VerifyError, match=rule):
        parse(f"graph f({params}) {{ {results} = {line} return %v }}")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('stream.top_k %a {axes = ["n"], kept = axis(k, 2)}', "neither the innermost loop"),
        ("stream.top_k %a {axes = [], kept = axis(k, 2)}", "neither the innermost loop"),
        ('stream.top_k %a {axes = ["d"], kept = axis(k, N)}', "a number of places"),
        ('stream.top_k %a {axes = ["d"], kept = axis(n, 2)}', "already runs over n"),
        ('stream.segment_count %i {axis = "n", segments = axis(s, 4)}', "the innermost loop"),
        ('stream.segment_rank %i, %a {axis = "m"}', "must be integers"),
        ('stream.segment_rank %i, %j {axis = "m"}', "the same loops"),
        ('stream.take_along %a, %a {axes = ["d"]}', "ids must be integers"),
        ('stream.take_along %a, %i {axes = ["m"]}', "the element's axes"),
        ('stream.prefix_sum %a {axes = ["x"]}', "neither the innermost loop"),
    ],
)
def test_broken_rules_of_streams_are_named(line: str, rule: str) -> None:
    results = "%v, %w" if "top_k" in line else "%v"
    text = (
        "stream f<N, M>(%x: tensor<N x M x 3 x f32>, %y: tensor<N x M x i32>, %z: tensor<4 x i32>) "
        '{ %a = stream.source %x {dims = [["n"], ["m"], ["d"]], type = stream<n=N, m=M; d=3 x f32>}'
        ' %i = stream.source %y {dims = [["n"], ["m"]], type = stream<n=N, m=M; i32>}'
        ' %j = stream.source %z {dims = [["s"]], type = stream<n=N; s=4 x i32>}'
        f" {results} = {line} return }}"
    )
    with pytest.raises(VerifyError, match=rule):
        parse(text)


def test_k_of_a_row_that_turns_out_shorter() -> None:
    text = "graph f<E>(%x: tensor<E x f32>) { %v, %i = tensor.top_k %x {k = 3} return %i }"
    assert evaluate(parse(text), np.array([1.0, 3.0, 2.0]))[0].tolist() == [1, 2, 0]
    with pytest.raises(EvaluationError, match="3 of a row of 2"):
        evaluate(parse(text), np.array([1.0, 3.0]))
