"""MXFP4 and NVFP4: pairs of 4-bit floats in bytes, with e8m0 scales per 32 or e4m3 scales per 16.

The first of two codes lies in the low bits. Two spellings are found here: gpt-oss' expert weights
(``…_blocks`` uint8 [..., N, K / 32, 16], ``…_scales`` uint8 [..., N, K / 32]), and ModelOpt's NVFP4
(``weight`` uint8 [N, K / 2], ``weight_scale`` e4m3 [N, K / 16], ``weight_scale_2`` f32, a factor).
compressed_tensors.py finds the third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from tilewright.frontend.checkpoints.bits import unpack_bytes
from tilewright.frontend.checkpoints.source import FLOATS, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import DataError

MX_GROUP, NV_GROUP = 32, 16
_BLOCKS, _SCALES = "_blocks", "_scales"
_NV = (".weight", ".weight_scale", ".weight_scale_2")
POWERS = ("U8", "F8_E8M0")  # how e8m0 scales are stored


def find(source: Source) -> Iterator[Weight]:
    """The gpt-oss and ModelOpt weights of a checkpoint."""
    bases = (b for b in source.bases(_BLOCKS) if source.entries[b + _BLOCKS].dtype == "U8")
    yield from examined(source, bases, (_BLOCKS, _SCALES), "mxfp4", _examine_blocks)
    bases = (b for b in source.bases(_NV[2]) if b + _NV[0] in source)
    yield from examined(source, bases, _NV, "nvfp4", _examine_nvfp4)


def _examine_blocks(source: Source, base: str) -> Weight:
    blocks = source.entry(base + _BLOCKS, "it holds the codes")
    if len(blocks.shape) < 3 or blocks.shape[-1] * 2 != MX_GROUP:
        raise DataError(
            f"{blocks.name} must be U8 [..., N, K / 32, 16], 16 bytes for 32 codes; it is {blocks}"
        )
    *lead, groups, _ = blocks.shape
    source.expect(base + _SCALES, POWERS, (*lead, groups), f"a scale per block of {blocks.name}")
    return Weight(
        name=base,
        format="mxfp4",
        tensors=(base + _BLOCKS, base + _SCALES),
        dtype="f4e2m1",
        shape=(*lead, groups * MX_GROUP),
        group=MX_GROUP,
        decode=lambda: _decode_blocks(source, base),
    )


def _decode_blocks(source: Source, base: str) -> Parts:
    blocks = source.tensor(base + _BLOCKS)
    codes = unpack_bytes(blocks, 4, MX_GROUP).flatten(-2)
    scales = powers(source, base + _SCALES)
    return Parts("f4e2m1", MX_GROUP, codes, scales, scale_dtype="e8m0")


def powers(source: Source, name: str) -> torch.Tensor:
    """e8m0 scales as codes, uint8. Raises DataError if one is 255, which is NaN."""
    codes = source.tensor(name).view(torch.uint8)
    wrong = codes == 255
    if bool(wrong.any()):
        raise DataError(
            f"{name} must hold exponents from 0 to 254; {int(wrong.sum())} of {codes.numel()} are "
            f"255 (NaN), the first at {wrong.nonzero()[0].tolist()}"
        )
    return codes


def _examine_nvfp4(source: Source, base: str) -> Weight:
    why = "NVFP4: a scale per 16 codes, two of which lie in a byte"
    weight = source.expect(base + _NV[0], ("U8",), (None, None), why)
    rows, half = weight.shape
    if half * 2 % NV_GROUP:
        raise DataError(
            f"{weight.name} must have a multiple of 8 bytes a row ({why}); it is {weight}"
        )
    source.expect(base + _NV[1], ("F8_E4M3",), (rows, half * 2 // NV_GROUP), why)
    factor(source, base + _NV[2])
    return Weight(
        name=base,
        format="nvfp4",
        tensors=tuple(base + s for s in _NV),
        dtype="f4e2m1",
        shape=(rows, half * 2),
        group=NV_GROUP,
        decode=lambda: nvfp4(source, base + _NV[0], base + _NV[1], factor(source, base + _NV[2])),
    )


def nvfp4(source: Source, weight: str, scale: str, tensor_scale: float) -> Parts:
    """Codes uint8 [..., N, K / 2] and e4m3 scales [..., N, K / 16]."""
    given = source.tensor(weight)
    codes = unpack_bytes(given, 4, given.shape[-1] * 2)
    scales = source.finite(scale)
    return Parts("f4e2m1", NV_GROUP, codes, scales, tensor_scale=tensor_scale, scale_dtype="f8e4m3")


def factor(source: Source, name: str) -> float:
    """The one number in a tensor. Raises DataError unless it is finite and not 0."""
    entry = source.expect(name, FLOATS)
    if entry.count != 1:
        raise DataError(f"{name} must hold one scale for the whole tensor; it is {entry}")
    value = float(source.tensor(name).reshape(()))
    if not math.isfinite(value) or value == 0:
        raise DataError(f"{name} must be a finite scale other than 0; it is {value}")
    return value
