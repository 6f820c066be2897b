"""The laws of packings: every bit of every code has one place, and nothing else is stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.packings import EVERY, packings
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import PAIR, QUAD, WORD, Packing, plane_widths

counts = st.one_of(st.sampled_from([0, 1]), st.integers(2, 40))


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_every_bit_has_exactly_one_place_and_none_is_left_over(packing: Packing) -> None:
    places = [
        (piece.word, piece.at + bit)
        for code in range(packing.chunk)
        for piece in packing.pieces(code)
        for bit in range(piece.width)
    ]
    assert sorted(places) == [(w, b) for w in range(packing.words) for b in range(WORD)]


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_pieces_are_the_bits_of_a_code_lowest_first(packing: Packing) -> None:
    for code in range(packing.chunk):
        low = 0
        for piece in packing.pieces(code):
            assert piece.low == low and 0 <= piece.at <= WORD - piece.width
            low += piece.width
        assert low == packing.bits


@pytest.mark.parametrize("packing", [p for p in EVERY if p.order in ("quads", "bytes")], ids=str)
def test_quads_put_neighbours_into_the_bytes_of_a_word(packing: Packing) -> None:
    """So one shift and one mask a plane give four codes; and they may lie in one word only."""
    for quad in range(packing.chunk // QUAD):
        first = [(p.word, p.at) for p in packing.pieces(QUAD * quad)]
        assert all(at < 8 for _, at in first)
        for byte in range(1, QUAD):
            here = [(p.word, p.at - 8 * byte) for p in packing.pieces(QUAD * quad + byte)]
            assert here == first


@pytest.mark.parametrize("packing", [p for p in EVERY if p.order == "halves"], ids=str)
def test_pairs_are_the_halves_of_a_word(packing: Packing) -> None:
    for pair in range(packing.chunk // PAIR):
        low = [(p.word, p.at) for p in packing.pieces(PAIR * pair)]
        assert all(at < 16 for _, at in low)
        assert [(p.word, p.at - 16) for p in packing.pieces(PAIR * pair + 1)] == low


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_one_code_sets_just_its_own_bits(packing: Packing) -> None:
    """All ones in one place of a row of zeros: as many bits in all, and only that code back."""
    one = Packing(packing.order, packing.planes, 1, packing.chunk)
    full = (1 << one.bits) - 1
    codes = np.eye(one.chunk, dtype=np.uint8) * full
    words = one.pack(codes)
    assert words.shape == (one.chunk, 1, one.words, 1) and words.dtype == np.int32
    assert (
        np.bitwise_count(words.view(np.uint32)).sum(axis=(1, 2, 3)).tolist()
        == [one.bits] * one.chunk
    )
    assert np.array_equal(one.unpack(words, one.chunk, one.chunk), codes)


@given(packing=packings, n=counts, k=counts, seed=st.integers(0, 2**31))
@settings(max_examples=300)
def test_unpacking_gives_back_what_was_packed(packing: Packing, n: int, k: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << packing.bits, (n, k))
    words = packing.pack(codes)
    assert words.shape == packing.word_shape(n, k) and words.flags.c_contiguous
    back = packing.unpack(words, n, k)
    assert back.dtype == np.uint8 and np.array_equal(back, codes)


@given(packing=packings, n=counts, k=counts, seed=st.integers(0, 2**31))
@settings(max_examples=100)
def test_padding_is_zero_and_repacking_is_the_identity(
    packing: Packing, n: int, k: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << packing.bits, (n, k))
    words = packing.pack(codes)
    used = np.bitwise_count(codes.astype(np.uint32)).sum()
    assert np.bitwise_count(words.view(np.uint32)).sum() == used
    assert np.array_equal(packing.pack(packing.unpack(words, n, k)), words)


@given(packing=packings, n=counts, groups=counts, seed=st.integers(0, 2**31))
@settings(max_examples=100)
def test_numbers_of_groups(packing: Packing, n: int, groups: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((n, groups)).astype(np.float16)
    packed = packing.pack_groups(values)
    assert packed.shape == packing.group_shape(n, groups * packing.group)
    assert packed.dtype == np.float16
    assert np.array_equal(packing.unpack_groups(packed, n), values)
    assert np.count_nonzero(packed) == np.count_nonzero(values)


@given(packing=packings, k=st.integers(0, 5000))
@settings(max_examples=300)
def test_a_group_is_whole_chunks_or_a_chunk_whole_groups(packing: Packing, k: int) -> None:
    padded, chunk = packing.padded_group, packing.chunk
    assert padded >= packing.group and padded % QUAD == 0
    assert padded % chunk == 0 or chunk % padded == 0
    assert packing.groups_per_chunk == max(1, chunk // padded)
    assert padded - packing.group < chunk  # never a chunk more than needed
    if packing.group % chunk == 0 or (packing.group % QUAD == 0 and chunk % packing.group == 0):
        assert padded == packing.group
    held = packing.chunks(k) * chunk
    assert packing.groups(k) * padded <= held < packing.groups(k) * padded + chunk
    assert (packing.groups(k) - 1) * packing.group < k or k == 0


@given(packing=packings)
def test_text_parses_back(packing: Packing) -> None:
    assert Packing.parse(str(packing)) == packing
    assert Packing.parse(f"  {packing}\n") == packing


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_divide_a_byte(bits: int) -> None:
    planes = plane_widths(bits)
    assert sum(planes) == bits and len(set(planes)) == len(planes)
    assert all(8 % p == 0 for p in planes) and list(planes) == sorted(planes, reverse=True)
    for make in (Packing.quads, Packing.bytes, Packing.fields):
        assert make(bits, 4, 32).bits == bits


WRONG = """
quads
quads(4)
quads(4) lanes 16
quads(4) lanes x group 3
quads() lanes 1 group 4
heaps(4) lanes 1 group 4
quads(3) lanes 1 group 4
quads(0) lanes 1 group 4
quads(4, 4, 1) lanes 1 group 4
fields(4, 2) lanes 1 group 4
fields(9) lanes 1 group 4
fields(0) lanes 1 group 4
quads(4) lanes 0 group 4
quads(4) lanes 1 group 0
quads(4) lanes 1 group -4
quads(4) lanes 1 group 4 x
quads(4) lanes 1 group 9999999999999999999999
quads(,) lanes 1 group 4"""


@pytest.mark.parametrize("text", WRONG.split("\n"))
def test_what_is_no_packing_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no packing|no order"):
        Packing.parse(text)


def test_words_of_another_shape_are_refused() -> None:
    packing = Packing.quads(4, 16, 32)
    words = packing.pack(np.zeros((16, 64), np.uint8))
    with pytest.raises(UnsupportedError, match=r"stores 16 x 96 codes as words \(1, 12, 1, 16\)"):
        packing.unpack(words, 16, 96)


def test_a_lane_is_a_row() -> None:
    """Row n of a matrix lies on lane n mod lanes of block n // lanes."""
    packing = Packing.quads(4, 4, 8)
    codes = np.zeros((7, 16), np.uint8)
    codes[5] = 15
    words = packing.pack(codes)
    assert np.argwhere(words.any(axis=(1, 2))).tolist() == [[1, 1]]
