"""compressed-tensors (llm-compressor, vLLM): packed integers, FP8, int8, NVFP4 and MXFP4.

Beside a layer's name stand ``weight_packed`` or ``weight``, ``weight_scale``, and, where there are
any, ``weight_shape``, ``weight_zero_point``, ``weight_global_scale`` and ``weight_g_idx``. Integers
of b bits lie back to back in int32 words along K, lowest bits first, as value + 2**(b-1).
DeepSeek's FP8 (``weight_scale_inv``, a factor in spite of its name) is one with FP8 in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tilewright.frontend.checkpoints import mx
from tilewright.frontend.checkpoints.bits import unpack_bytes, unpack_fields, words_of
from tilewright.frontend.checkpoints.gptq import column_order
from tilewright.frontend.checkpoints.source import FLOATS, Entry, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import DataError

SUFFIXES = (
    ".weight_packed",
    ".weight",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight_global_scale",
    ".weight_shape",
    ".weight_g_idx",
)
_PACKED, _SCALE, _INVERSE = ".weight_packed", ".weight_scale", ".weight_scale_inv"
_ZERO, _GLOBAL, _SHAPE, _INDEX = SUFFIXES[4:]
_BYTES = {"F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2", "I8": "i8"}  # weights that are not packed


def find(source: Source) -> Iterator[Weight]:
    """The layers of a checkpoint that compressed-tensors or DeepSeek's FP8 spells."""
    yield from examined(
        source, source.bases(_PACKED), SUFFIXES, "compressed-tensors", _examine_packed
    )
    bases = (
        base
        for base in source.bases(".weight")
        if source.entries[f"{base}.weight"].dtype in _BYTES
        and (base + _SCALE in source or base + _INVERSE in source)
        and f"{base}.weight_scale_2" not in source
    )
    yield from examined(source, bases, SUFFIXES, "compressed-tensors", _examine_bytes)


def _there(source: Source, base: str) -> tuple[str, ...]:
    return tuple(base + s for s in SUFFIXES if base + s in source)


def _examine_packed(source: Source, base: str) -> Weight:
    packed = source.expect(base + _PACKED, ("I32", "U8"))
    if packed.dtype == "I32":
        return _examine_integers(source, base, packed)
    if len(packed.shape) < 2:
        raise DataError(f"{packed.name} must be [..., N, K / 2]; it is {packed}")
    *lead, half = packed.shape
    is_nv = base + _GLOBAL in source
    group = mx.NV_GROUP if is_nv else mx.MX_GROUP
    why = f"a scale per {group} codes of {packed.name}, two of which lie in a byte"
    if half * 2 % group:
        raise DataError(f"{packed.name} must have whole groups ({why}); it is {packed}")
    scales = (*lead, half * 2 // group)
    source.expect(base + _SCALE, ("F8_E4M3",) if is_nv else mx.POWERS, scales, why)
    if is_nv:
        mx.factor(source, base + _GLOBAL)
    name = "nvfp4-pack-quantized" if is_nv else "mxfp4-pack-quantized"
    return Weight(
        name=base,
        format=f"compressed-tensors {name}",
        tensors=_there(source, base),
        dtype="f4e2m1",
        shape=(*lead, half * 2),
        group=group,
        decode=lambda: _decode_floats(source, base, is_nv),
    )


def _decode_floats(source: Source, base: str, is_nv: bool) -> Parts:
    if is_nv:  # scales are divided by the global scale
        scale = 1.0 / mx.factor(source, base + _GLOBAL)
        return mx.nvfp4(source, base + _PACKED, base + _SCALE, scale)
    given = source.tensor(base + _PACKED)
    codes = unpack_bytes(given, 4, given.shape[-1] * 2)
    scales = mx.powers(source, base + _SCALE)
    return Parts("f4e2m1", mx.MX_GROUP, codes, scales, scale_dtype="e8m0")


def _examine_integers(source: Source, base: str, packed: Entry) -> Weight:
    shape = _logical_shape(source, base, packed)
    bits = _width(source, packed, shape[-1])
    group = _group(source, base, shape)
    asymmetric = base + _ZERO in source
    if asymmetric:
        _zero_form(source, base, bits, shape)
    return Weight(
        name=base,
        format="compressed-tensors pack-quantized",
        tensors=_there(source, base),
        dtype=f"i{bits}" if bits > 1 else "u1",
        shape=shape,
        group=group,
        zeros="whole, per group" if asymmetric else "symmetric",
        decode=lambda: _decode_integers(source, base, bits, shape, group),
    )


def _logical_shape(source: Source, base: str, packed: Entry) -> tuple[int, ...]:
    stored = source.expect(
        base + _SHAPE, ("I64", "I32"), (len(packed.shape),), "the shape unpacked"
    )
    shape = tuple(int(n) for n in source.tensor(stored.name))
    if min(shape) < 1 or shape[:-1] != packed.shape[:-1]:
        raise DataError(f"{stored.name} must say [{_list(packed.shape[:-1])}, K]; it says {shape}")
    return shape


def _width(source: Source, packed: Entry, length: int) -> int:
    """Bits of a code, by the words of a row; by the configuration where several fit."""
    fits = [b for b in range(1, 9) if words_of(b, length) == packed.shape[-1]]
    if not fits:
        raise DataError(
            f"{packed.name} has {packed.shape[-1]} words a row; {length} codes of 1 to 8 bits take "
            f"{words_of(1, length)} to {words_of(8, length)}"
        )
    claimed = [b for b in _claimed_bits(source.quantization) if b in fits]
    if len(fits) > 1 and len(set(claimed)) != 1:
        raise DataError(
            f"{packed.name} could hold codes of {_list(fits)} bits; "
            "the configuration must say which"
        )
    return claimed[0] if claimed else fits[0]


def _claimed_bits(quantization: Mapping[str, Any]) -> Iterator[int]:
    groups = quantization.get("config_groups")
    for item in groups.values() if isinstance(groups, Mapping) else ():
        weights = item.get("weights") if isinstance(item, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            yield weights["num_bits"]


def _group(source: Source, base: str, shape: tuple[int, ...]) -> int:
    """Columns of a group; 0 for one scale in all. Raises DataError."""
    *lead, rows, length = shape
    why = f"beside {base}{_PACKED} of [{_list(shape)}]"
    scale = source.expect(base + _SCALE, FLOATS, None, why)
    if scale.count == 1:
        return 0
    source.expect(base + _SCALE, FLOATS, (*lead, rows, None), why)
    groups = scale.shape[-1]
    if not groups or length % groups:
        raise DataError(f"{scale.name} has {groups} groups; {length} columns do not make as many")
    return length // groups


def _zero_form(source: Source, base: str, bits: int, shape: tuple[int, ...]) -> bool:
    """Whether zeros are packed along N. Raises DataError if they have neither form."""
    scale, rows = source.entries[base + _SCALE], shape[-2]
    packed = (*shape[:-2], words_of(bits, rows), scale.shape[-1] if scale.shape else 1)
    zero = source.expect(base + _ZERO, ("I32", "I8"))
    if zero.dtype == "I32":
        source.expect(zero.name, ("I32",), packed, "zeros packed along the rows")
    else:
        source.expect(zero.name, ("I8",), scale.shape, f"a zero per scale of {scale.name}")
    return zero.dtype == "I32"


def _decode_integers(
    source: Source, base: str, bits: int, shape: tuple[int, ...], group: int
) -> Parts:
    codes = unpack_fields(source.tensor(base + _PACKED), bits, shape[-1])
    scales = source.finite(base + _SCALE)
    middle = 1 << bits - 1
    zeros = None
    if base + _ZERO in source:
        stored = source.tensor(base + _ZERO)
        if _zero_form(source, base, bits, shape):
            words = stored.transpose(-1, -2).contiguous()
            zeros = unpack_fields(words, bits, shape[-2]).transpose(-1, -2)
        else:
            zeros = stored.to(torch.int16) + middle
    order = None
    if base + _INDEX in source and group:
        source.expect(base + _INDEX, ("I32", "I64"), (shape[-1],), "the group of every column")
        order = column_order(source, base + _INDEX, group)
    if order is not None:
        codes = codes[..., order]
    if not group:
        scales = scales.reshape(*[1] * len(shape))
        zeros = None if zeros is None else zeros.reshape(*[1] * len(shape))
    return Parts(
        f"i{bits}" if bits > 1 else "u1",
        group or "tensor",
        codes,
        scales,
        zeros,
        zero_point=middle,
        order=order,
    )


def _examine_bytes(source: Source, base: str) -> Weight:
    weight = source.expect(f"{base}.weight", tuple(_BYTES))
    if len(weight.shape) < 2:
        raise DataError(f"{weight.name} must be [..., N, K]; it is {weight}")
    name = base + (_SCALE if base + _SCALE in source else _INVERSE)
    scale = source.expect(name, FLOATS, None, f"beside {weight.name}")
    rows, group = _block(source, weight, scale)
    dtype = _BYTES[weight.dtype]
    zero = source.entries.get(base + _ZERO)
    if zero is not None:
        source.expect(zero.name, ("I8",), scale.shape, f"a zero per scale of {scale.name}")
    kind = "int-quantized" if dtype == "i8" else "float-quantized"
    return Weight(
        name=base,
        format=f"compressed-tensors {kind}",
        tensors=_there(source, base),
        dtype=dtype,
        shape=weight.shape,
        group=group,
        zeros="whole, per group" if zero is not None else "symmetric" * (dtype == "i8"),
        decode=lambda: _decode_bytes(source, base, name, rows, group),
    )


def _block(source: Source, weight: Entry, scale: Entry) -> tuple[int, int]:
    """Rows and columns that share a scale; (0, 0) for one scale in all. Raises DataError."""
    *lead, rows, length = weight.shape
    if scale.count == 1:
        return 0, 0
    if tuple(scale.shape) in ((rows,), (*lead, rows, 1)):
        return 1, length
    if len(scale.shape) == len(weight.shape) and list(scale.shape[:-2]) == lead:
        down, across = scale.shape[-2:]
        asked = source.quantization.get("weight_block_size")
        named = asked if isinstance(asked, list) and len(asked) == 2 else [128, 128]
        tried = [(int(named[0]), int(named[1]))]
        if across and length % across == 0 and down == rows:
            tried.insert(0, (1, length // across))
        if down and across and rows % down == 0 and length % across == 0:
            tried.append((rows // down, length // across))
        for found in tried:
            if min(found) > 0 and -(-rows // found[0]) == down and -(-length // found[1]) == across:
                return found
    raise DataError(
        f"{scale.name} must have a scale for {weight.name} {list(weight.shape)}, or one per row, "
        f"group or block; it is {scale}"
    )


def _decode_bytes(source: Source, base: str, scale: str, rows: int, group: int) -> Parts:
    weight, scales = source.tensor(f"{base}.weight"), source.finite(scale)
    dtype = _BYTES[source.entries[f"{base}.weight"].dtype]
    zeros = source.tensor(base + _ZERO).to(torch.int16) if base + _ZERO in source else None
    if dtype == "i8":
        codes = weight.view(torch.uint8) ^ 0x80  # biased by 128
        zeros = None if zeros is None else zeros + 128
    else:
        source.finite(f"{base}.weight", "weights")
        codes = weight.view(torch.uint8)

    def along(values: torch.Tensor) -> torch.Tensor:
        if not rows:
            return values.reshape(*[1] * weight.dim())
        if values.dim() < weight.dim():
            values = values.unsqueeze(-1)
        return values.repeat_interleave(rows, dim=-2)[..., : weight.shape[-2], :]

    zeros = None if zeros is None else along(zeros)
    return Parts(dtype, group or "tensor", codes, along(scales), zeros)


def _list(sizes: Any) -> str:
    return ", ".join(map(str, sizes))
