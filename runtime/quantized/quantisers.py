"""From floats to codes: matrix by matrix, a chunk of rows at a time, packed at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilewright.ir.errors import DataError, SettingError
from tilewright.ir.packing import Packing
from tilewright.runtime import huge_pages
from tilewright.runtime.quantized import checks, words
from tilewright.runtime.quantized.choice import Chosen, Settings, choose
from tilewright.runtime.quantized.numbers import STORED
from tilewright.runtime.quantized.parameters import BYTES
from tilewright.runtime.quantized.rows import by_group, matrices, pieces, row_chunks
from tilewright.runtime.quantized.tensor import QuantizedTensor
from tilewright.runtime.quantized.workers import in_threads

if TYPE_CHECKING:
    from tilewright.runtime.quantized.gptq import Calibration

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LEAST_TENSOR_SCALE = 2.0**-100


def quantise(
    w: torch.Tensor,
    settings: Settings,
    group: int,
    layout: Packing,
    calibration: torch.Tensor | Calibration | None,
    name: str,
) -> QuantizedTensor:
    """w [..., N, K] in groups of ``group`` (0: one scale in all) along K. See ``from_float``."""
    if w.dtype not in _FLOATS:
        raise DataError(f"{name} must be f16, bf16, f32 or f64; it is {w.dtype}")
    if (calibration is None) == (settings.method == "gptq"):
        raise SettingError("method='gptq' and calibration=… need each other")
    w = w.detach()
    tensor_scale = _tensor_scale(w, settings, name)
    order = None
    made = [Matrix.empty(matrix, settings, layout) for matrix in matrices(w)]
    if calibration is not None:
        from tilewright.runtime.quantized.gptq import Calibration, quantise_by_columns

        found = Calibration.of(calibration)
        order = found.order()
        for matrix, result in zip(matrices(w), made, strict=True):
            _check_finite(matrix, name)
            quantise_by_columns(matrix, found, group, tensor_scale, result, name)
    else:
        for matrix, result in zip(matrices(w), made, strict=True):
            _by_rows(matrix, group, tensor_scale, result, name)
    return _assembled(made, w, settings, group, layout, tensor_scale, order)


@dataclass
class Matrix:
    """What a matrix [N, K] becomes: words, scales and zeros as they are held [N, groups]."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    settings: Settings
    layout: Packing

    @staticmethod
    def empty(w: torch.Tensor, settings: Settings, layout: Packing) -> Matrix:
        rows, length = w.shape
        shape, groups = layout.word_shape(rows, length), (rows, layout.groups(length))
        held = torch.uint8 if settings.scale.name in BYTES else STORED[settings.scale.name]
        zero = torch.uint8 if settings.zero == "int" else torch.float16
        return Matrix(
            huge_pages.empty(shape, torch.int32, w.device),
            w.new_empty(groups, dtype=held),
            None if settings.zero == "none" else w.new_empty(groups, dtype=zero),
            settings,
            layout,
        )

    def put_parameters(
        self, first: int, rows: slice, groups: slice, some: slice, chosen: Chosen
    ) -> None:
        """Scales and zeros of the ``rows`` from row ``first`` on, of ``some`` of the ``groups``."""
        self.scales[first:, groups][rows, some] = chosen.held
        if self.zeros is not None and isinstance(chosen.zero, torch.Tensor):
            self.zeros[first:, groups][rows, some] = chosen.zero.to(self.zeros.dtype)

    def put_codes(self, first: int, last: int, codes: torch.Tensor) -> None:
        """Codes of some rows, ``first`` being the first of a block."""
        lanes = self.layout.lanes
        blocks = self.words[first // lanes : self.layout.blocks(last)]
        words.pack_into(self.layout, codes, blocks)


def _by_rows(w: torch.Tensor, group: int, tensor_scale: float, result: Matrix, name: str) -> None:
    """Rounds every number of w [N, K] by itself; writes what it becomes into ``result``."""
    settings, layout = result.settings, result.layout
    rows, length = w.shape
    if not w.numel():
        return
    whole: Chosen | None = None
    if not group:
        x = w.to(torch.float32).reshape(1, 1, -1)
        whole = choose(x, settings, tensor_scale, _limits(x, name))

    def work(first: int, last: int) -> None:
        part = w[first:last].to(torch.float32)
        codes = torch.empty(last - first, length, dtype=torch.uint8, device=w.device)
        both = zip(by_group(part, layout.group), by_group(codes, layout.group), strict=True)
        for (groups, x), (_, out) in both:
            for row, some in pieces(x.shape):
                given = x[row, some]
                chosen = whole or choose(given, settings, tensor_scale, _limits(given, name))
                out[row, some] = chosen.codes(given)
                result.put_parameters(first, row, groups, some, chosen)
        result.put_codes(first, last, codes)

    in_threads(work, row_chunks(layout, rows, length))


def _limits(x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest of each group. Raises DataError for NaN and infinities."""
    low, high = x.amin(-1), x.amax(-1)
    if not bool(torch.isfinite(low.sum() + high.abs().sum())):
        checks.is_finite(name, x)  # sums of finite numbers may overflow
    return low, high


def _check_finite(w: torch.Tensor, name: str) -> None:
    if w.numel():
        checks.is_finite(name, w)


def _tensor_scale(w: torch.Tensor, settings: Settings, name: str) -> float:
    """The scale of the whole tensor that the scales in f8e4m3 need, an f32: the largest weight gets
    the largest code and the largest scale. 1 for all others."""
    if settings.scale.name != "f8e4m3" or not w.numel():
        return 1.0
    low, high = (float(v) for v in torch.aminmax(w))
    _check_finite(torch.tensor([low, high]), name)
    largest = _largest_scale(low, high, settings)
    if largest == 0:
        return 1.0
    scale = max(largest / settings.scale.largest, _LEAST_TENSOR_SCALE)
    return float(torch.tensor(scale, dtype=torch.float32))


def _largest_scale(low: float, high: float, settings: Settings) -> float:
    """The largest scale that a group of numbers from ``low`` to ``high`` may get."""
    least, most = settings.reach
    if settings.zero == "none":
        return max(high / most, low / least if least < 0 else 0.0)
    if settings.zero == "int":
        return (max(high, 0.0) - min(low, 0.0)) / (most - least)
    return max((high - low) / (most - least), abs(low), abs(high))


def _assembled(
    made: list[Matrix],
    w: torch.Tensor,
    settings: Settings,
    group: int,
    layout: Packing,
    tensor_scale: float,
    order: torch.Tensor | None,
) -> QuantizedTensor:
    """One tensor of matrices."""
    lead = w.shape[:-2]
    if not made:  # a leading axis of size 0
        made = [Matrix.empty(w.new_empty(w.shape[-2:]), settings, layout)]

    def together(parts: list[torch.Tensor], pack: bool) -> torch.Tensor:
        if pack:
            parts = [words.pack_groups(layout, part) for part in parts]
        if not lead:
            return parts[0]
        if not lead.numel():
            return parts[0].new_empty(*lead, *parts[0].shape)
        return huge_pages.stack(parts).view(*lead, *parts[0].shape)

    zeros = [m.zeros for m in made if m.zeros is not None]
    return QuantizedTensor(
        dtype=settings.dtype,
        shape=tuple(w.shape),
        group=group,
        layout=layout,
        words=together([m.words for m in made], False),
        scale_blocks=together([m.scales for m in made], True),
        zero_blocks=together(zeros, True) if zeros else None,
        zero_point=settings.zero_point,
        scale_dtype=settings.scale,
        tensor_scale=tensor_scale,
        order=order,
    )
