"""By channel: the group of tokens that is not full yet, as it came, and what a token that joins it
changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from tilewright.ir.cache_form import LANES, CacheForm
from tilewright.runtime.kv_cache.quantise import Coded, codes_of, scales_of

Range = tuple[torch.Tensor, torch.Tensor]  # least and largest numbers, [batch, heads, 1, width]
PART = 8  # up to 1/8 of a group's codes is made anew channel by channel, more of it all at once


@dataclass(frozen=True)
class Joined:
    """What tokens that join the open group change: the group's scales, and, where these are not as
    they were, the codes of the tokens before.

    ``coded`` has the codes of the new tokens and the group's scales. ``channels`` [m] count through
    batch, heads and width; ``codes`` [m, tokens before] are theirs, the group's first token first.
    """

    coded: Coded
    range: Range
    channels: torch.Tensor
    codes: torch.Tensor


class OpenGroup:
    """Tokens [batch, heads, count, width] in memory for a whole group."""

    def __init__(self, form: CacheForm, lead: tuple[int, int], device: torch.device) -> None:
        self.form, self.count = form, 0
        self.memory = torch.zeros((*lead, 0, form.width), device=device)
        self._range: Range | None = None  # of all of them, once it was asked for

    def tokens(self) -> torch.Tensor:
        """A view of what is kept."""
        return self.memory[:, :, : self.count]

    def with_more(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens and x behind them, in x's dtype."""
        return torch.cat((self.tokens().to(x.dtype), x), 2) if self.count else x

    def keep(self, x: torch.Tensor) -> None:
        """These tokens, instead of those that there were."""
        self.count, self._range = x.shape[2], None
        if not self.count:
            return
        if self.memory.shape[2] == 0 or self.memory.dtype != x.dtype:
            shape = (*self.memory.shape[:2], self.form.group, self.form.width)
            with torch.inference_mode(False):  # written with and without it
                self.memory = torch.zeros(shape, dtype=x.dtype, device=self.memory.device)
        self.memory[:, :, : self.count] = x

    def add(self, x: torch.Tensor, joined: Joined) -> None:
        """Keeps x, too, unless it fills the group."""
        self.memory[:, :, self.count : self.count + x.shape[2]] = x
        self.count = (self.count + x.shape[2]) % self.form.group
        self._range = joined.range if self.count else None

    def join(self, x: torch.Tensor, symmetric: bool, old: Coded, name: str) -> Joined | None:
        """What tokens x change; ``old`` has the group's scales and zeros. Changes nothing itself.

        None where the group is to be quantised as a whole: so many codes would change, or its
        tokens become others by x's dtype, or on a GPU, which one would have to wait for.
        Raises what quantising the group does.
        """
        room = self.form.group - self.count
        if not (self.count and x.is_cpu and x.dtype == self.memory.dtype and x.shape[2] <= room):
            return None
        if self._range is None:
            before = self.tokens()
            self._range = before.amin(2, keepdim=True).float(), before.amax(2, keepdim=True).float()
        wide = x.float()
        low = torch.minimum(self._range[0], wide.amin(2, keepdim=True))
        high = torch.maximum(self._range[1], wide.amax(2, keepdim=True))
        beside = scales_of(low, high, self.form, symmetric, old.scales.dtype, name)
        changed = beside[0] != old.scales
        if old.zeros is not None:
            changed |= beside[1] != old.zeros
        channels = changed.flatten().nonzero().squeeze(1)
        numbers = channels.numel() * self.count + x.numel()
        if numbers * PART > changed.numel() * self.form.group:
            return None
        row, channel = channels // self.form.width, channels % self.form.width
        at = (row * (self.form.group * self.form.width) + channel)[:, None]
        steps = torch.arange(self.count, device=at.device) * self.form.width
        again = self.memory.view(-1)[at + steps].float()
        theirs = [each.flatten()[channels, None] for each in beside]
        return Joined(
            Coded(codes_of(wide, self.form, symmetric, *beside), *beside),
            (low, high),
            channels,
            codes_of(again, self.form, symmetric, *theirs),
        )


def rewrite(form: CacheForm, words: torch.Tensor, start: int, joined: Joined) -> None:
    """Writes ``joined.codes`` of tokens from number ``start`` on over those that lie there.

    Words as bytes: a piece of a code lies in a byte of its own, or some bits up in one that it
    shares. There what is added is how much the piece has grown, so that all that share a byte may
    come at once; sums are modulo 256, and no field of the result is too large for its bits.
    """
    count = joined.codes.shape[1]
    if not joined.codes.numel():
        return
    flat = words.view(torch.uint8).view(-1)
    row, channel = joined.channels // form.width, joined.channels % form.width
    base = (row * (words.shape[2] * form.columns * 4))[:, None]
    tokens = torch.arange(start, start + count, device=channel.device)
    for piece in places(form, tokens, channel):
        at, codes = piece.at + base, joined.codes
        if piece.width == 8:
            flat[at] = codes
            continue
        mask = (1 << piece.width) - 1
        before = (flat[at] >> piece.up) & mask
        grown = ((codes >> piece.low) & mask) - before
        flat.index_put_((at,), grown << piece.up, accumulate=True)


@dataclass(frozen=True)
class Places:
    """Bits of codes [channels, tokens]: ``width`` of them from ``low`` on, ``up`` bits up in byte
    ``at`` of the words of a sequence and head."""

    low: int
    width: int
    at: torch.Tensor
    up: torch.Tensor


def places(form: CacheForm, tokens: torch.Tensor, channels: torch.Tensor) -> Iterator[Places]:
    """Where the codes of tokens, in channels, lie, plane by plane."""
    p, channels = form.packing, channels[:, None]
    along = channels if form.keys else tokens  # what chunks run along
    chunk, code = along // p.chunk, along % p.chunk
    if form.keys:
        first = tokens // LANES * form.columns + tokens % LANES + chunk * (p.words * LANES)
    else:
        first = chunk * form.columns + channels
    for low, width, at, up in _planes(form):
        yield Places(low, width, at[code] + first * 4, up[code])


@lru_cache(maxsize=256)
def _planes(form: CacheForm) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Of every plane the lowest bit, the width, and for each code of a chunk the byte behind the
    chunk's first one, and how far up in it."""
    p, step, found = form.packing, LANES if form.keys else form.padded, []
    for plane in zip(*(p.pieces(k) for k in range(p.chunk)), strict=True):
        at = torch.tensor([4 * step * piece.word + piece.at // 8 for piece in plane], device="cpu")
        up = torch.tensor([piece.at % 8 for piece in plane], dtype=torch.uint8, device="cpu")
        found.append((plane[0].low, plane[0].width, at, up))
    return found
