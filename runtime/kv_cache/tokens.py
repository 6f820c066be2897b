"""Keys or values of a cache as attention takes them: words, scales, zeros, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.cache_form import BLOCK, CacheForm
from tilewright.ir.errors import BindError

SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class CachedTokens:
    """[batch, heads, length, form.width] numbers ``(code - zero) * scale``.

    ``words`` int32 and ``scales`` as ``CacheForm`` says, for at least ``length`` tokens; ``zeros``
    in units of codes like the scales, or None for the constant ``zero``. Raises BindError if they
    do not fit together.
    """

    form: CacheForm
    length: int
    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    zero: int = 0

    def __post_init__(self) -> None:
        form, words = self.form, self.words
        rows = form.rows(self.length)
        fits = words.dim() == 4 and words.dtype == torch.int32 and words.shape[3] == form.columns
        if not fits or words.shape[2] < rows:
            wanted = f"int32 [batch, heads, {rows} or more, {form.columns}]"
            raise BindError(
                f"words of {self.length} cached tokens must be {wanted}; they are {words.dtype} "
                f"{tuple(words.shape)}"
            )
        lead, shape = words.shape[:2], form.scale_shape(self.length)
        for name, x in (("scales", self.scales), ("zeros", self.zeros)):
            if x is not None and (x.shape != (*lead, *shape) or x.dtype not in SCALES):
                raise BindError(
                    f"{name} of {self.length} cached tokens must be a float16, bfloat16 or float32 "
                    f"tensor of shape {(*lead, *shape)}; they are {x.dtype} {tuple(x.shape)}"
                )
        if self.zeros is not None and self.zeros.dtype != self.scales.dtype:
            raise BindError(f"zeros are {self.zeros.dtype}, scales are {self.scales.dtype}")

    @property
    def shape(self) -> torch.Size:
        """[batch, heads, length, width]"""
        return torch.Size((*self.words.shape[:2], self.length, self.form.width))

    @property
    def is_cpu(self) -> bool:
        return self.words.is_cpu

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Words, scales and, if there are some, zeros."""
        return (self.words, self.scales, *(() if self.zeros is None else (self.zeros,)))

    @property
    def nbytes(self) -> int:
        """Bytes that the tokens take, those of their last block included."""
        batch, heads = self.words.shape[:2]
        words = batch * heads * self.form.rows(self.length) * self.form.columns * 4
        beside = sum(x.numel() * x.element_size() for x in self.tensors()[1:])
        return words + beside

    def codes(self) -> torch.Tensor:
        """[batch, heads, length, width] uint8"""
        rows = -(-self.length // BLOCK) * BLOCK // self.form.step
        words = self.words[:, :, :rows].cpu().numpy()
        codes = torch.from_numpy(self.form.unpack(words, self.length).copy())
        return codes.to(self.words.device)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The numbers that the codes stand for, computed in float32."""
        zero: torch.Tensor | int = self.zero
        if self.zeros is not None:
            zero = self._spread(self.zeros)
        return self.codes().float().sub_(zero).mul_(self._spread(self.scales)).to(dtype)

    def _spread(self, numbers: torch.Tensor) -> torch.Tensor:
        """One number per code, or per token where that is the same."""
        if self.form.by == "channel":
            return numbers.float().repeat_interleave(self.form.group, 2)[:, :, : self.length]
        by_token = numbers.float().transpose(2, 3)  # few: codes stay as they lie
        if self.form.channel_groups == 1:
            return by_token
        return by_token.repeat_interleave(self.form.group, 3)[..., : self.form.width]
