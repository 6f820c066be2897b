"""Arithmetic on integers and bools as kernels: what the operation's meaning in NumPy gives, for all
pairs of 8-bit numbers, and for those of more bits at the ends of their ranges."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

import tilewright
from tilewright.ir import ops_math as m
from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import BOOL, F32, I8, I32, I64, TABLE, U8, DType
from tilewright.ir.errors import VerifyError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.runtime.kernel import TORCH_DTYPES

DTYPES = (BOOL, U8, I8, TABLE["i16"], I32, I64)
OPS: tuple[type[Op], ...] = (
    *(m.Add, m.Sub, m.Mul, m.Div, m.Mod, m.Max, m.Min, m.Larger, m.Smaller),
    *(m.BitAnd, m.BitOr, m.BitXor, m.Neg, m.Abs, m.Round, m.Fma),
)
RELATIONS = ("lt", "le", "gt", "ge", "eq", "ne")
SHAPE = (Size.of("N"),)


def pairs(dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of 8-bit numbers, or of some near 0 and near the ends."""
    if dtype == BOOL:
        numbers = [0, 1]
    else:
        info = torch.iinfo(TORCH_DTYPES[dtype.name])
        ends = [info.min + i for i in range(3)] + [info.max - i for i in range(3)]
        some = [*ends, *range(-5, 6), 100, -100, info.max // 3]
        numbers = some if dtype.bits > 8 else list(range(info.min, info.max + 1))
    both = itertools.product(numbers, numbers)
    x, y = zip(*both, strict=True)
    made = (torch.tensor(numbers_).to(TORCH_DTYPES[dtype.name]) for numbers_ in (x, y))
    first, second = made
    return first, second


def graph(dtype: DType, wanted: Iterable[tuple[str, type[Op], dict[str, Any]]]) -> Graph:
    """Operations on two tensors, each a result; those that have a meaning for the dtype."""
    x, y = (Value(TensorType(SHAPE, dtype), name) for name in "xy")
    b, results = Builder(), []
    for name, cls, attrs in wanted:
        count = {m.Neg: 1, m.Abs: 1, m.Round: 1, m.Cast: 1, m.Fma: 3}.get(cls, 2)
        try:
            z = b(cls, *(x, y, x)[:count], hint=name, **attrs)
        except VerifyError:
            continue
        if getattr(z.type, "dtype", None) == BOOL:  # conditions are no results of every back end
            z = b(m.Cast, z, dtype=I32, hint=name)
        results.append(z)
    return Graph("graph", "f", ("N",), Region((x, y), tuple(b.ops), tuple(results)))


def wrong(made: Graph, target: dict[str, str], x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """The results that are not what the interpreter gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what NumPy says of what wraps around
        want = tilewright.evaluate(Module((made,)), x.numpy(), y.numpy())
    got = tilewright.Program(Module((made,)), **target)(x, y)
    each = zip(made.results, got, want, strict=True)
    return [v.hint for v, a, b in each if not np.array_equal(a.numpy(), np.asarray(b))]


ALL = [(cls.name, cls, {}) for cls in OPS]
ALL += [(name, m.Compare, {"relation": name}) for name in RELATIONS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operations(dtype: DType) -> None:
    """By MLIR; ``test_numba_ops.py`` has Numba's."""
    made = graph(dtype, ALL)
    assert len(made.results) > 6
    assert not wrong(made, {"backend": "mlir"}, *pairs(dtype))


@pytest.mark.parametrize("backend", ["mlir", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conversions(dtype: DType, backend: str) -> None:
    targets = [(x.name, m.Cast, {"dtype": x}) for x in (*DTYPES[1:], F32)]
    assert not wrong(graph(dtype, targets), {"backend": backend}, *pairs(dtype))


@pytest.mark.parametrize("backend", ["mlir", "numba"])
def test_floats_become_bytes(backend: str) -> None:
    """All that a byte holds: those from 128 on are no numbers with a sign of 8 bits."""
    x = torch.arange(0, 256).float()
    assert not wrong(graph(F32, [("u8", m.Cast, {"dtype": U8})]), {"backend": backend}, x, x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("dtype", [U8, I32, I64], ids=str)
def test_on_a_gpu_in_the_emulation(dtype: DType) -> None:
    x, y = (v[:: 97 if dtype == U8 else 1].contiguous() for v in pairs(dtype))
    some = [(cls.name, cls, {}) for cls in (m.Max, m.Min, m.Div, m.Mod)]
    assert not wrong(graph(dtype, some), {"backend": "cuda-host"}, x, y)


def test_masks_of_bytes_and_bools() -> None:
    """As attention reads them: bytes of 128 and more, true above false, and a sum of bools."""
    q, k, v = (torch.randn(1, 2, 64, 32) for _ in range(3))
    number, flag = torch.arange(64).mul(41).to(torch.uint8), torch.arange(64) % 3 == 0
    masks = {
        "bytes": (lambda b, h, i, j: number[i] >= number[j], number[:, None] >= number),
        "bools": (lambda b, h, i, j: flag[i] >= flag[j], flag[:, None] >= flag),
        "sum": (
            lambda b, h, i, j: (i >= j) + flag[j],
            torch.ones(64, 64, dtype=torch.bool).tril() | flag,
        ),
    }
    for name, (mask_mod, mask) in masks.items():
        got = tilewright.attention(q, k, v, mask_mod=mask_mod)
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=name)
