"""GPTQ against a slow version of itself, its special cases, and what it is for: the output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.quantized.drawing import heavy_tailed
from tilewright import QuantizedTensor
from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.quantized.gptq import BLOCK, Calibration


def correlated(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Activations of which few directions and few columns carry most."""
    rng = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(length // 8, 1), generator=rng)
    x = few @ torch.randn(few.shape[1], length, generator=rng)
    x = x + 0.3 * torch.randn(rows, length, generator=rng)
    return x * torch.exp(torch.randn(length, generator=rng))


def output_error(w: torch.Tensor, tensor: QuantizedTensor, x: torch.Tensor) -> float:
    """||X (W - Wq)^T||"""
    return float((x @ (w - tensor.dequantize()).T).norm())


def slowly(w: torch.Tensor, tensor: QuantizedTensor, calibration: Calibration) -> torch.Tensor:
    """Optimal brain quantisation in f64, column after column, each eliminated from the inverse
    Hessian, with the scales and zeros of ``tensor``; logical columns."""
    hessian = calibration.hessian.clone()
    hessian.diagonal().add_(calibration.damping * hessian.diagonal().mean())
    order = tensor.order if tensor.order is not None else torch.arange(w.shape[1])
    hessian, left = hessian[order][:, order], w.double()[:, order]
    out, inverse = torch.empty_like(left), torch.linalg.inv(hessian)
    for at in range(w.shape[1]):
        scale = tensor.scales[:, at // tensor.group].double()
        zero = tensor.zeros[:, at // tensor.group].double()
        codes = (left[:, at] / scale + zero).round().clamp(0, (1 << tensor.dtype.bits) - 1)
        out[:, at] = (codes - zero) * scale
        error = (left[:, at] - out[:, at]) / inverse[0, 0]
        left[:, at:] -= error[:, None] * inverse[0]
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    back = torch.empty_like(out)
    back[:, order] = out
    return back


@settings(max_examples=20)
@given(
    st.integers(1, 60),
    st.sampled_from([1, 5, 16, 64, "channel"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_it_is_optimal_brain_quantisation(
    length: int, group: int | str, descending: bool, seed: int
) -> None:
    w = heavy_tailed(6, length, seed)
    calibration = Calibration.of(correlated(80, length, seed), descending=descending)
    tensor = QuantizedTensor.from_float(w, "u4", group, method="gptq", calibration=calibration)
    want = slowly(w, tensor, calibration)
    off = (tensor.dequantize().double() - want).abs() > 1e-4 * want.abs() + 1e-6
    # f32 may round a number next to a tie the other way, which changes those after it
    assert off.any(1).sum() <= 1


@pytest.mark.parametrize("length", [BLOCK + 40, 3 * BLOCK])
@pytest.mark.parametrize("group", [24, 48, 160, "channel"])
def test_blocks_change_nothing(length: int, group: int | str) -> None:
    w = heavy_tailed(3, length)
    calibration = Calibration.of(correlated(500, length))
    tensor = QuantizedTensor.from_float(w, "u8", group, method="gptq", calibration=calibration)
    want = slowly(w, tensor, calibration)
    close = (tensor.dequantize().double() - want).abs() < 0.1 * tensor.scales.max()
    assert close.double().mean() > 0.99


@pytest.mark.parametrize("dtype", ["u4", "u2", "i3", "f4e2m1", "nf4"])
@pytest.mark.parametrize("group", [32, 100, "channel", "tensor"])
@pytest.mark.parametrize("descending", [False, True])
def test_the_output_is_better_than_rounding(dtype: str, group: int | str, descending: bool) -> None:
    w, x, other = heavy_tailed(48, 256), correlated(600, 256), correlated(600, 256)[:100] * 1.1
    calibration = Calibration.of(x, descending=descending)
    gptq = QuantizedTensor.from_float(w, dtype, group, method="gptq", calibration=calibration)
    for method in ("minmax", "mse"):
        rounded = QuantizedTensor.from_float(w, dtype, group, method=method)
        assert output_error(w, gptq, x) < 0.9 * output_error(w, rounded, x)
        assert output_error(w, gptq, other) < 0.9 * output_error(w, rounded, other)


@pytest.mark.parametrize("zero", [None, "float"])
def test_independent_activations_leave_rounding_as_it_is(zero: str | None) -> None:
    w = heavy_tailed(20, 200)
    calibration = Calibration(torch.eye(200, dtype=torch.float64), 1)
    gptq = QuantizedTensor.from_float(
        w, "u4", 48, method="gptq", calibration=calibration, zero=zero
    )
    assert torch.equal(
        gptq.dequantize(),
        QuantizedTensor.from_float(w, "u4", 48, method="mse", zero=zero).dequantize(),
    )


def test_columns_of_large_activations_come_first() -> None:
    x = torch.randn(100, 20) * torch.arange(1, 21)
    calibration = Calibration.of(x, descending=True)
    tensor = QuantizedTensor.from_float(
        heavy_tailed(4, 20), "u4", 8, method="gptq", calibration=calibration
    )
    assert tensor.order is not None
    assert torch.equal(tensor.order, x.square().sum(0).argsort(descending=True))
    plain = QuantizedTensor.from_float(heavy_tailed(4, 20), "u4", 8, method="gptq", calibration=x)
    assert plain.order is None


def test_batches_add_up() -> None:
    x = torch.randn(90, 12)
    parts = Calibration.of(x[:50].reshape(5, 10, 12)).add(x[50:])
    whole = Calibration.of(x)
    assert parts.count == whole.count == 90
    torch.testing.assert_close(parts.hessian, whole.hessian, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", ["fewer", "zero", "one column dead", "none"])
def test_calibration_that_says_little(x: str) -> None:
    w = heavy_tailed(8, 64)
    given_x = {
        "fewer": torch.randn(3, 64),
        "zero": torch.zeros(10, 64),
        "one column dead": torch.randn(100, 64) * (torch.arange(64) != 5),
        "none": torch.zeros(0, 64),
    }[x]
    got = QuantizedTensor.from_float(w, "u4", 32, method="gptq", calibration=given_x)
    off = (got.dequantize() - w).abs() / got.scales.repeat_interleave(32, 1)
    if x in ("zero", "none"):
        mse = QuantizedTensor.from_float(w, "u4", 32, method="mse")
        assert torch.equal(got.dequantize(), mse.dequantize())
    assert torch.isfinite(off).all()
    if x == "one column dead":
        assert float(off[:, 5].median()) <= 0.5


def test_experts_share_a_calibration() -> None:
    w, x = torch.randn(2, 6, 32), correlated(80, 32)
    both = QuantizedTensor.from_float(w, "u4", 16, method="gptq", calibration=x)
    for at in range(2):
        alone = QuantizedTensor.from_float(w[at], "u4", 16, method="gptq", calibration=x)
        assert torch.equal(both[at].dequantize(), alone.dequantize())


@pytest.mark.parametrize("shape", [(0, 16), (5, 0), (1, 1), (0, 3, 4)])
def test_sizes_of_0_and_1(shape: tuple[int, ...]) -> None:
    x = torch.randn(9, shape[-1])
    tensor = QuantizedTensor.from_float(torch.randn(shape), "u4", 8, method="gptq", calibration=x)
    assert tuple(tensor.dequantize().shape) == shape


def test_bad_calibration() -> None:
    w = torch.randn(4, 16)

    def quantised(**options: object) -> QuantizedTensor:
        return QuantizedTensor.from_float(w, "u4", 8, name="proj", **options)  # type: ignore[arg-type]

    with pytest.raises(SettingError, match="need each other"):
        quantised(method="gptq")
    with pytest.raises(SettingError, match="need each other"):
        quantised(calibration=torch.randn(5, 16))
    with pytest.raises(DataError, match=r"calibration must be \[..., 16\] for proj"):
        quantised(method="gptq", calibration=torch.randn(5, 15))
    with pytest.raises(DataError, match="calibration must be finite"):
        quantised(method="gptq", calibration=torch.full((5, 16), torch.nan))
    with pytest.raises(DataError, match="float activations"):
        quantised(method="gptq", calibration=torch.zeros(5, 16, dtype=torch.int64))
    with pytest.raises(DataError, match="must be"):
        Calibration.of(torch.randn(5, 16)).add(torch.randn(5, 17))
    with pytest.raises(SettingError, match="damping"):
        Calibration.of(torch.randn(5, 16), damping=-1)
    wrong = Calibration(torch.full((16, 16), -5.0, dtype=torch.float64).fill_diagonal_(1.0), 3)
    with pytest.raises(DataError, match="no inverse"):
        quantised(method="gptq", calibration=wrong)
