"""Codes of new tokens as words, in torch: a few operations however many tokens there are."""

from __future__ import annotations

import torch

from tilewright.ir.cache_form import LANES, CacheForm
from tilewright.ir.packing import QUAD

FEW = 4  # tokens that are written one by one instead of as a chunk


def split(x: torch.Tensor, dim: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """A view with a dimension as several."""
    at = dim % x.dim()
    return x.view(*x.shape[:at], *sizes, *x.shape[at + 1 :])


def quads(codes: torch.Tensor, planes: tuple[int, ...]) -> torch.Tensor:
    """Codes uint8 [..., chunk] as words int32 [..., words] of ``Packing.quads``.

    Four codes side by side are a word already, one in each byte. Plane by plane: quad k of a plane
    of f bits goes into word k // (8 / f), k mod (8 / f) fields up in every byte.
    """
    wide, low, found = codes.contiguous().view(torch.int32), 0, []
    for width in planes:
        fields, plane = 8 // width, wide >> low if low else wide
        if len(planes) > 1:
            plane = plane & int.from_bytes(bytes([(1 << width) - 1] * QUAD), "little", signed=True)
        parted = split(plane, -1, (wide.shape[-1] // fields, fields)).unbind(-1)
        word = parted[0]
        for field in range(1, fields):
            word = word | parted[field] << width * field
        found.append(word)
        low += width
    return torch.cat(found, -1) if len(found) > 1 else found[0]


def key_words(form: CacheForm, codes: torch.Tensor) -> torch.Tensor:
    """Codes [batch, heads, tokens, width] as [batch, heads, tokens, columns / 16]: a lane each."""
    p = form.packing
    groups, chunks = p.groups(form.width), p.chunks(form.width)
    even = split(_padded(codes, groups * p.group), -1, (groups, p.group))
    padded = _padded(_padded(even, p.padded_group).flatten(-2), chunks * p.chunk)
    return quads(split(padded, -1, (chunks, p.chunk)), p.planes).flatten(-2)


def _padded(codes: torch.Tensor, count: int) -> torch.Tensor:
    """With zeros behind, up to so many in the last dimension."""
    short = count - codes.shape[-1]
    return torch.nn.functional.pad(codes, (0, short)) if short else codes


def write_keys(form: CacheForm, words: torch.Tensor, codes: torch.Tensor, start: int) -> None:
    """Writes tokens from number ``start`` on: each is a lane of its block, in all words."""
    made = key_words(form, codes)
    stop, count = start + codes.shape[2], made.shape[3]
    lanes = split(words, 3, (count, LANES))
    first, at = start, 0
    while first < stop:  # the rest of a block, whole blocks, what begins a block
        block, lane = divmod(first, LANES)
        if lane or stop - first < LANES:
            taken = min(LANES - lane, stop - first)
            part = made[:, :, at : at + taken].transpose(2, 3)
            lanes[:, :, block, :, lane : lane + taken] = part
        else:
            blocks = (stop - first) // LANES
            taken = blocks * LANES
            part = split(made[:, :, at : at + taken], 2, (blocks, LANES))
            lanes[:, :, block : block + blocks] = part.transpose(3, 4)
        first, at = first + taken, at + taken


def write_values(form: CacheForm, words: torch.Tensor, codes: torch.Tensor, start: int) -> None:
    """Adds tokens from number ``start`` on to words whose bits for them are 0."""
    p, tokens = form.packing, codes.shape[2]
    if tokens <= FEW:
        for at in range(tokens):
            _write_value(form, words, codes[:, :, at], start + at)
        return
    first, before = divmod(start, p.chunk)
    chunks = -(-(before + tokens) // p.chunk)
    after = chunks * p.chunk - before - tokens
    pad = (0, form.padded - form.width, before, after)
    padded = split(torch.nn.functional.pad(codes, pad), 2, (chunks, p.chunk))
    made = quads(padded.transpose(3, 4), p.planes).transpose(3, 4)  # [.., chunks, words, channels]
    words[:, :, first : first + chunks] |= made.flatten(3)


def _write_value(form: CacheForm, words: torch.Tensor, codes: torch.Tensor, token: int) -> None:
    """One token's codes [batch, heads, width]: a byte of every word of its row, or some bits."""
    row, at = divmod(token, form.packing.chunk)
    pieces = list(form.packing.pieces(at))
    bytes_ = words[:, :, row].view(torch.uint8)
    for piece in pieces:
        lane, up = divmod(piece.at, 8)
        bits = codes >> piece.low if piece.low else codes
        if len(pieces) > 1:
            bits = bits & ((1 << piece.width) - 1)
        first = QUAD * piece.word * form.padded + lane
        bytes_[:, :, first : first + QUAD * form.width : QUAD] |= bits << up if up else bits


def clear_from(form: CacheForm, words: torch.Tensor, length: int) -> None:
    """Makes all tokens from number ``length`` on code 0."""
    if form.keys:
        block, lane = divmod(length, LANES)
        if lane:
            split(words, 3, (-1, LANES))[:, :, block, :, lane:] = 0
            block += 1
        words[:, :, block:] = 0
        return
    p = form.packing
    chunk, kept = divmod(length, p.chunk)
    if kept:
        ones = torch.zeros(p.chunk, dtype=torch.uint8, device=words.device)
        ones[:kept] = (1 << p.bits) - 1
        mask = quads(ones, p.planes).repeat_interleave(form.padded)
        words[:, :, chunk] &= mask
        chunk += 1
    words[:, :, chunk:] = 0
