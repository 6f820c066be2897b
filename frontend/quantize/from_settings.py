"""A weight quantised as settings of a plan say."""

from __future__ import annotations

import torch

from tilewright.frontend.quantize.plan import Settings
from tilewright.ir.dtypes import TABLE
from tilewright.ir.packing import Packing
from tilewright.runtime.lowbit import preferred_packing
from tilewright.runtime.quantized.tensor import QuantizedTensor


def quantized(
    weight: torch.Tensor,
    settings: Settings,
    inputs: torch.Tensor | None = None,
    multiplied: bool = True,
) -> QuantizedTensor:
    """A weight [..., N, K] quantised; ``inputs`` [R, K] are those of its layer, for "gptq".

    Weights to be ``multiplied`` are packed as the kernels of this machine read them best, others
    as single rows unpack fastest. Raises SettingError and DataError.
    """
    with torch.inference_mode(False), torch.no_grad():  # weights outlive the mode of their making
        return QuantizedTensor.from_float(
            weight.detach(),
            settings.dtype,
            settings.group,
            symmetric=settings.symmetric,
            zero=settings.zero,
            scale_dtype=settings.scale_dtype,
            method=settings.method,
            calibration=inputs if settings.method == "gptq" else None,
            layout=_layout(settings, weight.shape[-1]) if multiplied else None,
        )


def _layout(settings: Settings, columns: int) -> Packing | None:
    """The best packing for the settings; None where ``from_float`` is to refuse them."""
    if settings.dtype not in TABLE or TABLE[settings.dtype].bits > 8 or not columns:
        return None
    group = settings.group if isinstance(settings.group, int) else columns
    return preferred_packing(TABLE[settings.dtype], min(group, columns), settings.activation)
