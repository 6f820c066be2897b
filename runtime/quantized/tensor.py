"""``QuantizedTensor``: codes of 1 to 8 bits packed into words, with scales and zeros beside them.

It holds and converts; quantisers choose scales, zeros and codes (quantisers.py, gptq.py), words.py
packs, storage.py reads and writes files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tilewright.ir.dtypes import DType
from tilewright.ir.errors import DataError, SettingError, UnsupportedError
from tilewright.ir.packing import TILES, Packing
from tilewright.runtime.quantized import checks, words
from tilewright.runtime.quantized.dtype_names import scale_dtype_named, weight_dtype
from tilewright.runtime.quantized.layouts import default_layout, same_groups
from tilewright.runtime.quantized.numbers import STORED, decode
from tilewright.runtime.quantized.parameters import (
    BYTES,
    scale_values,
    stored_scales,
    stored_zeros,
)
from tilewright.runtime.quantized.rows import by_group, each, matrices, pieces, row_chunks
from tilewright.runtime.quantized.workers import in_threads

if TYPE_CHECKING:
    from tilewright.runtime.quantized.gptq import Calibration


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor [..., N, K] whose values are
    ``(decode(code) - zero) * scale * tensor_scale``, computed in f32 in this order.

    N are rows such as the outputs of ``nn.Linear``, K is the axis that codes are packed and grouped
    along; leading axes (experts) are packed one after another. Codes are stored bit patterns: for
    integers ``decode(code)`` is the code as an unsigned number, and zeros are in these units (the
    constant zero of ``iN`` is 2**(N-1)); for floats and tables it is the value.
    """

    dtype: DType
    shape: tuple[int, ...]
    group: int  # codes along K that share a scale; K for "channel"; 0: one scale in all
    layout: Packing
    words: torch.Tensor  # int32 [..., blocks, chunks, words, lanes]
    scale_blocks: torch.Tensor  # [..., blocks, groups, lanes], uint8 codes for e8m0 and f8e4m3
    zero_blocks: torch.Tensor | None  # the same shape: uint8 whole zeros, else f16 or f32
    zero_point: int  # the zero of all codes if there are no zero_blocks
    scale_dtype: DType
    tensor_scale: float = 1.0
    order: torch.Tensor | None = None  # int64 [K]: stored column j is logical column order[j]
    axis: int = -1  # -2: packed and grouped along N, stored transposed

    def __post_init__(self) -> None:
        """Raises DataError or UnsupportedError if the parts do not belong together."""
        rows, length = self.stored_shape
        if self.layout.bits != self.dtype.bits or not same_groups(self.layout, self.group, length):
            raise UnsupportedError(
                f"layout {self.layout} does not fit codes of {self.dtype.bits} bits in groups of "
                f"{self.group or 'all'} along {length}"
            )
        lead, why = self.shape[:-2], f"for {self.dtype} {list(self.shape)} as {self.layout}"
        checks.dtype_is("words", self.words, (torch.int32,), why)
        checks.shape_is("words", self.words, (*lead, *self.layout.word_shape(rows, length)), why)
        beside = (*lead, *self.layout.group_shape(rows, length))
        stored = torch.uint8 if self.scale_dtype.name in BYTES else STORED[self.scale_dtype.name]
        checks.dtype_is("scales", self.scale_blocks, (stored,), f"as {self.scale_dtype} is held")
        checks.shape_is("scales", self.scale_blocks, beside, why)
        if self.zero_blocks is not None:
            kinds = (torch.uint8, torch.float16, torch.float32)
            checks.dtype_is("zeros", self.zero_blocks, kinds, "as zeros are held")
            checks.shape_is("zeros", self.zero_blocks, beside, why)
        if self.order is not None:
            checks.dtype_is("order", self.order, (torch.int64,), "as positions are")
            checks.shape_is("order", self.order, (length,), why)

    # ---- making one

    @staticmethod
    def from_float(  # noqa: PLR0913  (every way to quantise)
        w: torch.Tensor,
        dtype: str | DType = "u4",
        group: int | str = 64,
        *,
        axis: int = -1,
        symmetric: bool | None = None,
        zero: str | None = None,
        scale_dtype: str | DType = "f16",
        method: str = "minmax",
        calibration: torch.Tensor | Calibration | None = None,
        layout: Packing | None = None,
        name: str = "w",
    ) -> QuantizedTensor:
        """Quantises w [..., N, K] of any float dtype; computed in f32.

        ``group``: codes along ``axis`` that share a scale, "channel" or "tensor". ``symmetric``
        (default: all but ``uN``) fixes the zero; else every group has one, ``zero="int"`` a whole
        number of steps, "float" any. ``scale_dtype``: f16, bf16, f32, e8m0 (MX: group 32) or f8e4m3
        (NVFP4: group 16; with a scale of the whole tensor). ``method``:

        - "minmax": the scale that just covers a group
        - "mse": the range whose rounding error has the least square
        - "hqq": float zeros refined as in HQQ; never worse than "minmax" in squared error
        - "gptq": error moved to columns not yet rounded, by ``calibration``: activations [..., K]
          or a ``Calibration``

        Raises SettingError for options, DataError (with ``name``) for w and calibration.
        """
        from tilewright.runtime.quantized.choice import Settings
        from tilewright.runtime.quantized.quantisers import quantise

        row, scale = weight_dtype(dtype), scale_dtype_named(scale_dtype)
        settings = Settings.of(row, symmetric, zero, scale, method)
        last = _last(axis, w.dim())
        w = w if last else w.transpose(-1, -2)
        group_ = checks.group_size(group, w.shape[-1])
        layout = layout or default_layout(row, group_, w.shape[-1], w.device)
        made = quantise(w, settings, group_, layout, calibration, name)
        if last:
            return made
        return replace(made, shape=(*w.shape[:-2], w.shape[-1], w.shape[-2]), axis=-2)

    @staticmethod
    def from_codes(  # noqa: PLR0913  (every part of what is made)
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        *,
        dtype: str | DType,
        group: int | str,
        tensor_scale: float = 1.0,
        order: torch.Tensor | None = None,
        scale_dtype: str | DType | None = None,
        layout: Packing | None = None,
        zero_point: int | None = None,
        name: str = "",
    ) -> QuantizedTensor:
        """Packs codes [..., N, K] (any integer dtype) with scales and zeros [..., N, groups].

        Codes are stored bit patterns (``iN``: value + 2**(N-1)), columns in the stored order.
        Scales are a float tensor, rounded to ``scale_dtype`` if that is another one, or, as uint8,
        codes of the ``scale_dtype`` e8m0 or f8e4m3. Zeros are in units of stored codes; whole ones
        from 0 to 255 take a byte each, others stay f16 or f32. Without zeros the ``zero_point``
        holds for all: 2**(N-1) for ``iN``, else 0, if not given. ``group="tensor"`` takes scales
        [..., 1, 1]. Raises DataError, whose message begins with ``name``, and SettingError.
        """
        row = weight_dtype(dtype)
        with _named(name):
            if codes.dim() < 2:
                raise DataError(f"codes must be [..., N, K]; they are {list(codes.shape)}")
            checks.codes_below("codes", codes, row)
            *lead, rows, length = codes.shape
            size = checks.group_size(group, length)
            layout = layout or default_layout(row, size, length, codes.device)
            beside = (*lead, rows, layout.groups(length))
            scale_row, scales = stored_scales(scales, scale_dtype)
            scales = _along(scales, "scales", beside, size)
            if zeros is not None:
                zeros = _along(stored_zeros(zeros), "zeros", beside, size)
            if order is not None:
                checks.is_order("order", order, length)
            if not math.isfinite(tensor_scale):
                raise DataError(f"tensor_scale must be finite; it is {tensor_scale}")
            zero = (1 << row.bits - 1) * (row.kind == "int") if zero_point is None else zero_point
            return QuantizedTensor(
                dtype=row,
                shape=tuple(codes.shape),
                group=size,
                layout=layout,
                words=each(lambda x: words.pack(layout, x), codes.to(torch.uint8)),
                scale_blocks=each(lambda x: words.pack_groups(layout, x), scales),
                zero_blocks=None
                if zeros is None
                else each(lambda x: words.pack_groups(layout, x), zeros),
                zero_point=zero,
                scale_dtype=scale_row,
                tensor_scale=tensor_scale,
                order=order,
            )

    # ---- what it holds

    def codes(self) -> torch.Tensor:
        """The stored codes, uint8 [..., N, K]; columns in the stored order (see ``order``)."""
        shape = (*self.shape[:-2], *self.stored_shape)
        out = torch.empty(shape, dtype=torch.uint8, device=self.words.device)
        for given, codes in zip(matrices(self.words, 4), matrices(out), strict=True):
            codes.copy_(words.unpack(self.layout, given, *self.stored_shape))
        return self._logical(out)

    @property
    def scales(self) -> torch.Tensor:
        """f32 [..., N, groups], without ``tensor_scale``."""
        return self._logical(self._scales())

    @property
    def zeros(self) -> torch.Tensor:
        """f32 [..., N, groups], the constant zero expanded."""
        return self._logical(self._zeros())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values [..., N, K], columns in logical order, computed in f32 and then rounded."""
        shape = (*self.shape[:-2], *self.stored_shape)
        out = torch.empty(shape, dtype=dtype, device=self.words.device)
        each_matrix = zip(
            matrices(self.words, 4),
            matrices(self._scales()),
            matrices(self._zeros()),
            matrices(out),
            strict=True,
        )
        for matrix in each_matrix:
            self._dequantize(*matrix)
        if self.order is not None:
            out = torch.empty_like(out).index_copy_(-1, self.order, out)
        return self._logical(out)

    def _dequantize(
        self, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, out: torch.Tensor
    ) -> None:
        """A matrix [N, K] of words, scales and zeros [N, groups]."""
        layout, (rows, length) = self.layout, out.shape

        def work(first: int, last: int) -> None:
            codes = torch.empty(last - first, length, dtype=torch.uint8, device=out.device)
            blocks = packed[first // layout.lanes : layout.blocks(last)]
            words.unpack_into(layout, blocks, codes)
            both = zip(
                by_group(codes, layout.group), by_group(out[first:last], layout.group), strict=True
            )
            for (groups, x), (_, target) in both:
                for row, some in pieces(x.shape):
                    values = decode(x[row, some], self.dtype)
                    values.sub_(zero[first:last, groups][row, some, None])
                    values.mul_(scale[first:last, groups][row, some, None])
                    target[row, some] = values.mul_(self.tensor_scale)

        in_threads(work, row_chunks(layout, rows, length))

    def _scales(self) -> torch.Tensor:
        stored = words.unpack_groups(self.scale_blocks, self.stored_shape[0])
        return scale_values(stored, self.scale_dtype)

    def _zeros(self) -> torch.Tensor:
        if self.zero_blocks is not None:
            stored = words.unpack_groups(self.zero_blocks, self.stored_shape[0])
            return stored.to(torch.float32)
        rows, length = self.stored_shape
        shape = (*self.shape[:-2], rows, self.layout.groups(length))
        return torch.full(shape, float(self.zero_point), device=self.words.device)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and the length that codes are packed along."""
        rows, length = self.shape[-2:]
        return (rows, length) if self.axis == -1 else (length, rows)

    def _logical(self, stored: torch.Tensor) -> torch.Tensor:
        return stored if self.axis == -1 else stored.transpose(-1, -2)

    # ---- the same in another form

    def with_layout(self, layout: Packing) -> QuantizedTensor:
        """The same codes, scales and zeros under another packing; exact. Raises UnsupportedError
        for one of other bits or groups."""
        if layout == self.layout:
            return self
        rows, length = self.stored_shape
        if layout.bits != self.dtype.bits or not same_groups(layout, self.group, length):
            raise UnsupportedError(
                f"{self.dtype} in groups of {self.group or 'all'} along {length} cannot lie as "
                f"{layout}; its bits and its group must be the same"
            )

        def moved(blocks: torch.Tensor) -> torch.Tensor:
            values = words.unpack_groups(blocks, rows)
            return each(lambda x: words.pack_groups(layout, x), values)

        codes = self._logical(self.codes())
        return replace(
            self,
            layout=layout,
            words=each(lambda x: words.pack(layout, x), codes),
            scale_blocks=moved(self.scale_blocks),
            zero_blocks=None if self.zero_blocks is None else moved(self.zero_blocks),
        )

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same on another device, packed as its kernels read it: a GPU's packing and a CPU's
        are made from each other, exactly."""
        parts: dict[str, Any] = {name: part.to(device) for name, part in self.parts()}
        moved = replace(self, **parts)
        place = moved.words.device
        known = place.type == "cuda" if self.layout.order == TILES else place.type == "cpu"
        if known or place.type not in ("cpu", "cuda"):
            return moved
        length = self.stored_shape[1]
        return moved.with_layout(default_layout(self.dtype, self.group, length, place))

    def __getitem__(self, index: int) -> QuantizedTensor:
        """One item of the first leading axis, such as an expert. Raises IndexError."""
        if len(self.shape) < 3:
            raise IndexError("only leading axes have items: this tensor is [N, K]")
        parts: dict[str, Any] = {n: part[index] for n, part in self.parts() if n != "order"}
        return replace(self, shape=self.shape[1:], **parts)

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The fields that are tensors, by name."""
        for name in ("words", "scale_blocks", "zero_blocks", "order"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    # ---- sizes, files

    @property
    def nbytes(self) -> int:
        """Bytes of words, scales, zeros and order, padding included."""
        return sum(part.numel() * part.element_size() for _, part in self.parts())

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits, divided by the number of values."""
        count = math.prod(self.shape)
        return 8 * self.nbytes / count if count else 0.0

    @property
    def padding_bytes(self) -> int:
        """What ``nbytes`` exceeds the bits of all codes, scales and zeros by."""
        from tilewright.runtime.quantized.explain import padding

        return sum(padding(self).values())

    def explain(self) -> str:
        """A table of what the bytes go to."""
        from tilewright.runtime.quantized.explain import explain

        return explain(self)

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Its tensors and, as bytes of JSON under ``form``, everything else; shares memory."""
        from tilewright.runtime.quantized.storage import to_state

        return to_state(self, prefix)

    @staticmethod
    def from_state_dict(state: Mapping[str, torch.Tensor], prefix: str = "") -> QuantizedTensor:
        """What ``state_dict(prefix)`` gave. Raises DataError naming the tensor that is wrong."""
        from tilewright.runtime.quantized.storage import from_state

        return from_state(state, prefix)

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor({self.dtype} {list(self.shape)}, group {self.group or 'tensor'}, "
            f"{self.layout}, {self.bits_per_weight:.3f} bits per weight)"
        )


def _last(axis: int, dims: int) -> bool:
    """Whether ``axis`` is the last of ``dims``, not the last but one. Raises SettingError."""
    if axis not in (-1, -2, dims - 1, dims - 2) or dims < 2:
        raise SettingError(
            f"axis={axis} of a tensor of {dims} axes: codes are grouped along the last axis (-1) "
            "or the last but one (-2)"
        )
    return axis in (-1, dims - 1)


def _along(values: torch.Tensor, name: str, shape: Sequence[int], group: int) -> torch.Tensor:
    """Scales or zeros [..., N, groups]; for one group in all [..., 1, 1] is expanded to that."""
    if not group and tuple(values.shape) == (*shape[:-2], 1, 1):
        values = values.expand(*shape)
    checks.shape_is(name, values, shape, f"[..., N, groups] for groups of {group or 'all'}")
    return values


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts the name of what is being made before the message of an error."""
    try:
        yield
    except (DataError, SettingError, UnsupportedError) as error:
        if not name:
            raise
        raise type(error)(f"{name}: {error.message}") from error
