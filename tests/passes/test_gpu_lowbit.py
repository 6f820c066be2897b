"""Products with packed weights on whole blocks, in the interpreter of tile programs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gpu_lowbit_programs import between, check, evaluated, exact, programs, stream
from tests.lowbit_programs import Form, Weight, draw
from tilewright.ir import evaluate_tile
from tilewright.ir.dtypes import TABLE, table_dtype
from tilewright.ir.errors import EvaluationError, UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.packing import TILE_WORDS, Packing
from tilewright.ir.target import named_target
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    ProductSchedule,
    parts_of,
    product_schedule,
)

UNEVEN = table_dtype("test_uneven_gpu", [-3.0, -1.0, 0.7, 7.1])
FLOATS = [d.name for d in TABLE.values() if d.is_float and d.bits <= 8 and d.name != "e8m0"]
INTEGERS = [f"u{n}" for n in range(1, 9)] + [f"i{n}" for n in range(2, 9)]
DTYPES = [*INTEGERS, *FLOATS, "nf4", UNEVEN.name]
X = ("bf16", "f16", "f32")
SMALL = ProductSchedule(8, 1, 2, 2, 2)
SCALES = ("f16", "bf16", "f32", "e8m0", "f8e4m3")


def constant(dtype: str) -> int:
    """The zero of signed integers."""
    return 1 << int(dtype[1:]) - 1 if dtype.startswith("i") else 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    """All codes of every dtype (64 rows of 70 codes have them all), in every dtype of x."""
    for at, x in enumerate(X):
        weight = Weight(dtype, 32, "tiles", constant(dtype), scales=SCALES[at])
        check(Form((weight,), 70, x=x), 3, 1, SMALL, seed=at)


def test_integers_and_floats_are_exact_in_the_dtype_of_x() -> None:
    """But for tables, groups that begin within strips, and, with many columns, zeros that are no
    whole numbers."""
    for dtype, x in itertools.product([*INTEGERS, *FLOATS], X):
        assert exact(Form((Weight(dtype, 32, "tiles", constant(dtype)),), 70, x=x)), (dtype, x)
    assert exact(Form((Weight("u4", 32, "tiles", zeros="u8"),), 70, x="bf16"))
    for weight in (Weight("nf4", 32, "tiles"), Weight("u4", 20, "tiles")):
        assert not exact(Form((weight,), 70, x="bf16")) and exact(Form((weight,), 70))
    form = Form((Weight("u4", 32, "tiles", zeros="f16"),), 70, x="bf16")
    assert exact(form) and not exact(form, 64)


ENDS = ((), ("bias",), ("silu",), ("residual",), ("silu", "bias", "residual"))


@settings(max_examples=30)
@given(
    bits=st.integers(1, 8),
    group=st.sampled_from([16, 32, 48, 64, 128, 7, 20, 1, 4096]),
    length=st.integers(2, 700),
    zeros=st.sampled_from(["", "u8", "f16", "f32"]),
    scales=st.sampled_from(SCALES),
    x=st.sampled_from(X),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 3),
    vectors=st.sampled_from([1, 2]),
    strips=st.sampled_from([1, 2, 4, 16]),
    parts=st.sampled_from([1, 1, 2, 4]),
    end=st.sampled_from(ENDS),
    columns=st.sampled_from([8, 16, 64]),
    height=st.sampled_from([32, 64]),
    counting=st.booleans(),
)
def test_any_shape_and_group(  # noqa: PLR0913, PLR0917  (what is drawn)
    bits: int,
    group: int,
    length: int,
    zeros: str,
    scales: str,
    x: str,
    rows: int,
    blocks: int,
    vectors: int,
    strips: int,
    parts: int,
    end: tuple[str, ...],
    columns: int,
    height: int,
    counting: bool,
) -> None:
    """``columns`` decides whether sums or weights are scaled, ``strips`` whether a plane is read in
    several turns."""
    weight = Weight(f"u{bits}", group, "tiles", 0 if zeros else 1 << bits - 1, zeros, scales)
    schedule = ProductSchedule(columns, vectors, strips, 2, 2, parts, height)
    form = Form((weight,), length, 0, end, x)
    check(form, rows, blocks, schedule, seed=length, counting=counting)


def test_gated_products_of_other_widths() -> None:
    gate, up = Weight("u3", 32, "tiles", zeros="u8"), Weight("f6e3m2", 64, "tiles")
    for parts in (1, 2):
        form = Form((gate, up), 600, 0, ("silu", "residual"), "bf16")
        check(form, 5, 2, ProductSchedule(8, 1, 8, 2, 2, parts))


def test_default_schedules_are_right() -> None:
    for rows in (1, 20, 70):
        check(Form((Weight("u5", 128, "tiles", 16),), 600, 0, (), "bf16"), rows, 2)


def test_parts_are_added_in_their_order() -> None:
    """Results are the same bits again and again; k that the parts do not divide is covered."""
    form = Form((Weight("u4", 32, "tiles", 8),), 900, 0, ("bias",), "bf16")
    made = programs(form, 4, ProductSchedule(8, 1, 8, 2, 2, 8))
    assert made.finish is not None and str(made.main.attrs["grid"][1][0]) == "8"
    inputs = draw(form, LANES, 4, 1, 0).inputs
    assert np.array_equal(evaluated(made, inputs), evaluated(made, inputs))


@settings(max_examples=20)
@given(
    parts=st.sampled_from([2, 4, 8]),
    vectors=st.sampled_from([1, 2]),
    height=st.sampled_from([32, 64]),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 3),
    gated=st.booleans(),
    source=st.randoms(use_true_random=False),
)
def test_whoever_comes_last_adds_up_what_two_programs_do(
    parts: int,
    vectors: int,
    height: int,
    rows: int,
    blocks: int,
    gated: bool,
    source: random.Random,
) -> None:
    """The same bits, in whatever order work items come; counters are 0 again."""
    weights = (Weight("u3", 32, "tiles", zeros="u8"), Weight("u4", 64, "tiles"))
    form = Form(weights[: 1 + gated], 900, 0, ("silu", "bias"), "bf16")
    schedule = ProductSchedule(8, vectors, 2, 2, 2, parts, height)
    pair = programs(form, rows, schedule)
    one = programs(form, rows, schedule, counting=True)
    assert pair.finish is not None and one.finish is None and one.sums == 1 + gated
    inputs = draw(form, LANES, rows, blocks, 0).inputs
    memory = between(one, inputs)
    with in_any_order(source):
        (got,) = evaluate_graph(one.main, *inputs, *memory)
    assert np.array_equal(got, evaluated(pair, inputs))


@contextmanager
def in_any_order(source: random.Random) -> Iterator[None]:
    """The interpreter's work items, one after the other."""

    def shuffled(*axes: Iterable[int]) -> list[tuple[int, ...]]:
        items = list(itertools.product(*axes))
        source.shuffle(items)
        return items

    with patch.object(evaluate_tile, "itertools", SimpleNamespace(product=shuffled)):
        yield


def test_counters_that_are_not_0_are_seen() -> None:
    """Block 1 would be added up before its last part is there."""
    form = Form((Weight("u4", 32, "tiles", 8),), 900, 0, (), "bf16")
    made = programs(form, 4, ProductSchedule(8, 1, 8, 2, 2, 4), counting=True)
    inputs = draw(form, LANES, 4, 2, 0).inputs
    sums, counters = between(made, inputs)
    evaluate_graph(made.main, *inputs, sums, counters)
    for left, message in ((1, "not 0 after"), (4, "more work items")):
        counters[1] = left
        with pytest.raises(EvaluationError, match=message):
            evaluate_graph(made.main, *inputs, sums, counters)


@pytest.mark.parametrize(
    ("blocks", "rows", "length", "bits", "parts"),
    [
        (128, 1, 8192, 4, 4),  # a decode step on an H100
        (128, 1, 8192, 5, 2),  # whose work items take half a block each
        (896, 1, 8192, 4, 1),  # enough blocks by themselves
        (128, 4096, 8192, 4, 1),
        (2, 1, 8192, 4, 16),  # two turns to a part at least
        (2, 1, 300, 4, 1),
        (8, 16, 8192, 1, 2),  # sums would take as many bytes as words
    ],
)
def test_work_items_share_out_k_where_they_are_few(
    blocks: int, rows: int, length: int, bits: int, parts: int
) -> None:
    target, packing = named_target("cuda-sm90"), Packing.tiles(bits, LANES, 128)
    schedule = product_schedule((packing,), 16, target, rows)
    assert parts_of(schedule, blocks, rows, length, bits, slots=528) == parts


def test_what_is_refused_is_named() -> None:
    target = named_target("cuda-sm90")
    with pytest.raises(UnsupportedError, match=r"weights are packed as quads.*with_layout repacks"):
        programs(Form((Weight("u4", 32, "quads"),), 64))
    table, plain = (stream(Form((Weight(x, 32, "tiles"),), 64)) for x in ("nf4", "u4"))
    contiguous = {p.hint: 1 for p in plain.params}
    with pytest.raises(UnsupportedError, match=r"call tilewright\.linear"):
        gpu_program(table, target, contiguous)
    with pytest.raises(UnsupportedError, match="packed weights that are not contiguous"):
        gpu_program(plain, target, contiguous | {"w0_words": 0})
    assert gpu_program(plain, target, contiguous).level == "tile"


@pytest.mark.parametrize("dtype", [*INTEGERS, "f6e3m2", "f8e4m3", "nf4"])
def test_layouts_for_gpus_are_planes_that_divide_a_byte(dtype: str) -> None:
    """Counted, not looked up: fewer planes need fewer shifts and masks."""
    target = named_target("cuda-sm90")
    choice = choose_layout(TABLE[dtype], 128, target)  # int8 activations are taken as floats
    assert choice.packing == Packing.tiles(TABLE[dtype].bits, LANES, 128)
    assert choice.activation == "float" and "and thread" in choice.explain()
    assert all(c.packing.order == "tiles" for c in choice.candidates)
    first, *others = choice.candidates
    assert all(c.shifts + c.masks >= first.shifts + first.masks for c in others)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_a_code_of_one_plane_takes_little_more_than_one_instruction(dtype: str) -> None:
    """A mask and a multiply-add for two codes; one shift serves all codes of the upper bytes."""
    best = choose_layout(TABLE[dtype], 128, named_target("cuda-sm90")).candidates[0]
    assert best.shifts + best.masks + best.arithmetic == best.weights + TILE_WORDS
