"""Compiled products with weights, gated products, row-wise kernels, exp2, against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.ops_tile import Load
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import kernel_to_tile
from tilewright.runtime.program import Program

TARGETS = ("host", "x86-64-v3")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@functools.cache
def linear(inner: int, dtype: str, gated: bool, target: str) -> Program:
    """y = x w' + b, or silu(x w') * (x u'), in f32 and rounded once."""
    t = dtype
    second = f", %u: tensor<O x {inner} x {t}>" if gated else f", %b: tensor<O x {t}>"
    lines = [
        f"graph linear<B, N, O>(%x: tensor<B x N x {inner} x {t}>, "
        f"%w: tensor<O x {inner} x {t}>{second}) {{",
        "%xw = math.cast %x {dtype = f32}",
        "%ww = math.cast %w {dtype = f32}",
        '%p = tensor.contract %xw, %ww {equation = "bnk,ok->bno"}',
    ]
    if gated:
        lines += [
            "%uw = math.cast %u {dtype = f32}",
            '%q = tensor.contract %xw, %uw {equation = "bnk,ok->bno"}',
            "%g = math.sigmoid %p",
            "%s = math.mul %p, %g",
            "%y = math.mul %s, %q",
        ]
    else:
        lines += ["%bw = math.cast %b {dtype = f32}", "%y = math.add %p, %bw"]
    lines += [f"%out = math.cast %y {{dtype = {t}}}", "return %out }"]
    return Program(parse("\n".join(lines)), target=target)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60)
@given(
    inner=st.sampled_from([1, 7, 64, 200, 515]),
    form=st.sampled_from([("f32", False), ("f32", True), ("bf16", False), ("f16", True)]),
    batch=st.integers(0, 3),
    rows=st.integers(0, 110),
    columns=st.one_of(st.integers(0, 40), st.integers(100, 300)),
    across=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_products_with_weights(
    target: str,
    inner: int,
    form: tuple[str, bool],
    batch: int,
    rows: int,
    columns: int,
    across: tuple[bool, bool],
    seed: int,
) -> None:
    """``across``: weights lie [terms, columns] in memory."""
    dtype, gated = form
    rng = torch.Generator().manual_seed(seed)
    scale = inner**-0.5
    x = torch.randn(batch, rows, inner, generator=rng).to(DTYPES[dtype])
    w = (torch.randn(columns, inner, generator=rng) * scale).to(DTYPES[dtype])
    other = torch.randn((columns, inner) if gated else (columns,), generator=rng) * scale
    other = other.to(DTYPES[dtype])
    turn = [a and m.dim() == 2 for m, a in zip((w, other), across, strict=True)]
    given = [m.mT.contiguous().mT if a else m for m, a in zip((w, other), turn, strict=True)]
    out = linear(inner, dtype, gated, target)(x, *given)[0]
    product = x.double() @ w.double().T
    if gated:
        expected = torch.nn.functional.silu(product) * (x.double() @ other.double().T)
    else:
        expected = product + other.double()
    tolerance = {"f32": 3e-6, "bf16": 2e-2, "f16": 3e-3}[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_weights_by_terms_are_read_as_they_lie(rows: int) -> None:
    """A decode step's product with weights [terms, columns]: whole vectors of neighbours, no
    gathers; with weights [columns, terms] vectors of terms."""
    module = parse(
        """graph product<N>(%x: tensor<N x 40 x f32>, %w: tensor<40 x 200 x f32>) {
        %y = tensor.contract %x, %w {equation = "nk,ko->no"}
        return %y }"""
    )
    kernel, target = run_passes(module, TO_KERNELS).main, named_target("x86-64-v4")
    for unit in (1, 0):
        tile = kernel_to_tile(kernel, target, rows, {"x": 1, "w": unit})
        loads = [x for x in tile.body.walk() if isinstance(x, Load) and x.source.hint == "w"]
        assert loads
        for load in loads:
            along = [dim for dim in range(2) if load.dims[dim] >= 0]
            assert along == [unit], (load, "whole vectors lie along the dimension of stride one")
        for block in (64, 256):
            choice = {"inner_block": block, "inner_part": 64}
            other = kernel_to_tile(kernel, target, rows, {"x": 1, "w": unit}, choice)
            evaluate_graph(other, np.ones((rows, 40)), np.ones((40, 200)))  # stays in its scratch
        x, w = (np.random.default_rng(1).standard_normal(n) for n in ((rows, 40), (40, 200)))
        (got,) = evaluate_graph(tile, x, w)
        np.testing.assert_allclose(got, x @ w, rtol=1e-4, atol=1e-4)


@functools.cache
def rms_norm(width: int, dtype: str, target: str) -> Program:
    text = f"""graph rms_norm<B, N>(%x: tensor<B x N x {width} x {dtype}>,
        %w: tensor<{width} x {dtype}>) {{
      %xw = math.cast %x {{dtype = f32}}
      %squares = math.mul %xw, %xw
      %sum = tensor.reduce %squares {{kind = "sum", axis = 2, keep = true}}
      %count = math.const {{value = {1 / width}, type = tensor<f32>}}
      %mean = math.mul %sum, %count
      %eps = math.const {{value = 1e-6, type = tensor<f32>}}
      %below = math.add %mean, %eps
      %factor = math.rsqrt %below
      %y = math.mul %xw, %factor
      %ww = math.cast %w {{dtype = f32}}
      %z = math.mul %y, %ww
      %out = math.cast %z {{dtype = {dtype}}}
      return %out
    }}"""
    return Program(parse(text), target=target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("width", [1, 5, 16, 77, 512])
def test_rows_are_normalised_in_one_kernel(target: str, dtype: str, width: int) -> None:
    program = rms_norm(width, dtype, target)
    assert len(program.steps) == 1 and program.supported
    for rows in (0, 1, 9, 70):
        x = torch.randn(2, rows, width).to(DTYPES[dtype])
        w = torch.randn(width).to(DTYPES[dtype])
        d = x.double()
        expected = d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-6) * w.double()
        tolerance = 3e-6 if dtype == "f32" else 2e-2
        out = program(x, w)[0].double()
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("target", TARGETS)
def test_exp2_is_right_over_its_whole_range(target: str) -> None:
    """Relative error of a few ulp down to the denormals; infinities, zero and NaN exactly."""
    text = "graph f<N, M>(%x: tensor<N x M x f32>) { %y = math.exp2 %x\n return %y }"
    special = [torch.inf, -torch.inf, torch.nan, 0.0, 1.0, -1.0, -126.0, -149.0, -151.0, 128.0]
    x = torch.cat([torch.linspace(-160, 140, 50_001), torch.tensor(special)])
    y = Program(parse(text), target=target)(x.reshape(1, -1))[0][0].double()
    expected = torch.exp2(x.double()).float().double()
    torch.testing.assert_close(y, expected, rtol=2e-7, atol=1.5e-45, equal_nan=True)
