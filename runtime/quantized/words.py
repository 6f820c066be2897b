"""A ``Packing`` in torch: the same bits as ``Packing.pack`` gives, at the speed of memory.

Quads are packed in bytes: the four codes of a quad are the four bytes of a word already, so that a
plane takes one shift and one "or" of whole byte arrays for each quad.
"""

from __future__ import annotations

import torch

from tilewright.ir.packing import PAIR, STRIP, TILE_WORDS, TILES, Packing
from tilewright.runtime import huge_pages
from tilewright.runtime.quantized.rows import by_group, pieces, row_chunks
from tilewright.runtime.quantized.workers import in_threads


def pack(packing: Packing, codes: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [n, k] as words int32 [blocks, chunks, words, lanes]."""
    n, k = codes.shape
    out = huge_pages.empty(packing.word_shape(n, k), torch.int32, codes.device)

    def work(first: int, last: int) -> None:
        pack_into(packing, codes[first:last], out[first // packing.lanes : packing.blocks(last)])

    in_threads(work, row_chunks(packing, n, k))
    return out


def pack_into(packing: Packing, codes: torch.Tensor, out: torch.Tensor) -> None:
    """Packs codes uint8 [n, k] into words int32 [blocks, chunks, words, lanes], in this thread."""
    blocks, chunks, words, lanes = out.shape
    padded = _padded(packing, codes, blocks * lanes, chunks)
    rows = codes.new_empty(blocks * lanes, chunks, words, dtype=torch.int32)
    for row, some in pieces(padded.shape):
        if packing.order == "quads":
            _pack_quads(packing, padded[row, some], rows[row, some])
        elif packing.order == TILES:
            _pack_tiles(packing, padded[row, some], rows[row, some])
        else:
            _pack(packing, padded[row, some], rows[row, some])
    _copy(*_alike(packing, rows, out))


def unpack(packing: Packing, words: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """The codes uint8 [n, k] in words int32 [blocks, chunks, words, lanes]."""
    out = words.new_empty(n, k, dtype=torch.uint8)

    def work(first: int, last: int) -> None:
        part = words[first // packing.lanes : packing.blocks(last)]
        unpack_into(packing, part, out[first:last])

    in_threads(work, row_chunks(packing, n, k))
    return out


def unpack_into(packing: Packing, words: torch.Tensor, out: torch.Tensor) -> None:
    """Takes the codes out [n, k] out of words [blocks, chunks, words, lanes], in this thread."""
    (n, k), (blocks, chunks, count, lanes) = out.shape, words.shape
    rows = words.new_empty(blocks * lanes, chunks, count)
    _copy(*reversed(_alike(packing, rows, words)))
    codes = out.new_empty(n, chunks, packing.chunk)
    for row, some in pieces(codes.shape):
        if packing.order == "quads":
            _unpack_quads(packing, rows[:n][row, some], codes[row, some])
        elif packing.order == TILES:
            _unpack_tiles(packing, rows[:n][row, some], codes[row, some])
        else:
            _unpack(packing, rows[:n][row, some], codes[row, some])
    if packing.order == TILES:
        out.copy_(codes.view(n, chunks * packing.chunk)[:, :k])
        return
    groups, size = packing.groups(k), packing.padded_group
    even = codes.view(n, chunks * packing.chunk)[:, : groups * size].view(n, groups, size)
    for at, part in by_group(out, packing.group):
        part.copy_(even[:, at, : part.shape[-1]])


def _alike(
    packing: Packing, rows: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """rows [blocks * lanes, chunks, words] and words [blocks, chunks, words, lanes] as views of one
    shape whose elements are the same words."""
    blocks, chunks, count, lanes = words.shape
    if packing.order != TILES:
        return rows.view(blocks, lanes, chunks, count).permute(0, 2, 3, 1), words
    tiles = count // TILE_WORDS
    split = rows.view(blocks, lanes, chunks, tiles, TILE_WORDS).permute(0, 2, 3, 1, 4)
    return split.flatten(1, 2), words.view(blocks, chunks * tiles, lanes, TILE_WORDS)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """source [blocks, chunks, words, lanes] (tiles: [blocks, tiles, lanes, words]) to a target of
    this shape, in this thread."""
    size = max(source.shape[2] * source.shape[3], 1)
    for at in range(len(source)):
        for _, some in pieces(torch.Size((1, source.shape[1], size))):
            target[at, some].copy_(source[at, some])


def pack_groups(packing: Packing, values: torch.Tensor) -> torch.Tensor:
    """One number per row and group [n, groups] as [blocks, groups, lanes], padded with 0."""
    n, groups = values.shape
    blocks = packing.blocks(n)
    padded = values.new_zeros(blocks * packing.lanes, groups)
    padded[:n] = values
    out = huge_pages.empty((blocks, groups, packing.lanes), values.dtype, values.device)
    return out.copy_(padded.view(blocks, packing.lanes, groups).transpose(1, 2))


def unpack_groups(values: torch.Tensor, n: int) -> torch.Tensor:
    """[..., blocks, groups, lanes] as [..., n, groups]."""
    *lead, blocks, groups, lanes = values.shape
    rows = values.transpose(-1, -2).reshape(*lead, blocks * lanes, groups)
    return rows[..., :n, :].contiguous()


def _padded(packing: Packing, codes: torch.Tensor, rows: int, chunks: int) -> torch.Tensor:
    """[n, k] with padding, as [rows, chunks, code of a chunk]."""
    n, k = codes.shape
    if packing.order == TILES:
        whole = codes.new_zeros(rows, chunks * packing.chunk)
        whole[:n, :k] = codes
        return whole.view(rows, chunks, packing.chunk)
    groups, size, group = packing.groups(k), packing.padded_group, packing.group
    if n == rows and k == chunks * packing.chunk and size == group:
        return codes.contiguous().view(rows, chunks, packing.chunk)
    out = codes.new_zeros(rows, chunks * packing.chunk)
    even = k // group * group
    view = out[:n, : groups * size].view(n, groups, size)
    view[:, : k // group, :group] = codes[:, :even].reshape(n, k // group, group)
    if even < k:
        view[:, -1, : k - even] = codes[:, even:]
    return out.view(rows, chunks, packing.chunk)


def _pack_quads(packing: Packing, codes: torch.Tensor, out: torch.Tensor) -> None:
    """[rows, chunks, code] -> int32 [rows, chunks, words]."""
    quads, given = _bytes(codes), _bytes(out.view(torch.uint8))
    low, first = 0, 0
    for width in packing.planes:
        fields = 8 // width
        count = packing.chunk // 4 // fields
        total = given[:, :, first : first + count]
        for field in range(fields):
            part, up = quads[:, :, field::fields], field * width - low
            if up:
                part = part << up if up > 0 else part >> -up
            if width != packing.bits:
                part = part & (((1 << width) - 1) << field * width)
            total = total.bitwise_or_(part) if field else total.copy_(part)
        low, first = low + width, first + count


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, chunks, bytes] as [rows, chunks, words, 4]."""
    rows, chunks, count = x.shape
    return x.view(rows, chunks, count // 4, 4)


def _unpack_quads(packing: Packing, words: torch.Tensor, out: torch.Tensor) -> None:
    """int32 [rows, chunks, words] -> [rows, chunks, code]."""
    given, quads = _bytes(words.view(torch.uint8)), _bytes(out)
    low, first = 0, 0
    for width in packing.planes:
        fields = 8 // width
        count = packing.chunk // 4 // fields
        plane = given[:, :, first : first + count]
        for field in range(fields):
            part = plane >> (field * width) if field else plane
            if field < fields - 1:
                part = part & ((1 << width) - 1)
            target = quads[:, :, field::fields]
            target.bitwise_or_(part << low) if low else target.copy_(part)
        low, first = low + width, first + count


def _pack_tiles(packing: Packing, codes: torch.Tensor, out: torch.Tensor) -> None:
    """[rows, chunks, code] -> int32 [rows, chunks, words], half a strip of codes at a time."""
    out.zero_()
    for first in (strip + h for strip in range(0, packing.chunk, STRIP) for h in range(PAIR)):
        half = codes[:, :, first : first + STRIP : PAIR].to(torch.int32)
        for piece in packing.pieces(first):
            part = half >> piece.low & (1 << piece.width) - 1
            out[:, :, piece.word : piece.word + TILE_WORDS].bitwise_or_(part << piece.at)


def _unpack_tiles(packing: Packing, words: torch.Tensor, out: torch.Tensor) -> None:
    """int32 [rows, chunks, words] -> [rows, chunks, code]."""
    for first in (strip + h for strip in range(0, packing.chunk, STRIP) for h in range(PAIR)):
        half = out[:, :, first : first + STRIP : PAIR]
        for piece in packing.pieces(first):
            part = words[:, :, piece.word : piece.word + TILE_WORDS] >> piece.at
            part = (part & (1 << piece.width) - 1) << piece.low
            half.bitwise_or_(part) if piece.low else half.copy_(part)


def _pack(packing: Packing, codes: torch.Tensor, out: torch.Tensor) -> None:
    """Any order, piece by piece: [rows, chunks, code] -> int32 [rows, chunks, words]."""
    columns = torch.zeros(packing.words, *codes.shape[:2], dtype=torch.int32, device=codes.device)
    for k in range(packing.chunk):
        code = codes[:, :, k].to(torch.int32)
        for piece in packing.pieces(k):
            part = code >> piece.low & (1 << piece.width) - 1
            columns[piece.word].bitwise_or_(part << piece.at)
    out.copy_(columns.permute(1, 2, 0))


def _unpack(packing: Packing, words: torch.Tensor, out: torch.Tensor) -> None:
    """Any order, piece by piece: int32 [rows, chunks, words] -> [rows, chunks, code]."""
    columns = words.permute(2, 0, 1).contiguous()
    for k in range(packing.chunk):
        code = torch.zeros_like(columns[0])
        for piece in packing.pieces(k):
            part = columns[piece.word] >> piece.at & (1 << piece.width) - 1
            code.bitwise_or_(part << piece.low)
        out[:, :, k] = code
