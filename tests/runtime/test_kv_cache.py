"""KVCache: what is appended in any portions is what quantising it at once gives, and stays so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tests.cache_programs import forms
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime.kv_cache.quantise import quantise
from tilewright.runtime.kv_cache.tokens import CachedTokens
from tilewright.runtime.kv_cache.words import clear_from, write_keys, write_values

OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": "i3", "v": "u7", "group": 16},
    {"k": "u5", "v": "i8", "k_by": "channel", "tokens": 32},
    {"k": "u2", "v": "u1", "v_by": "channel", "tokens": 64, "scale_dtype": torch.float32},
]


def random(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + tokens)
    return torch.randn(2, 3, tokens, width, generator=generator)


def filled(count: int, of: int = 0, **options: Any) -> tilewright.KVCache:
    """A cache of ``count`` tokens, the first ones of ``of``."""
    cache = tilewright.KVCache(2, 3, 32, value_dim=48, **options)
    k, v = random(of or count, 32), random(of or count, 48)
    return cache.append(k[:, :, :count], v[:, :, :count])


def same(a: tilewright.KVCache, b: tilewright.KVCache) -> bool:
    pairs = zip((*a.view(), *a.dequantize()), (*b.view(), *b.dequantize()), strict=True)
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else torch.equal(x.codes(), y.codes())
        for x, y in pairs
    )


@given(st.sampled_from(["lanes", "codes"]).flatmap(forms), st.lists(st.integers(1, 70), max_size=5))
@settings(max_examples=60)
def test_words_of_portions(form: CacheForm, portions: list[int]) -> None:
    """torch's words, written portion by portion, are NumPy's of all tokens at once."""
    total = sum(portions)
    generator = torch.Generator().manual_seed(total)
    codes = torch.randint(0, 2**form.bits, (1, 2, total, form.width), generator=generator)
    codes = codes.to(torch.uint8)
    words = torch.zeros((1, 2, form.rows(total), form.columns), dtype=torch.int32)
    write, at = (write_keys if form.keys else write_values), 0
    for count in portions:
        write(form, words, codes[:, :, at : at + count], at)
        at += count
    assert torch.equal(words, torch.from_numpy(form.pack(codes.numpy())))
    kept = total // 2
    clear_from(form, words, kept)
    codes[:, :, kept:] = 0
    assert torch.equal(words, torch.from_numpy(form.pack(codes.numpy())))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 10))
@settings(max_examples=10)
def test_portions_do_not_matter(options: dict[str, Any], portions: list[int], extra: int) -> None:
    total = sum(portions)
    k, v = random(total, 32), random(total, 48)
    cache = tilewright.KVCache(2, 3, 32, value_dim=48, **options)
    at = 0
    for count in portions:
        cache.append(k[:, :, at : at + count], v[:, :, at : at + count])
        at += count
        assert len(cache) == at <= cache.capacity or not at
    assert same(cache, filled(total, **options))
    cache.append(random(extra, 32, 1), random(extra, 48, 1))
    if extra:
        try:
            cache.truncate(total)
        except BindError:  # the group of tokens has been closed
            assert "channel" in options.values() and total % options["tokens"]
        else:
            assert same(cache, filled(total, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_errors_are_half_a_step(options: dict[str, Any]) -> None:
    cache = filled(90, **options)
    for side, x, back in (
        (cache.keys, random(90, 32), cache.dequantize()[0]),
        (cache.values, random(90, 48), cache.dequantize()[1]),
    ):
        step = side._spread(side.scales)
        # scales are rounded up, zeros to half a unit in the last place of float16
        assert ((x - back).abs() <= step * 0.5 + 1e-3 * x.abs().max()).all()


@given(
    st.sampled_from(["lanes", "codes"]).flatmap(forms),
    st.booleans(),
    st.sampled_from([0, 1e-6, 1, 5e3]),
)
@settings(max_examples=40)
def test_any_numbers_can_be_kept(form: CacheForm, symmetric: bool, size: float) -> None:
    """Zeros, groups of one number, tiny and large ones, an offset far from zero."""
    if symmetric and form.bits == 1:
        return
    x = random(5, form.width) * size
    for shifted in (x, x * 0 + size, x + 100 * size):
        coded = quantise(shifted, form, symmetric, torch.float32, "k")
        words = torch.from_numpy(form.pack(coded.codes.numpy()))
        zero = 1 << (form.bits - 1) if symmetric else 0
        back = CachedTokens(form, 5, words, coded.scales, coded.zeros, zero)
        assert torch.equal(back.codes(), coded.codes)
        step = back._spread(coded.scales)
        error = (back.dequantize() - shifted).abs()
        assert (error <= step * 0.51 + 1e-4 * shifted.abs().max()).all()


def test_memory_grows_by_doubling() -> None:
    cache, sizes = tilewright.KVCache(2, 3, 32, value_dim=48), set()
    for _ in range(1000):
        cache.append(random(1, 32), random(1, 48))
        sizes.add(cache.capacity)
    assert sorted(sizes) == [128, 256, 512, 1024]
    words = 2 * 3 * 1024 * (32 * 8 + 48 * 4) // 8
    beside = 2 * 3 * 1024 * 2 * 2 * 2  # scales and zeros in float16, of keys and of values
    assert cache.nbytes == words + beside
    assert cache.keys.nbytes + cache.values.nbytes <= cache.nbytes


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_inference_mode_may_come_and_go(options: dict[str, Any]) -> None:
    k, v = random(90, 32), random(90, 48)
    with torch.inference_mode():
        cache = filled(40, 90, **options)
    cache.append(k[:, :, 40:60], v[:, :, 40:60])
    with torch.inference_mode():
        cache.append(k[:, :, 60:], v[:, :, 60:])
        cache.truncate(90)
    cache.append(k[:, :, :0], v[:, :, :0])
    assert same(cache, filled(90, **options))


def test_capacity_is_taken_at_once() -> None:
    cache = tilewright.KVCache(1, 1, 16, capacity=1000)
    before = cache.keys.words.data_ptr()
    cache.append(torch.ones(1, 1, 1000, 16), torch.ones(1, 1, 1000, 16))
    assert cache.capacity == 1024 and cache.keys.words.data_ptr() == before
    assert "u8 by token of 16, v u4" in repr(cache)


X = torch.ones(2, 3, 4, 32)
BAD: list[tuple[Any, Any, str]] = [
    (X[:1], X, "k must have shape"),
    (X, X[..., :5], "v must have shape"),
    (X, X[:, :, :2], "k has 4 new tokens, v has 2"),
    (X.int(), X, "k must be a tensor of floats"),
    (X, None, "v must be a tensor of floats"),
    (X, X * float("nan"), "v has NaN"),
    (X * float("inf"), X, "k has NaN or infinite"),
    (X * 1e30, X, "scale_dtype=float32"),
]


@pytest.mark.parametrize(("k", "v", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_tokens_change_nothing(k: Any, v: Any, message: str) -> None:
    cache = tilewright.KVCache(2, 3, 32).append(X, X * 2)
    before = [x.clone() for x in cache.dequantize()]
    with pytest.raises(BindError, match=message):
        cache.append(k, v)
    assert len(cache) == 4
    assert all(torch.equal(x, y) for x, y in zip(before, cache.dequantize(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": "u9"}, "k='u9'; take 'u1' to 'u8'"),
        ({"v": "i1"}, "v='i1'"),
        ({"k": "f4e2m1"}, "take 'u1'"),
        ({"group": 0}, "group=0"),
        ({"group": 24}, "v: groups of 24 channels of values"),
        ({"k_by": "row"}, "k_by='row'"),
        ({"k_by": "channel", "tokens": 40}, "multiple of 32"),
        ({"scale_dtype": torch.int8}, "scale_dtype"),
        ({"batch": 0}, "all from 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tilewright.KVCache(**{"batch": 1, "heads": 1, "dim": 64, **options})


def test_truncating_closed_groups_is_refused() -> None:
    cache = filled(100, k_by="channel", tokens=32)
    with pytest.raises(BindError, match="no whole groups of 32"):
        cache.truncate(40)
    with pytest.raises(BindError, match="there are 100 tokens"):
        cache.truncate(101)
    assert len(cache) == 100
    cache.truncate(97)
    cache.truncate(64)
    assert len(cache) == 64 and same(cache, filled(64, 100, k_by="channel", tokens=32))


def test_tokens_that_do_not_fit_together_are_refused() -> None:
    keys = filled(40).keys
    with pytest.raises(BindError, match="words of 90 cached tokens"):
        CachedTokens(keys.form, 90, keys.words[:, :, :3], keys.scales)
    with pytest.raises(BindError, match="scales of 40"):
        CachedTokens(keys.form, 40, keys.words, keys.scales[..., :39])
    with pytest.raises(BindError, match="zeros are"):
        CachedTokens(keys.form, 40, keys.words, keys.scales, keys.scales.float())
