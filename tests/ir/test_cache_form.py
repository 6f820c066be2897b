"""Words of cached keys and values: what is packed comes back, and lies where the form says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache_programs import forms
from tilewright.ir.cache_form import BLOCK, CacheForm
from tilewright.ir.errors import UnsupportedError


def random_codes(form: CacheForm, tokens: int, lead: tuple[int, int] = (1, 1)) -> np.ndarray:
    rng = np.random.default_rng(tokens)
    return rng.integers(0, 2**form.bits, (*lead, tokens, form.width), dtype=np.uint8)


@given(st.sampled_from(["lanes", "codes"]).flatmap(forms), st.integers(0, 70), st.integers(1, 2))
@settings(max_examples=60)
def test_packing_is_exact(form: CacheForm, tokens: int, heads: int) -> None:
    codes = random_codes(form, tokens, (2, heads))
    words = form.pack(codes)
    assert words.shape == (2, heads, form.rows(tokens), form.columns)
    assert np.array_equal(form.unpack(words, tokens), codes)


@given(st.sampled_from(["lanes", "codes"]).flatmap(forms), st.integers(1, 40))
@settings(max_examples=30)
def test_nothing_is_added_but_padding(form: CacheForm, tokens: int) -> None:
    """Bits of words are those of the codes of whole blocks of tokens and padded channels."""
    words = form.pack(random_codes(form, tokens))
    blocks = -(-tokens // BLOCK) * BLOCK
    channels = form.columns * 32 // 16 // form.bits if form.keys else form.padded
    assert channels >= form.width
    assert words.size * 32 == blocks * channels * form.bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_key_fills_one_lane(bits: int) -> None:
    form = CacheForm("lanes", bits, 12, "token", 12)
    codes = np.zeros((1, 1, 32, 12), np.uint8)
    codes[0, 0, 21] = (1 << bits) - 1
    words = form.pack(codes)[0, 0].reshape(2, -1, 16)
    assert words[1, :, 5].any() and not words[0].any()
    assert not np.delete(words[1], 5, axis=1).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_four_tokens_of_a_channel_share_a_word(bits: int) -> None:
    form = CacheForm("codes", bits, 20, "token", 20)
    chunk = form.packing.chunk
    for token in range(4):
        codes = np.zeros((1, 1, 32, 20), np.uint8)
        codes[0, 0, token, 18] = 1
        (row, column), *more = np.argwhere(form.pack(codes)[0, 0]).tolist()
        assert not more and (row, column) == (0, 18)
    assert form.rows(33) == 64 // chunk


def test_words_that_do_not_fit_are_refused() -> None:
    form = CacheForm("codes", 4, 20, "token", 20)
    with pytest.raises(UnsupportedError, match="33 tokens need words"):
        form.unpack(form.pack(random_codes(form, 32)), 33)
