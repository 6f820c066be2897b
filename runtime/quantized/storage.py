"""Quantised tensors as plain tensors: state dicts and safetensors files.

``words``, ``scales``, ``zeros`` and ``order`` are tensors as they are; everything else is JSON, as
bytes, under ``form``. What is read is checked completely before anything is made of it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tilewright.ir.dtypes import DType, table_dtype
from tilewright.ir.errors import DataError, SettingError, UnsupportedError
from tilewright.ir.packing import Packing
from tilewright.runtime.quantized import checks
from tilewright.runtime.quantized.dtype_names import scale_dtype_named, weight_dtype
from tilewright.runtime.quantized.parameters import scale_values
from tilewright.runtime.quantized.tensor import QuantizedTensor

FORM = "form"
_PARTS = {"words": "words", "scales": "scale_blocks", "zeros": "zero_blocks", "order": "order"}
_FIELDS = ("dtype", "shape", "group", "axis", "layout", "zero_point", "tensor_scale", "scale_dtype")


def to_state(tensor: QuantizedTensor, prefix: str = "") -> dict[str, torch.Tensor]:
    """Its tensors under ``prefix`` + name; they share memory with it."""
    form: dict[str, Any] = {name: getattr(tensor, name) for name in _FIELDS}
    form |= {name: str(form[name]) for name in ("dtype", "layout", "scale_dtype")}
    if tensor.dtype.kind == "table":
        form["table"] = tensor.dtype.table
    text = json.dumps(form, separators=(",", ":")).encode()
    out = {prefix + FORM: torch.tensor(list(text), dtype=torch.uint8)}
    for name, field in _PARTS.items():
        part = getattr(tensor, field)
        if part is not None:
            out[prefix + name] = part
    return out


def from_state(state: Mapping[str, torch.Tensor], prefix: str = "") -> QuantizedTensor:
    """What ``to_state`` made. Raises DataError naming the tensor, what was expected and found."""
    for name in (FORM, "words", "scales"):
        if prefix + name not in state:
            near = ", ".join(sorted(k for k in state if k.startswith(prefix))[:8]) or "nothing"
            raise DataError(f"{prefix}{name} is missing; under {prefix!r} there is {near}")
    try:
        form = _read_form(state[prefix + FORM])
        parts = {field: state.get(prefix + name) for name, field in _PARTS.items()}
        tensor = QuantizedTensor(**form, **parts)  # type: ignore[arg-type]
    except (DataError, SettingError, UnsupportedError) as error:
        raise DataError(f"{prefix}{error.message}") from error
    scales = scale_values(tensor.scale_blocks, tensor.scale_dtype)
    checks.is_finite(f"{prefix}scales", scales)
    if tensor.zero_blocks is not None:
        checks.is_finite(f"{prefix}zeros", tensor.zero_blocks.to(torch.float32))
    if tensor.order is not None:
        checks.is_order(f"{prefix}order", tensor.order, tensor.stored_shape[1])
    return tensor


def _read_form(state: torch.Tensor) -> dict[str, Any]:
    """The fields of a form. Raises DataError."""
    checks.dtype_is(FORM, state, (torch.uint8,), "as text is held")
    try:
        form = json.loads(bytes(state.reshape(-1).tolist()))
        read = {name: form[name] for name in _FIELDS}
        kinds = {"group": int, "axis": int, "zero_point": int, "tensor_scale": float | int}
        for name, kind in kinds.items():
            if not isinstance(read[name], kind):
                raise TypeError(f"{name} is {read[name]!r}")
        read["tensor_scale"] = float(read["tensor_scale"])
        read["shape"] = tuple(_size(size) for size in read["shape"])
        read["layout"] = Packing.parse(str(read["layout"]))
        read["dtype"] = _dtype(str(read["dtype"]), form.get("table"))
        read["scale_dtype"] = scale_dtype_named(str(read["scale_dtype"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"{FORM} is not that of a quantised tensor: {error!r}") from error
    shape, axis, group, scale = (read[x] for x in ("shape", "axis", "group", "tensor_scale"))
    if len(shape) < 2 or axis not in (-1, -2) or group < 0 or not math.isfinite(scale):
        raise DataError(
            f"{FORM} must have a shape of two axes or more, axis -1 or -2, a group from 0 and a "
            f"finite scale; it has {list(shape)}, {axis}, {group} and {scale}"
        )
    return read


def _size(size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{size!r} is no size")
    return size


def _dtype(name: str, table: list[float] | None) -> DType:
    return weight_dtype(name if table is None else table_dtype(name, table))


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, QuantizedTensor | torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file of quantised and other tensors: ``name.words`` and so on.

    The file is there completely or, if something fails, not at all.
    """
    from safetensors.torch import save_file

    flat: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        made: Mapping[str, torch.Tensor]
        if isinstance(tensor, QuantizedTensor):
            made = to_state(tensor, f"{name}.")
        else:
            made = {name: tensor}
        double = flat.keys() & made.keys()
        if double:
            raise DataError(f"two tensors would be written as {min(double)!r}")
        flat |= {key: part.detach().cpu().contiguous() for key, part in made.items()}
    _own_memory(flat)
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(flat, temporary, {"format": "pt", **(metadata or {})})
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _own_memory(tensors: dict[str, torch.Tensor]) -> None:
    """Copies tensors that share memory with others, which safetensors refuses."""
    seen: set[int] = set()
    for key, part in tensors.items():
        start = part.untyped_storage().data_ptr()
        if start in seen:
            tensors[key] = part.clone()
        seen.add(start)


def load(path: str | os.PathLike[str]) -> dict[str, QuantizedTensor | torch.Tensor]:
    """What ``save`` wrote, by name. Raises DataError naming the tensor that is wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{os.fspath(path)} is not a whole safetensors file: {error}") from error
    out: dict[str, QuantizedTensor | torch.Tensor] = {}
    names = [key.removesuffix(f".{FORM}") for key in state if key.endswith(f".{FORM}")]
    used: set[str] = set()
    for name in names:
        out[name] = from_state(state, f"{name}.")
        used |= {f"{name}.{part}" for part in (FORM, *_PARTS)}
    return out | {key: part for key, part in state.items() if key not in used}
