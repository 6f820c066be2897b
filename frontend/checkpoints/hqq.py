"""HQQ: groups of the flattened weight, a scale and a float zero for each, packed slab by slab.

``W_q`` holds the codes of the weight seen as [N * K / g, g] (``axis`` 1) or [g, N * K / g]
(``axis`` 0). Its first axis is cut into as many slabs as codes fit in a number; the first slab is
in the highest bits. Ten 3-bit codes lie in an int32, so that the axis is filled up to a multiple of
ten.
Beside it stand ``scale``, ``zero``, and, as small tensors, ``nbits``, ``axis``, ``shape`` and more.
A value is (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tilewright.frontend.checkpoints.source import FLOATS, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import DataError, UnsupportedError

SUFFIXES = (
    ".W_q",
    ".scale",
    ".zero",
    ".nbits",
    ".axis",
    ".shape",
    ".group_size",
    ".packing",
    ".quant_scale",
    ".quant_zero",
    ".view_as_float",
    ".unpack_view_dtype",
    ".compute_dtype",
    ".offload_meta",
    ".encoded_state_dict",
    ".stores_quant_config",
    ".channel_wise",
    ".optimize",
    ".round_zero",
)
# codes that lie in one number, and its dtype, by the name of the packing
_PACKINGS = {
    "8bit_u8": (8, 1, torch.uint8),
    "4bit_u8": (4, 2, torch.uint8),
    "3bit_32": (3, 10, torch.int32),
    "2bit_u8": (2, 4, torch.uint8),
    "1bit_u8": (1, 8, torch.uint8),
}
_USUAL = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
_INTEGERS = ("U8", "I8", "I16", "I32", "I64", "BOOL")


@dataclass(frozen=True)
class _Form:
    bits: int
    rows: int
    length: int
    group: int
    axis: int
    packing: str


def find(source: Source) -> Iterator[Weight]:
    """The HQQ layers of a checkpoint."""
    yield from examined(source, source.bases(".W_q"), SUFFIXES, "hqq", _examine)


def _examine(source: Source, base: str) -> Weight:
    form = _form(source, base)
    return Weight(
        name=base,
        format="hqq",
        tensors=tuple(base + s for s in SUFFIXES if base + s in source),
        dtype=f"u{form.bits}",
        shape=(form.rows, form.length),
        group=form.group,
        zeros="float, per group",
        note="groups run along the rows (axis 0): stored transposed" * (form.axis == 0),
        decode=lambda: _decode(source, base, form),
    )


def _form(source: Source, base: str) -> _Form:
    bits = _number(source, f"{base}.nbits")
    axis = _number(source, f"{base}.axis")
    shape = source.expect(f"{base}.shape", _INTEGERS, (2,), "the shape of the weight")
    rows, length = (int(n) for n in source.tensor(shape.name))
    for flag in ("quant_scale", "quant_zero"):
        if f"{base}.{flag}" in source and _number(source, f"{base}.{flag}"):
            raise UnsupportedError(
                f"{base}.{flag} is set: quantised scales and zeros are not read; quantise without"
            )
    # 1.58 bits are three numbers in fields of 2
    whole = 2 if abs(bits - 1.58) < 1e-3 else int(bits)
    if whole not in range(1, 9) or axis not in (0, 1) or rows < 1 or length < 1:
        raise DataError(
            f"{base} must have nbits 1 to 8, axis 0 or 1 and a shape [N, K]; it has nbits {bits}, "
            f"axis {axis} and shape [{rows}, {length}]"
        )
    scale = source.expect(f"{base}.scale", FLOATS, None, "a scale per group")
    source.expect(f"{base}.zero", FLOATS, scale.shape, f"a zero per scale of {base}.scale")
    if not scale.count or rows * length % scale.count:
        raise DataError(
            f"{base}.scale has {scale.count} groups; {rows} x {length} weights do not make as many"
        )
    group = rows * length // scale.count
    across, why = (length, "columns") if axis == 1 else (rows, "rows")
    if across % group:
        raise UnsupportedError(
            f"{base} has groups of {group}, which cross its {across} {why}; choose a group that "
            "divides them"
        )
    packing = _packing(source, base, whole)
    made = _Form(whole, rows, length, group, int(axis), packing)
    _check_codes(source, base, made)
    return made


def _packing(source: Source, base: str, bits: int) -> str:
    name = f"{base}.packing"
    if name not in source:
        return _USUAL.get(bits, "8bit_u8")
    source.expect(name, ("U8",), (None,), "the name of the packing, as bytes")
    text = bytes(source.tensor(name).tolist()).decode("latin-1")
    if text not in _PACKINGS or _PACKINGS[text][0] < bits:
        known = ", ".join(n for n, (width, _, _) in _PACKINGS.items() if width >= bits)
        raise DataError(f"{name} must be one of {known} for {bits} bits; it is {text!r}")
    return text


def _check_codes(source: Source, base: str, form: _Form) -> None:
    """Raises DataError unless ``W_q`` has as many bytes as the codes take."""
    _, fields, dtype = _PACKINGS[form.packing]
    first, second = _slabs(form)
    size = torch.empty(0, dtype=dtype).element_size()
    expected = -(-first // fields) * second * size
    stored = source.entry(f"{base}.W_q", "it holds the codes")
    if stored.nbytes != expected:
        raise DataError(
            f"{stored.name} must have {expected} bytes as {form.packing} of [{first}, {second}] "
            f"codes; it is {stored}, {stored.nbytes} bytes"
        )


def _slabs(form: _Form) -> tuple[int, int]:
    """The two axes under which the weight was packed."""
    others = form.rows * form.length // form.group
    return (others, form.group) if form.axis == 1 else (form.group, others)


def _decode(source: Source, base: str, form: _Form) -> Parts:
    width, fields, dtype = _PACKINGS[form.packing]
    first, second = _slabs(form)
    given = source.tensor(f"{base}.W_q").contiguous().view(dtype).view(-1, second)
    mask = (1 << width) - 1
    slabs = [((given >> width * (fields - 1 - i)) & mask).to(torch.uint8) for i in range(fields)]
    codes = torch.cat(slabs)[:first]
    scales, zeros = source.finite(f"{base}.scale"), source.finite(f"{base}.zero", "zeros")
    if form.axis == 1:
        beside = (form.rows, form.length // form.group)
        codes = codes.reshape(form.rows, form.length)
        scales, zeros = scales.reshape(beside), zeros.reshape(beside)
        return Parts(f"u{form.bits}", form.group, codes, scales, zeros)
    # [g, N/g, K]: the members of a group are N/g rows apart; transposed, they are put side by side
    apart = form.rows // form.group
    codes = codes.reshape(form.group, apart, form.length).permute(2, 1, 0).flatten(1)
    scales, zeros = (v.reshape(apart, form.length).t() for v in (scales, zeros))
    order = torch.arange(form.rows).view(form.group, apart).t().flatten()
    same = torch.equal(order, torch.arange(form.rows))
    return Parts(
        f"u{form.bits}",
        form.group,
        codes,
        scales,
        zeros,
        order=None if same else order,
        axis=-2,
    )


def _number(source: Source, name: str) -> float:
    """The one number in a tensor. Raises DataError."""
    entry = source.expect(name, (*_INTEGERS, *FLOATS), None, "one number")
    if entry.count != 1:
        raise DataError(f"{name} must hold one number; it is {entry}")
    value = float(source.tensor(name).reshape(()))
    return value if value != int(value) else int(value)
