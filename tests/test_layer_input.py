"""LayerInputCache: every way of keeping a layer's tokens gives attention on what its codes say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.frontend.attention_oracle import attend
from tilewright.frontend.attention import plans
from tilewright.frontend.attention.layer_input import PART, LayerInputCache, rotated
from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime.kv_cache.way import ABSORBED, KEYS_AND_VALUES, REMADE

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


def layer(**options: Any) -> LayerInputCache:
    k, v = (random(KEY_HEADS * HEAD, WIDTH, seed=s) / WIDTH**0.5 for s in (1, 2))
    return LayerInputCache(2, k, v, heads=HEADS, key_heads=KEY_HEADS, **options)


@pytest.mark.parametrize("rope", [None, 10000.0])
@pytest.mark.parametrize("way", [ABSORBED, REMADE])
def test_results_are_those_of_the_input_that_the_codes_say(way: str, rope: float | None) -> None:
    if rope and way == ABSORBED:
        with pytest.raises(SettingError, match="this layer has"):
            layer(way=way, rope_base=rope)
        return
    cache = layer(way=way, rope_base=rope, x="u5")
    cache.append(random(2, PART - 7, WIDTH)).append(random(2, 60, WIDTH))
    x = cache._x.tokens().dequantize()[:, 0]
    k, v = ((x @ w.T).view(2, -1, KEY_HEADS, HEAD).transpose(1, 2)
            for w in (cache.k_weight, cache.v_weight))  # fmt: skip
    k = k if rope is None else rotated(k, 0, rope)
    for rows in (1, 3, 20):
        q = random(2, HEADS, rows, HEAD)
        for causal in (False, True):
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
    assert LayerInputCache(1, k, k, **options, most_bytes=300, rope_base=1e4).way == REMADE


def test_bad_input() -> None:
    cache = layer(way=REMADE)
    with pytest.raises(BindError, match="x must have shape"):
        cache.append(random(2, 3, 5))
    with pytest.raises(BindError, match="x has NaN"):
        cache.append(random(2, 3, WIDTH) * float("nan"))
    assert cache.length == 0 and not cache.attend(random(2, HEADS, 1, HEAD)).any()
    with pytest.raises(BindError, match="does not go with"):
        LayerInputCache(1, random(32, 48), random(32, 40), heads=4, key_heads=2)
