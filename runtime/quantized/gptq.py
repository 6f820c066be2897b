"""GPTQ (arXiv 2210.17323): columns are rounded one after another, and each one's error is moved to
the columns not rounded yet so that the product with the calibration activations changes least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.quantized import checks
from tilewright.runtime.quantized.choice import Chosen, choose
from tilewright.runtime.quantized.workers import in_threads

if TYPE_CHECKING:
    from tilewright.runtime.quantized.quantisers import Matrix

BLOCK = 128  # columns whose errors reach the columns after them in one product
ROWS = 2048  # rounded by one thread at a time
_TRIES = 4  # with ten times the damping each


@dataclass(frozen=True)
class Calibration:
    """What GPTQ knows of activations x [..., K]: ``hessian`` f64 [K, K], the mean of x x^T.

    ``damping`` times the mean of its diagonal is added to the diagonal. ``descending`` rounds the
    columns with the largest activations first (desc_act); groups are then of columns in this order,
    and the tensor has an ``order``.
    """

    hessian: torch.Tensor
    count: int = 0
    damping: float = 0.01
    descending: bool = False

    @staticmethod
    def of(
        x: torch.Tensor | Calibration, *, damping: float = 0.01, descending: bool = False
    ) -> Calibration:
        """From activations [..., K]; a calibration stays as it is.

        Raises DataError and SettingError.
        """
        if isinstance(x, Calibration):
            return x
        if damping < 0:
            raise SettingError(f"damping={damping} must not be below 0")
        if x.dim() < 1 or not x.is_floating_point():
            raise DataError(
                f"calibration must be float activations [..., K]; it is {x.dtype} {list(x.shape)}"
            )
        length = x.shape[-1]
        empty = torch.zeros(length, length, dtype=torch.float64, device=x.device)
        return Calibration(empty, 0, damping, descending).add(x)

    def add(self, x: torch.Tensor) -> Calibration:
        """With more activations [..., K], such as another batch's. Raises DataError."""
        length = len(self.hessian)
        if x.dim() < 1 or x.shape[-1] != length:
            raise DataError(f"calibration must be [..., {length}]; it is {list(x.shape)}")
        checks.is_finite("calibration", x)
        rows = x.detach().reshape(x.shape[:-1].numel(), length)
        total = self.hessian * self.count
        for first in range(0, len(rows), 4096):
            wide = rows[first : first + 4096].to(torch.float32)
            total += (wide.T @ wide).to(torch.float64)
        count = self.count + len(rows)
        return replace(self, hessian=total / max(count, 1), count=count)

    def order(self) -> torch.Tensor | None:
        """The columns by falling activation, int64 [K], if they are to be rounded so."""
        if not self.descending:
            return None
        return torch.argsort(self.hessian.diagonal(), descending=True, stable=True)

    @cached_property
    def factor(self) -> torch.Tensor:
        """f32 [K, K]: upper triangular U with U^T U the inverse of the damped Hessian, columns in
        their order; made once. Raises DataError if there is no inverse."""
        order = self.order()
        hessian = self.hessian if order is None else self.hessian[order][:, order]
        diagonal = hessian.diagonal()
        mean = float(diagonal.mean()) if len(diagonal) else 0.0
        damping = self.damping * mean
        for _ in range(_TRIES):
            damped = hessian.clone()
            # a column that no activation reached is rounded by itself
            damped.diagonal().copy_(torch.where(diagonal > 0, diagonal, mean or 1.0) + damping)
            lower, failed = torch.linalg.cholesky_ex(damped)
            upper: torch.Tensor
            if not int(failed):
                upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
                if not int(failed):
                    return upper.to(torch.float32)
            damping = max(10 * damping, 1e-6 * mean)
        raise DataError(
            f"calibration of {self.count} activations has no inverse, even with {damping / 10:g} "
            "added to its diagonal; use more activations, or a larger damping"
        )


def quantise_by_columns(
    w: torch.Tensor,
    calibration: Calibration,
    group: int,
    tensor_scale: float,
    result: Matrix,
    name: str,
) -> None:
    """w [N, K] in groups of ``group``, whose scales are chosen by least squares when their first
    column's turn comes (0: one scale in all, chosen first). Writes what it becomes into
    ``result``."""
    rows, length = w.shape
    if calibration.hessian.shape != (length, length):
        raise DataError(
            f"calibration must be [..., {length}] for {name} {list(w.shape)}; it is "
            f"[..., {len(calibration.hessian)}]"
        )
    order = calibration.order()
    upper = calibration.factor
    whole: Chosen | None = None
    if not group and w.numel():
        x = w.to(torch.float32).reshape(1, 1, -1)
        whole = choose(x, result.settings, tensor_scale, (x.amin(-1), x.amax(-1)))

    def work(first: int, last: int) -> None:
        left = w[first:last].to(torch.float32, copy=True)
        left = left if order is None else left[:, order]
        columns = _Columns(left, upper, group or max(length, 1), whole, tensor_scale)
        columns.run(result, first)
        result.put_codes(first, last, columns.codes)

    lanes = result.layout.lanes
    step = min(-(-rows // torch.get_num_threads()), ROWS) // lanes * lanes + lanes
    in_threads(work, [(at, min(at + step, rows)) for at in range(0, rows, step)])


class _Columns:
    """Rows [n, K] that are rounded column after column; ``left`` is what is still to be rounded."""

    def __init__(
        self,
        left: torch.Tensor,
        upper: torch.Tensor,
        group: int,
        whole: Chosen | None,
        tensor_scale: float,
    ) -> None:
        self.left, self.upper, self.group = left, upper, group
        self.whole, self.tensor_scale = whole, tensor_scale
        self.codes = torch.empty(left.shape, dtype=torch.uint8, device=left.device)

    def run(self, result: Matrix, row: int) -> None:
        """All columns; scales and zeros go to ``result`` from ``row`` on."""
        left, upper = self.left, self.upper
        chosen = self.whole
        for first, last in _blocks(left.shape[1], self.group):
            # columns lie one after another, as they are used
            block = left[:, first:last].T.contiguous()
            codes = torch.empty(block.shape, dtype=torch.uint8, device=block.device)
            errors = torch.empty_like(block)
            for at in range(first, last):
                if at % self.group == 0:
                    chosen = self._scales(result, row, block[at - first :], at)
                assert chosen is not None
                x = block[at - first]
                codes[at - first], values = chosen.column(x)
                error = torch.div(x - values, upper[at, at], out=errors[at - first])
                block[at - first + 1 :].addr_(upper[at, at + 1 : last], error, alpha=-1)
            self.codes[:, first:last] = codes.T
            left[:, last:].addmm_(errors.T, upper[first:last, last:], alpha=-1)

    def _scales(self, result: Matrix, row: int, ahead: torch.Tensor, at: int) -> Chosen:
        """Scales and zeros of the group that begins with column ``at``; ``ahead`` are the columns
        of its block from there on."""
        chosen = self.whole
        if chosen is None:
            rest = self.left[:, at + len(ahead) : at + self.group]
            x = torch.cat([ahead[: self.group].T, rest], 1).unsqueeze(1)
            limits = x.amin(-1), x.amax(-1)
            chosen = choose(x, result.settings, self.tensor_scale, limits)
        group = at // self.group
        rows = slice(0, len(self.left))
        result.put_parameters(row, rows, slice(group, group + 1), slice(0, 1), chosen)
        return chosen


def _blocks(length: int, group: int) -> list[tuple[int, int]]:
    """First and last (exclusive) columns of blocks that begin where a group does: several whole
    groups each, or parts of one."""
    if group <= BLOCK:
        step = BLOCK // group * group
        return [(at, min(at + step, length)) for at in range(0, length, step)]
    return [
        (at, min(at + BLOCK, first + group, length))
        for first in range(0, length, group)
        for at in range(first, min(first + group, length), BLOCK)
    ]
