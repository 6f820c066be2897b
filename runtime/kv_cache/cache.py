"""``tilewright.KVCache``: keys and values of one attention layer in a few bits each."""

from __future__ import annotations

import re

import torch

from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BindError, SettingError, UnsupportedError
from tilewright.runtime.kv_cache.side import Side
from tilewright.runtime.kv_cache.tokens import CachedTokens

_SCALES = (torch.float16, torch.float32)


class KVCache:
    """Keys and values of ``batch`` sequences and ``heads`` key heads, appended in any portions.

    ``k`` and ``v`` are ``u1`` to ``u8`` (least and largest of a group decide scale and zero) or
    ``i2`` to ``i8`` (symmetric, no zeros). ``dim`` is the head size of keys, ``value_dim`` that of
    values (``dim``). What shares a scale: with ``k_by``/``v_by`` "token" ``group`` channels of a
    token (all of them if None), with "channel" ``tokens`` tokens of a channel; a group of tokens
    that is not full yet is kept as it came, and has the codes that quantising it anew with each
    token that joins it gives.
    ``scale_dtype`` (float16 or float32) is that of scales and zeros. Memory for ``capacity`` tokens
    is taken at once; beyond that it doubles, so that appending a token costs the same on average
    however many there are.

    ``device`` is where it lies, and where its tokens and queries come from. Appending to a cache on
    a GPU does not wait for it, so that NaN and infinities are not found.

    ``tilewright.attention(q, cache, …)`` reads it. Raises SettingError for a form that does not
    exist.

    Source: Liu et al., "KIVI" (2024), for keys by channel and values by token.
    """

    def __init__(  # noqa: PLR0913  (each says something about the cache's form)
        self,
        batch: int,
        heads: int,
        dim: int,
        *,
        value_dim: int | None = None,
        k: str = "u8",
        v: str = "u4",
        group: int | None = None,
        k_by: str = "token",
        v_by: str = "token",
        tokens: int = 128,
        capacity: int = 0,
        scale_dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(batch, heads, dim) < 1 or (value_dim is not None and value_dim < 1):
            raise SettingError(f"KVCache: batch {batch}, heads {heads}, dim {dim}: all from 1")
        if scale_dtype not in _SCALES:
            raise SettingError(f"KVCache: scale_dtype is float16 or float32, not {scale_dtype}")
        self.batch, self.heads = batch, heads
        self.device = torch.empty(0, device=device).device  # with its number

        def side(name: str, dtype: str, width: int, by: str) -> Side:
            form, symmetric = code_form(name, dtype, width, by, group, tokens)
            return Side(form, symmetric, (batch, heads), scale_dtype, name, self.device)

        self._k = side("k", k, dim, k_by)
        self._v = side("v", v, dim if value_dim is None else value_dim, v_by)
        if capacity:
            self.reserve(capacity)

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self._k.length

    def __len__(self) -> int:
        return self.length

    @property
    def capacity(self) -> int:
        """Tokens that fit before memory grows."""
        return min(self._k.capacity, self._v.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes held, reserved ones included."""
        return self._k.nbytes + self._v.nbytes

    @property
    def keys(self) -> CachedTokens:
        """The keys as attention's ``k``; reads what is there now, tokens appended later are not
        seen."""
        return self._k.tokens()

    @property
    def values(self) -> CachedTokens:
        """The values as attention's ``v``."""
        return self._v.tokens()

    def view(self) -> tuple[CachedTokens, CachedTokens]:
        """Keys and values."""
        return self.keys, self.values

    def append(self, k: torch.Tensor, v: torch.Tensor) -> KVCache:
        """Quantises new tokens: k [batch, heads, n, dim], v [batch, heads, n, value_dim], floats on
        the cache's device. Returns the cache.

        Raises BindError for other shapes, and on the CPU for NaN and infinities; the cache is then
        as it was.
        """
        for name, x, side in (("k", k, self._k), ("v", v, self._v)):
            self._check(name, x, side.form.width)
        if k.shape[2] != v.shape[2]:
            raise BindError(f"k has {k.shape[2]} new tokens, v has {v.shape[2]}")
        if k.shape[2]:
            with torch.no_grad():
                both = self._k.code(k.detach()), self._v.code(v.detach())
                self._k.append(both[0])
                self._v.append(both[1])
        return self

    def _check(self, name: str, x: torch.Tensor, width: int) -> None:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise BindError(f"{name} must be a tensor of floats, it is {kind}")
        if x.dim() != 4 or (*x.shape[:2], x.shape[3]) != (self.batch, self.heads, width):
            wanted = f"[{self.batch}, {self.heads}, new tokens, {width}]"
            raise BindError(f"{name} must have shape {wanted}, it has {tuple(x.shape)}")
        if x.device != self.device:
            there = "the CPU" if self.device.type == "cpu" else self.device
            raise BindError(f"{name} must be on {there}, it is on {x.device}")

    def reserve(self, tokens: int) -> None:
        """Memory for so many tokens in all."""
        self._k.reserve(tokens)
        self._v.reserve(tokens)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from number ``length`` on (drafts that were refused).

        Raises BindError for more than there are; by channel only whole groups of tokens can be
        kept, and any number of those behind the last whole one.
        """
        if not 0 <= length <= self.length:
            raise BindError(f"truncate({length}): there are {self.length} tokens")
        for side in (self._k, self._v):
            side.check_cut(length)
        for side in (self._k, self._v):
            side.truncate(length)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as the codes say them, [batch, heads, length, …]."""
        return self.keys.dequantize(dtype), self.values.dequantize(dtype)

    def __repr__(self) -> str:
        k, v = (_named(side) for side in (self._k, self._v))
        shape = f"batch {self.batch}, heads {self.heads}, {self.length} tokens"
        return f"KVCache({shape}, k {k}, v {v}, {self.nbytes:,} bytes)"


def code_form(
    name: str, dtype: str, width: int, by: str, group: int | None, tokens: int
) -> tuple[CacheForm, bool]:
    """The form of keys (anything but ``name`` v) or values, and whether codes are symmetric."""
    found = re.fullmatch(r"([ui])([1-8])", str(dtype))
    if found is None or dtype == "i1":
        raise SettingError(f"KVCache: {name}={dtype!r}; take 'u1' to 'u8' or 'i2' to 'i8'")
    if by not in ("token", "channel"):
        raise SettingError(f"KVCache: {name}_by={by!r}; take 'token' or 'channel'")
    if group is not None and group < 1:
        raise SettingError(f"KVCache: group={group}; take 1 or more channels, or None for all")
    shared = tokens if by == "channel" else min(group or width, width)
    side = "codes" if name == "v" else "lanes"
    try:
        return CacheForm(side, int(found[2]), width, by, shared), found[1] == "i"
    except UnsupportedError as error:
        raise SettingError(f"KVCache: {name}: {error.message}") from error


def _named(side: Side) -> str:
    form = side.form
    kind = f"{'i' if side.symmetric else 'u'}{form.bits}"
    return f"{kind} by {form.by} of {form.group}"
