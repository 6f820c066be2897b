"""Codes out of words and bytes: consecutive bits, lowest first, as most formats store them."""

from __future__ import annotations

import torch

WORD = 32


def unpack_fields(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 [..., count]: code i of int32 words [..., W] is bits i * bits and on, lowest first.

    Codes may straddle two words, as GPTQ's 3 bits do: word 0 holds ten codes and two bits of the
    eleventh, whose third bit is bit 0 of word 1.
    """
    if bits in (1, 2, 4, 8):
        given = words.reshape(-1).view(torch.uint8)
        return unpack_bytes(given.view(*words.shape[:-1], 4 * words.shape[-1]), bits, count)
    blocks = -(-count // WORD)
    missing = blocks * bits - words.shape[-1]
    words = torch.nn.functional.pad(words, (0, missing)) if missing > 0 else words
    words = words[..., : blocks * bits].reshape(*words.shape[:-1], blocks, bits)
    out = torch.empty(*words.shape[:-1], WORD, dtype=torch.uint8)
    for i in range(WORD):
        word, at = divmod(i * bits, WORD)
        low = min(bits, WORD - at)
        code = (words[..., word] >> at) & ((1 << low) - 1)
        if low < bits:
            code |= (words[..., word + 1] & ((1 << bits - low) - 1)) << low
        out[..., i] = code
    return out.flatten(-2)[..., :count]


def unpack_bytes(given: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 [..., count]: 8 / bits codes in every uint8 of [..., B], the first in its low bits."""
    if bits == 8:
        return given[..., :count]
    fields = [(given >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)]
    return torch.stack(fields, dim=-1).flatten(-2)[..., :count]


def words_of(bits: int, count: int) -> int:
    """Words that ``count`` codes take."""
    return -(-count * bits // WORD)
