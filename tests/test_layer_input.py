"""LayerInputCache: every way of keeping a layer's tokens gives attention on what its codes say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frontend.attention_oracle import attend
from tilewright.frontend.attention import layer_input, plans
from tilewright.frontend.attention.layer_input import PART, LayerInputCache, rotated
from tilewright.ir.errors import BindError, SettingError, UnsupportedError
from tilewright.runtime.kv_cache.way import ABSORBED, FUSED, KEYS_AND_VALUES, REMADE

WIDTH, HEADS, KEY_HEADS, HEAD = 48, 4, 2, 16


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    plans.forget_plans()
    yield
    for same in plans._plans.values():
        for plan in same:
            assert not isinstance(plan.program, plans.Interpreted), plan.program.reason


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    k, v = (random(KEY_HEADS * HEAD, WIDTH, seed=s) / WIDTH**0.5 for s in (1, 2))
    return k, v


def layer(**options: Any) -> LayerInputCache:
    k, v = weights()
    return LayerInputCache(2, k, v, heads=HEADS, key_heads=KEY_HEADS, **options)


@pytest.mark.parametrize("rope", [None, 10000.0])
@pytest.mark.parametrize("way", [ABSORBED, FUSED, REMADE])
def test_results_are_those_of_the_input_that_the_codes_say(way: str, rope: float | None) -> None:
    if rope and way == ABSORBED:
        with pytest.raises(SettingError, match="this layer has"):
            layer(way=way, rope_base=rope)
        return
    cache = layer(way=way, rope_base=rope, x="u5")
    cache.append(random(2, PART - 7, WIDTH)).append(random(2, 60, WIDTH))
    x = cache._x.tokens().dequantize()[:, 0]
    k, v = ((x @ w.T).view(2, -1, KEY_HEADS, HEAD).transpose(1, 2) for w in weights())
    k = k if rope is None else rotated(k, 0, rope)
    for rows, causal in ((1, False), (1, True), (20, True)):  # every one is compiled
        q = random(2, HEADS, rows, HEAD)
        want = attend(q, k, v, is_causal=causal, bottom_right=True).output
        got = cache.attend(q, is_causal=causal)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


def test_keys_and_values_are_projected_when_they_come() -> None:
    cache = layer(way=KEYS_AND_VALUES, rope_base=100.0)
    x = random(2, 40, WIDTH)
    for at in range(0, 40, 8):
        cache.append(x[:, at : at + 8])
    assert cache.length == 40 and cache._kv is not None
    q = random(2, HEADS, 1, HEAD)
    want = attend(q, *cache._kv.dequantize()).output
    torch.testing.assert_close(cache.attend(q).double(), want, rtol=1e-3, atol=1e-4)


def test_rotation_is_llamas() -> None:
    k = random(1, 1, 5, 8)
    got = rotated(k, 3, 10000.0)
    for token in range(5):
        for pair in range(4):
            angle = torch.tensor((3 + token) * 10000.0 ** (-pair / 4))
            a, b = k[0, 0, token, pair], k[0, 0, token, pair + 4]
            turned = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
            torch.testing.assert_close(got[0, 0, token, pair::4], torch.stack(turned))


def test_the_cost_model_decides() -> None:
    assert layer().way == KEYS_AND_VALUES
    k = random(512, 512)
    options: dict[str, Any] = {"heads": 8, "key_heads": 8, "k": "u4", "v": "u4"}
    assert LayerInputCache(1, k, k, **options).way == KEYS_AND_VALUES
    assert LayerInputCache(1, k, k, **options, most_bytes=300).way == ABSORBED
    assert LayerInputCache(1, k, k, **options, most_bytes=300, rope_base=1e4).way == FUSED


def test_every_call_goes_the_cheapest_way_that_what_is_kept_allows() -> None:
    """One token is met by keys made in its kernel, many make them once; both say the same."""
    k, v = (random(256, 256, seed=s) / 16 for s in (1, 2))
    shape: dict[str, Any] = {"heads": 8, "key_heads": 4, "rope_base": 100.0}
    cache = LayerInputCache(1, k, v, **shape, most_bytes=170)
    cache.append(random(1, 90, 256))
    assert cache.way == FUSED and cache.way_for(400) == REMADE
    assert "these queries go 'fused'" in cache.explain() and "multiply-adds" in cache.explain()
    assert "these queries go 'remade'" in cache.explain(400)
    assert "more than 170 bytes a token" in cache.explain()
    q = random(1, 8, 400, 64)
    few, many = cache.attend(q[:, :, :1]), cache.attend(q)
    torch.testing.assert_close(few, many[:, :, :1], rtol=1e-5, atol=1e-5)
    forced = LayerInputCache(1, k, v, **shape, way=REMADE)
    assert forced.way_for(1) == REMADE and "as asked for" in forced.explain()


def test_a_models_frequencies_and_groups_that_only_keys_have() -> None:
    """inv_freq instead of a base; groups of 20 channels, which values as codes cannot have."""
    steps = 10000.0 ** (-torch.arange(8) / 8)
    k, v = weights()
    options: dict[str, Any] = {"heads": HEADS, "key_heads": KEY_HEADS, "group": 20, "x": "u6"}
    one = LayerInputCache(2, k, v, inv_freq=steps, way=FUSED, **options)
    other = LayerInputCache(2, k, v, rope_base=10000.0, way=REMADE, **options)
    for cache in (one, other):
        cache.append(random(2, 50, WIDTH))
    q = random(2, HEADS, 2, HEAD)
    torch.testing.assert_close(one.attend(q), other.attend(q), rtol=1e-5, atol=1e-5)
    assert not one.attend(q[:, :, :0]).numel()
    part = LayerInputCache(2, k, v, inv_freq=steps[:3], rotary=6, way=FUSED, **options)
    assert part.append(random(2, 50, WIDTH)).attend(q).shape == q.shape
    for wrong in ({"inv_freq": steps[:3]}, {"inv_freq": steps, "rope_base": 1e4}):
        with pytest.raises(BindError, match="inv_freq"):
            LayerInputCache(2, k, v, **options, **wrong)
    for odd in (0, 3, HEAD + 2):
        with pytest.raises(BindError, match=f"rotary={odd}"):
            LayerInputCache(2, k, v, rope_base=1e4, rotary=odd, **options)


def test_no_memory_has_the_size_of_keys_and_values() -> None:
    """What the kernel of "fused" allocates does not grow with the tokens."""
    found = []
    for tokens in (60, 3000):
        cache = layer(way=FUSED, rope_base=100.0).append(random(2, tokens, WIDTH))
        assert "scratch" not in cache.explain()
        cache.attend(random(2, HEADS, 1, HEAD))
        *_, said = cache.explain().splitlines()
        scratch, _, both = (int(x.replace(",", "")) for x in re.findall(r"[\d,]*\d", said)[:3])
        assert both == 4 * 2 * tokens * 2 * KEY_HEADS * HEAD
        found.append(scratch)
    assert found[0] == found[1] < 3000 * KEY_HEADS * HEAD * 4 / 4


def test_other_numbers_of_queries_share_a_kernel_of_their_class() -> None:
    cache = layer(way=FUSED, rope_base=100.0).append(random(2, 40, WIDTH))
    for rows in (1, 2):
        cache.attend(random(2, HEADS, rows, HEAD))
    one, two = (cache._kernels[rows] for rows in (1, 2))
    assert one.program is two.program
    assert len(one.program.steps[0].family.reports) == 2  # type: ignore[union-attr]


def turned(k: torch.Tensor, rotary: int, interleaved: bool, base: float) -> torch.Tensor:
    """Rotary embedding of [..., tokens, head], pair by pair, in f64."""
    out = k.double().clone()
    for pair in range(rotary // 2):
        i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary // 2)
        angle = torch.arange(k.shape[-2]).double() * base ** (-2 * pair / rotary)
        a, b = (k.double()[..., at] for at in (i, j))
        out[..., i] = a * angle.cos() - b * angle.sin()
        out[..., j] = b * angle.cos() + a * angle.sin()
    return out


@given(
    st.integers(1, HEAD // 2).map(lambda half: 2 * half),
    st.booleans(),
    st.sampled_from([FUSED, FUSED, REMADE, KEYS_AND_VALUES]),
    st.sampled_from([0, 1, 2, 31, 32, 33, 70]),
    st.sampled_from([1, 1, 2]),
)
@settings(max_examples=12)
def test_every_spelling_of_rotary_embedding(
    rotary: int, interleaved: bool, way: str, tokens: int, rows: int
) -> None:
    """Pairs of neighbours or halves, of a part of the head; from no token on, in every way."""
    options: dict[str, Any] = {"rotary": rotary, "interleaved": interleaved, "x": "u8", "v": "u8"}
    cache = layer(way=way, rope_base=100.0, **options)
    x = random(2, tokens, WIDTH)
    cache.append(x)
    q = random(2, HEADS, rows, HEAD)
    got = cache.attend(q)
    if not tokens:
        assert got.shape == (2, HEADS, rows, HEAD) and not got.any()
        return
    coarse = 4e-3 if way == KEYS_AND_VALUES else 2e-5  # codes of keys and values, too
    x = x if way == KEYS_AND_VALUES else cache._x.tokens().dequantize()[:, 0]
    k, v = ((x @ w.T).view(2, -1, KEY_HEADS, HEAD).transpose(1, 2) for w in weights())
    want = attend(q, turned(k, rotary, interleaved, 100.0), v).output
    torch.testing.assert_close(got.double(), want, rtol=coarse, atol=10 * coarse)


def test_without_a_kernel_it_is_made_through_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for it is refused, with a name (a key of one channel is no element of a stream)."""
    one = LayerInputCache(1, random(1, 24), random(16, 24), heads=1, key_heads=1, way=FUSED)
    with pytest.raises(UnsupportedError, match=r"way='fused': .*input times weights"):
        one.append(random(1, 9, 24)).attend(random(1, 1, 1, 1))

    def refuse(*_: Any) -> None:
        raise UnsupportedError("none of that")

    k, v = (random(512, 512, seed=s) / 23 for s in (1, 2))
    caches = [
        LayerInputCache(1, k, v, heads=8, key_heads=8, rope_base=1e4, **options)
        for options in ({"most_bytes": 300}, {"way": REMADE})
    ]
    assert caches[0].way == FUSED
    monkeypatch.setattr(layer_input, "program_for", refuse)
    q, x = random(1, 8, 1, 64), random(1, 9, 512)
    got, want = (cache.append(x).attend(q) for cache in caches)
    torch.testing.assert_close(got, want)
    assert "no kernel for 'fused': none of that" in caches[0].explain()
    assert caches[0].way_for(1) == caches[0].way_for(2) == REMADE


def test_bad_input() -> None:
    cache = layer(way=REMADE)
    with pytest.raises(BindError, match="q must have shape"):
        cache.attend(random(2, HEADS, 1, HEAD + 1))
    with pytest.raises(BindError, match="x must have shape"):
        cache.append(random(2, 3, 5))
    with pytest.raises(BindError, match="x has NaN"):
        cache.append(random(2, 3, WIDTH) * float("nan"))
    assert cache.length == 0 and not cache.attend(random(2, HEADS, 1, HEAD)).any()
    with pytest.raises(BindError, match="does not go with"):
        LayerInputCache(1, random(32, 48), random(32, 40), heads=4, key_heads=2)
