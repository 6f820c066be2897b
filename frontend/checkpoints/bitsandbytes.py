"""bitsandbytes: 4-bit codes of a table (nf4, fp4) in blocks of the flattened weight, and LLM.int8.

``weight`` holds two codes a byte, the first in the high bits. Beside it stand ``weight.absmax`` (a
scale per block), ``weight.quant_map`` (the table) and ``weight.quant_state.bitsandbytes__nf4``
(JSON as bytes: shape, block size). With nested scales, ``absmax`` are bytes: positions in a second
table ``nested_quant_map`` times ``nested_absmax`` per block of them, plus ``nested_offset``.
LLM.int8 has ``weight`` int8 and ``SCB``, the largest magnitude of every row, which stands for 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch

from tilewright.frontend.checkpoints.bits import unpack_bytes
from tilewright.frontend.checkpoints.source import Source
from tilewright.frontend.checkpoints.weight import Parts, Weight, examined
from tilewright.ir.dtypes import TABLE, table_dtype
from tilewright.ir.errors import DataError

_STATE = ".weight.quant_state.bitsandbytes__"
SUFFIXES = (
    ".weight",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
    ".weight.nested_quant_map",
    *(_STATE + kind for kind in ("nf4", "fp4")),
)
_STORAGE = ("U8", "I8", "F16", "BF16", "F32")  # dtypes under which bytes of codes are stored
_INT8 = (".weight", ".SCB")
_STEP = 7.874015718698502e-3  # 1 / 127 as bitsandbytes multiplies by it


def find(source: Source) -> Iterator[Weight]:
    """The bitsandbytes layers of a checkpoint."""
    bases = source.bases(".weight.absmax")
    yield from examined(source, bases, SUFFIXES, "bitsandbytes", _examine)
    yield from examined(source, source.bases(".SCB"), _INT8, "bitsandbytes int8", _examine_int8)


def _examine(source: Source, base: str) -> Weight:
    kind, state = _state(source, base)
    shape, block = _sizes(source, base, state)
    weight = source.expect(f"{base}.weight", _STORAGE)
    count = math.prod(shape)
    why = f"two codes a byte of a weight [{', '.join(map(str, shape))}]"
    if weight.nbytes * 2 not in (count, count + 1):
        raise DataError(
            f"{weight.name} must have {-(-count // 2)} bytes ({why}); it has {weight.nbytes}"
        )
    nested = f"{base}.weight.nested_absmax" in source
    blocks = -(-count // block)
    why = f"a scale per block of {block}"
    source.expect(f"{base}.weight.absmax", ("U8" if nested else "F32",), (blocks,), why)
    table = source.expect(f"{base}.weight.quant_map", ("F32",), (16,), "what codes stand for")
    group = math.gcd(shape[1], block)
    return Weight(
        name=base,
        format=f"bitsandbytes {kind}" + ", nested scales" * nested,
        tensors=tuple(base + s for s in SUFFIXES if base + s in source),
        dtype=_table(source, table.name),
        shape=shape,
        group=group,
        note="" if group == block else f"blocks of {block} cross rows: each scale is repeated",
        decode=lambda: _decode(source, base, shape, block, state if nested else None),
    )


def _state(source: Source, base: str) -> tuple[str, dict[str, Any]]:
    """nf4 or fp4, and what the JSON says. Raises DataError."""
    kind = next((k for k in ("nf4", "fp4") if base + _STATE + k in source), None)
    if kind is None:
        raise DataError(f"{base}{_STATE}nf4 (or …fp4) is missing; it holds shape and block size")
    name = base + _STATE + kind
    source.expect(name, ("U8",), (None,), "JSON as bytes")
    try:
        state = json.loads(bytes(source.tensor(name).tolist()).decode())
    except ValueError as error:
        raise DataError(f"{name} must be JSON as bytes; it is not: {error}") from None
    if not isinstance(state, dict):
        raise DataError(f"{name} must be a JSON object; it is a {type(state).__name__}")
    return kind, state


def _sizes(source: Source, base: str, state: dict[str, Any]) -> tuple[tuple[int, int], int]:
    shape, block = state.get("shape"), state.get("blocksize")
    whole = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or not isinstance(shape, list) or len(shape) != 2:
        raise DataError(f"{base}{_STATE}…: shape must be [N, K]; it is {shape}")
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise DataError(f"{base}{_STATE}…: blocksize must be a number from 1; it is {block}")
    return (shape[0], shape[1]), block


def _table(source: Source, name: str) -> str:
    """The dtype whose table a file holds: nf4, or one made of it."""
    values = source.finite(name, "values").tolist()
    if tuple(values) == tuple(float(v) for v in TABLE["nf4"].codec.values):
        return "nf4"
    digest = sha256(json.dumps(values).encode()).hexdigest()[:8]
    return table_dtype(f"bnb_{digest}", values).name


def _decode(
    source: Source,
    base: str,
    shape: tuple[int, int],
    block: int,
    nested: dict[str, Any] | None,
) -> Parts:
    rows, length = shape
    given = source.tensor(f"{base}.weight").contiguous().view(torch.uint8).flatten()
    swapped = (given >> 4) | (given << 4)  # so that the first code is in the low bits
    codes = unpack_bytes(swapped, 4, rows * length).view(rows, length)
    scales = source.finite(f"{base}.weight.absmax")
    if nested is not None:
        scales = _nested(source, f"{base}.weight", scales, nested)
    group = math.gcd(length, block)
    if group != block:
        scales = scales.repeat_interleave(block // group)[: rows * length // group]
    dtype = _table(source, f"{base}.weight.quant_map")
    return Parts(dtype, group, codes, scales.view(rows, length // group))


def _nested(
    source: Source, weight: str, positions: torch.Tensor, state: dict[str, Any]
) -> torch.Tensor:
    """Scales f32 out of bytes: table[byte] * scale of its block + offset. Raises DataError."""
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if not isinstance(block, int) or block < 1 or not isinstance(offset, int | float):
        raise DataError(
            f"{weight}.quant_state…: nested_blocksize and nested_offset must be numbers; "
            f"they are {block} and {offset}"
        )
    if not math.isfinite(offset):
        raise DataError(f"{weight}.quant_state…: nested_offset must be finite; it is {offset}")
    why = f"a scale per {block} of {weight}.absmax"
    source.expect(f"{weight}.nested_absmax", ("F32",), (-(-len(positions) // block),), why)
    source.expect(f"{weight}.nested_quant_map", ("F32",), (256,), "what bytes stand for")
    outer = source.finite(f"{weight}.nested_absmax").repeat_interleave(block)[: len(positions)]
    table = source.finite(f"{weight}.nested_quant_map", "values")
    return table[positions.to(torch.int64)] * outer + offset


def _examine_int8(source: Source, base: str) -> Weight:
    weight = source.expect(f"{base}.weight", ("I8",), (None, None), f"beside {base}.SCB")
    rows, length = weight.shape
    source.expect(f"{base}.SCB", ("F32",), (rows,), "the largest magnitude of every row")

    def decode() -> Parts:
        codes = source.tensor(weight.name).view(torch.uint8) ^ 0x80
        scales = source.finite(f"{base}.SCB")[:, None]
        return Parts("i8", "channel", codes, scales, tensor_scale=_STEP)

    return Weight(
        name=base,
        format="bitsandbytes int8",
        tensors=tuple(base + s for s in _INT8),
        dtype="i8",
        shape=(rows, length),
        group=length,
        zeros="symmetric",
        decode=decode,
    )
