"""Each operation in the Numba back end against its meaning, element by element."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.numba_programs import ElementKernel, from_memory, to_memory
from tilewright.backends.numba import emit, pointwise
from tilewright.backends.numba.kernel import NumbaKernel
from tilewright.backends.numba.pointwise import dtype_of
from tilewright.ir import ops_math as m
from tilewright.ir.core import REGISTRY, Module, Op
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import VerifyError
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_tile_blocks import Integer, LastOf, Product, Scatter, Unpack
from tilewright.ir.ops_tile_indexed import Alternate, LoadRows, Reshape, Scan
from tilewright.ir.ops_tile_lines import CopyLines, LoadLines, StoreLines
from tilewright.ir.ops_tile_memory import GPU_OPS
from tilewright.ir.ops_tile_threads import Fence, GroupBegin, GroupProduct, GroupWait, MatrixProduct
from tilewright.ir.parser import parse

pytest.importorskip("numba")

DTYPES = [d for d in TABLE.values() if d.addressable]
# Functions of the C library and of Numba: correct to a few units in the last place.
INEXACT = (m.Exp, m.Exp2, m.Log, m.Log2, m.Tanh, m.Erf, m.Pow, m.Sigmoid, m.Rsqrt)
FLOATS = [0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 3.25, -7.0, 100.0, 1e-3, np.inf, -np.inf, np.nan]
WHOLE = [0, 1, 2, 3, 5, 7, 100, 127]


def samples(dtype: DType) -> Any:
    """All pairs of some values of a dtype, zeros, infinities, NaN and extremes among them."""
    values: list[Any]
    if dtype.name == "bool":
        values = [False, True]
    elif dtype.is_float:
        values = FLOATS
    else:
        facts = np.iinfo(dtype.host)
        values = [*WHOLE, *([-x for x in WHOLE[1:]] if facts.min else []), facts.min, facts.max]
    pairs = np.array(list(itertools.product(values, values))).astype(dtype.host)
    return from_memory(to_memory(pairs[:, 0], dtype), dtype), from_memory(
        to_memory(pairs[:, 1], dtype), dtype
    )


def table(dtype: DType) -> dict[type[Op], str]:
    if dtype.name == "bool":
        return pointwise._BOOL
    return pointwise._FLOAT if dtype.is_float else pointwise._INTEGER


def pointwise_kernel(dtype: DType) -> tuple[ElementKernel, list[type[Op]]]:
    """A kernel with a result for each operation on a dtype."""
    kernel = ElementKernel([dtype, dtype])
    x, y = kernel.inputs
    classes: list[type[Op]] = []
    for cls in table(dtype):
        count = len(cls.operand_names)
        kernel.output(cls, *(x, y, x)[:count])
        classes.append(cls)
    for relation in m.Compare.RELATIONS:
        kernel.output(m.Compare, x, y, relation=relation)
        classes.append(m.Compare)
    less = kernel.build(m.Compare, x, y, relation="lt")
    kernel.output(m.Select, less, x, y)
    return kernel, [*classes, m.Select]


def agree(got: Any, want: Any, dtype: DType, exact: bool, what: str) -> None:
    """Equal, or for functions within a few units in the last place."""
    if exact or not dtype.is_float:
        assert np.array_equal(got, want, equal_nan=dtype.is_float), what
        return
    np.testing.assert_allclose(got, want, rtol=4 * dtype.epsilon, atol=1e-37, err_msg=what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pointwise_operations(dtype: DType) -> None:
    kernel, classes = pointwise_kernel(dtype)
    graph, (x, y) = kernel.graph(), samples(dtype)
    with np.errstate(all="ignore"):
        want = evaluate_graph(graph, x, y)
    got = NumbaKernel(graph)(to_memory(x, dtype), to_memory(y, dtype))
    for cls, ours, theirs, out in zip(classes, got, want, kernel.outputs, strict=True):
        result, what = dtype_of(out.type), f"{cls.name} {dtype}"
        # np.rint goes through float64, which is too small for i64
        known = x if cls is m.Round and dtype.is_int else theirs
        agree(from_memory(ours, result), known, result, cls not in INEXACT, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casts(dtype: DType) -> None:
    """To every dtype. Floats that an integer does not hold have no meaning and are left out."""
    kernel = ElementKernel([dtype])
    for target in DTYPES:
        kernel.output(m.Cast, kernel.inputs[0], dtype=target)
    x = np.unique(samples(dtype)[0])
    if dtype.is_float:
        fine = np.array([0.1, 1 / 3, 65519.0, 65520.0, 1e-7, 6e-8, 3e-8, 1e-40])
        x = np.concatenate([x, from_memory(to_memory(fine, dtype), dtype)])
    graph = kernel.graph()
    got = NumbaKernel(graph)(to_memory(x, dtype))
    with np.errstate(all="ignore"):
        want = evaluate_graph(graph, x)
    for target, ours, theirs in zip(DTYPES, got, want, strict=True):
        ok = np.ones(x.shape, bool)
        if dtype.is_float and target.is_int:
            ok = np.isfinite(x) & (np.abs(x) < 100) & ((x >= 0) | (target.kind == "int"))
        values = from_memory(ours, target)
        assert np.array_equal(values[ok], theirs[ok], equal_nan=target.is_float), (dtype, target)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.is_int], ids=str)
def test_shifts_by_every_distance(dtype: DType) -> None:
    kernel = ElementKernel([dtype, dtype])
    kernel.output(m.ShiftLeft, *kernel.inputs)
    kernel.output(m.ShiftRight, *kernel.inputs)
    numbers, distances = np.unique(samples(dtype)[0]), np.arange(dtype.bits, dtype=dtype.host)
    x, y = (a.ravel() for a in np.meshgrid(numbers, distances))
    graph = kernel.graph()
    for ours, theirs in zip(NumbaKernel(graph)(x, y), evaluate_graph(graph, x, y), strict=True):
        assert np.array_equal(ours, theirs)


VIEWED = ["f64", "f32", "i64", "i32", "i16", "i8", "u8"]


def test_views_keep_all_bits() -> None:
    """Every dtype as every other, and back, on random bits and on NaN of all kinds."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (64, 16), dtype=np.uint8)
    bits[:8, 2::4] |= 0x80
    bits[:8, 3::4] |= 0x7F
    for source in VIEWED:
        kernel = ElementKernel([TABLE[source]])
        for target in VIEWED:
            count, rest = divmod(kernel.TILE * TABLE[source].bits, TABLE[target].bits)
            if rest:
                continue
            there = Layout(2).local(1, count)
            seen = kernel.build(View, kernel.inputs[0], dtype=TABLE[target], layout=there)
            kernel.output(View, seen, dtype=TABLE[source], layout=kernel.layout)
        graph, x = kernel.graph(), bits.view(TABLE[source].host).ravel()
        for back in NumbaKernel(graph)(x):
            assert back.tobytes() == x.tobytes(), source


def test_what_has_no_meaning_is_refused_by_name() -> None:
    kernel = ElementKernel([TABLE["i32"]])
    with pytest.raises(VerifyError, match=r"math\.tanh.*i32.*must be float"):
        kernel.output(m.Tanh, kernel.inputs[0])


def test_every_operation_is_written_or_refused() -> None:
    """A new operation of the IR must get its line here: nothing is passed over. What only GPUs
    have, and programs on whole blocks, is refused."""
    refused = {
        *GPU_OPS,
        Fence,
        GroupBegin,
        GroupProduct,
        GroupWait,
        MatrixProduct,
        Alternate,
        LoadRows,
        CopyLines,
        LoadLines,
        StoreLines,
        Reshape,
        Scan,
        Product,
        Integer,
        LastOf,
        Scatter,
        Unpack,
    }
    tables = (pointwise._FLOAT, pointwise._INTEGER, pointwise._BOOL, pointwise._SPECIAL)
    written = {cls for table_ in tables for cls in table_} | {m.Const}
    written |= {m.SizeValue}  # a tile.size in tile programs
    for name, cls in REGISTRY.items():
        if name.startswith("tile."):
            known = hasattr(emit._Program, "_" + name.replace(".", "_"))
            assert known == (cls not in refused), name
        elif name.startswith("math."):
            assert cls in written, name


@pytest.fixture(scope="module")
def tiles() -> tuple[Module, NumbaKernel]:
    """The program and its kernel."""
    module = parse((Path(__file__).parent / "every_tile_op.tw").read_text())
    return module, NumbaKernel(module.main, "tiles")


@pytest.mark.parametrize(("n", "width"), [(1, 2), (6, 3), (5, 9)])
def test_tile_operations(tiles: tuple[Module, NumbaKernel], n: int, width: int) -> None:
    module, kernel = tiles
    rng = np.random.default_rng(n)
    x = rng.integers(-8, 9, (n, width)).astype(np.float32)
    h = rng.integers(-8, 9, (n, width)).astype(np.float32)
    at = rng.integers(0, n, n)
    want = evaluate(module, x, h, at)
    bits = to_memory(h, TABLE["bf16"])
    for arrays in ((x, bits, at), (x, np.asfortranarray(bits).view(np.int16), at)):
        got = kernel(*arrays, threads=2)
        for out, ours, theirs in zip(kernel.outputs, got, want, strict=True):
            dtype = dtype_of(out.type)
            assert np.array_equal(from_memory(ours, dtype), theirs), out.hint


def test_reductions_let_numbers_win_over_nan() -> None:
    text = """
tile extremes<N>(%x: buffer<N x 4 x f32, unit 1>, %high: buffer<N x f32, unit 0>,
    %low: buffer<N x f32, unit 0>) with {grid = [[size(N), 1]], outputs = 2, target = "scalar"} {
  %n = tile.block {dim = 0} : index
  %c0 = math.const {value = 0, type = index}
  %row = tile.load %x, %n, %c0 {dims = [0, 1], layout = local(1, 4)} : reg<1 x 4 x f32, local(1, 4)>
  %max = tile.reduce %row {kind = "max", dim = 1} : reg<1 x 1 x f32, local(1, 1)>
  %min = tile.reduce %row {kind = "min", dim = 1} : reg<1 x 1 x f32, local(1, 1)>
  tile.store %max, %high, %n {dims = [0]}
  tile.store %min, %low, %n {dims = [0]}
  return
}"""
    rows = np.array(list(itertools.product([1.0, -2.0, np.nan, np.inf], repeat=4)), np.float32)
    module = parse(text)
    want = evaluate(module, rows)
    got = NumbaKernel(module.main)(rows)
    for ours, theirs in zip(got, want, strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True)
