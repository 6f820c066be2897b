"""How the keys or values of a cache lie in memory: codes of 1 to 8 bits in words, scales beside.

Sixteen numbers lie side by side on the lanes of a word vector (``LANES``), in the order of 8-bit
dot products (``quads`` of packing.py): four neighbours along what a product sums over share a word.

``tokens`` is where tokens run, which is what tells keys from values:

``lanes``
    Keys. A product with a query sums over channels, so a word has four channels of one token::

        words [batch, heads, blocks of 16 tokens, chunks of channels * words * 16]

``codes``
    Values. A product with weights sums over tokens, so a word has four tokens of one channel::

        words [batch, heads, chunks of tokens, words * channels rounded up to 16]

``by`` is what shares a scale (and a zero): ``token`` a token's ``group`` channels, ``channel`` a
channel of ``group`` tokens::

    scales [batch, heads, groups of channels, tokens] or
           [batch, heads, groups of tokens, channels]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import Packing

LANES = 16
BLOCK = 32  # tokens: whole blocks of keys and whole chunks of values, of any width

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class CacheForm:
    """Keys (``tokens`` "lanes") or values ("codes") of ``width`` channels in codes of ``bits``."""

    tokens: str
    bits: int
    width: int
    by: str
    group: int

    def __post_init__(self) -> None:
        known = self.tokens in ("lanes", "codes") and self.by in ("token", "channel")
        if not known or not 1 <= self.bits <= 8 or self.width < 1 or self.group < 1:
            raise UnsupportedError(f"{self}: not a form of cached tokens")
        if self.by == "channel" and self.group % BLOCK:
            raise UnsupportedError(
                f"groups of {self.group} tokens per channel: take a multiple of {BLOCK}"
            )

        whole = self.group % LANES == 0 or self.group >= self.width
        if self.tokens == "codes" and self.by == "token" and not whole:
            raise UnsupportedError(
                f"groups of {self.group} channels of values: take a multiple of {LANES}, or all "
                f"{self.width}"
            )

    @property
    def keys(self) -> bool:
        return self.tokens == "lanes"

    @cached_property
    def packing(self) -> Packing:
        """Of a token's channels (keys), or of a channel's tokens (values)."""
        if self.keys:
            group = self.group if self.by == "token" else self.width
            return Packing.quads(self.bits, LANES, min(group, self.width))
        return Packing.quads(self.bits, LANES, Packing.quads(self.bits, LANES, 1).chunk)

    @property
    def padded(self) -> int:
        """Channels rounded up to whole vectors."""
        return -(-self.width // LANES) * LANES

    @property
    def columns(self) -> int:
        """Words of a block of keys, or of a chunk of values."""
        if self.keys:
            return self.packing.chunks(self.width) * self.packing.words * LANES
        return self.packing.words * self.padded

    @property
    def step(self) -> int:
        """Tokens of a row of words."""
        return LANES if self.keys else self.packing.chunk

    @property
    def channel_groups(self) -> int:
        """Scales of a token."""
        return -(-self.width // self.group)

    def rows(self, tokens: int) -> int:
        """Rows of words for some tokens; whole ``BLOCK`` of them."""
        return -(-tokens // BLOCK) * BLOCK // self.step

    def scale_shape(self, tokens: int) -> tuple[int, int]:
        """The last two dimensions of scales and zeros."""
        if self.by == "token":
            return self.channel_groups, tokens
        return -(-tokens // self.group), self.width

    def unpack(self, words: npt.ArrayLike, tokens: int) -> Codes:
        """Codes [batch, heads, tokens, width] of words [batch, heads, rows, columns]; exact."""
        given = np.ascontiguousarray(words).astype(np.int32, copy=False)
        batch, heads, rows, columns = given.shape
        if columns != self.columns or rows * self.step < tokens:
            needed = (self.rows(tokens), self.columns)
            raise UnsupportedError(f"{tokens} tokens need words [.., .., {needed}]: {given.shape}")
        count, p = batch * heads, self.packing
        if self.keys:
            blocks = given.reshape(count * rows, p.chunks(self.width), p.words, LANES)
            codes = p.unpack(blocks, count * rows * LANES, self.width)
            return codes.reshape(batch, heads, rows * LANES, self.width)[:, :, :tokens]
        parts = given.reshape(count, rows, p.words, self.padded // LANES, LANES)
        parts = np.ascontiguousarray(parts.transpose(0, 3, 1, 2, 4))
        blocks = parts.reshape(count * self.padded // LANES, rows, p.words, LANES)
        codes = p.unpack(blocks, count * self.padded, rows * p.chunk)
        codes = codes.reshape(batch, heads, self.padded, rows * p.chunk)
        return codes[:, :, : self.width, :tokens].transpose(0, 1, 3, 2)

    def pack(self, codes: npt.ArrayLike) -> Words:
        """The inverse: words of whole ``BLOCK`` of tokens, padded with code 0."""
        given = np.asarray(codes)
        batch, heads, tokens, width = given.shape
        rows, count, p = self.rows(tokens), batch * heads, self.packing
        padded = np.zeros((batch, heads, rows * self.step, width), np.uint8)
        padded[:, :, :tokens] = given
        if self.keys:
            words = p.pack(padded.reshape(count * rows * self.step, width))
            return words.reshape(batch, heads, rows, self.columns)
        steps = rows * self.step
        wide = np.zeros((count, self.padded, steps), np.uint8)
        wide[:, :width] = padded.reshape(count, steps, width).transpose(0, 2, 1)
        words = p.pack(wide.reshape(count * self.padded, steps))
        words = words.reshape(count, self.padded // LANES, rows, p.words, LANES)
        out = words.transpose(0, 2, 3, 1, 4).reshape(batch, heads, rows, self.columns)
        return np.ascontiguousarray(out)

    def spread(self, numbers: Any, tokens: int) -> Any:
        """Scales or zeros as one number per code, [batch, heads, tokens, width]."""
        given = np.asarray(numbers)
        if self.by == "token":
            wide = np.repeat(given, self.group, axis=2)[:, :, : self.width, :tokens]
            return wide.swapaxes(2, 3)
        return np.repeat(given, self.group, axis=2)[:, :, :tokens]
