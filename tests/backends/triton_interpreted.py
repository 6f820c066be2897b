"""Triton kernels in Triton's interpreter. ``test_triton.py`` runs this file in its own process,
with TRITON_INTERPRET=1: Triton reads the variable when it is imported."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tests import computed_operands
from tests.attention_programs import Attention
from tests.fused_programs import CASES
from tests.test_fused_programs import results
from tilewright.bench.gpu_attention_cases import MASKS, plain_attention
from tilewright.ir.errors import BindError
from tilewright.ir.parser import parse
from tilewright.runtime.gpu_targets import using_schedule
from tilewright.runtime.program import Program

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ERRORS = {"f32": 1e-6, "f16": 2e-3, "bf16": 1.6e-2}


@functools.cache
def compiled(text: str) -> Program:
    return Program(parse(text), backend="triton", target="cuda-sm90")


def run(text: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with using_schedule(16, 16, 4, 2):
        return compiled(text)(*tensors)


@settings(max_examples=12)
@given(
    head=st.sampled_from([3, 16, 20]),
    dtype=st.sampled_from(sorted(DTYPES)),
    causal=st.booleans(),
    mask=st.sampled_from(["none", "bool", "add"]),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_attention(
    head: int, dtype: str, causal: bool, mask: str, queries: int, keys: int, seed: int
) -> None:
    form = Attention(head, 16, dtype, causal, mask)
    rng = torch.Generator().manual_seed(seed)
    shapes = (1, 4, queries, head), (1, 2, keys, head), (1, 2, keys, 16)
    q, k, v = (torch.randn(x, generator=rng).to(DTYPES[dtype]) for x in shapes)
    extra = torch.randn(1, 1, 1, queries, keys, generator=rng)
    given_mask = {"bool": extra > -0.5, "add": extra.to(DTYPES[dtype])}.get(mask)
    more = () if given_mask is None else (given_mask,)
    (got,) = run(form.text(), q, k, v, *more)
    want = form.reference(q, k, v, None if given_mask is None else given_mask[:, 0])
    assert float((got.double() - want).abs().max()) < ERRORS[dtype] * 2


@pytest.mark.parametrize("name", CASES)
def test_fused_programs(name: str) -> None:
    case = CASES[name]
    for rows, length in ((1, 1), (20, 37)):
        given_ = case.inputs(rows, length, 0)
        exact = results(case, *(x.double() if x.is_floating_point() else x for x in given_))
        for got, want in zip(run(case.text, *given_), exact, strict=True):
            assert got.shape == want.shape
            assert float((got - want).abs().max()) <= 2e-5 * (1 + float(want.abs().max()))


@pytest.mark.parametrize("what", MASKS)
def test_masks_and_scores(what: str) -> None:
    """``tilewright.attention`` itself, its closures and tables included."""
    q, k, v = (torch.randn(1, 2, 70, 16) for _ in range(3))
    options = MASKS[what](2, 70, q.device)
    with using_schedule(16, 16, 4, 2):
        got = tilewright.attention(q, k, v, **options)
    want = plain_attention(q, k, v, False, options)
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_lengths_share_one_kernel_and_strides_do_not_matter() -> None:
    text = Attention(16, 16).text()
    reports = compiled(text).steps[0].family.reports  # type: ignore[union-attr]
    others = len(reports)  # of the same program, which other tests may have drawn
    for length in (1, 5, 33):
        q = torch.randn(1, length, 4, 16).transpose(1, 2)
        k, v = (torch.randn(1, 2, length, 32)[..., ::2].contiguous() for _ in range(2))
        (got,) = run(text, q, k, v)
        want = Attention(16, 16).reference(q, k, v, None)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert len(reports) - others <= 2


def test_inputs_that_do_not_fit() -> None:
    text, q = Attention(16, 16).text(), torch.randn(1, 4, 5, 16)
    run(text, q, q, q)
    with pytest.raises(BindError, match="dtype"):
        run(text, q, q.double(), q)
    with pytest.raises(BindError):
        run(text, q, q)


@pytest.mark.parametrize(("made", "head", "value_head"), [("qk", 5, 16), ("v", 16, 9)])
def test_computed_operands(made: str, head: int, value_head: int) -> None:
    """What lies past an end, where loads give zeros, reaches no sum as log 0 or 1 / 0."""
    program = computed_operands.text(made, head, value_head)
    given = computed_operands.inputs(9, 21, head, value_head)
    (got,) = run(program, *given)
    want = computed_operands.expected(program, given)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
