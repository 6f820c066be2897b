"""Which loops' turns may overlap, and which blocks the copy engine may bring: what either would get
wrong is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.attention_programs import Attention
from tests.passes.roles_programs import Case
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_tile_roles import Arrive, Await, Roles
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_threads import roles
from tilewright.passes.to_threads.overlap import find_turn
from tilewright.passes.to_threads.rings import find_rings
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule


@pytest.fixture(scope="module")
def loop() -> t.For:
    """A loop over blocks of keys and values whose turns can overlap and do not yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roles, "OVERLAPPED", {False: 0, True: 0})
        form = Attention(16, 16, "bf16", causal=True)
        program = Case(form, BlockSchedule(64, 16, 4, 2)).threads
    both = program.body.ops[-1]
    assert isinstance(both, Roles)
    loops = [op for op in both.regions[0].walk() if isinstance(op, t.For)]
    return next(x for x in loops if any(isinstance(y, t.GroupProduct) for y in x.regions[0].ops))


def with_ops(loop: t.For, ops: list[Op]) -> t.For:
    made = loop.rebuilt(loop.operands, [replace(loop.regions[0], ops=tuple(ops))])
    assert isinstance(made, t.For)
    return made


def test_a_turn_of_two_products_each_with_its_wait_and_its_arrival_overlaps(loop: t.For) -> None:
    turn = find_turn(loop)
    assert turn is not None
    assert turn.scores is not turn.last
    assert loop.regions[0].yields[turn.number] is turn.last.result
    assert find_turn(with_ops(loop, list(loop.regions[0].ops))) is not None


@pytest.mark.parametrize("kind", [Await, Arrive, t.GroupProduct])
def test_a_turn_with_another_wait_arrival_or_product_does_not(loop: t.For, kind: type[Op]) -> None:
    """Nor does one with fewer: the rewriting would leave something out."""
    ops = list(loop.regions[0].ops)
    places = [at for at, op in enumerate(ops) if isinstance(op, kind)]
    assert len(places) == 2
    for at in places:
        again = ops[at].rebuilt(ops[at].operands, [])
        for where in (0, at, len(ops)):
            assert find_turn(with_ops(loop, [*ops[:where], again, *ops[where:]])) is None
        if kind is not t.GroupProduct:
            assert find_turn(with_ops(loop, ops[:at] + ops[at + 1 :])) is None


def test_a_turn_in_another_order_does_not(loop: t.For) -> None:
    """A wait that comes late, an arrival that comes early."""
    ops = list(loop.regions[0].ops)
    waits, arrivals, products = (
        [at for at, op in enumerate(ops) if isinstance(op, kind)]
        for kind in (Await, Arrive, t.GroupProduct)
    )
    for moved, where in ((waits[1], products[1]), (arrivals[0], waits[1])):
        rest = ops[:moved] + ops[moved + 1 :]
        assert find_turn(with_ops(loop, [*rest[:where], ops[moved], *rest[where:]])) is None


def rings_of(uses: str) -> list[str]:
    """The loads that go through rings in a loop that reads a block of ``x`` and one of ``y``, with
    products of what ``uses`` names: left and right sides, x or y, or k: numbers of their own."""
    b, layout = TileBuilder(), Layout(2).local(16, 16)
    kind = BufferType((Size.of(16), Size.of(64)), BF16, 1)
    memories = {name: Value(kind, name) for name in "xy"}
    with b.loop(b.index(0), b.index(64), 16, [b.filled(0, F32, layout)]) as loop:
        blocks = {
            name: b.load(memory, [b.index(0), loop.counter], (0, 1), layout, hint=name)
            for name, memory in memories.items()
            if name in uses
        }
        own = b.filled(1, BF16, layout)
        (acc,) = loop.carried
        for use in uses.split():
            acc = b(t.Product, acc, blocks.get(use[0], own), blocks.get(use[1], own))
        loop.next = (acc,)
    attrs = {"grid": (), "outputs": 0, "target": "cuda-sm90", "warps": 4, "stages": 2}
    graph = Graph("tile", "f", (), Region(tuple(memories.values()), tuple(b.top.ops)), attrs)
    rings = find_rings(graph, (), blocks.values(), 2)
    assert all(ring.slots >= 2 for ring in rings.every)
    return [load.result.hint for ring in rings.every for load in ring.loads]


@pytest.mark.parametrize(("uses", "wanted"), [("ky", ["y"]), ("kx ky", ["x", "y"])])
def test_right_sides_come_in_bulk(uses: str, wanted: list[str]) -> None:
    assert rings_of(uses) == wanted


@pytest.mark.parametrize("uses", ["xk", "xy", "yk ky", "ky ky", "yy"])
def test_what_is_not_just_the_right_side_of_one_product_does_not(uses: str) -> None:
    """A slot is free when its product has read it: nothing else may read it later, or otherwise."""
    with pytest.raises(UnsupportedError, match="not just the right side of one product"):
        rings_of(uses)
