"""Compiled attention against float64: shapes, strides, dtypes, masks, values, for several
targets."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention_programs import Attention
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program
from tilewright.runtime.targets import host_target

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# largest error of one result of size about 1: a few roundings of the output and of the products
TOLERANCE = {"f32": 4e-6, "bf16": 2.5e-2, "f16": 4e-3}
TARGETS = ("host", "x86-64-v3")

FORMS = [
    Attention(64, 64),
    Attention(64, 64, causal=True),
    Attention(64, 64, "bf16"),
    Attention(64, 64, "bf16", causal=True),
    Attention(17, 33, "f16", causal=True),
    Attention(80, 24, mask="add"),
    Attention(8, 8, mask="bool"),
    Attention(3, 1, mask="bool", causal=True, safe=False),
    Attention(24, 40, "bf16", mask="rows"),
    Attention(1, 130, "bf16", mask="add"),
    Attention(200, 512, causal=True),
    Attention(32, 32, "f16", mask="bool"),
]


@functools.cache
def program(form: Attention, target: str) -> Program:
    return Program(parse(form.text()), target=target)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Attention, dict[str, int], int, str]:
    form = draw(st.sampled_from(FORMS))
    few = st.one_of(st.integers(1, 9), st.integers(10, 150))
    sizes = {
        "B": draw(st.integers(0, 2)),
        "K": draw(st.integers(1, 3)),
        "G": draw(st.sampled_from([1, 1, 2, 3, 4, 8])),
        "N": draw(st.one_of(st.integers(0, 3), few)),
        "M": draw(st.one_of(st.integers(0, 3), few, st.integers(120, 300))),
    }
    style = draw(st.sampled_from(["plain", "swapped", "sliced", "expanded", "turned"]))
    return form, sizes, draw(st.integers(0, 2**31)), style


def strided(x: torch.Tensor, style: str) -> torch.Tensor:
    """The same values under other strides."""
    if style == "swapped" and x.dim() == 4:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if style == "sliced":
        wide = torch.full(
            (*x.shape[:-1], x.shape[-1] + 3), float("nan") if x.is_floating_point() else 1
        )
        wide = wide.to(x.dtype)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    if style == "turned":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if style == "expanded" and x.shape[0] > 1:
        return x[:1].expand(x.shape)
    return x


def inputs(form: Attention, sizes: dict[str, int], seed: int, style: str) -> list[torch.Tensor]:
    b, k, g, n, m = (sizes[x] for x in "BKGNM")
    rng = torch.Generator().manual_seed(seed)
    shapes = [(b, k * g, n, form.head), (b, k, m, form.head), (b, k, m, form.value_head)]
    tensors = [torch.randn(s, generator=rng).to(DTYPES[form.dtype]) for s in shapes]
    if form.mask != "none":
        shape = (b, 1, 1, 1, m) if form.mask == "rows" else (b, 1, 1, n, m)
        mask = torch.rand(shape, generator=rng) < 0.7
        if form.mask == "add":
            bias = torch.randn(shape, generator=rng).masked_fill(~mask, -torch.inf)
            tensors.append(bias.to(DTYPES[form.dtype]))
        else:
            tensors.append(mask)
    return [strided(x, style) for x in tensors]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=120)
@given(case=cases())
def test_attention_is_that_of_float64(
    target: str, case: tuple[Attention, dict[str, int], int, str]
) -> None:
    form, sizes, seed, style = case
    tensors = inputs(form, sizes, seed, style)
    out = program(form, target)(*tensors)[0]
    mask = tensors[3] if len(tensors) > 3 else None
    expected = form.reference(tensors[0], tensors[1], tensors[2], mask)
    assert out.shape == expected.shape
    assert out.dtype == DTYPES[form.dtype]
    tolerance = TOLERANCE[form.dtype]
    torch.testing.assert_close(
        out.double(), expected, atol=tolerance, rtol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 60])
@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan"), 1e-40, 3e38])
def test_special_values_in_scores_end_as_in_float64(rows: int, special: float) -> None:
    form = Attention(8, 8, mask="add", safe=False)
    b = torch.Generator().manual_seed(rows)
    q, k, v = (torch.randn(1, 1, n, 8, generator=b) for n in (rows, 40, 40))
    mask = torch.zeros(1, 1, 1, rows, 40)
    mask[..., 0, 17] = special
    form_program = Program(parse(Attention(8, 8, mask="add", safe=False).text()))
    out = form_program(q, k, v, mask)[0]
    expected = form.reference(q, k, v, mask)
    torch.testing.assert_close(out.double(), expected, atol=4e-6, rtol=4e-6, equal_nan=True)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_rows_with_everything_masked(rows: int, safe: bool) -> None:
    """Zeros as torch's scaled_dot_product_attention, NaN as torch.softmax."""
    form = Attention(8, 8, mask="bool", safe=safe)
    q, k, v = torch.randn(1, 1, rows, 8), torch.randn(1, 1, 70, 8), torch.randn(1, 1, 70, 8)
    mask = torch.zeros(1, 1, 1, rows, 70, dtype=torch.bool)
    mask[..., -1, :] = True
    out = program(form, "host")(q, k, v, mask)[0]
    torch.testing.assert_close(
        out.double(), form.reference(q, k, v, mask), atol=4e-6, rtol=4e-6, equal_nan=True
    )


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_bits_do_not_depend_on_the_number_of_threads(rows: int) -> None:
    form = Attention(64, 64, causal=rows > 1)
    q, k, v = torch.randn(1, 6, rows, 64), torch.randn(1, 3, 333, 64), torch.randn(1, 3, 333, 64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(program(form, "host")(q, k, v)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_one_form_serves_all_batches_and_lengths() -> None:
    """100 different shapes, one compiled form for each layout class."""
    from tilewright.passes.to_tile.schedule import row_classes

    form = Program(parse(Attention(16, 16).text()))
    for at in range(100):
        batch, n, m = 1 + at % 3, 1 + at, 2 + 2 * at
        x = torch.randn(batch, 2, n, 16)
        y = torch.randn(batch, 2, m, 16)
        form(x, y, y)
    forms = form.explain().kernels[0].variants
    assert len(forms) <= len(row_classes(host_target()))
    assert len({f.layout_class for f in forms}) == len(forms)
