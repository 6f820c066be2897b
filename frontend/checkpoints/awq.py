"""AWQ: eight 4-bit codes of neighbouring rows in a word, in an order of their own.

``qweight`` int32 [K, N / 8], ``qzeros`` int32 [groups, N / 8], ``scales`` f16 [groups, N]. The
fields of a word, lowest bits first, are the rows 0, 2, 4, 6, 1, 3, 5, 7 of the weight [N, K]. This
is AutoAWQ's "GEMM" version; a value is (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tilewright.frontend.checkpoints.bits import unpack_fields
from tilewright.frontend.checkpoints.source import FLOATS, Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.errors import DataError, UnsupportedError

SUFFIXES = (".qweight", ".qzeros", ".scales")
FIELD_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight neighbouring rows lies in its word
_BITS, _FIELDS = 4, 8


def is_awq(source: Source, base: str) -> bool:
    """Whether words run along N: there are eight scales for each. GPTQ has as many as words."""
    weight, scales = source.entries[f"{base}.qweight"], source.entries.get(f"{base}.scales")
    if scales is not None and len(weight.shape) == len(scales.shape) == 2:
        if weight.shape[1] == scales.shape[1]:
            return False
        if weight.shape[1] * _FIELDS == scales.shape[1]:
            return True
    return source.quantization.get("quant_method") == "awq"


def find(source: Source) -> Iterator[Weight]:
    """The AWQ layers of a checkpoint."""
    bases = (b for b in source.bases(".qweight") if is_awq(source, b))
    yield from examined(source, bases, SUFFIXES, "awq", _examine)


def _examine(source: Source, base: str) -> Weight:
    version = str(source.quantization.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedError(
            f"AWQ of version {version!r} packs in another order; only 'gemm' is read. Save the "
            "model with version='gemm'"
        )
    weight = source.expect(f"{base}.qweight", ("I32",), (None, None))
    length, words = weight.shape
    why = f"beside {base}.qweight {list(weight.shape)}: eight codes of 4 bits in a word"
    scales = source.expect(f"{base}.scales", FLOATS, (None, words * _FIELDS), why)
    groups = scales.shape[0]
    source.expect(f"{base}.qzeros", ("I32",), (groups, words), why)
    if not groups or length % groups:
        raise DataError(f"{base}.scales has {groups} groups; {length} columns do not make as many")
    return Weight(
        name=base,
        format="awq",
        tensors=tuple(base + s for s in SUFFIXES),
        dtype="u4",
        shape=(words * _FIELDS, length),
        group=length // groups,
        zeros="whole, per group, stored as they are",
        decode=lambda: _decode(source, base, length // groups),
    )


def _decode(source: Source, base: str, group: int) -> Parts:
    codes = _rows(source.tensor(f"{base}.qweight"))
    zeros = _rows(source.tensor(f"{base}.qzeros"))
    return Parts("u4", group, codes, source.finite(f"{base}.scales").t(), zeros)


def _rows(words: torch.Tensor) -> torch.Tensor:
    """uint8 [N, x] of words int32 [x, N / 8]."""
    fields = unpack_fields(words, _BITS, words.shape[1] * _FIELDS)
    by_word = fields.reshape(len(words), words.shape[1], _FIELDS)
    return by_word[:, :, FIELD_OF_ROW].flatten(1).t()
