"""The order of codes that matrix units of GPUs read: tiles of words, strips of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import STRIP, TILE_WORDS, WORD, Packing
from tilewright.runtime.quantized import words

counts = st.integers(0, 80)
packings = st.builds(
    Packing.tiles, st.integers(1, 8), st.sampled_from([1, 3, 64]), st.sampled_from([1, 20, 32, 128])
)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_has_a_place_and_every_place_a_bit(bits: int) -> None:
    packing = Packing.tiles(bits, 64, 32)
    places = [
        (piece.word, piece.at + bit)
        for code in range(packing.chunk)
        for piece in packing.pieces(code)
        for bit in range(piece.width)
    ]
    assert len(places) == len(set(places)) == packing.words * WORD
    assert packing.chunk * bits == packing.words * WORD


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_strip_lies_at_one_place_of_the_halves_of_a_tile(bits: int) -> None:
    """So that one shift and one mask give it, as 16-bit numbers in their order."""
    packing = Packing.tiles(bits, 64, 32)
    for first in range(0, packing.chunk, STRIP):
        begin = list(packing.pieces(first))
        for code in range(STRIP):
            word, half = divmod(code, 2)
            for piece, one in zip(packing.pieces(first + code), begin, strict=True):
                assert (piece.low, piece.width) == (one.low, one.width)
                assert piece.word == one.word + word and one.word % TILE_WORDS == 0
                assert piece.at == one.at + 16 * half and one.at + one.width <= 16


@settings(max_examples=60)
@given(packing=packings, n=counts, k=st.integers(0, 1200), seed=st.integers(0, 1000))
def test_packing_and_back_in_numpy_and_torch(packing: Packing, n: int, k: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << packing.bits, (n, k)).astype(np.uint8)
    packed = packing.pack(codes)
    assert packed.shape == packing.word_shape(n, k)
    assert np.array_equal(packing.unpack(packed, n, k), codes)
    given_ = torch.from_numpy(codes)
    made = words.pack(packing, given_)
    assert np.array_equal(made.numpy(), packed)
    assert torch.equal(words.unpack(packing, made, n, k), given_)
    assert Packing.parse(str(packing)) == packing
    used = np.bitwise_count(codes.astype(np.uint32)).sum()
    assert np.bitwise_count(packed.view(np.uint32)).sum() == used  # padding is zero


def test_a_tile_is_one_piece_of_memory() -> None:
    """The 16 words of a lane side by side, lane after lane; groups are not padded."""
    packing = Packing.tiles(4, 64, 20)
    codes = np.zeros((64, 128), np.uint8)
    codes[5, 2 * 3] = 15  # strip 0, word 3, lower half
    packed = packing.pack(codes).reshape(-1)
    assert packed[5 * TILE_WORDS + 3] == 15 and np.count_nonzero(packed) == 1
    assert packing.padded_group == 20 and packing.chunks(129) == 2


def test_planes_divide_a_byte() -> None:
    assert str(Packing.tiles(7, 64, 32)) == "tiles(4, 2, 1) lanes 64 group 32"
    with pytest.raises(UnsupportedError, match="no packing"):
        Packing("tiles", (3,), 64, 32)
