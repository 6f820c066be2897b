"""Keys and values in a low-bit cache as operands of attention: parameters, and the operation that
says what they mean."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.frontend.attention.form import CacheSide, Space
from tilewright.frontend.op_map.emitter import ONE
from tilewright.ir.core import Value
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.ops_cache import CachedTensor
from tilewright.ir.sizes import Size
from tilewright.runtime.kv_cache.cache import KVCache
from tilewright.runtime.kv_cache.tokens import CachedTokens

_PARTS = ("words", "scales", "zeros")
_SIZES = {"k": ("KR", "KS"), "v": ("VR", "VS")}  # rows of words, groups of tokens
CACHE_NAMES = (
    *(f"{name}_{part}" for name in "kv" for part in _PARTS),
    *(size for sizes in _SIZES.values() for size in sizes),
    "tokens",
)


def cached(space: Space, name: str, side: CacheSide) -> Value:
    """Keys (``name`` k) or values (v) of a cache as [b, k, m, width] in f32."""
    form, sizes = side.form, space.sizes
    name = "k" if side.shared else name  # then this is the same operation again
    rows, groups = (Size.of(x) for x in _SIZES[name])
    lead = (sizes["b"], space.key_heads)
    if form.by == "token":
        beside = (*lead, ONE * form.channel_groups, sizes["m"])
    else:
        beside = (*lead, groups, ONE * form.width)
    words = (*lead, rows, ONE * form.columns)
    given = [space.parameter(f"{name}_words", words, torch.int32)]
    given.append(space.parameter(f"{name}_scales", beside, side.scales))
    if side.zeros:
        given.append(space.parameter(f"{name}_zeros", beside, side.scales))
    if form.by == "channel":
        given.append(space.parameter("tokens", (sizes["m"],), torch.uint8))
    return space.e.op(
        CachedTensor,
        *given,
        tokens=form.tokens,
        bits=form.bits,
        by=form.by,
        group=form.group,
        length=sizes["m"],
        width=form.width,
        zero=side.zero,
        zeros=side.zeros,
        hint=name,
    )


def opened(k: Any, v: Any) -> tuple[Any, Any]:
    """Keys and values of attention's arguments: a cache has both."""
    if isinstance(k, KVCache):
        if v is not None:
            raise BindError("a KVCache has keys and values: leave v out")
        return k.view()
    if v is None:
        raise BindError("v is missing; only a KVCache as k has values, too")
    for name, x, keys in (("k", k, True), ("v", v, False)):
        if isinstance(x, CachedTokens) and x.form.keys != keys and v is not k:
            raise BindError(f"{name} must be cache.{'keys' if keys else 'values'}")
    return k, v


def side_of(x: torch.Tensor | CachedTokens, keys: object = None) -> CacheSide | None:
    """What of cached tokens a program is compiled for; None for tensors. ``keys``: those that come
    with them as values."""
    if not isinstance(x, CachedTokens):
        return None
    return CacheSide(x.form, x.scales.dtype, x.zeros is not None, x.zero, x is keys)


def cached_inputs(name: str, x: CachedTokens) -> dict[str, torch.Tensor]:
    """The tensors of cached tokens by parameter name."""
    named = (f"{name}_{part}" for part in _PARTS)
    found = dict(zip(named, x.tensors(), strict=False))
    if x.form.by == "channel":  # says how many tokens there are, and is never read
        found["tokens"] = torch.empty(1, dtype=torch.uint8, device=x.words.device).expand(x.length)
    return found


def require_dense(k: object, v: object, layout: str) -> None:
    """UnsupportedError for cached tokens in a layout that they do not have."""
    if isinstance(k, CachedTokens) or isinstance(v, CachedTokens):
        raise UnsupportedError(
            f"a low-bit cache with {layout}; caches are dense: one for a batch, with seqused_k "
            "where sequences differ in length"
        )
