"""GGUF's blocks: codes, scales and zeros of each type, as ggml-quants.c lays them out.

Types without a minimum are exact: (code - middle) * scale. Those with one are scale * code -
minimum in GGUF and (code - minimum / scale) * scale here: the same number but for the rounding of
f32, at most 2**-22 of the largest value of the group. The scales of K-types, six bits times an
f16, are multiplied out to f32, which holds the product exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tilewright.frontend.checkpoints.weight import Parts
from tilewright.ir.dtypes import table_dtype
from tilewright.ir.errors import DataError

_MINIMUM = "scale * code - minimum: equal to 2**-22 of a group's largest value"
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_SUPER = 256  # codes of a K-block

# blocks uint8 [n, bytes] -> codes [n, codes of a block], scales [n, groups], minima or None
Decoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Block:
    """One type: codes and bytes of a block, codes of a group, and how to take it apart."""

    dtype: str
    codes: int
    size: int
    group: int
    take: Callable[[torch.Tensor], Decoded]
    affine: bool = False
    scale_dtype: str | None = None

    @property
    def note(self) -> str:
        return _MINIMUM if self.affine else ""

    @property
    def zeros(self) -> str:
        """What is subtracted from a code, in words."""
        if self.affine:
            return "float, per group"
        return "symmetric" if self.dtype.startswith("i") and self.dtype != "iq4nl" else ""

    def dtype_name(self) -> str:
        """Our dtype of the codes; the table of IQ4_NL is made when it is first needed."""
        return table_dtype("iq4nl", _IQ4_NL).name if self.dtype == "iq4nl" else self.dtype


def decode(name: str, kind: Block, given: torch.Tensor, shape: tuple[int, ...]) -> Parts:
    """The parts of a tensor of blocks, uint8 [..., N, bytes of a row]. Raises DataError."""
    rows, length = math.prod(shape[:-1]), shape[-1]
    codes, scales, minima = kind.take(given.reshape(-1, kind.size))
    groups = (*shape[:-1], length // kind.group)
    if scales.is_floating_point():
        for values, what in ((scales, "scales"), (minima, "minima")):
            if values is not None and not bool(torch.isfinite(values).all()):
                wrong = int(torch.isfinite(values).logical_not().any(-1).nonzero()[0])
                raise DataError(
                    f"{name} must have finite {what}; in row {wrong * kind.codes // length} they "
                    "are not"
                )
    codes, scales = codes.reshape(rows, -1, kind.group), scales.reshape(rows, -1)
    zeros = None
    if minima is not None:
        codes, scales, zeros = _zeros(codes, scales, minima.reshape(rows, -1))
        zeros = zeros.view(groups)
    return Parts(
        kind.dtype_name(),
        kind.group,
        codes.reshape(shape),
        scales.reshape(groups),
        zeros,
        scale_dtype=kind.scale_dtype,
    )


def _zeros(
    codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """minimum / scale, correctly rounded. A group of scale 0 is -minimum everywhere: as code 0 with
    zero -1 and scale -minimum it is that exactly."""
    flat = scales == 0
    zeros = (minima.double() / torch.where(flat, 1.0, scales.double())).float()
    zeros = torch.where(flat, -1.0, zeros)
    return codes * ~flat[..., None], torch.where(flat, -minima, scales), zeros


def _halves(block: torch.Tensor, at: int) -> torch.Tensor:
    """f16 at byte ``at``, as f32 [n, 1]."""
    return block[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(qs: torch.Tensor, run: int) -> torch.Tensor:
    """Codes of 4 bits: the low halves of ``run`` bytes, then their high halves."""
    cut = qs.reshape(len(qs), -1, 1, run)
    return torch.cat([cut & 15, cut >> 4], dim=2).flatten(1)


def _crumbs(qs: torch.Tensor) -> torch.Tensor:
    """Codes of 2 bits: the lowest of 32 bytes, then the next higher, four times."""
    cut = qs.reshape(len(qs), -1, 1, 32)
    return torch.cat([(cut >> at) & 3 for at in (0, 2, 4, 6)], dim=2).flatten(1)


def _planes(qh: torch.Tensor, count: int) -> torch.Tensor:
    """Single bits: bit 0 of all bytes, then bit 1, up to ``count``."""
    return torch.cat([(qh >> at) & 1 for at in range(count)], dim=1)


def _q4_0(b: torch.Tensor) -> Decoded:
    return _nibbles(b[:, 2:], 16), _half_scale(b, 0), None


def _q4_1(b: torch.Tensor) -> Decoded:
    return _nibbles(b[:, 4:], 16), _halves(b, 0), -_halves(b, 2)


def _fifth_bits(qh: torch.Tensor) -> torch.Tensor:
    """Bit i of four bytes belongs to code i."""
    return torch.stack([(qh >> at) & 1 for at in range(8)], dim=2).flatten(1)


def _q5_0(b: torch.Tensor) -> Decoded:
    return _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6]) << 4, _half_scale(b, 0), None


def _q5_1(b: torch.Tensor) -> Decoded:
    codes = _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8]) << 4
    return codes, _halves(b, 0), -_halves(b, 2)


def _half_scale(b: torch.Tensor, at: int) -> torch.Tensor:
    """f16 at byte ``at``, kept as f16 [n, 1]."""
    return b[:, at : at + 2].contiguous().view(torch.float16)


def _q8_0(b: torch.Tensor) -> Decoded:
    return b[:, 2:] ^ 0x80, _half_scale(b, 0), None


def _q2_k(b: torch.Tensor) -> Decoded:
    pairs, d, least = b[:, :16], _halves(b, 80), _halves(b, 82)
    return _crumbs(b[:, 16:80]), d * (pairs & 15).float(), least * (pairs >> 4).float()


def _q3_k(b: torch.Tensor) -> Decoded:
    low, high = b[:, 96:104], b[:, 104:108]
    lows = torch.cat([low & 15, low >> 4], dim=1)
    highs = torch.cat([(high >> at) & 3 for at in (0, 2, 4, 6)], dim=1)
    scales = (lows | highs << 4).float() - 32
    return _crumbs(b[:, 32:96]) | _planes(b[:, :32], 8) << 2, _halves(b, 108) * scales, None


def _six_bit_pairs(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits in 12 bytes: the first four of each whole, of the
    last four the low bits together and the high ones above those of the first."""
    first, second, rest = b[:, :4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat([first & 63, (rest & 15) | (first >> 2) & 48], dim=1)
    minima = torch.cat([second & 63, (rest >> 4) | (second >> 2) & 48], dim=1)
    return scales.float(), minima.float()


def _q4_k(b: torch.Tensor) -> Decoded:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    return _nibbles(b[:, 16:], 32), _halves(b, 0) * scales, _halves(b, 2) * minima


def _q5_k(b: torch.Tensor) -> Decoded:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    codes = _nibbles(b[:, 48:], 32) | _planes(b[:, 16:48], 8) << 4
    return codes, _halves(b, 0) * scales, _halves(b, 2) * minima


def _q6_k(b: torch.Tensor) -> Decoded:
    codes = _nibbles(b[:, :128], 64) | _crumbs(b[:, 128:192]) << 4
    scales = b[:, 192:208].contiguous().view(torch.int8).float()
    return codes, _halves(b, 208) * scales, None


def _mxfp4(b: torch.Tensor) -> Decoded:
    return _nibbles(b[:, 1:], 16), b[:, :1], None


BLOCKS = {
    "Q4_0": Block("i4", 32, 18, 32, _q4_0),
    "Q4_1": Block("u4", 32, 20, 32, _q4_1, affine=True),
    "Q5_0": Block("i5", 32, 22, 32, _q5_0),
    "Q5_1": Block("u5", 32, 24, 32, _q5_1, affine=True),
    "Q8_0": Block("i8", 32, 34, 32, _q8_0),
    "Q2_K": Block("u2", _SUPER, 84, 16, _q2_k, affine=True),
    "Q3_K": Block("i3", _SUPER, 110, 16, _q3_k),
    "Q4_K": Block("u4", _SUPER, 144, 32, _q4_k, affine=True),
    "Q5_K": Block("u5", _SUPER, 176, 32, _q5_k, affine=True),
    "Q6_K": Block("i6", _SUPER, 210, 16, _q6_k),
    "MXFP4": Block("f4e2m1", 32, 17, 32, _mxfp4, scale_dtype="e8m0"),
    "IQ4_NL": Block("iq4nl", 32, 18, 32, _q4_0),
}
