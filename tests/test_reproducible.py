"""``reproducible=True``: the same bits by interpreter, MLIR (4, 8, 16 lanes), Numba, emulated CUDA,
at every size."""

from __future__ import annotations

import ctypes
import math
import shutil
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dtypes import F32
from tilewright.ir.errors import DeterminismError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.reduction import reduce_by_halves
from tilewright.ir.rounding import fraction_below, fused_multiply_add
from tilewright.passes.expand_math import expand_math_graph
from tilewright.passes.fixed_order import fix_order
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.program import Program

pytest.importorskip("llvmlite")
pytest.importorskip("numba")

ATTENTION = """
graph attention<H, N, M>(%q: tensor<H x N x 20 x {t}>, %k: tensor<M x 20 x {t}>,
                         %v: tensor<M x 9 x {t}>, %bias: tensor<N x M x f32>) {
  %dots = tensor.contract %q, %k {equation = "hnd,md->hnm"}
  %wide = math.cast %dots {dtype = f32}
  %scale = math.const {value = 0.3, type = tensor<f32>}
  %scaled = math.mul %wide, %scale
  %biased = math.add %scaled, %bias
  %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
  %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
  %back = math.const {value = 60, type = tensor<i64>}
  %last = math.add %n, %back
  %seen = math.compare %m, %last {relation = "le"}
  %never = math.const {value = -inf, type = tensor<f32>}
  %scores = math.select %seen, %biased, %never
  %p = tensor.softmax %scores {axis = 2}
  %narrow = math.cast %p {dtype = {t}}
  %out = tensor.contract %narrow, %v {equation = "hnm,me->hne"}
  return %out
}
"""
PRODUCT = """
graph product<N, V>(%x: tensor<N x 210 x f32>, %w: tensor<V x 210 x f32>, %b: tensor<V x f32>) {
  %y = tensor.contract %x, %w {equation = "nd,vd->nv"}
  %z = math.add %y, %b
  return %z
}
"""
ROWS = """
graph rows<N>(%x: tensor<N x 20 x bf16>, %w: tensor<20 x f32>) {
  %f = math.cast %x {dtype = f32}
  %square = math.mul %f, %f
  %sum = tensor.reduce %square {kind = "sum", axis = 1, keep = true}
  %r = math.rsqrt %sum
  %normed = math.mul %f, %r
  %y = math.mul %normed, %w
  %max = tensor.reduce %y {kind = "max", axis = 1, keep = true}
  %shifted = math.sub %y, %max
  %e = math.exp %shifted
  %total = tensor.reduce %e {kind = "sum", axis = 1, keep = true}
  %p = math.div %e, %total
  %lse = math.log %total
  %log = math.sub %shifted, %lse
  %out = math.cast %p {dtype = bf16}
  return %out, %log
}
"""
TEXTS = {
    "attention": ATTENTION.replace("{t}", "f32"),
    "attention in bf16": ATTENTION.replace("{t}", "bf16"),
    "product": PRODUCT,
    "rows": ROWS,
}
LANES = [("mlir", f"host:{lanes}") for lanes in (4, 8, 16)]
ONE_BY_ONE = [("interpreter", None), ("cuda-host", None)]
NUMBA = [("numba", None)]
WAYS = {
    "attention": [*LANES, *ONE_BY_ONE, *NUMBA],
    "attention in bf16": [*LANES, *ONE_BY_ONE],
    "product": [*LANES, *ONE_BY_ONE],
    "rows": [*LANES, *ONE_BY_ONE, *NUMBA],
}
SIZES = {"H": (1, 2), "N": (1, 5), "M": (1, 90), "V": (1, 21)}  # rows by threes and more, blocks


@cache
def program(name: str, backend: str, target: str | None) -> Program:
    return Program(parse(TEXTS[name]), backend=backend, target=target, reproducible=True)


def drawn(name: str, sizes: dict[str, int], seed: int, scale: float) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for param in parse(TEXTS[name]).main.params:
        shape = [size.evaluate(sizes) for size in param.type.shape]  # type: ignore[attr-defined]
        dtype = TORCH_DTYPES[param.type.dtype.name]  # type: ignore[attr-defined]
        found.append((torch.randn(shape, generator=draw) * scale).to(dtype))
    return found


def bits(x: torch.Tensor) -> torch.Tensor:
    """As integers; which NaN a NaN is, is nobody's promise."""
    whole = torch.where(x.isnan(), torch.tensor(math.nan, dtype=x.dtype), x)
    return whole.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def bits_of(name: str, way: tuple[str, str | None], given: list[torch.Tensor]) -> list[Any]:
    return [bits(y) for y in program(name, *way)(*given)]


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=4)
@given(data=st.data(), seed=st.integers(0, 1 << 30), scale=st.sampled_from((1.0, 1e-20, 30.0)))
def test_all_back_ends_give_the_same_bits(
    name: str, data: st.DataObject, seed: int, scale: float
) -> None:
    if not shutil.which("g++"):
        pytest.skip("the emulation of CUDA needs g++")
    sizes = {x: data.draw(st.integers(*SIZES[x]), x) for x in parse(TEXTS[name]).main.sizes}
    inputs = drawn(name, sizes, seed, scale)
    first, *others = WAYS[name]
    want = bits_of(name, first, inputs)
    for way in others:
        for a, b in zip(want, bits_of(name, way, inputs), strict=True):
            assert torch.equal(a, b), (way, sizes)


def test_subnormal_numbers_are_kept() -> None:
    """Kernels set the mode themselves; back ends that compute in the caller's refuse."""
    inputs = drawn("product", {"N": 3, "V": 5}, 0, 1e-20)
    inputs[2].zero_()
    want = bits_of("product", ("interpreter", None), inputs)
    assert all(0 < abs(x) < 2.0**-126 for x in want[0].view(torch.float32).flatten().tolist())
    torch.set_flush_denormal(True)
    try:
        found = [bits_of("product", way, inputs) for way in LANES]
        with pytest.raises(DeterminismError, match="set_flush_denormal"):
            program("product", "interpreter", None)(*inputs)
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(want[0], y[0]) for y in found)


F32_BITS = st.integers(0, (1 << 32) - 1).map(lambda b: np.uint32(b).view(np.float32))


@settings(max_examples=300)
@given(F32_BITS, F32_BITS, F32_BITS | st.none(), st.integers(-3, 3))
def test_one_rounding_as_the_machine_rounds(
    x: np.float32, y: np.float32, z: np.float32 | None, off: int
) -> None:
    """Against libm, also where the sum almost vanishes or almost is a tie."""
    with np.errstate(all="ignore"):
        if z is None:
            z = np.float32(-np.float64(x) * np.float64(y) * (1 + off * 2.0**-24))
        want = np.float32(fmaf(x, y, z))
        got = fused_multiply_add(*np.array([x, y, z]))
    assert got.view(np.int32) == want.view(np.int32) or (np.isnan(got) and np.isnan(want))


fmaf = (
    ctypes.CDLL(None).fmaf if hasattr(ctypes.CDLL(None), "fmaf") else ctypes.CDLL("libm.so.6").fmaf
)
fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3


@given(F32_BITS)
def test_a_fraction_stays_below_one(x: np.float32) -> None:
    got = float(fraction_below(np.array([x]))[0])
    if not np.isfinite(x):
        assert got == 0 or np.isnan(x)
        return
    assert 0 <= got < 1
    exact = float(x) - math.floor(float(x))
    assert got <= exact + 2.0**-53 and exact - got < 2.0**-23


LOGARITHM = """
tile logarithm<N>(%x: buffer<N x f32, unit 0>, %out: buffer<N x f32, unit 0>)
    with {grid = [[size(N), 16]], outputs = 1, target = "host"} {
  %block = tile.block {dim = 0} : index
  %width = math.const {value = 16, type = index}
  %at = math.mul %block, %width : index
  %a = tile.load %x, %at {dims = [1], layout = spatial(1, 16)} : reg<1 x 16 x f32, spatial(1, 16)>
  %y = math.{name} %a : reg<1 x 16 x f32, spatial(1, 16)>
  tile.store %y, %out, %at {dims = [1]}
  return
}
"""


@pytest.mark.parametrize("name", ["log", "log2"])
def test_logarithms_of_our_own(name: str) -> None:
    """Within two units in the last place, subnormal numbers too, and the limits exactly."""
    graph = parse(LOGARITHM.replace("{name}", name)).main
    graph = fix_order(expand_math_graph(graph))
    near_one = np.linspace(0.5, 2, 4096, dtype=np.float32)
    special = np.array([0, -0.0, -1, np.inf, -np.inf, np.nan, 1, 2.0**-149], np.float32)
    x = np.concatenate(
        [np.float32(2.0) ** np.linspace(-149, 127, 4080), near_one, special, special]
    )
    x = x.astype(np.float32)
    (got,) = evaluate_graph(graph, x)
    with np.errstate(all="ignore"):
        want = getattr(np, name)(x.astype(np.float64))
    finite = np.isfinite(want)
    unit = np.spacing(np.abs(want[finite]).astype(np.float32))
    assert np.max(np.abs(got[finite] - want[finite]) / unit) <= 2
    assert np.array_equal(got[~finite], want[~finite].astype(np.float32), equal_nan=True)


def test_halves_are_added_in_one_order() -> None:
    x = np.array([[1, 2.0**-24, 2.0**-24, -1]], np.float32)
    assert reduce_by_halves(x, "sum", 1)[0, 0] == np.float32(
        np.float32(1 + 2.0**-24) + (2.0**-24 - 1)
    )
    zeros = np.array([[0.0, -0.0]], np.float32)
    assert np.signbit(reduce_by_halves(zeros, "max", 1)[0, 0])  # neither is larger: the second
    assert F32.round(0.1) == np.float32(0.1)


def test_what_has_no_order_is_refused() -> None:
    power = "graph f<N>(%x: tensor<N x 8 x f32>) {\n  %y = math.pow %x, %x\n  return %y\n}"
    with pytest.raises(DeterminismError, match=r"math\.pow.*no fixed order"):
        Program(parse(power), reproducible=True)
    with pytest.raises(DeterminismError, match="cuda"):
        Program(parse(PRODUCT), backend="triton", target="cuda-sm90", reproducible=True)
    Program(parse(power), deterministic="batch")  # each number by itself: the C library's
