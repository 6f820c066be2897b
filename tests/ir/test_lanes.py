"""Register tiles as bits of lanes: views move them exactly, and what no lane has is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.examples import LAYOUT, T
from tests.ir.layout_strategies import any_layouts
from tilewright.ir.bit_patterns import from_bits, recut, to_bits
from tilewright.ir.bit_view import Bits, BitView
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import EvaluationError, SettingError, VerifyError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.evaluate_lanes_registers import (
    broadcast_registers,
    flat_table,
    index_table,
    owners,
    registers_with,
)
from tilewright.ir.layout import Layout
from tilewright.ir.parser import parse

DTYPES = [d for d in TABLE.values() if d.name != "bool"]


def patterns(dtype: DType, count: int, seed: int = 0) -> Any:
    """Bit patterns of a dtype: all of them if there are few, else drawn."""
    if dtype.bits <= 8:
        return np.arange(1 << dtype.bits, dtype=np.uint64)[:, None]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 1 << 63, (count, 1), dtype=np.uint64) * 2 + rng.integers(0, 2)
    return drawn.astype(np.uint64) & np.uint64((1 << dtype.bits) - 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_values(dtype: DType) -> None:
    """Every pattern is the bits of the value that it is; several that are NaN may become one."""
    bits = patterns(dtype, 2000)
    values = from_bits(bits, dtype)
    assert values.dtype == dtype.host
    again = to_bits(values, dtype)
    if dtype.is_float:
        number = ~np.isnan(values)
        twice = from_bits(again, dtype)
        np.testing.assert_array_equal(again[number], bits[number])
        np.testing.assert_array_equal(twice, values)
    elif dtype.kind == "table":
        np.testing.assert_array_equal(from_bits(again, dtype), values)
    else:
        np.testing.assert_array_equal(again, bits)


@given(any_layouts(most=12), st.sampled_from([1, 3, 4, 6, 8, 16]), st.data())
@settings(max_examples=60)
def test_bits_are_cut_as_views_say(layout: Layout, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, 2**20)) * np.arange(1, layout.registers * layout.lanes + 1)
    held = (bits.astype(np.uint64) % np.uint64(1 << width)).reshape(layout.registers, layout.lanes)
    total = width * layout.registers
    new = data.draw(st.sampled_from([w for w in range(1, 65) if total % w == 0]))
    target = Layout(1).spatial(layout.lanes).local(total // new)
    got = recut(held, width, total // new, new)
    view = BitView(Bits(layout, width), Bits(target, new))
    for register in range(total // new):
        for bit in range(new):
            source, low = view.register_of(register, bit)
            wanted = held[source] >> np.uint64(low) & np.uint64(1)
            np.testing.assert_array_equal(got[register] >> np.uint64(bit) & np.uint64(1), wanted)


@given(any_layouts())
def test_tables_of_layouts(layout: Layout) -> None:
    table = np.array(layout.table()).reshape(layout.registers, layout.lanes, layout.rank)
    np.testing.assert_array_equal(index_table(layout), table)
    registers, lanes = owners(layout)
    for flat, index in enumerate(np.ndindex(*layout.shape)):
        assert (lanes[flat], registers[flat]) == layout.holders(index)[0]
    found = registers_with(layout, flat_table(layout))
    assert found is not None
    np.testing.assert_array_equal(flat_table(layout)[found], flat_table(layout))
    for dim in range(layout.rank):
        assert broadcast_registers(layout.collapse(dim), layout) is not None
    if all(stride for _, stride, _ in layout.digits()[1]) and layout.lanes > 1:
        assert registers_with(layout, flat_table(layout)[:, ::-1]) is None  # on other lanes


# ---- programs


def program(lines: str, out: str = "4 x 8 x f64", **kinds: str) -> Any:
    """A tile program on %x [4, 8], read to %a with rows in registers, and more inputs."""
    head = "".join(f"%{name}: buffer<{kind}, unit 1>, " for name, kind in kinds.items())
    return parse(
        f"tile f(%x: buffer<4 x 8 x f64, unit 1>, {head}%o: buffer<{out}, unit 1>) "
        "with {grid = [[1, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n%c3 = math.const {value = 3, type = index}\n"
        f"%a = tile.load %x, %c0, %c0 {{dims = [0, 1], layout = {LAYOUT}}}\n{lines}\nreturn }}"
    )


STORE = "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}"


def refused(lines: str, *inputs: Any, out: str = "4 x 8 x f64", **kinds: str) -> str:
    """What the interpreter says, lane by lane."""
    with pytest.raises(EvaluationError) as caught:
        evaluate(program(lines, out, **kinds), T, *inputs, lanes=True)
    return caught.value.message


VIEWED = [("u8", 3, "u6", 4), ("u8", 3, "i4", 6), ("f32", 1, "i8", 4), ("i32", 1, "bf16", 2)]
VIEWED += [("i8", 4, "f32", 1), ("u8", 2, "f16", 1), ("u8", 3, "f6e3m2", 4), ("u8", 1, "nf4", 2)]


@pytest.mark.parametrize(("source", "count", "target", "parts"), VIEWED)
def test_views_move_bits_exactly(source: str, count: int, target: str, parts: int) -> None:
    """Against Python's integers, lane by lane; and the whole-tile meaning is the same."""
    wide = "f32" if TABLE[target].is_float or TABLE[target].kind == "table" else "i32"
    module = parse(
        f"tile f(%y: buffer<8 x {count} x {source}, unit 1>, %o: buffer<8 x {parts} x {wide}, "
        "unit 1>) with {grid = [[1, 1]], outputs = 1} {\n"
        "%c0 = math.const {value = 0, type = index}\n"
        f"%a = tile.load %y, %c0, %c0 {{dims = [0, 1], layout = spatial(8, 1).local(1, {count})}}\n"
        f"%v = tile.view %a {{dtype = {target}, layout = spatial(8, 1).local(1, {parts})}}\n"
        f"%r = math.cast %v {{dtype = {wide}}}\n{STORE}\nreturn }}"
    )
    bits = patterns(TABLE[source], 300).reshape(-1)
    chosen = np.resize(bits[7::11], 8 * count).reshape(8, count).astype(np.uint64)
    given_values = from_bits(chosen, TABLE[source])
    chosen = to_bits(given_values, TABLE[source])
    (got,) = evaluate(module, given_values, lanes=True)
    for lane in range(8):
        number = sum(int(b) << (at * TABLE[source].bits) for at, b in enumerate(chosen[lane]))
        width = TABLE[target].bits
        cut = [number >> (at * width) & ((1 << width) - 1) for at in range(parts)]
        wanted = from_bits(np.array([cut], np.uint64), TABLE[target])[0]
        np.testing.assert_array_equal(got[lane], wanted.astype(got.dtype))
    (whole,) = evaluate(module, given_values)
    np.testing.assert_array_equal(got, whole)


def test_an_illegal_view_is_refused() -> None:
    for layout, message in (
        ("local(2, 1).spatial(1, 8)", "keeps the bits of a lane"),
        ("local(4, 1).spatial(1, 4)", "keeps the lanes"),
    ):
        with pytest.raises(VerifyError, match=message):
            program(f"%v = tile.view %a {{dtype = i64, layout = {layout}}}")


UNDEFINED = "%u = tile.undefined {type = reg<1 x 8 x f64, spatial(1, 8)>}\n"
PARTLY = UNDEFINED + "%p = tile.take %a {at = 1}\n%w = tile.stack %p, %u\n"
HALVES = (
    "%h = tile.view %w {dtype = i32, layout = local(4, 1).spatial(1, 8)}\n"
    "%t = tile.take %h {at = AT}\n%r = math.cast %t {dtype = f64}\n"
    "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}"
)


def test_bits_that_nothing_wrote_may_move_but_not_be_read() -> None:
    low, high = (HALVES.replace("AT", str(at)) for at in (1, 2))
    (got,) = evaluate(program(PARTLY + low, "1 x 8 x f64"), T, lanes=True)
    np.testing.assert_array_equal(got[0], T[1].view(np.int32)[1::2])
    message = refused(PARTLY + high, out="1 x 8 x f64")
    assert "math.cast: reads bit 0 of register 0 of lane 0, element [0, 0]" in message
    assert "which nothing wrote" in message


@pytest.mark.parametrize(
    "use",
    [
        "%r = math.add %u, %u",
        '%r = tile.reduce %u {kind = "sum", dim = 1}',
        "tile.store %u, %o, %c0, %c0 {dims = [0, 1]}",
        "%i = math.cast %u {dtype = i64}\n%r = tile.gather %x, %c0, %i",
    ],
)
def test_every_use_reads(use: str) -> None:
    assert "reads bit 0 of register 0 of lane 0" in refused(UNDEFINED + use)


def test_a_whole_word_of_which_half_is_written_is_not_read() -> None:
    lines = (
        "%u = tile.undefined {type = reg<1 x 8 x i32, spatial(1, 8)>}\n"
        "%t = tile.take %a {at = 0}\n%i = math.cast %t {dtype = i32}\n%w = tile.stack %i, %u\n"
        "%v = tile.view %w {dtype = i64, layout = spatial(1, 8)}\n%r = math.abs %v"
    )
    assert "math.abs: reads bit 32 of register 0 of lane 0" in refused(lines)


def test_undefined_has_no_value_a_whole_tile_at_a_time() -> None:
    with pytest.raises(EvaluationError, match=r"tile\.undefined: has no value; .*lanes=True"):
        evaluate(program(UNDEFINED + "%r = math.neg %u"), T)


def test_scratch_that_nothing_wrote() -> None:
    lines = (
        "%s = tile.alloc {type = scratch<4 x 8 x f64>}\n%t = tile.take %a {at = 0}\n"
        "tile.store %t, %s, %c0, %c0 {dims = [0, 1]}\n"
        f"%r = tile.load %s, %c0, %c0 {{dims = [0, 1], layout = {LAYOUT}}}\n"
    )
    message = refused(lines + STORE)
    assert message == "tile.load: lane 0 reads [1, 0] into register 1, which nothing wrote"


def test_copies_must_be_the_same_bits() -> None:
    """A view may call different lanes copies of each other; the interpreter looks."""
    view = "%r = tile.view %a {dtype = f64, layout = local(4, 1).replicate(8)}\n"
    message = refused(view)
    assert message.startswith("tile.view: lanes 0 and 1 hold element [0, 0] of reg<4 x 1 x f64")
    one = "%t = math.const {value = 2.0, type = reg<4 x 8 x f64, local(4, 1).spatial(1, 8)>}\n"
    store = "tile.store %r, %o, %c0, %c0 {dims = [0, 1]}"
    alike = program(one + view.replace("%a", "%t") + store, "4 x 1 x f64")
    (got,) = evaluate(alike, T, lanes=True)
    np.testing.assert_array_equal(got, np.full((4, 1), 2.0))


def test_layouts_that_are_no_products() -> None:
    """Loads, arithmetic, moves and stores with lanes in an order that no product says."""
    odd = "modes((2, 2), (2, 4), lanes (3, 2), registers (1, 0))"
    lines = (
        f"%b = tile.load %x, %c0, %c0 {{dims = [0, 1], layout = {odd}}}\n"
        '%m = tile.reduce %b {kind = "max", dim = 0}\n%r = math.sub %b, %m\n' + STORE
    )
    for lanes in (False, True):
        (got,) = evaluate(program(lines), T, lanes=lanes)
        np.testing.assert_array_equal(got, T - T.max(axis=0))


def test_only_tile_programs_have_lanes() -> None:
    module = parse("graph f<N>(%x: tensor<N x f32>) { %r = math.neg %x return %r }")
    with pytest.raises(SettingError, match="lanes=True runs tile programs; f is a graph"):
        evaluate(module, np.ones(2), lanes=True)
