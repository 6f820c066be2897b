"""``tilewright.linear`` against its meaning, its gradients, and the op behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tests.frontend.quantize.models import largest_error, weight
from tilewright.frontend.quantize.form import facts_of, parts_of
from tilewright.frontend.quantize.product import (
    dequantize_op,
    embedding_op,
    linear_op,
    look_up,
)
from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime.lowbit import FUNCTIONS
from tilewright.runtime.lowbit.fallback import FALLBACKS
from tilewright.runtime.lowbit.reference import reference_linear, rounded_to_int8

SIZES = st.sampled_from([0, 1, 2, 3, 17, 40])
LENGTHS = st.sampled_from([0, 1, 2, 31, 32, 33, 100])
FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def exact(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result = x.double() @ w.double().T
    return result if bias is None else result + bias.double()


@settings(max_examples=40)
@given(SIZES, SIZES, LENGTHS, FLOATS, st.sampled_from(["u4", "u3", "i8", "nf4"]), st.booleans())
def test_any_shape_and_dtype(
    m: int, n: int, k: int, dtype: torch.dtype, form: str, with_bias: bool
) -> None:
    q, x = weight(n, k, form), torch.randn(m, k).to(dtype)
    bias = torch.randn(n) if with_bias else None
    with torch.no_grad():
        result = tilewright.linear(x, q, bias)
    assert result.shape == (m, n)
    assert result.dtype == dtype
    w = q.dequantize()
    off = (result.double() - exact(x, w, bias)).abs()
    extra = torch.finfo(torch.float32).eps * 4
    assert (off <= largest_error(x, w, result) + extra).all()


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 0), (2, 1, 3)])
def test_leading_axes(lead: tuple[int, ...]) -> None:
    q, x = weight(5, 33), torch.randn(*lead, 33)
    result = tilewright.linear(x, q)
    assert result.shape == (*lead, 5)
    flat = tilewright.linear(x.reshape(-1, 33), q)
    assert torch.allclose(result.reshape(-1, 5), flat, atol=1e-5)


def test_strides_do_not_matter() -> None:
    q, x = weight(5, 32), torch.randn(32, 6).T
    strided = torch.randn(6, 64)[:, ::2]
    for given_x in (x, strided, x.expand(2, 6, 32)):
        assert torch.equal(tilewright.linear(given_x, q), tilewright.linear(given_x.clone(), q))


@settings(max_examples=25)
@given(
    st.sampled_from([1, 4, 40]),
    LENGTHS,
    st.sampled_from([8, 32, "channel", "tensor"]),
    st.sampled_from(["u4", "i8", "u3", "f4e2m1"]),
)
def test_int8_activations_round_per_row_and_group(m: int, k: int, group: Any, form: str) -> None:
    """Inputs far from the middle between two multiples, so that every rounding finds the same."""
    q = weight(7, k, form, group=group)
    codes = torch.randint(-126, 127, (m, k)).float()
    codes[:, :: group if isinstance(group, int) else max(1, k)] = 127.0  # one in every group
    off = torch.rand(m, k).sub(0.5).mul(0.8) * (codes != 127.0)
    step = 2.0 ** torch.randint(-6, 3, (m, 1))
    result = tilewright.linear((codes + off) * step, q, activation="int8")
    w, rounded = q.dequantize(), codes * step
    wanted = exact(rounded, w, None)
    assert ((result - wanted).abs() <= largest_error(rounded, w, result)).all()
    assert not tilewright.linear(torch.zeros(m, k), q, activation="int8").any()


@pytest.mark.parametrize("form", ["nf4", "f6e3m2"])
def test_weights_that_are_no_bytes_take_inputs_as_they_are(form: str) -> None:
    q, x = weight(7, 64, form), torch.randn(3, 64)
    assert torch.equal(tilewright.linear(x, q, activation="int8"), tilewright.linear(x, q))


def test_rounding_to_int8_is_what_it_says() -> None:
    q = weight(3, 5, "u4", group=4)
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 3.0]])
    assert rounded_to_int8(x, q).tolist() == [[127.0, 0.0, 2.0, -2.0, 3.0]]
    wanted = exact(rounded_to_int8(x, q), q.dequantize(), None)
    assert torch.equal(reference_linear(x, q, None, "int8"), wanted.float())
    # with GPTQ's order, groups are those of the stored columns: here 127, 3 | 0.5, 1.5, -2.5
    turned = replace(q, order=torch.tensor([0, 4, 1, 2, 3]))
    assert rounded_to_int8(x, turned)[0, [0, 4]].tolist() == [127.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epilogue", [name for name in FUNCTIONS if name])
def test_epilogue_and_residual(epilogue: str, dtype: torch.dtype) -> None:
    q, x = weight(6, 40), torch.randn(2, 3, 40).to(dtype)
    bias, residual = torch.randn(6), torch.randn(2, 3, 6).to(dtype)
    result = tilewright.linear(x, q, bias, epilogue=epilogue, residual=residual)
    z = exact(x.reshape(6, 40), q.dequantize(), bias)
    wanted = FUNCTIONS[epilogue](z) + residual.reshape(6, 6).double()
    eps = torch.finfo(dtype).eps
    assert ((result.reshape(6, 6).double() - wanted).abs() <= 2 * eps * wanted.abs() + 1e-4).all()


@pytest.mark.parametrize("epilogue", [None, *(name for name in FUNCTIONS if name)])
def test_gradients_reach_input_bias_and_residual(epilogue: str | None) -> None:
    q = weight(6, 40)
    inputs = [torch.randn(3, 40), torch.randn(6), torch.randn(3, 6)]
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    x, bias, residual = ours
    tilewright.linear(x, q, bias, epilogue=epilogue, residual=residual).square().sum().backward()
    x, bias, residual = theirs
    z = x @ q.dequantize().T + bias
    (FUNCTIONS[epilogue or ""](z) + residual).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_rounding_the_input_counts_as_the_identity() -> None:
    q, x = weight(6, 40), torch.randn(3, 40, requires_grad=True)
    tilewright.linear(x, q, activation="int8").sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, q.dequantize().sum(0).expand(3, 40))


@pytest.mark.parametrize("form", ["u4", "f4e2m1"])
@pytest.mark.parametrize(("activation", "epilogue"), [("float", ""), ("int8", "silu")])
def test_opcheck(form: str, activation: str, epilogue: str) -> None:
    q = weight(6, 40, form)
    x = torch.randn(2, 3, 40, requires_grad=True)
    bias, residual = torch.randn(6, requires_grad=True), torch.randn(2, 3, 6)
    given_weight = (*parts_of(q), bias, residual, *facts_of(q))
    torch.library.opcheck(linear_op, (x, *given_weight, activation, epilogue))
    torch.library.opcheck(dequantize_op, (*parts_of(q), *facts_of(q), torch.float16))
    indices = torch.tensor([[0, 5], [1, 1]])
    torch.library.opcheck(embedding_op, (indices, *parts_of(q), *facts_of(q), torch.float16))


@pytest.mark.parametrize("form", ["u4", "i3", "f6e3m2", "nf4"])
@pytest.mark.parametrize("count", [0, 1, 9, 60])
def test_rows_are_looked_up(form: str, count: int) -> None:
    q = weight(37, 40, form)
    chosen = torch.randint(0, 37, (3, count))
    result = look_up(chosen, q, torch.float32)
    assert torch.equal(result, q.dequantize()[chosen])


@pytest.mark.parametrize("chosen", [[-1], [0, 37]])
def test_rows_that_are_not_there(chosen: list[int]) -> None:
    with pytest.raises(BindError, match="an embedding of 37 rows has none"):
        look_up(torch.tensor(chosen), weight(37, 8), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"x": torch.randn(2, 39)}, BindError, r"last axis must be 40, as the weight is \[6, 40\]"),
        ({"x": torch.tensor(1.0)}, BindError, "last axis must be 40"),
        ({"x": torch.zeros(2, 40, dtype=torch.int32)}, BindError, "x is torch.int32"),
        ({"bias": torch.randn(5)}, BindError, r"bias has shape \[5\]"),
        ({"residual": torch.randn(6)}, BindError, r"residual has shape \[6\]"),
        ({"activation": "int4"}, SettingError, "activation='int4'"),
        ({"epilogue": "tanh"}, SettingError, "'relu', 'silu'"),
        ({"qweight": weight(12, 40).dequantize()}, BindError, "QuantizedTensor"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    given_all = {"x": torch.randn(2, 40), "qweight": weight(6, 40), **arguments}
    with pytest.raises(error, match=says):
        tilewright.linear(**given_all)


def test_what_runs_in_torch_is_counted() -> None:
    FALLBACKS.clear()
    tilewright.linear(torch.randn(2, 40, dtype=torch.float64), weight(6, 40))
    assert sum(FALLBACKS.values()) == 1
