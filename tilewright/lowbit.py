"""Low-bit weights beyond ``tilewright.QuantizedTensor``: which packing a width gets and why."""

from __future__ import annotations

from tilewright.ir.dtypes import TABLE, DType
from tilewright.passes.choose_layout import LayoutChoice
from tilewright.passes.choose_layout import choose_layout as _choose_layout
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.quantized.dtype_names import weight_dtype
from tilewright.runtime.quantized.tensor import QuantizedTensor
from tilewright.runtime.targets import resolve_target


def choose_layout(
    dtype: str | DType,
    group: int,
    *,
    activation: str = "int8",
    shape: str = "decode",
    target: str | None = None,
) -> LayoutChoice:
    """The packings of a dtype in groups of ``group``, cheapest first; ``.packing`` is the choice,
    ``.explain()`` the table of costs.

    ``activation``: "int8" or "float"; ``shape``: "decode" or "prefill"; ``target``: this machine
    if not given. Raises SettingError, TargetError, UnsupportedError.
    """
    row = dtype if isinstance(dtype, DType) else weight_dtype(dtype)
    where = resolve_target(target) if target is not None else kernel_target()
    return _choose_layout(row, group, where, activation=activation, shape=shape)


def prepared(weight: QuantizedTensor, activation: str = "int8") -> QuantizedTensor:
    """The weight [N, K] in the packing that this machine reads best with these activations."""
    choice = choose_layout(weight.dtype, weight.layout.group, activation=activation)
    return weight.with_layout(choice.packing)


def code_dtypes(kind: str = "") -> tuple[str, ...]:
    """Names of the dtypes that weights may have: of a ``kind`` (int, uint, float, table) or all."""
    known = (d for d in TABLE.values() if d.bits <= 8 and d.name not in ("bool", "e8m0"))
    return tuple(d.name for d in known if kind in ("", d.kind))


def bits_of(dtype: str) -> int:
    """Bits of a code. Raises SettingError."""
    return weight_dtype(dtype).bits


def finite_codes(dtype: str) -> tuple[int, ...]:
    """The codes that stand for numbers, not for infinities or NaN. Raises SettingError."""
    row = weight_dtype(dtype)
    values = row.decode(range(1 << row.bits))
    return tuple(code for code, value in enumerate(values) if abs(float(value)) < float("inf"))
