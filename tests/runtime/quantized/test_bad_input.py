"""Refusals of ``from_codes`` and ``from_float``: what is wrong, what was expected and found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilewright import QuantizedTensor
from tilewright.ir.errors import DataError, SettingError, TilewrightError, UnsupportedError
from tilewright.ir.packing import Packing

CODES, SCALES, ZEROS = torch.ones(4, 32, dtype=torch.int64), torch.ones(4, 2), torch.ones(4, 2)


def with_value(x: torch.Tensor, value: float) -> torch.Tensor:
    out = x.clone()
    out[2, 1] = value
    return out


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"group": 0}, SettingError, "group=0 must be"),
        ({"group": -4}, SettingError, "group=-4"),
        ({"group": 2.5}, SettingError, "group=2.5"),
        ({"group": "row"}, SettingError, "group='row'"),
        ({"dtype": "u9"}, SettingError, "dtype='u9'"),
        ({"dtype": "f16"}, SettingError, "f16"),
        ({"dtype": "e8m0"}, SettingError, "e8m0"),
        ({"codes": CODES[0]}, DataError, r"codes must be \[..., N, K\]; they are \[32\]"),
        ({"codes": with_value(CODES, 16)}, DataError, "codes must be from 0 to 15.*from 1 to 16"),
        ({"codes": with_value(CODES, -1)}, DataError, "codes .*from -1 to 1"),
        ({"codes": CODES.float()}, DataError, "codes must be integers.*float32"),
        ({"codes": CODES.bool()}, DataError, "codes must be integers.*bool"),
        ({"scales": SCALES[:, :1]}, DataError, r"scales must be \[4, 2\].*it is \[4, 1\]"),
        (
            {"scales": with_value(SCALES, torch.nan)},
            DataError,
            r"scales must be finite.*\[2, 1\]: nan",
        ),
        ({"scales": with_value(SCALES, -torch.inf)}, DataError, "scales must be finite.*-inf"),
        ({"scales": SCALES.int()}, DataError, "scales must be floats"),
        ({"scales": SCALES.to(torch.uint8)}, DataError, "scale_dtype must be e8m0 or f8e4m3"),
        (
            {"scales": torch.full((4, 2), 255, dtype=torch.uint8), "scale_dtype": "e8m0"},
            DataError,
            "scales must be finite",
        ),
        (
            {"scales": SCALES * 1e6, "scale_dtype": "f16"},
            DataError,
            "scales go up to 1e.06, f16 to",
        ),
        ({"scales": -SCALES, "scale_dtype": "e8m0"}, DataError, "scales must not be below 0"),
        ({"scale_dtype": "f64"}, SettingError, "scale_dtype='f64'"),
        ({"zeros": ZEROS[:3]}, DataError, r"zeros must be \[4, 2\]"),
        ({"zeros": with_value(ZEROS, torch.nan)}, DataError, "zeros must be finite"),
        ({"zeros": ZEROS.bool()}, DataError, "zeros must be integers"),
        (
            {"order": torch.zeros(32, dtype=torch.int64)},
            DataError,
            "order must hold each of 0 to 31",
        ),
        ({"order": torch.arange(31)}, DataError, r"order must be \[32\]"),
        ({"order": torch.arange(32.0)}, DataError, "order must be int64"),
        ({"tensor_scale": float("nan")}, DataError, "tensor_scale"),
        ({"layout": Packing.quads(5, 16, 16)}, UnsupportedError, "4 bits"),
        ({"layout": Packing.quads(4, 16, 8)}, DataError, r"scales must be \[4, 4\]"),
    ],
)
def test_from_codes(changed: dict[str, Any], error: type[TilewrightError], message: str) -> None:
    options = {"dtype": "u4", "group": 16, "zeros": None, **changed}
    codes, scales = options.pop("codes", CODES), options.pop("scales", SCALES)
    with pytest.raises(error, match=message) as caught:
        QuantizedTensor.from_codes(codes, scales, options.pop("zeros"), name="proj", **options)
    assert caught.value.message.startswith("proj: ") or error is SettingError


W = torch.randn(4, 32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"w": W.int()}, DataError, "proj must be f16, bf16, f32 or f64; it is torch.int32"),
        ({"w": with_value(W, torch.nan)}, DataError, "proj must be finite"),
        ({"w": with_value(W, torch.inf), "method": "hqq"}, DataError, "proj must be finite"),
        ({"w": with_value(W, torch.inf), "group": "tensor"}, DataError, "proj must be finite"),
        (
            {"w": with_value(W, torch.inf), "scale_dtype": "f8e4m3"},
            DataError,
            "proj must be finite",
        ),
        ({"w": W * 1e8}, DataError, "scales go up to .* f16 to 65504; use another scale_dtype"),
        ({"group": 0}, SettingError, "group=0"),
        ({"method": "best"}, SettingError, "method='best' must be one of minmax, mse, hqq, gptq"),
        ({"zero": "half"}, SettingError, "zero='half'"),
        ({"zero": "int", "symmetric": True}, SettingError, "zero='int' needs symmetric=False"),
        ({"method": "hqq", "symmetric": True}, SettingError, "method='hqq' needs symmetric=False"),
        ({"method": "hqq", "zero": "int"}, SettingError, "zero='float'"),
        ({"dtype": "nf4", "zero": "int"}, SettingError, "dtype nf4"),
        ({"scale_dtype": "e8m0", "symmetric": False}, SettingError, "e8m0"),
        ({"scale_dtype": "u8"}, SettingError, "scale_dtype='u8' must be one of"),
        ({"axis": 3}, SettingError, "axis=3"),
        ({"layout": Packing.quads(4, 16, 8)}, UnsupportedError, "group"),
    ],
)
def test_from_float(changed: dict[str, Any], error: type[TilewrightError], message: str) -> None:
    options = {"w": W, "dtype": "u4", "group": 16, "name": "proj", **changed}
    with pytest.raises(error, match=message):
        QuantizedTensor.from_float(**options)
