"""The choice of a packing: all candidates are there, cheapest first, for every dtype and target."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import ORDERS, Packing
from tilewright.ir.target import NAMED, Target, named_target
from tilewright.passes.choose_layout import (
    ACTIVATIONS,
    MOST_PLANES,
    SHAPES,
    choose_layout,
    packings,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "choose_layout" / "u6.txt"
ALL = [d for d in TABLE.values() if d.bits <= 8 and d.name not in ("bool", "e8m0")]
# of the widest a few: their many packings take a while to count
CODED = [d for d in ALL if d.bits <= 5 or d.name in ("u6", "i7", "u8", "f6e3m2", "f8e4m3")]
CODED = [d for d in CODED if d.kind != "table" or d.name == "nf4"]
targets = st.sampled_from(list(NAMED.values()))
FEW = [named_target(name) for name in ("scalar", "x86-64-v3", "znver4")]


def some_target(dtype: DType) -> Target:
    """Targets by turns."""
    return FEW[CODED.index(dtype) % len(FEW)]


@pytest.mark.parametrize("dtype", CODED, ids=str)
def test_the_cheapest_comes_first(dtype: DType) -> None:
    target = some_target(dtype)
    for activation, shape in itertools.product(ACTIVATIONS, SHAPES[: 1 + (dtype.bits < 5)]):
        choice = choose_layout(dtype, 32, target, activation=activation, shape=shape)
        costs = [c.cycles_per_weight for c in choice.candidates]
        assert costs == sorted(costs) and costs[0] > 0
        assert choice.packing == choice.candidates[0].packing
        assert choice.packing.bits == dtype.bits and choice.packing.group == 32


@given(
    dtype=st.sampled_from([d for d in CODED if d.bits < 5]),
    group=st.sampled_from([1, 3, 16, 32, 100, 128, 4096, 1 << 20, 1 << 30]),
    target=targets,
    activation=st.sampled_from(ACTIVATIONS),
    shape=st.sampled_from(SHAPES),
)
@settings(max_examples=30)
def test_what_is_counted(
    dtype: DType, group: int, target: Target, activation: str, shape: str
) -> None:
    """Costs are positive; bytes are at least those of the codes; every packing is counted once."""
    choice = choose_layout(dtype, group, target, activation=activation, shape=shape)
    every = list(packings(dtype.bits, group, target.lanes))
    assert {c.packing for c in choice.candidates} == set(every)
    assert len(choice.candidates) == len(every) == len(set(every))
    for c in choice.candidates:
        assert c.weights == c.packing.chunk * target.lanes and c.loads == c.packing.words
        assert c.bytes * 8 >= c.weights * dtype.bits - 1e-9
        assert min(c.shifts, c.masks, c.arithmetic) >= 0 and c.cycles > 0
        if group % c.packing.chunk == 0:
            assert c.bytes * 8 == c.weights * dtype.bits, "nothing but the codes is read"


@pytest.mark.parametrize("dtype", CODED, ids=str)
def test_explain_lists_every_candidate_once(dtype: DType) -> None:
    target = some_target(dtype)
    choice = choose_layout(dtype, 32, target)
    head, columns, *lines = choice.explain().splitlines()
    assert head.startswith(f"{dtype} x {choice.activation} on {target.name}, decode")
    assert "cycles" in columns and len(lines) == len(choice.candidates)
    for number, (line, candidate) in enumerate(zip(lines, choice.candidates, strict=True)):
        assert line.startswith("* " if number == 0 else "  ") and str(candidate.packing) in line


def test_every_order_is_a_candidate() -> None:
    for bits in range(1, 9):
        found = list(packings(bits, 32, 16))
        assert found[0] == Packing.quads(bits, 16, 32)
        assert {p.order for p in found} >= {"quads", "fields"} and {p.order for p in found} <= {
            *ORDERS
        }
        planes = {p.planes for p in found if p.order == "quads"}
        sums = (
            x for n in range(1, MOST_PLANES + 1) for x in itertools.product((8, 4, 2, 1), repeat=n)
        )
        falling = {x for x in sums if sum(x) == bits and list(x) == sorted(x, reverse=True)}
        assert planes == falling


def test_formats_that_are_no_bytes_are_costed_with_float_activations() -> None:
    v4 = named_target("znver4")
    assert choose_layout(TABLE["f4e2m1"], 32, v4).activation == "int8"
    assert choose_layout(TABLE["f8e4m3"], 32, v4).activation == "float"
    assert choose_layout(TABLE["nf4"], 32, v4).activation == "float"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_widths_that_divide_a_byte_stay_whole(bits: int) -> None:
    """One plane, so that no code is put together from parts."""
    for target in FEW[1:]:
        assert choose_layout(TABLE[f"u{bits}"], 128, target).packing.planes == (bits,)


@pytest.mark.parametrize(
    ("group", "options", "said"),
    [
        (0, {}, "at least one code, not 0"),
        (-3, {}, "at least one code"),
        (32, {"activation": "int4"}, "activation is one of int8, float"),
        (32, {"shape": "train"}, "shape of decode, prefill"),
    ],
)
def test_what_is_no_question_is_refused(group: int, options: dict[str, str], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        choose_layout(TABLE["u4"], group, named_target("znver4"), **options)


def test_golden(update_golden: bool) -> None:
    """The table for six bits: where planes of 4 + 2 compete with whole codes."""
    choices = [
        choose_layout(TABLE["u6"], 128, named_target(name), activation=activation)
        for name in ("znver4", "x86-64-v3")
        for activation in ACTIVATIONS
    ]
    text = "\n\n".join(c.explain() for c in choices) + "\n"
    if update_golden:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text
