"""Packings: which bit of which code lies at which bit of which word of which lane.

A weight matrix of codes ``[n, k]`` is stored as 32-bit words ``[block, chunk, word, lane]``. A lane
holds one row n (an output of the product), a block as many rows as there are lanes. Along k the
codes come in *chunks*, each filling a whole number of words of every lane. Groups (codes that share
a scale) are padded with code 0 so that a group is a whole number of chunks, or a chunk a whole
number of groups. Nothing else is added.

Four orders of the codes within a chunk:

``quads``
    Code k belongs to byte k mod 4 of quad k // 4: four neighbouring codes go into the four bytes
    of a word, as 8-bit dot products take them. The code's bits are split into planes that divide a
    byte (6 = 4 + 2, 7 = 4 + 2 + 1); a plane of f bits holds 8 / f quads in a word, one above the
    other, so that a shift and a mask give four codes at once.
``bytes``
    Quads as before, but a byte of a word holds as many whole codes as fit, from its lowest bit on.
    The bits that they leave (8 mod b) hold the codes of further quads, cut into pieces: most codes
    need no more than a shift and a mask, of any width.
``halves``
    The same for the two halves of a word, as 16-bit dot products take them: code k belongs to half
    k mod 2 of pair k // 2.
``fields``
    Codes lie back to back, lowest bit first, and may straddle two words.

A fifth order is for matrix units of GPUs, which take a matrix of codes at a time:

``tiles``
    Planes of 4, 2 and 1 bits (8 whole) as ``quads`` has them; a plane of f bits is cut into tiles
    of 16 words, which hold the codes of 16 / f *strips* of 32 neighbouring codes. Two neighbouring
    codes lie in the halves of a word, those of a strip at the same place of the halves of all 16
    words: a shift and a mask of a tile give a strip, as 16-bit numbers in their order. The 16 words
    of a lane lie side by side, lane after lane, so that a tile is one piece of memory. Groups are
    not padded, only k is, to whole chunks.

        word 3 of a plane of 4 bits: strip (s) and code (.k) in the bits from 31 down
        s3.7  s2.7  s1.7  s0.7  s3.6  s2.6  s1.6  s0.6
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from tilewright.ir.errors import UnsupportedError

Words = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint8]
WORD, HALF = 32, 16
QUAD = 4  # codes that an 8-bit dot product takes at once; a group is made of whole quads
PAIR = 2  # codes that a 16-bit dot product takes at once
ORDERS = ("quads", "bytes", "fields", "halves")  # for vectors
TILES = "tiles"  # for matrix units
TILE_WORDS, STRIP = 16, 32  # words of a lane in a tile, and codes at one place of their halves
_PLANES = ("quads", TILES)  # orders whose codes are split into planes
_SIDE_BY_SIDE = {"bytes": QUAD, "halves": PAIR}  # codes that lie in the parts of a word
_TEXT = r"([a-z]+)\(([0-9](?:, ?[0-9])*)\) lanes ([0-9]{1,9}) group ([0-9]{1,9})"


@dataclass(frozen=True)
class Piece:
    """``width`` bits of a code, from bit ``low`` of it, at bit ``at`` of word ``word``."""

    low: int
    width: int
    word: int
    at: int


def plane_widths(bits: int) -> tuple[int, ...]:
    """A width as a sum of widths that divide a byte, largest first: 7 = 4 + 2 + 1."""
    return tuple(w for w in (8, 4, 2, 1) if bits & w)


@dataclass(frozen=True)
class Packing:
    """A packing of codes of ``bits`` bits in groups of ``group`` along k.

    ``planes`` are the widths a code is split into, lowest bits first (but for ``quads``: the code
    whole). Written ``quads(4, 2) lanes 16 group 32`` and ``fields(6) lanes 16 group 32``.
    """

    order: str
    planes: tuple[int, ...]
    lanes: int
    group: int

    def __post_init__(self) -> None:
        if self.order not in (*ORDERS, TILES):
            known = ", ".join((*ORDERS, TILES))
            raise UnsupportedError(f"no order {self.order!r} of codes; known: {known}")
        fits = self.planes and 1 <= self.bits <= 8
        if self.order in _PLANES:
            fits = fits and all(p in (1, 2, 4, 8) for p in self.planes)
        else:
            fits = fits and len(self.planes) == 1
        if not fits or self.lanes < 1 or self.group < 1:
            raise UnsupportedError(f"{self} is no packing: 1 to 8 bits, lanes and group from 1")

    @staticmethod
    def quads(bits: int, lanes: int, group: int) -> Packing:
        """Planes of 4, 2 and 1 bits in the order of 8-bit dot products."""
        return Packing("quads", plane_widths(bits), lanes, group)

    @staticmethod
    def bytes(bits: int, lanes: int, group: int) -> Packing:
        """Whole codes in bytes, further codes in the bits that these leave."""
        return Packing("bytes", (bits,), lanes, group)

    @staticmethod
    def halves(bits: int, lanes: int, group: int) -> Packing:
        """Whole codes in halves of words, further codes in the bits that these leave."""
        return Packing("halves", (bits,), lanes, group)

    @staticmethod
    def fields(bits: int, lanes: int, group: int) -> Packing:
        """Codes back to back."""
        return Packing("fields", (bits,), lanes, group)

    @staticmethod
    def tiles(bits: int, lanes: int, group: int) -> Packing:
        """Planes of 4, 2 and 1 bits, a tile of words for several strips of codes."""
        return Packing(TILES, plane_widths(bits), lanes, group)

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Packing:
        """The packing that prints as ``text``. Raises UnsupportedError."""
        found = re.fullmatch(_TEXT, text.strip())
        if found is None:
            raise UnsupportedError(
                f"no packing: {text!r}; write for example 'quads(4, 2) lanes 16 group 32'"
            )
        planes = tuple(int(p) for p in found[2].split(","))
        return Packing(found[1], planes, int(found[3]), int(found[4]))

    def __str__(self) -> str:
        planes = ", ".join(map(str, self.planes))
        return f"{self.order}({planes}) lanes {self.lanes} group {self.group}"

    @property
    def bits(self) -> int:
        return sum(self.planes)

    @property
    def chunk(self) -> int:
        """Codes of one lane in a chunk."""
        if self.order == "quads":
            return QUAD * 8 // min(self.planes)
        if self.order == TILES:
            return STRIP * HALF // min(self.planes)
        if self.order in _SIDE_BY_SIDE:
            return self.words * WORD // self.bits
        return math.lcm(self.bits, WORD) // self.bits

    @property
    def words(self) -> int:
        """Words of one lane in a chunk."""
        if self.order in _SIDE_BY_SIDE:
            return self.bits // math.gcd(self.bits, WORD // _SIDE_BY_SIDE[self.order])
        return self.chunk * self.bits // WORD

    @property
    def padded_group(self) -> int:
        """Codes that a group takes, padding included."""
        if self.order == TILES:
            return self.group
        if self.group >= self.chunk:
            return -(-self.group // self.chunk) * self.chunk
        sizes = (s for s in range(QUAD, self.chunk + 1, QUAD) if self.chunk % s == 0)
        return next(s for s in sizes if s >= self.group)

    @property
    def groups_per_chunk(self) -> int:
        """How many groups lie in one chunk (1 if a group takes one or several)."""
        return max(1, self.chunk // self.padded_group)

    def groups(self, k: int) -> int:
        """Groups that k codes make; the last one may be short."""
        return -(-k // self.group)

    def chunks(self, k: int) -> int:
        """Chunks that k codes take."""
        held = k if self.order == TILES else self.groups(k) * self.padded_group
        return -(-held // self.chunk)

    def blocks(self, n: int) -> int:
        """Blocks that n rows take."""
        return -(-n // self.lanes)

    def word_shape(self, n: int, k: int) -> tuple[int, int, int, int]:
        """[blocks, chunks, words, lanes] of n rows of k codes."""
        return self.blocks(n), self.chunks(k), self.words, self.lanes

    def group_shape(self, n: int, k: int) -> tuple[int, int, int]:
        """[blocks, groups, lanes]: one number per group (scales, zeros) as it lies beside words."""
        return self.blocks(n), self.groups(k), self.lanes

    def pieces(self, k: int) -> Iterator[Piece]:
        """Where the bits of code k of a chunk lie, lowest bits first."""
        if self.order == "quads":
            yield from self._in_planes(*divmod(k, QUAD))
        elif self.order == TILES:
            yield from self._in_tiles(*divmod(k, STRIP))
        elif self.order in _SIDE_BY_SIDE:
            yield from self._in_parts(k, _SIDE_BY_SIDE[self.order])
        else:
            at, low = k * self.bits, 0
            while low < self.bits:
                word, bit = divmod(at + low, WORD)
                width = min(self.bits - low, WORD - bit)
                yield Piece(low, width, word, bit)
                low += width

    def _in_planes(self, quad: int, byte: int) -> Iterator[Piece]:
        low, first = 0, 0
        for width in self.planes:
            word, field = divmod(quad, 8 // width)
            yield Piece(low, width, first + word, 8 * byte + width * field)
            low, first = low + width, first + self.chunk * width // WORD

    def _in_tiles(self, strip: int, code: int) -> Iterator[Piece]:
        """The code of a strip, in a half of a word."""
        low, first, (word, half) = 0, 0, divmod(code, PAIR)
        for width in self.planes:
            tile, place = divmod(strip, HALF // width)
            yield Piece(low, width, first + TILE_WORDS * tile + word, width * place + HALF * half)
            low, first = low + width, first + self.chunk * width // WORD

    def _in_parts(self, k: int, count: int) -> Iterator[Piece]:
        """Words of ``count`` parts, one for each of ``count`` neighbouring codes."""
        size, (turn, part) = WORD // count, divmod(k, count)
        whole, left = divmod(size, self.bits)
        if turn < self.words * whole:
            word, field = divmod(turn, whole)
            yield Piece(0, self.bits, word, size * part + self.bits * field)
            return
        first, low = (turn - self.words * whole) * self.bits, 0
        while low < self.bits:  # what is left of the parts of all words, one after the other
            word, bit = divmod(first + low, left)
            width = min(self.bits - low, left - bit)
            yield Piece(low, width, word, size * part + size - left + bit)
            low += width

    @cached_property
    def _all_pieces(self) -> tuple[tuple[int, Piece], ...]:
        return tuple((k, piece) for k in range(self.chunk) for piece in self.pieces(k))

    def pack(self, codes: npt.ArrayLike) -> Words:
        """Codes [n, k] (unsigned, below 2**bits) as words [blocks, chunks, words, lanes]."""
        given = np.asarray(codes)
        chunked = self._chunked(given.astype(np.uint32, copy=False))
        shape = self.word_shape(*given.shape)
        words = np.zeros((shape[2], shape[0], shape[1], shape[3]), np.uint32)
        for k, piece in self._all_pieces:
            field = (chunked[k] >> np.uint32(piece.low)) & np.uint32((1 << piece.width) - 1)
            words[piece.word] |= field << np.uint32(piece.at)
        return self._stored(words.transpose(1, 2, 0, 3)).view(np.int32)

    def _stored(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Words [blocks, chunks, words, lanes] in the order of memory: in tiles lane by lane."""
        if self.order == TILES:
            split = (*words.shape[:2], self.words // TILE_WORDS, TILE_WORDS, self.lanes)
            words = words.reshape(split).swapaxes(3, 4).reshape(words.shape)
        return np.ascontiguousarray(words)

    def _as_words(self, stored: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """What ``_stored`` put in the order of memory."""
        if self.order != TILES:
            return stored
        split = (*stored.shape[:2], self.words // TILE_WORDS, self.lanes, TILE_WORDS)
        return stored.reshape(split).swapaxes(3, 4).reshape(stored.shape)

    def _chunked(self, codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """[n, k] with padding, as [code of a chunk, blocks, chunks, lanes]."""
        n, k = codes.shape
        blocks, chunks, _, lanes = self.word_shape(n, k)
        groups = self.groups(k)
        if self.order == TILES:
            whole = np.zeros((blocks * lanes, chunks * self.chunk), np.uint32)
            whole[:n, :k] = codes
            split = whole.reshape(blocks, lanes, chunks, self.chunk)
            return np.ascontiguousarray(split.transpose(3, 0, 2, 1))
        even = np.zeros((blocks * lanes, groups * self.group), np.uint32)
        even[:n, :k] = codes
        padded = np.zeros((blocks * lanes, chunks * self.chunk), np.uint32)
        view = padded[:, : groups * self.padded_group]
        view = view.reshape(blocks * lanes, groups, self.padded_group)
        view[:, :, : self.group] = even.reshape(blocks * lanes, groups, self.group)
        split = padded.reshape(blocks, lanes, chunks, self.chunk)
        return np.ascontiguousarray(split.transpose(3, 0, 2, 1))

    def codes(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """The codes [code of a chunk, ...] in words [word of a chunk, ...], of any chunks."""
        out = np.zeros((self.chunk, *words.shape[1:]), np.uint32)
        for at, piece in self._all_pieces:
            field = (words[piece.word] >> np.uint32(piece.at)) & np.uint32((1 << piece.width) - 1)
            out[at] |= field << np.uint32(piece.low)
        return out

    def unpack(self, words: npt.ArrayLike, n: int, k: int) -> Codes:
        """The codes [n, k] in words [blocks, chunks, words, lanes]; exact."""
        given = np.ascontiguousarray(words).view(np.uint32)
        blocks, chunks, count, lanes = self.word_shape(n, k)
        if given.shape != (blocks, chunks, count, lanes):
            raise UnsupportedError(
                f"{self} stores {n} x {k} codes as words {(blocks, chunks, count, lanes)}; "
                f"the words have shape {given.shape}"
            )
        out = self.codes(np.moveaxis(self._as_words(given), 2, 0))
        rows = out.transpose(1, 3, 2, 0).reshape(blocks * lanes, chunks * self.chunk)
        if self.order == TILES:
            return np.ascontiguousarray(rows[:n, :k]).astype(np.uint8)
        groups = self.groups(k)
        even = rows[:, : groups * self.padded_group]
        even = even.reshape(blocks * lanes, groups, self.padded_group)
        flat = even[:, :, : self.group].reshape(blocks * lanes, groups * self.group)
        return np.ascontiguousarray(flat[:n, :k]).astype(np.uint8)

    def pack_groups(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """One number per row and group [n, groups] as [blocks, groups, lanes], padded with 0."""
        n, groups = values.shape
        blocks = self.blocks(n)
        padded = np.zeros((blocks * self.lanes, groups), values.dtype)
        padded[:n] = values
        return np.ascontiguousarray(padded.reshape(blocks, self.lanes, groups).swapaxes(1, 2))

    def unpack_groups(self, values: npt.NDArray[np.generic], n: int) -> npt.NDArray[np.generic]:
        """[blocks, groups, lanes] as [n, groups]."""
        blocks, groups, lanes = values.shape
        return np.ascontiguousarray(values.swapaxes(1, 2).reshape(blocks * lanes, groups)[:n])
