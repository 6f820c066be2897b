"""The keys or the values of a cache: memory that grows, new tokens quantised into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tilewright.ir.cache_form import BLOCK, CacheForm
from tilewright.ir.errors import BindError
from tilewright.runtime.kv_cache.open_group import Joined, OpenGroup, rewrite
from tilewright.runtime.kv_cache.quantise import Coded, quantise
from tilewright.runtime.kv_cache.tokens import CachedTokens
from tilewright.runtime.kv_cache.words import clear_from, write_keys, write_values

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class New:
    """Tokens from number ``start`` on, as they came and as codes. ``joined``: these are new ones
    of the open group, and what else they change."""

    start: int
    x: torch.Tensor
    coded: Coded
    joined: Joined | None = None


class Side:
    """Tokens of one form. ``symmetric``: signed codes without zeros."""

    def __init__(
        self,
        form: CacheForm,
        symmetric: bool,
        lead: tuple[int, int],
        scale_dtype: torch.dtype,
        name: str,
        device: torch.device = _CPU,
    ) -> None:
        self.form, self.symmetric, self.name = form, symmetric, name
        self.length, self.capacity = 0, 0
        self.words = _zeros((*lead, 0, form.columns), torch.int32, device)
        beside = (*lead, *form.scale_shape(0))
        self.scales = _zeros(beside, scale_dtype, device)
        self.zeros = None if symmetric else _zeros(beside, scale_dtype, device)
        self.open = OpenGroup(form, lead, device)  # by channel
        self._seen: CachedTokens | None = None  # what attention reads, until something changes

    def reserve(self, tokens: int) -> None:
        """Memory for so many tokens."""
        if tokens <= self.capacity:
            return
        self._seen = None
        self.capacity = -(-tokens // BLOCK) * BLOCK
        self.words = _grown(self.words, 2, self.form.rows(self.capacity))
        dim = 3 if self.form.by == "token" else 2
        size = self.form.scale_shape(self.capacity)[dim - 2]
        self.scales = _grown(self.scales, dim, size)
        if self.zeros is not None:
            self.zeros = _grown(self.zeros, dim, size)

    def code(self, x: torch.Tensor) -> New:
        """Codes for x [batch, heads, tokens, width] behind what is there; changes nothing."""
        start = self.length
        if self.form.by == "channel":
            joined = self.open.join(x, self.symmetric, self._of_open_group(), self.name)
            if joined is not None:
                return New(start, x, joined.coded, joined)
            start -= self.open.count  # the open group again, with what joins it
            x = self.open.with_more(x)
        coded = quantise(x, self.form, self.symmetric, self.scales.dtype, self.name)
        return New(start, x, coded)

    def _of_open_group(self) -> Coded:
        """Its scales and zeros; codes lie in the words."""
        row = (self.length - self.open.count) // self.form.group
        at = slice(row, row + 1)
        zeros = None if self.zeros is None else self.zeros[:, :, at]
        return Coded(self.words[:, :, :0], self.scales[:, :, at], zeros)

    def append(self, new: New) -> None:
        """Takes in what ``code`` made."""
        self._seen = None
        start, x, coded = new.start, new.x, new.coded
        stop = start + x.shape[2]
        if stop > self.capacity:
            self.reserve(max(stop, 2 * self.capacity, 4 * BLOCK))
        self._clear_from(start)
        write = write_keys if self.form.keys else write_values
        write(self.form, self.words, coded.codes, start)
        self._beside(self.scales, coded.scales, start)
        if self.zeros is not None and coded.zeros is not None:
            self._beside(self.zeros, coded.zeros, start)
        if new.joined is not None:
            rewrite(self.form, self.words, start - self.open.count, new.joined)
            self.open.add(x, new.joined)
        elif self.form.by == "channel":
            self.open.keep(x[:, :, x.shape[2] - stop % self.form.group :])
        self.length = stop

    def _clear_from(self, length: int) -> None:
        """Makes all tokens from number ``length`` on code 0, as those are that were never there."""
        if length < self.length:
            clear_from(self.form, self.words[:, :, : self.form.rows(self.length)], length)

    def _beside(self, memory: torch.Tensor, new: torch.Tensor, start: int) -> None:
        if self.form.by == "token":
            memory[..., start : start + new.shape[3]] = new
        else:
            first = start // self.form.group
            memory[:, :, first : first + new.shape[2]] = new

    def check_cut(self, length: int) -> None:
        """BindError if tokens before ``length`` cannot be kept without the others: by channel a
        group's scales were made for all of its tokens, unless it is still open."""
        first = self.length - self.open.count
        if self.form.by == "channel" and length % self.form.group and length < first:
            raise BindError(
                f"{self.name}: {length} tokens are no whole groups of {self.form.group}; truncate "
                "to a multiple of it"
            )

    def truncate(self, length: int) -> None:
        """Forgets the tokens from number ``length`` on, which ``check_cut`` allows."""
        self._seen = None
        if self.form.by == "channel":
            first = self.length - self.open.count
            if length <= first:
                self.open.count = 0
            else:
                self._reopen(length, first)
                return
        self._clear_from(length)
        self.length = length

    def _reopen(self, length: int, first: int) -> None:
        """Makes the open group anew from fewer of its tokens."""
        kept = self.open.tokens()[:, :, : length - first].clone()
        self.open.count = 0
        self._clear_from(first)
        self.length = first
        self.append(self.code(kept))

    def tokens(self) -> CachedTokens:
        """What attention reads: views, nothing is copied."""
        if self._seen is None:
            self._seen = self._views()
        return self._seen

    def _views(self) -> CachedTokens:
        rows, columns = self.form.scale_shape(self.length)
        zeros = None if self.zeros is None else self.zeros[:, :, :rows, :columns]
        zero = 1 << (self.form.bits - 1) if self.symmetric else 0
        scales = self.scales[:, :, :rows, :columns]
        return CachedTokens(self.form, self.length, self.words, scales, zeros, zero)

    @property
    def nbytes(self) -> int:
        """Bytes held, reserved ones included."""
        open_ = self.open.memory
        held = [self.words, self.scales, open_, *([] if self.zeros is None else [self.zeros])]
        return sum(x.numel() * x.element_size() for x in held)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory that can be written with and without torch.inference_mode()."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=dtype, device=device)


def _grown(memory: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A longer tensor of zeros with what was there at its start."""
    shape = list(memory.shape)
    shape[dim] = size
    out = _zeros(shape, memory.dtype, memory.device)
    out.narrow(dim, 0, memory.shape[dim]).copy_(memory)
    return out
