"""Laws of division, composition and changes of shape; every layout, products of atoms or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.ir.layout_strategies import any_layouts, threads_of
from tests.strategies import layouts
from tilewright.ir.errors import ParseError, UnsupportedError
from tilewright.ir.layout import Layout, column_local, column_spatial, local, spatial
from tilewright.ir.layout_algebra import (
    compose,
    conversion,
    divide,
    divide_left,
    modes,
    permute,
    reshape,
    threads,
)
from tilewright.ir.parser import parse
from tilewright.ir.reader import read_layout
from tilewright.ir.types import RegisterType

Index = tuple[int, ...]


def places(layout: Layout) -> Iterator[tuple[int, int]]:
    return itertools.product(range(layout.lanes), range(layout.registers))


def indices(shape: tuple[int, ...]) -> Iterator[Index]:
    return itertools.product(*map(range, shape))


def small_layouts(rank: int, most: int) -> list[Layout]:
    """Every layout of ``rank`` dimensions with up to ``most`` registers on all lanes, each map
    once: all splits of numbers into modes, shared out in every way."""
    found: dict[str, Layout] = {}
    for count in range(0, most.bit_length()):
        for sizes in itertools.product(range(2, most + 1), repeat=count):
            if math.prod(sizes) > most:
                continue
            for dims in itertools.product(range(-1, rank), repeat=count):  # -1 is a copy
                for kinds in itertools.product((0, 1), repeat=count):
                    if all(k for k, d in zip(kinds, dims, strict=True) if d < 0):  # on lanes
                        for layout in _shared_out(rank, sizes, dims, kinds):
                            found.setdefault(str(layout), layout)
    return list(found.values())


def _shared_out(
    rank: int, sizes: tuple[int, ...], dims: tuple[int, ...], kinds: tuple[int, ...]
) -> Iterator[Layout]:
    """The digits in this order within their dimension, in every order in lanes and registers."""
    order = [at for d in range(rank) for at, x in enumerate(dims) if x == d]
    split = [[sizes[at] for at in order if dims[at] == d] for d in range(rank)]
    number = {at: n for n, at in enumerate(order)}
    on = [[number.get(at, -size) for at, size in enumerate(sizes) if kinds[at]]]
    on += [[number[at] for at in range(len(sizes)) if not kinds[at]]]
    for lanes in set(itertools.permutations(on[0])):
        for registers in set(itertools.permutations(on[1])):
            yield modes(split, lanes, registers)


SMALL = {rank: small_layouts(rank, 8) for rank in (1, 2)}


def by_table(layouts: list[Layout]) -> dict[tuple[object, ...], list[Layout]]:
    found: dict[tuple[object, ...], list[Layout]] = {}
    for layout in layouts:
        key = (layout.shape, tuple(map(tuple, layout.table())))
        found.setdefault(key, []).append(layout)
    return found


@pytest.mark.parametrize("rank", SMALL)
def test_same_map_is_the_same_table(rank: int) -> None:
    """Exhaustively: each map has one canonical text, and is a product of atoms if one says it."""
    assert len(SMALL[rank]) > 50 and any(x.strides for x in SMALL[rank])
    tables = by_table(SMALL[rank])
    assert all(len(same) == 1 for same in tables.values())
    atoms = [("local", d, n) for d in range(rank) for n in (2, 3, 4, 5, 6, 7, 8)]
    atoms += [("spatial", d, n) for _, d, n in atoms] + [("replicate", 0, n) for n in range(2, 9)]
    products = {
        key
        for count in range(4)
        for steps in itertools.product(atoms, repeat=count)
        if math.prod(size for _, _, size in steps) <= 8
        for key in by_table([Layout(rank, steps)])
    }
    for key, (layout,) in tables.items():
        assert bool(layout.strides) == (key not in products), str(layout)
        assert layout.same_map(modes(*layout.modes()))


@pytest.mark.parametrize("rank", SMALL)
def test_division_finds_every_factor(rank: int) -> None:
    """Exhaustively: what divides is what has a product, tried with all layouts of the size."""
    tables = by_table(SMALL[rank])
    known = {text: layouts[0] for text, layouts in tables.items()}
    products: dict[tuple[int, int], Layout] = {}
    small = [x for x in SMALL[rank] if x.lanes * x.registers <= 4]
    order = {id(x): at for at, x in enumerate(SMALL[rank])}
    for a, b in itertools.product(small, small):
        whole = a @ b
        if whole.lanes * whole.registers > 8:
            continue
        key = (whole.shape, tuple(map(tuple, whole.table())))
        found = known[key]
        products[order[id(found)], order[id(b)]] = a
        left = divide_left(whole, a)
        assert left is not None and left.same_map(b)
    for (at, whole), b in itertools.product(enumerate(SMALL[rank]), small):
        if whole.lanes * whole.registers // (b.lanes * b.registers) <= 4:
            quotient, wanted = divide(whole, b), products.get((at, order[id(b)]))
            assert (quotient is None) == (wanted is None), (str(whole), str(b))
            assert quotient is None or (wanted is not None and quotient.same_map(wanted))


@given(st.integers(1, 3), st.data())
def test_product(rank: int, data: st.DataObject) -> None:
    """Every element becomes a tile; associative, with an identity."""
    a, b, c = (data.draw(any_layouts(rank, most=12)) for _ in range(3))
    assert ((a @ b) @ c).same_map(a @ (b @ c))
    assert (a @ Layout(rank)).same_map(a) and (Layout(rank) @ a).same_map(a)
    whole = a @ b
    for lane, register in places(whole):
        outer = a.index(lane // b.lanes, register // b.registers)
        inner = b.index(lane % b.lanes, register % b.registers)
        wanted = tuple(o * n + i for o, n, i in zip(outer, b.shape, inner, strict=True))
        assert whole.index(lane, register) == wanted


@given(st.integers(1, 3), st.data())
def test_division_undoes_the_product(rank: int, data: st.DataObject) -> None:
    a, b = (data.draw(any_layouts(rank, most=16)) for _ in range(2))
    whole = a @ b
    left, right = divide(whole, b), divide_left(whole, a)
    assert left is not None and left.same_map(a)
    assert right is not None and right.same_map(b)
    assert (whole / b).same_map(a)


@given(st.integers(1, 2), st.data())
def test_a_quotient_multiplies_back(rank: int, data: st.DataObject) -> None:
    a, b = (data.draw(any_layouts(rank, most=16)) for _ in range(2))
    for found, back in ((divide(a, b), 0), (divide_left(a, b), 1)):
        if found is not None:
            assert (b @ found if back else found @ b).same_map(a)


def test_division_of_the_paper() -> None:
    assert local(2, 4) / local(1, 2) == local(2, 2)
    fragment = local(2, 1).spatial(8, 4).local(1, 2)
    assert fragment / spatial(8, 4).local(1, 2) == local(2, 1)
    assert divide_left(fragment, local(2, 1)) == spatial(8, 4).local(1, 2)
    with pytest.raises(UnsupportedError, match=r"local\(2, 4\) is no product with spatial\(1, 2\)"):
        local(2, 4) / spatial(1, 2)
    assert divide(local(6), local(4)) is None and divide_left(local(6), local(4)) is None
    assert divide(local(2), local(2, 1)) is None and divide_left(local(2), local(2, 1)) is None


@given(any_layouts())
def test_holders_are_the_inverse(layout: Layout) -> None:
    every: dict[Index, list[tuple[int, int]]] = {i: [] for i in indices(layout.shape)}
    for place in places(layout):
        every[layout.index(*place)].append(place)
    for index, wanted in every.items():
        assert layout.holders(index) == wanted


@given(any_layouts(most=24), st.data())
def test_composition(layout: Layout, data: st.DataObject) -> None:
    """``compose(a, b)(t, r) = a(b(t, r))``, associative, with an identity."""
    b = data.draw(threads_of(layout))
    first = compose(layout, b)
    assume(first is not None)
    assert first is not None
    for place in places(first):
        lane, register = b.index(*place)
        assert first.index(*place) == layout.index(lane, register)
    assert (first.lanes, first.registers) == (b.lanes, b.registers)
    c = data.draw(threads_of(b))
    both, one = compose(first, c), compose(b, c)
    if both is not None and one is not None:
        again = compose(layout, one)
        assert again is not None and again.same_map(both)
    same = compose(layout, threads(layout.lanes, layout.registers))
    assert same is not None and same.same_map(layout)


@given(any_layouts(most=24), st.data())
def test_composition_is_refused_only_where_no_layout_says_it(
    layout: Layout, data: st.DataObject
) -> None:
    """A refusal has its reason: copies in registers, or sizes that do not divide each other."""
    b = data.draw(threads_of(layout))
    if compose(layout, b) is not None:
        return
    sizes = {size for digits in (*layout.digits(), *b.digits()) for _, _, size in digits}
    powers = all(size & (size - 1) == 0 for size in sizes)
    copies = any(stride == 0 for _, stride, _ in layout.digits()[1])
    assert copies or not powers


@given(any_layouts(most=24), st.data())
def test_conversion_solves_the_composition(source: Layout, data: st.DataObject) -> None:
    assume(all(stride for _, stride, _ in source.digits()[1]))  # no copies
    target = compose(source, data.draw(threads_of(source)))
    assume(target is not None)
    assert target is not None
    found = conversion(source, target)
    assert found is not None
    back = compose(source, found)
    assert back is not None and back.same_map(target)


def test_conversion_is_none() -> None:
    assert conversion(local(2), local(3)) is None
    assert conversion(Layout(1).replicate(2), Layout(1)) is None
    assert conversion(local(2).spatial(3), spatial(3).local(2)) is None  # 2 x 3 is not 3 x 2
    with pytest.raises(UnsupportedError, match=r"needs \(3, 2\)"):
        compose(local(2).spatial(3), threads(2, 3))


@given(any_layouts(3), st.permutations(range(3)))
def test_permute(layout: Layout, order: list[int]) -> None:
    turned = permute(layout, order)
    for place in places(layout):
        index = layout.index(*place)
        assert turned.index(*place) == tuple(index[d] for d in order)
    back = permute(turned, [order.index(d) for d in range(3)])
    assert back.same_map(layout)


def test_permute_refuses() -> None:
    with pytest.raises(UnsupportedError, match="no order of 2 dimensions"):
        permute(local(2, 2), (0, 0))


@given(any_layouts(), st.data())
def test_reshape(layout: Layout, data: st.DataObject) -> None:
    """Elements keep their row-major number; merging always works, and splitting back."""
    count = math.prod(layout.shape)
    flat = reshape(layout, (count,))
    assert flat is not None
    for place in places(layout):
        number = 0
        for at, size in zip(layout.index(*place), layout.shape, strict=True):
            number = number * size + at
        assert flat.index(*place) == (number,)
    back = reshape(flat, layout.shape)
    assert back is not None and back.same_map(layout)
    first = data.draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0]))
    split = reshape(layout, (first, count // first))
    if split is None:
        assert not all(size & (size - 1) == 0 for d in layout.digits() for _, _, size in d)
        return
    for place in places(layout):
        assert split.index(*place) == divmod(flat.index(*place)[0], count // first)


def test_reshape_cuts_no_digit() -> None:
    assert reshape(local(6), (3, 2)) == local(3, 2)
    assert reshape(spatial(2).local(3), (3, 2)) is None
    assert reshape(Layout(2).replicate(4), ()) == Layout(0).replicate(4)
    with pytest.raises(UnsupportedError, match=r"has no shape \(4,\)"):
        reshape(local(6), (4,))


# ---- the new atoms


@pytest.mark.parametrize("atom", [column_local, column_spatial])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_column_major_atoms(atom: Callable[..., Layout], sizes: list[int]) -> None:
    layout = atom(*sizes)
    assert layout.shape == tuple(sizes)
    for at, index in enumerate(itertools.product(*map(range, sizes[::-1]))):
        place = (0, at) if atom is column_local else (at, 0)
        assert layout.index(*place) == index[::-1]
    with_dots = getattr(local(2, *sizes[1:]), atom.__name__)(*sizes)
    assert with_dots == local(2, *sizes[1:]) @ layout


@given(any_layouts())
def test_text_parses_back(layout: Layout) -> None:
    again = read_layout(str(layout))
    assert again == layout
    dims = " x ".join(map(str, (*layout.shape, "f32")))
    module = parse(f"tile f(%x: reg<{dims}, {layout}>) {{ return }}")
    assert parse(str(module)) == module
    type_ = module.main.params[0].type
    assert isinstance(type_, RegisterType) and type_.layout == layout


@given(any_layouts())
def test_modes_come_back(layout: Layout) -> None:
    dims, lanes, registers = layout.modes()
    again = modes(dims, lanes, registers)
    assert again.same_map(layout) and again.shape == layout.shape
    text = ", ".join(f"({', '.join(map(str, part))})" for part in dims)
    on = [f"({', '.join(map(str, part))})" for part in (lanes, registers)]
    assert read_layout(f"modes({text}, lanes {on[0]}, registers {on[1]})") == again


@given(layouts())
def test_products_of_atoms_stay_products(layout: Layout) -> None:
    """Whatever the algebra makes of a product that one can say is said as one."""
    assert not modes(*layout.modes()).strides
    assert not permute(layout, range(layout.rank)[::-1]).strides


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modes((2, 2), lanes (0, 0), registers (1))", "share out 2 modes"),
        ("modes((2, 2), lanes (0), registers ())", "share out 2 modes"),
        ("modes((2), lanes (), registers (0, -2))", "share out 1 modes"),
        ("modes((0), lanes (0), registers ())", "sizes of a layout are positive"),
        ("modes((-2), lanes (0), registers ())", "modes have sizes from 1"),
        ("modes((70000), lanes (0), registers ())", "at most 65536 registers"),
        ("modes((2), lanes (0, -40000), registers ())", "at most 65536 registers"),
        ("local(2).modes((2), (2), lanes (0, 1), registers ())", "must have one rank"),
        ("modes((2), lanes (0))", "expected '.'|expected ','"),
        ("column_local(2).column_spatial(2, 2)", "must have one rank"),
        ("rows(2)", "expected a layout"),
        ("local(2) local(3)", "unexpected"),
        ("", "expected a layout"),
    ],
)
def test_wrong_text_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        read_layout(text)


def test_collapse_forgets_one_dimension() -> None:
    """Exhaustively, whichever of two dimensions it is: lanes keep where they are in the other."""
    for layout in SMALL[2]:
        for dim in (0, 1):
            small = layout.collapse(dim)
            assert small.shape[dim] == 1 and small.lanes == layout.lanes, layout
            for lane in range(layout.lanes):
                held = {layout.index(lane, r)[1 - dim] for r in range(layout.registers)}
                kept = [small.index(lane, r)[1 - dim] for r in range(small.registers)]
                assert sorted(kept) == sorted(held), (str(layout), dim, lane)


@given(any_layouts(), st.data())
@settings(max_examples=60)
def test_collapse_join_drop_of_any_layout(layout: Layout, data: st.DataObject) -> None:
    """What the compiler asks of layouts holds for those that are no products, too."""
    dim = data.draw(st.integers(0, layout.rank - 1))
    small = layout.collapse(dim)
    assert small.shape[dim] == 1 and small.lanes == layout.lanes
    for lane in range(layout.lanes):
        held = {layout.index(lane, r) for r in range(layout.registers)}
        projected = {(*i[:dim], 0, *i[dim + 1 :]) for i in held}
        assert {small.index(lane, r) for r in range(small.registers)} == projected
    assert small.is_part_of(layout)
    whole = layout.join(small)
    assert whole is not None and whole.same_map(layout)
    dropped = small.drop(dim)
    assert dropped.shape == small.shape[:dim] + small.shape[dim + 1 :]
    assert layout.registers % layout.packed == 0
    first = layout.index(0, 0)
    changed = {sum(layout.index(0, r)) - sum(first) for r in range(layout.packed)}
    assert changed == set(range(layout.packed))
