"""Products with packed weights as tile programs: which units are visited, what is refused, what
unpacking costs, and the interpreter's results beside float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.lowbit_programs import Form, Weight, bound, draw, oracle
from tests.passes.stages import TARGETS
from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import I64, TABLE
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.packing import ORDERS, QUAD, Packing
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.choose import unpack_slots
from tilewright.passes.to_tile.lowbit.info import packed_products
from tilewright.passes.to_tile.lowbit.walk import GroupBody, Tiles, Units, walk_groups

WIDTHS = {"lanes of 1": "scalar", "of 8": "x86-64-v3", "of 16": "x86-64-v4"}


def walk_program(units: Units) -> Graph:
    """Writes for every unit where in the packing it was read, its group, and how often; for every
    group how many units its sums got; and the totals."""
    b = TileBuilder()
    groups = -(-units.total // units.group)
    shapes = {"units": (units.total, 3), "groups": (groups, 1), "totals": (2,)}
    out = {
        name: Value(BufferType(tuple(map(Size.of, shape)), I64, len(shape) - 1), name)
        for name, shape in shapes.items()
    }

    def put(tile: Value, memory: str, *at: Value) -> None:
        b.store(tile, out[memory], at, [-1] * len(at))

    def number(x: Value) -> Value:
        return b.splat(x, rank=1)

    def plus(x: Value, more: int) -> Value:
        return b(m.Add, x, number(b.index(more)))

    def start(group: Value) -> Tiles:
        return [number(group), number(b.index(0))]

    def chunk(sums: Tiles, at: Value, inside: Sequence[int], first: Value) -> Tiles:
        group, count = sums
        for place, unit in enumerate(inside):
            here = b.add(first, place)
            put(number(b.add(b.mul(at, units.in_chunk), unit)), "units", here, b.index(0))
            put(group, "units", here, b.index(1))
            times = [here, b.index(2)]
            before = b.load(out["units"], times, [-1, -1], group.type.layout)  # type: ignore[union-attr]
            put(plus(before, 1), "units", *times)
            count = plus(count, 1)
        return [group, count]

    def finish(totals: Tiles, sums: Tiles, group: Value) -> Tiles:
        put(sums[1], "groups", group, b.index(0))
        return [plus(totals[0], 1), b(m.Add, totals[1], sums[1])]

    with b.loop(b.index(0), b.index(units.total), 1) as loop:
        put(number(b.index(0)), "units", loop.counter, b.index(2))
    zero = number(b.index(0))
    totals = walk_groups(b, units, GroupBody(start, chunk, finish), [zero, zero])
    for at, total in enumerate(totals):
        put(total, "totals", b.index(at))
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 3, "target": "scalar"}
    return Graph("tile", "f", (), Region(tuple(out.values()), tuple(b.top.ops)), attrs)


packings = st.builds(
    lambda order, bits, group: getattr(Packing, order)(bits, 1, group),
    st.sampled_from(ORDERS),
    st.integers(1, 8),
    st.integers(1, 20) | st.sampled_from([32, 40, 64, 100]),
)


@given(packings, st.integers(1, 150), st.sampled_from([1, QUAD]))
@example(Packing.quads(4, 1, 4), 70, 1)  # groups of a part of a chunk, over several chunks
@example(Packing.quads(1, 1, 16), 150, 1)
@example(Packing.fields(8, 1, 40), 130, 1)  # groups of many chunks, written as a loop
@example(Packing.quads(8, 1, 32), 130, QUAD)
@settings(max_examples=40, deadline=None)
def test_every_unit_is_visited_once_where_its_code_lies(p: Packing, length: int, unit: int) -> None:
    """In its group's sums, which join the totals once; of four codes where they come in quads."""
    group = min(p.group, length)
    if unit == QUAD and (p.order != "quads" or (group < length and p.group % QUAD)):
        return
    total = -(-length // unit)
    units = Units(-(-group // unit), p.chunk // unit, p.padded_group // unit, total)
    seen, counted, totals = evaluate_graph(walk_program(units))
    number, inside = np.divmod(np.arange(total), units.group)
    assert np.array_equal(seen[:, 0], number * units.slots + inside)
    assert np.array_equal(seen[:, 1], number) and (seen[:, 2] == 1).all()
    assert np.array_equal(counted[:, 0], np.bincount(number))
    assert totals.tolist() == [len(counted), total]


def tile(form: Form, target: str, rows: int = 0) -> Graph:
    """A form's tile program."""
    kernel = run_passes(parse(form.text(TARGETS[target].lanes)), TO_KERNELS).main
    units = {p.hint: len(p.type.shape) - 1 for p in kernel.params}  # type: ignore[union-attr]
    return kernel_to_tile(kernel, TARGETS[target], rows, units)


FORMS = [
    Form((Weight("u4", 4, zero=8),), 70),  # groups of a part of a chunk
    Form((Weight("u4", 4, zeros="u8"),), 70, 4),
    Form((Weight("u3", 7, "fields", zeros="f16"),), 100),
    Form((Weight("u5", 20, "bytes", zero=16),), 90, 20),
    Form((Weight("u8", 40, zeros="u8"),), 130, 40, ("bias",)),  # of many chunks
    Form((Weight("u4", 64, zero=8), Weight("f6e3m2", 3, "halves")), 66, 0, ("silu",)),
]


@pytest.mark.parametrize("target", WIDTHS.values())
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_groups_of_any_length_in_the_interpreter(form: Form, target: str) -> None:
    """One row, and more rows than a register tile has, each beside float64."""
    lanes = TARGETS[target].lanes
    for rows, count in ((1, 1), (0, 5)):
        problem = draw(form, lanes, count, 2, rows)
        (got,) = evaluate_graph(tile(form, target, rows), *problem.inputs)
        want = oracle(form, lanes, problem.inputs)
        assert (np.abs(got - want) <= bound(form, problem, want)).all()


@pytest.mark.parametrize("dtype", ["u8", "u7", "u4", "u1"])
def test_sums_of_bytes_fit_32_bits(dtype: str) -> None:
    """The longest group whose sum fits whatever its codes and activations are; not one longer."""
    most = (2**31 - 1) // (128 * (2 ** TABLE[dtype].bits - 1))
    for length, fits in ((most, True), (most + 1, False)):
        form = Form((Weight(dtype, 1 << 26),), length, 1 << 26)
        if fits:
            tile(form, "x86-64-v4", 1)
            continue
        with pytest.raises(UnsupportedError, match=f"sums of {length} products of bytes"):
            tile(form, "x86-64-v4", 1)


CODES = ["u2", "u4", "u8", "i5", "f4e2m1", "f6e3m2", "f7e3m3", "f8e4m3", "nf4"]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "znver4"])
@pytest.mark.parametrize("order", ORDERS)
def test_what_unpacking_costs(order: str, target: str) -> None:
    """Zeros in a tensor are taken off later: a code costs what one without a zero does. Of several
    products the dearest counts; with activations as bytes or bf16 nothing becomes f32."""
    lanes = TARGETS[target].lanes

    def slots(*weights: Weight, activation: int = 0, x: str = "f32") -> float | None:
        form = Form(weights, 64, activation, x=x)
        kernel = run_passes(parse(form.text(lanes)), TO_KERNELS).main
        return unpack_slots(packed_products(kernel), TARGETS[target])

    plain = [Weight(dtype, 32, order) for dtype in CODES]
    costs = [slots(w) or 0.0 for w in plain]
    assert all(cost > 0 for cost in costs)
    assert costs == [slots(Weight(dtype, 32, order, zeros="f16")) for dtype in CODES]
    for at in range(1, len(plain)):
        assert slots(plain[0], plain[at]) == max(costs[0], costs[at])
        assert slots(plain[at], plain[0]) == max(costs[0], costs[at])
    assert slots(Weight("u4", 32), activation=32) is None
    assert slots(plain[1], x="bf16") is None
