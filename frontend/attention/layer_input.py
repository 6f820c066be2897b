"""What attention needs of the tokens before, kept in the way that is cheapest: keys and values, or
the layer's input, from which both follow."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.frontend.attention.api import attention
from tilewright.frontend.attention.merge import merge_attention
from tilewright.ir.cache_form import BLOCK, CacheForm
from tilewright.ir.errors import BindError
from tilewright.runtime.kv_cache.cache import KVCache, code_form
from tilewright.runtime.kv_cache.side import Side
from tilewright.runtime.kv_cache.tokens import CachedTokens
from tilewright.runtime.kv_cache.way import ABSORBED, KEYS_AND_VALUES, Layer, choose_way

PART = 1024  # tokens whose keys and values are made at a time


class LayerInputCache:
    """Attention of one layer from its input x [batch, tokens, width], kept in ``x`` codes.

    ``k_weight`` [key heads * head, width] and ``v_weight`` project it; with ``rope_base`` keys are
    rotated by their positions as in Llama (queries come rotated). ``way`` says what is kept; None
    lets the cost model (``tilewright.passes.rematerialise``) decide, for one query after ``tokens``
    tokens and at most ``most_bytes`` kept for a token of a sequence:

    - "keys and values": a KVCache (``k``, ``v``);
    - "absorbed" (no rotation): queries are projected instead of tokens and meet the codes of x, as
      keys and as values; neither is ever made;
    - "remade": keys and values are made from x for 1024 tokens at a time, in f32 in memory, and the
      results are merged.

    Source: Tomar et al., "XQuant" (arXiv 2508.10395).
    """

    def __init__(  # noqa: PLR0913  (each says something about the layer or about what is kept)
        self,
        batch: int,
        k_weight: torch.Tensor,
        v_weight: torch.Tensor,
        *,
        heads: int,
        key_heads: int,
        x: str = "u4",
        k: str = "u8",
        v: str = "u4",
        group: int | None = None,
        rope_base: float | None = None,
        way: str | None = None,
        tokens: int = 4096,
        most_bytes: float | None = None,
    ) -> None:
        width, head = k_weight.shape[1], k_weight.shape[0] // key_heads
        if v_weight.shape[1] != width or v_weight.shape[0] % key_heads:
            raise BindError(f"v_weight {tuple(v_weight.shape)} does not go with {width} inputs")
        self.k_weight, self.v_weight = k_weight.float(), v_weight.float()
        self.heads, self.key_heads, self.rope_base = heads, key_heads, rope_base
        form, symmetric = code_form("x", x, width, "token", group, 0)
        each = 32 / form.group  # a scale and a zero in sixteen bits each
        rotated = rope_base is not None
        layer = Layer(
            width, heads, key_heads, head, int(k[1]), int(v[1]), form.bits + each, rotated
        )
        self.way = choose_way(layer, 1, tokens, most_bytes, way)
        self._kv: KVCache | None = None
        self._x = Side(form, symmetric, (batch, 1), torch.float16, "x")
        if self.way == KEYS_AND_VALUES:
            value_dim = v_weight.shape[0] // key_heads
            self._kv = KVCache(batch, key_heads, head, value_dim=value_dim, k=k, v=v, group=None)

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self._x.length if self._kv is None else self._kv.length

    @property
    def nbytes(self) -> int:
        """Bytes held, reserved ones included."""
        return self._x.nbytes if self._kv is None else self._kv.nbytes

    def append(self, x: torch.Tensor) -> LayerInputCache:
        """Takes in new tokens [batch, n, width]. Raises BindError for another shape, NaN and
        infinities."""
        if x.dim() != 3 or x.shape[2] != self.k_weight.shape[1]:
            wanted = f"[batch, new tokens, {self.k_weight.shape[1]}]"
            raise BindError(f"x must have shape {wanted}, it has {tuple(x.shape)}")
        if not x.shape[1]:
            return self
        if self._kv is not None:
            self._kv.append(*self._projected(x.float(), self.length))
        else:
            self._x.append(self._x.code(x[:, None]))
        return self

    def attend(
        self, q: torch.Tensor, *, is_causal: bool = False, scale: float | None = None
    ) -> torch.Tensor:
        """softmax(q k^T scale) v: q [batch, heads, n, head] gives [batch, heads, n, value head] in
        f32. With ``is_causal`` the last query sees the last token."""
        q = q.float()
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if self._kv is not None:
            return _only(attention(q, self._kv, enable_gqa=True, is_causal=is_causal, scale=scale))
        if self.way == ABSORBED:
            return self._absorbed(q, is_causal, scale)
        return self._remade(q, is_causal, scale)

    def _absorbed(self, q: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
        """(q w_k) x^T, and (p x) w_v: one head of keys, which are the values, too."""
        share, width = self.heads // self.key_heads, self.k_weight.shape[1]
        k, v = (
            w.view(self.key_heads, -1, width).repeat_interleave(share, 0)
            for w in (self.k_weight, self.v_weight)
        )
        tokens = self._x.tokens()
        wide = _only(
            attention(q @ k, tokens, tokens, enable_gqa=True, is_causal=causal, scale=scale)
        )
        return wide @ v.mT

    def _remade(self, q: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
        parts = []
        for start in range(0, self.length, PART):
            piece = _piece(self._x.tokens(), start, min(start + PART, self.length))
            k, v = self._projected(piece.dequantize()[:, 0], start)
            # where the part begins, seen from the first query's own place
            last = torch.tensor(self.length - q.shape[2] - start)

            def seen(b: Any, h: Any, n: Any, m: Any, last: torch.Tensor = last) -> Any:
                return m <= n + last

            mask = seen if causal else None
            found = attention(q, k, v, enable_gqa=True, scale=scale, return_lse=True, mask_mod=mask)
            assert isinstance(found, tuple)
            parts.append((found[0], found[1]))
        if not parts:
            return q.new_zeros((*q.shape[:3], self.v_weight.shape[0] // self.key_heads))
        return merge_attention(*parts)[0]

    def _projected(self, x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, key heads, tokens, …] of inputs from position ``first`` on."""
        batch, tokens, _ = x.shape
        k, v = (
            (x @ w.T).view(batch, tokens, self.key_heads, -1).transpose(1, 2)
            for w in (self.k_weight, self.v_weight)
        )
        return (k if self.rope_base is None else rotated(k, first, self.rope_base)), v


def rotated(k: torch.Tensor, first: int, base: float) -> torch.Tensor:
    """Rotary embedding of [..., tokens, head] from position ``first`` on, halves as in Llama."""
    half = k.shape[-1] // 2
    steps = base ** (-torch.arange(half, dtype=torch.float64) / half)
    at = torch.arange(first, first + k.shape[-2], dtype=torch.float64)[:, None] * steps
    cos, sin = at.cos().to(k.dtype), at.sin().to(k.dtype)
    a, b = k[..., :half], k[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _piece(tokens: CachedTokens, start: int, stop: int) -> CachedTokens:
    """Tokens ``start`` (a multiple of 32) to ``stop``."""
    form: CacheForm = tokens.form
    assert start % BLOCK == 0
    words = tokens.words[:, :, start // form.step :]
    zeros = None if tokens.zeros is None else tokens.zeros[..., start:stop]
    scales = tokens.scales[..., start:stop]
    return CachedTokens(form, stop - start, words, scales, zeros, tokens.zero)


def _only(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    assert isinstance(result, torch.Tensor)
    return result
