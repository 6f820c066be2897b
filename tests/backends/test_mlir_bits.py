"""Bits, tables and products of bytes in the MLIR back end, against the interpreter, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import TargetError, UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.target import NAMED, Target
from tilewright.runtime.targets import host_target, require_runnable, resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

pytest.importorskip("llvmlite")
ROWS = 2


def runnable() -> list[Target]:
    """This machine, named targets with vectors that it can run, and it without 8-bit products."""
    found = [host_target(), replace(host_target(), name="plain", int8_dot="")]
    for name in ("x86-64-v3", "x86-64-v4", "znver4"):
        try:
            require_runnable(NAMED[name])
        except TargetError:
            continue
        found.append(NAMED[name])
    return [t for t in found if t.lanes in (8, 16)]


TARGETS = runnable()
per_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)


def program(target: Target, params: str, outputs: int, lines: str) -> str:
    """A tile program of N items; ``L`` stands for the lanes."""
    text = (
        f"tile f<N>({params}) with {{grid = [[size(N), 1]], outputs = {outputs}}} {{\n"
        "%n = tile.block {dim = 0}\n%c0 = math.const {value = 0, type = index}\n"
        f"{lines}\nreturn }}"
    )
    return text.replace("LANES", str(target.lanes))


def both(target: Target, text: str, *arrays: Any) -> list[tuple[Any, Any]]:
    """Each output of the compiled program and of the interpreter."""
    module = parse(text)
    call = make_tile_kernel(module.main, target, "mlir")
    got = call(*(torch.from_numpy(a) for a in arrays))
    with np.errstate(all="ignore"):
        want = evaluate(module, *arrays)
    return [(g.numpy(), w) for g, w in zip(got, want, strict=True)]


def same_bits(pairs: Sequence[tuple[Any, Any]]) -> None:
    for at, (got, want) in enumerate(pairs):
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), f"output {at}"


LOAD = "{dims = [-1, 1], layout = spatial(1, LANES)}"
STORE = "{dims = [-1, 1]}"
BITWISE = ("bit_and", "bit_or", "bit_xor")
SHIFTS = ("shift_left", "shift_right", "shift_right_signed")


@per_target
@pytest.mark.parametrize("dtype", ["i64", "i32", "i16", "i8", "u8"])
def test_bits_and_shifts(target: Target, dtype: str) -> None:
    """Of vectors, and of one number for all lanes."""
    names = (*BITWISE, *SHIFTS)
    outs = "".join(f", %o{i}: buffer<N x LANES x {dtype}, unit 1>" for i in range(7))
    params = f"%x: buffer<N x LANES x {dtype}, unit 1>, %y: buffer<N x LANES x {dtype}, unit 1>"
    params += f", %s: buffer<N x LANES x {dtype}, unit 1>{outs}"
    lines = [f"%{v}v = tile.load %{v}, %n, %c0 {LOAD}" for v in "xys"]
    lines += ["%u = tile.load %s, %n, %c0 {dims = [-1, -1], layout = local(1, 1)}"]
    for at, name in enumerate(names):
        right = "%yv" if name in BITWISE else "%sv"
        lines += [
            f"%r{at} = math.{name} %xv, {right}",
            f"tile.store %r{at}, %o{at}, %n, %c0 {STORE}",
        ]
    lines += ["%w = math.shift_right %u, %u", "%k = math.shift_left %xv, %u"]
    lines += ["%z = math.bit_xor %k, %w", f"tile.store %z, %o6, %n, %c0 {STORE}"]
    rng, row = np.random.default_rng(0), TABLE[dtype]
    low, high = np.iinfo(row.host).min, np.iinfo(row.host).max
    shape = (row.bits, target.lanes)
    x, y = (rng.integers(low, high, shape, row.host, endpoint=True) for _ in range(2))
    x[0], y[1] = low, high
    distance = (np.arange(row.bits)[:, None] + np.arange(target.lanes)) % row.bits
    text = program(target, params, 7, "\n".join(lines))
    same_bits(both(target, text, x, y, distance.astype(row.host)))


VIEWS = [
    ("f32", "spatial(1, LANES)"),
    ("u8", "spatial(1, LANES, 1).local(1, 1, 4)"),
    ("i8", "spatial(1, LANES, 1).local(1, 1, 4)"),
]
PATTERNS = [0, 1, -1, 0x7F800001, -0x7FFFFF, 0x7FC00000, -(1 << 31), 0x00FF80FE, 0x12345678]


def patterns(lanes: int) -> Any:
    """Words of all kinds: NaN of all kinds among them."""
    rng = np.random.default_rng(1)
    words = rng.integers(-(1 << 31), 1 << 31, (8, lanes)).astype(np.int32)
    words.flat[: len(PATTERNS)] = np.array(PATTERNS, np.int64).astype(np.int32)
    return words


@per_target
def test_views_keep_every_bit(target: Target) -> None:
    """Of vectors and of what all lanes share; there, on to another dtype, and back."""
    params = "%x: buffer<N x LANES x i32, unit 1>"
    lines = [f"%a = tile.load %x, %n, %c0 {LOAD}"]
    lines += ["%b = tile.load %x, %n, %c0 {dims = [-1, -1], layout = replicate(LANES)}"]
    lines[1] = lines[1].replace("replicate(LANES)", "local(1, 1).replicate(LANES)")
    for at, (dtype, layout) in enumerate(VIEWS):
        shared = layout.replace("spatial(1, LANES, 1)", "replicate(LANES)")
        shared = shared.replace("spatial(1, LANES)", "local(1, 1).replicate(LANES)")
        if shared.startswith("replicate"):
            shared = f"local(1, 1, 1).{shared}"
        params += f", %o{at}: buffer<N x LANES x i32, unit 1>, %p{at}: buffer<N x 1 x i32, unit 1>"
        back = ("spatial(1, LANES)", "local(1, 1).replicate(LANES)")
        for value, out, where, home in zip("ab", "op", (layout, shared), back, strict=True):
            name = f"{value}{'xyz'[at]}"
            lines += [
                f"%{name} = tile.view %{value} {{dtype = {dtype}, layout = {where}}}",
                f"%{name}_back = tile.view %{name} {{dtype = i32, layout = {home}}}",
                f"tile.store %{name}_back, %{out}{at}, %n, %c0 {STORE}",
            ]
    text = program(target, params, 6, "\n".join(lines))
    words = patterns(target.lanes)
    pairs = both(target, text, words)
    same_bits(pairs)
    for at, (got, _) in enumerate(pairs):
        assert got.tobytes() == (words[:, :1] if at % 2 else words).tobytes()


@per_target
def test_bytes_of_words_lowest_first(target: Target) -> None:
    """And pairs of bytes seen as signed ones; a view of other than whole words is refused."""
    params = "%x: buffer<N x LANES x i32, unit 1>, %o: buffer<N x LANES x 4 x u8, unit 2>"
    layout = "layout = spatial(1, LANES, 1).local(1, 1, 4)"
    lines = f"%a = tile.load %x, %n, %c0 {LOAD}\n%b = tile.view %a {{dtype = u8, {layout}}}\n"
    lines += "tile.store %b, %o, %n, %c0, %c0 {dims = [-1, 1, 2]}"
    words = patterns(target.lanes)
    same_bits(both(target, program(target, params, 1, lines), words))
    split = "layout = spatial(1, LANES, 1).local(1, 1, 2)"
    lines = lines.replace(layout, split).replace("u8", "i16")
    text = program(target, params.replace("4 x u8", "2 x i16"), 1, lines)
    with pytest.raises(UnsupportedError, match="other than word by word"):
        make_tile_kernel(parse(text).main, target, "mlir")


@per_target
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_tables(target: Target, count: int) -> None:
    """Every index, with whatever lies above its bits; every value to the bit."""
    rng = np.random.default_rng(count)
    values = np.concatenate([[-0.0, 0.1, 3e38, 1e-40, -7.0], rng.standard_normal(256)])
    listed = np.resize(values, count).astype("f4").astype("f8")
    params = "%x: buffer<N x LANES x i32, unit 1>, %o: buffer<N x LANES x f32, unit 1>"
    lines = f"%a = tile.load %x, %n, %c0 {LOAD}\n"
    lines += f"%r = tile.lookup %a {{values = {[float(v) for v in listed]}}}\n"
    lines += f"tile.store %r, %o, %n, %c0 {STORE}"
    index = np.arange(256 // target.lanes * target.lanes).reshape(-1, target.lanes)
    high = rng.integers(-(1 << 22), 1 << 22, index.shape) << 8
    same_bits(both(target, program(target, params, 1, lines), (index + high).astype(np.int32)))


@per_target
@pytest.mark.parametrize("count", [2, 8, 16, 33, 64])
def test_tables_of_bytes(target: Target, count: int) -> None:
    """All combinations of a byte and its place; a table that one shuffle has no room for is
    refused."""
    values = np.random.default_rng(count).integers(0, 256, count).tolist()
    values[-1] = 255
    params = "%x: buffer<N x LANES x i32, unit 1>, %o: buffer<N x LANES x i32, unit 1>"
    lines = f"%a = tile.load %x, %n, %c0 {LOAD}\n"
    lines += f"%r = tile.lookup_bytes %a {{values = {values}}}\n"
    lines += f"tile.store %r, %o, %n, %c0 {STORE}"
    text = program(target, params, 1, lines)
    if count > 16 and target.lanes != 16:
        with pytest.raises(UnsupportedError, match="more than 16 bytes"):
            make_tile_kernel(parse(text).main, target, "mlir")
        return
    if count > target.byte_table:
        pytest.skip("choosing from 64 bytes needs an instruction that this target lacks")
    given = np.random.default_rng(0).integers(0, count, (8, target.lanes, 4)).astype(np.uint8)
    given[:4, :, 0] = np.resize(np.arange(count), (4, target.lanes))
    same_bits(both(target, text, given.view(np.int32)[:, :, 0].copy()))


@per_target
@pytest.mark.parametrize("count", [1, 2, 16, 32, 64])
def test_tables_of_halves(target: Target, count: int) -> None:
    """Every index in both halves, with whatever lies above its bits."""
    rng = np.random.default_rng(count)
    values = np.resize([-0.0, 0.1, 3e38, 1e-40, -7.0, *rng.standard_normal(59)], count)
    params = "%x: buffer<N x LANES x i32, unit 1>, %o: buffer<N x LANES x i32, unit 1>"
    lines = f"%a = tile.load %x, %n, %c0 {LOAD}\n"
    lines += f"%r = tile.lookup_halves %a {{values = {[float(v) for v in values]}}}\n"
    lines += f"tile.store %r, %o, %n, %c0 {STORE}"
    text = program(target, params, 1, lines)
    if target.lanes != 16:
        with pytest.raises(UnsupportedError, match="16 lanes"):
            make_tile_kernel(parse(text).main, target, "mlir")
        return
    low, high = np.arange(64), rng.permutation(64)
    loose = rng.integers(0, 1024, (2, 64)) << 6
    words = (low | loose[0]) | (high | loose[1]) << 16
    given = words.astype(np.uint32).view(np.int32).reshape(-1, 16)
    same_bits(both(target, text, given))


def dot_program(target: Target, bits: int) -> str:
    """acc + products of four bytes, for two rows that all lanes share."""
    params = f"%a: buffer<N x {ROWS} x i32, unit 1>, %b: buffer<N x LANES x i32, unit 1>, "
    params += f"%c: buffer<N x LANES x i32, unit 1>, %o: buffer<N x {ROWS} x LANES x i32, unit 2>"
    column = f"local({ROWS}, 1).replicate(LANES)"
    shared = f"local({ROWS}, 1, 1).replicate(LANES).local(1, 1, 4)"
    lines = [
        f"%x = tile.load %a, %n, %c0 {{dims = [-1, 0], layout = {column}}}",
        f"%xb = tile.view %x {{dtype = i8, layout = {shared}}}",
        f"%w = tile.load %b, %n, %c0 {LOAD}",
        "%wb = tile.view %w {dtype = u8, layout = spatial(1, LANES, 1).local(1, 1, 4)}",
        f"%s = tile.load %c, %n, %c0 {LOAD}",
        "%acc = tile.stack %s, %s",
        f"%r = tile.dot %acc, %xb, %wb {{b_bits = {bits}}}",
        "tile.store %r, %o, %n, %c0, %c0 {dims = [-1, 0, 1]}",
    ]
    return program(target, params, 1, "\n".join(lines))


def random_bytes(rng: Any, low: int, high: int) -> Callable[..., Any]:
    return lambda *shape: rng.integers(low, high, shape, endpoint=True)


@per_target
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_of_bytes_are_exact(target: Target, bits: int) -> None:
    """Extremes of all signs, where two products together leave 16 bits, and random ones."""
    rng, top, lanes = np.random.default_rng(bits), (1 << bits) - 1, target.lanes
    corners = np.array(list(itertools.product([-128, 127], repeat=4)))
    signed = random_bytes(rng, -128, 127)(48, ROWS, 4)
    signed[: len(corners)] = corners[:, None]
    codes = random_bytes(rng, 0, top)(48, lanes, 4)
    codes[:24] = top
    codes[8:16, :, ::2] = 0
    acc = rng.integers(-(1 << 31), 1 << 31, (48, lanes)).astype(np.int32)
    a = signed.astype(np.int8).view(np.int32)[:, :, 0].copy()
    b = codes.astype(np.uint8).view(np.int32)[:, :, 0].copy()
    ((got, want),) = both(target, dot_program(target, bits), a, b, acc)
    plain = np.einsum("nrk,nlk->nrl", signed, codes) + acc[:, None].astype(np.int64)
    wrapped = (plain & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    assert np.array_equal(want, wrapped), "the interpreter"
    assert np.array_equal(got, wrapped)


def test_targets_say_which_products_of_bytes_they_have() -> None:
    assert {t.int8_dot for t in NAMED.values()} == {"", "maddubs", "vnni"}
    assert resolve_target("znver4").int8_dot == "vnni"
