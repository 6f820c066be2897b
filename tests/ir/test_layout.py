"""Laws of the layout algebra, checked element by element on small layouts."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.strategies import layouts
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import VerifyError
from tilewright.ir.layout import Layout, local, spatial
from tilewright.ir.parser import parse
from tilewright.ir.types import RegisterType

Index = tuple[int, ...]


def held(layout: Layout) -> list[set[Index]]:
    """What each lane holds."""
    return [
        {layout.index(lane, r) for r in range(layout.registers)} for lane in range(layout.lanes)
    ]


def only(index: Index, layout: Layout) -> Index:
    """An index into a broadcast tile as an index into an operand with some sizes of one."""
    return tuple(0 if size == 1 else i for i, size in zip(index, layout.shape, strict=True))


@st.composite
def pairs(draw: st.DrawFn, count: int = 2) -> tuple[Layout, ...]:
    rank = draw(st.integers(1, 3))
    return tuple(draw(layouts(rank, most=12)) for _ in range(count))


@given(layouts())
def test_every_element_lies_somewhere(layout: Layout) -> None:
    every = set(itertools.product(*map(range, layout.shape)))
    assert set().union(*held(layout)) == every
    copies = layout.lanes * layout.registers // math.prod(layout.shape)
    assert layout.lanes * layout.registers == copies * math.prod(layout.shape)


@given(layouts())
def test_table_is_the_index(layout: Layout) -> None:
    table = layout.table()
    assert len(table) == layout.registers and all(len(row) == layout.lanes for row in table)
    for register, row in enumerate(table):
        assert row == [layout.index(lane, register) for lane in range(layout.lanes)]


@given(pairs(3))
def test_product_is_associative(three: tuple[Layout, ...]) -> None:
    a, b, c = three
    assert (a @ b) @ c == a @ (b @ c)
    assert a @ Layout(a.rank) == a == Layout(a.rank) @ a


@given(pairs())
@settings(max_examples=60)
def test_product_puts_a_tile_into_every_element(two: tuple[Layout, ...]) -> None:
    a, b = two
    whole = a @ b
    assert whole.shape == tuple(x * y for x, y in zip(a.shape, b.shape, strict=True))
    assert (whole.lanes, whole.registers) == (a.lanes * b.lanes, a.registers * b.registers)
    for lane, register in itertools.product(range(whole.lanes), range(whole.registers)):
        outer = a.index(lane // b.lanes, register // b.registers)
        inner = b.index(lane % b.lanes, register % b.registers)
        wanted = tuple(o * n + i for o, n, i in zip(outer, b.shape, inner, strict=True))
        assert whole.index(lane, register) == wanted


@given(layouts(most=16))
def test_atoms_are_products(layout: Layout) -> None:
    ones = (1,) * (layout.rank - 1)
    assert layout.local(2, *ones) == layout @ local(2, *ones)
    assert layout.spatial(3, *ones) == layout @ spatial(3, *ones)
    assert layout.replicate(2) == layout @ Layout(layout.rank).replicate(2)
    assert layout.replicate(2).shape == layout.shape


@given(layouts(), st.data())
def test_collapse_keeps_lanes_and_forgets_one_dimension(
    layout: Layout, data: st.DataObject
) -> None:
    dim = data.draw(st.integers(0, layout.rank - 1))
    small = layout.collapse(dim)
    assert small.lanes == layout.lanes and small.shape[dim] == 1
    for lane, elements in enumerate(held(layout)):
        projected = {(*i[:dim], 0, *i[dim + 1 :]) for i in elements}
        assert held(small)[lane] == projected
    assert small.collapse(dim) == small


def check_broadcast(a: Layout, b: Layout, whole: Layout) -> None:
    """``whole`` is the layout of the broadcast of ``a`` and ``b``."""
    assert whole.lanes == max(a.lanes, b.lanes)
    broadcast = [{x, y} - {1} or {1} for x, y in zip(a.shape, b.shape, strict=True)]
    assert all(len(sizes) == 1 for sizes in broadcast), "sizes of one dimension differ"
    assert whole.shape == tuple(sizes.pop() for sizes in broadcast)
    for part in (a, b):
        for lane, elements in enumerate(held(whole)):
            there = held(part)[lane] if part.lanes > 1 else held(part)[0]
            assert {only(i, part) for i in elements} <= there


@given(pairs())
@settings(max_examples=300)
def test_sum_of_two_tiles_lies_where_both_lie(two: tuple[Layout, ...]) -> None:
    a, b = two
    try:
        total = m.Add(Value(RegisterType(F32, a)), Value(RegisterType(F32, b)))
    except VerifyError:
        return
    assert isinstance(total.result.type, RegisterType)
    check_broadcast(a, b, total.result.type.layout)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (spatial(3).local(2), Layout(1).replicate(3)),  # holds 2i + r, gets r*3 + i
        (spatial(3), Layout(1).replicate(3).local(2)),  # sizes 3 and 2: gets 6 instead of None
    ],
    ids=str,
)
def test_join_is_the_broadcast_or_nothing(a: Layout, b: Layout) -> None:
    whole = a.join(b)
    if whole is not None:
        check_broadcast(a, b, whole)


@given(layouts())
def test_join_with_itself_and_with_its_parts(layout: Layout) -> None:
    assert layout.join(layout) is not None
    for dim in range(layout.rank):
        whole = layout.join(layout.collapse(dim))
        if whole is not None:
            assert whole.shape == layout.shape


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (local(8, 1).replicate(16), local(1, 3).spatial(1, 16), local(8, 3).spatial(1, 16)),
        (Layout(2).replicate(8), spatial(1, 8), spatial(1, 8)),
        (spatial(4, 1).replicate(2), Layout(2).replicate(4).spatial(1, 2), spatial(4, 2)),
        (spatial(8, 1), spatial(1, 8), None),
        (spatial(1, 8), spatial(1, 16), None),
        (spatial(1, 6).replicate(4), Layout(2).replicate(4).spatial(6, 1), None),
    ],
    ids=str,
)
def test_join_of(a: Layout, b: Layout, wanted: Layout | None) -> None:
    assert a.join(b) == wanted
    assert b.join(a) == wanted


@st.composite
def respelled(draw: st.DrawFn) -> tuple[Layout, Layout]:
    """A layout and one of its steps in another order, some of them split in two."""
    layout = draw(layouts(most=24))
    steps: list[tuple[str, int, int]] = []
    for kind, dim, size in layout.steps:
        divisor = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        steps += [(kind, dim, divisor), (kind, dim, size // divisor)]
    steps = [s for s in steps if s[2] > 1]
    for at in draw(st.lists(st.integers(0, max(0, len(steps) - 2)), max_size=6)):
        steps[at : at + 2] = steps[at : at + 2][::-1]
    return layout, Layout(layout.rank, tuple(steps))


@given(respelled())
@settings(max_examples=300)
def test_same_map_is_the_same_table(two: tuple[Layout, Layout]) -> None:
    a, b = two
    alike = a.shape == b.shape and a.table() == b.table()
    assert a.same_map(b) == b.same_map(a) == alike


@given(layouts(rank=3), st.integers(0, 2))
def test_drop_removes_a_dimension_of_size_one(layout: Layout, dim: int) -> None:
    flat = layout.collapse(dim)
    small = flat.drop(dim)
    assert small.shape == flat.shape[:dim] + flat.shape[dim + 1 :]
    for lane, register in itertools.product(range(flat.lanes), range(flat.registers)):
        index = flat.index(lane, register)
        assert small.index(lane, register) == index[:dim] + index[dim + 1 :]


@given(layouts())
def test_packed_counts_neighbours_in_one_lane(layout: Layout) -> None:
    assert layout.registers % layout.packed == 0
    if layout.packed > 1:
        dim = layout.steps[-1][1]
        first = layout.index(0, 0)
        for r in range(layout.packed):
            wanted = tuple(x + r * (d == dim) for d, x in enumerate(first))
            assert layout.index(0, r) == wanted


def through_text(layout: Layout) -> Layout:
    dims = " x ".join(map(str, (*layout.shape, "f32")))
    module = parse(f"tile f(%x: reg<{dims}, {layout}>) {{ return }}")
    type_ = module.main.params[0].type
    assert isinstance(type_, RegisterType)
    return type_.layout


def loses_its_rank(layout: Layout) -> bool:
    """Only replication is left: nothing in the text says how many dimensions there are."""
    return layout.rank != 2 and bool(layout.steps) and math.prod(layout.shape) == 1


@given(layouts())
def test_text_parses_back(layout: Layout) -> None:
    assume(not loses_its_rank(layout))
    assert through_text(layout) == layout


@pytest.mark.parametrize("rank", [1, 3])
def test_text_of_pure_replication_parses_back(rank: int) -> None:
    layout = Layout(rank).replicate(8)
    assert through_text(layout) == layout


@pytest.mark.parametrize("size", [1, 3, 17, 1 << 16])
def test_sizes_need_not_be_powers_of_two(size: int) -> None:
    layout = spatial(1, size).local(2, 1)
    assert layout.index(size - 1, 1) == (1, size - 1)
