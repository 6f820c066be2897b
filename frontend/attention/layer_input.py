"""What attention needs of the tokens before, kept in the way that is cheapest: keys and values, or
the layer's input, from which both follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tilewright.frontend.attention.api import attention
from tilewright.frontend.attention.from_input import Extents, InputForm, inputs_of, program_for
from tilewright.frontend.attention.low_bit import side_of
from tilewright.frontend.attention.merge import merge_attention
from tilewright.frontend.attention.rotation import halves_order, rotated, rotation_of
from tilewright.ir.cache_form import BLOCK, CacheForm
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.runtime.kv_cache.cache import KVCache, code_form
from tilewright.runtime.kv_cache.remade import FromInput
from tilewright.runtime.kv_cache.side import Side
from tilewright.runtime.kv_cache.tokens import CachedTokens
from tilewright.runtime.kv_cache.way import (
    ABSORBED,
    FUSED,
    KEYS_AND_VALUES,
    REMADE,
    Layer,
    choose_way,
    way_table,
)

__all__ = ["PART", "LayerInputCache", "rotated"]

PART = 1024  # tokens whose keys and values are made at a time


class LayerInputCache:
    """Attention of one layer from its input x [batch, tokens, width], kept in ``x`` codes.

    ``k_weight`` [key heads * head, width] and ``v_weight`` project it; keys are rotated by their
    positions as in Llama (queries come rotated) with ``rope_base``, or a model's ``inv_freq``
    [head / 2] (radians a position): the first ``rotary`` channels of a head (all), in pairs of
    neighbours if ``interleaved``, as in GPT-J. ``way`` says what is kept and how it is attended to;
    None lets the cost model (``tilewright.passes.rematerialise``) decide what is kept, for one
    query after ``tokens`` tokens and at most ``most_bytes`` kept for a token of a sequence, and for
    every call how:

    - "keys and values": a KVCache (``k``, ``v``);
    - "absorbed" (no rotation): queries are projected instead of tokens and meet the codes of x, as
      keys and as values; neither is ever made;
    - "fused": keys (and values, where rows are many) are made from x inside the kernel, a block of
      tokens at a time, rotated and attended to there; they are never in memory;
    - "remade": keys and values are made from x for 1024 tokens at a time, in f32 in memory, and the
      results are merged: each only once, however many queries there are.

    ``explain`` tells what each would cost. Source: Tomar et al., "XQuant" (arXiv 2508.10395).
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
        inv_freq: torch.Tensor | None = None,
        rotary: int | None = None,
        interleaved: bool = False,
        way: str | None = None,
        tokens: int = 4096,
        most_bytes: float | None = None,
    ) -> None:
        width, head = k_weight.shape[1], k_weight.shape[0] // key_heads
        if v_weight.shape[1] != width or v_weight.shape[0] % key_heads:
            raise BindError(f"v_weight {tuple(v_weight.shape)} does not go with {width} inputs")
        # [key heads, width, head]: kernels read the numbers of a head side by side
        self._k_weight, self._v_weight = (
            w.detach().float().view(key_heads, -1, width).mT.contiguous()
            for w in (k_weight, v_weight)
        )
        self.heads, self.key_heads, self.tokens = heads, key_heads, tokens
        self.most_bytes, self.batch, self.width = most_bytes, batch, width
        self.rotation = rotation_of(rope_base, inv_freq, head, rotary)
        self._order = halves_order(head, rotary, interleaved) if self.rotation else None
        if self._order is not None:
            self._k_weight = self._k_weight[..., self._order].contiguous()
        form, symmetric = code_form("x", x, width, "token", group, 0)
        each = 32 / form.group  # a scale and a zero in sixteen bits each
        bits = int(k[1]), int(v[1]), form.bits + each
        turned = self.rotation is not None
        self.layer = Layer(width, heads, key_heads, head, *bits, turned, batch)
        self._chosen = way
        self.way = choose_way(self.layer, 1, tokens, most_bytes, way)
        self._ways: dict[int, str] = {1: self.way}  # by the number of queries
        self._kernels: dict[int, FromInput] = {}  # of "fused", by the number of queries
        self._refused = ""  # why there is no kernel for "fused"
        self._kv: KVCache | None = None
        self._x = Side(self._form(form), symmetric, (batch, 1), torch.float16, "x")
        if self.way == KEYS_AND_VALUES:
            value_dim = v_weight.shape[0] // key_heads
            self._kv = KVCache(batch, key_heads, head, value_dim=value_dim, k=k, v=v, group=None)

    def _form(self, keys: CacheForm) -> CacheForm:
        """How the input lies: as keys for products with queries, else as values, whose channels are
        side by side when a block is unpacked (where the groups allow it)."""
        if self.way == ABSORBED:
            return keys
        try:
            return replace(keys, tokens="codes")
        except UnsupportedError:
            return keys

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
        if x.dim() != 3 or x.shape[2] != self.width:
            wanted = f"[batch, new tokens, {self.width}]"
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
        f32. With ``is_causal`` the last query sees the last token.

        Raises BindError for another shape, and UnsupportedError if ``way`` was "fused" and there is
        no kernel for this layer.
        """
        head = self._k_weight.shape[2]
        if q.dim() != 4 or (*q.shape[:2], q.shape[3]) != (self.batch, self.heads, head):
            wanted = f"[{self.batch}, {self.heads}, queries, {head}]"
            raise BindError(f"q must have shape {wanted}, it has {tuple(q.shape)}")
        q = q.float() if self._order is None else q.float()[..., self._order]
        scale = head**-0.5 if scale is None else scale
        way = self.way_for(q.shape[2])
        if self._kv is not None:
            return _only(attention(q, self._kv, enable_gqa=True, is_causal=is_causal, scale=scale))
        if not self.length or not q.shape[2]:
            return q.new_zeros((*q.shape[:3], self._v_weight.shape[2]))
        if way == ABSORBED:
            return self._absorbed(q, is_causal, scale)
        if way == FUSED:
            found = self._fused(q, is_causal, scale)
            if found is not None:
                return found
        return self._remade(q, is_causal, scale)

    def way_for(self, rows: int) -> str:
        """The way that a call with ``rows`` queries goes."""
        if self._kv is not None or self._chosen is not None or not rows:
            return self.way
        if rows not in self._ways:
            among = {ABSORBED, FUSED, REMADE} - ({FUSED} if self._refused else set())
            self._ways[rows] = choose_way(self.layer, rows, self.tokens, None, None, among)
        return self._ways[rows]

    def explain(self, rows: int = 1) -> str:
        """What every way costs a call with ``rows`` queries by the cost model, and which it is."""
        table = way_table(self.layer, rows, self.tokens, self.most_bytes)
        kept, why = "keys and values", "the fastest"
        if self._kv is None:
            kept = f"the input in {self._x.form.bits} bits"
            why = "the fastest that does with what is kept"
        why = "as asked for" if self._chosen else why
        lines = [
            f"{rows} queries of {self.heads} heads, {self.tokens} tokens",
            table,
            f"kept: {kept}; these queries go {self.way_for(rows)!r}: {why}",
        ]
        if rows in self._kernels:
            scratch = self._kernels[rows].scratch_bytes
            numbers = (self._k_weight.numel() + self._v_weight.numel()) // self.width
            both = 4 * self.batch * self.length * numbers
            lines.append(
                f"one kernel, {scratch:,} bytes of scratch a worker; keys and values of "
                f"{self.length} tokens would take {both:,} in f32"
            )
        if self._refused:
            lines.append(f"no kernel for {FUSED!r}: {self._refused}")
        return "\n".join(lines)

    def _absorbed(self, q: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
        """(q w_k) x^T, and (p x) w_v: one head of keys, which are the values, too."""
        share = self.heads // self.key_heads
        k, v = (w.repeat_interleave(share, 0) for w in (self._k_weight, self._v_weight))
        tokens = self._x.tokens()
        wide = _only(
            attention(q @ k.mT, tokens, tokens, enable_gqa=True, is_causal=causal, scale=scale)
        )
        return wide @ v

    def _fused(self, q: torch.Tensor, causal: bool, scale: float) -> torch.Tensor | None:
        """One kernel; None if there is none and the cost model chose it."""
        batch, heads, rows, head = q.shape
        groups, tokens = heads // self.key_heads, self._x.tokens()
        side = side_of(tokens)
        assert side is not None
        value_head = self._v_weight.shape[2]
        form = InputForm(side, head, value_head, self.rotation is not None, causal)
        given = {**inputs_of(tokens), "wk": self._k_weight, "wv": self._v_weight}
        given["q"] = (q * scale).view(batch, self.key_heads, groups, rows, head)
        if self.rotation is not None:
            given["cos"], given["sin"] = self.rotation.tables(0, self.length)
        try:
            program = program_for(form, Extents(self.key_heads, groups, rows, self.tokens))
            found = program(given).reshape(batch, heads, rows, value_head)
        except UnsupportedError as error:
            if self._chosen is not None:
                raise UnsupportedError(f"way={FUSED!r}: {error.message}", error.location) from error
            self._refused = error.message
            self._ways.clear()
            return None
        self._kernels[rows] = program
        return found

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
        return merge_attention(*parts)[0]

    def _projected(self, x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, key heads, tokens, …] of inputs from position ``first`` on."""
        k, v = (x[:, None] @ w for w in (self._k_weight, self._v_weight))
        return (k if self.rotation is None else self.rotation.turn(k, first)), v


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
