"""One weight of a layer: base experts and adapter slots as one tensor over reserved addresses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tilewright.runtime.expert_memory.address_range import reserve
from tilewright.runtime.expert_memory.pace import FULL, Pace
from tilewright.runtime.expert_memory.page_table import PageTable, Piece

Rows = Sequence[torch.Tensor]


@dataclass(frozen=True)
class WeightForm:
    """Shape and dtype of one expert's part of a weight, as the layer stores it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def fits(self, rows: Rows) -> bool:
        """Whether these tensors, one after the other along their first axis, are one expert's."""
        head, *tail = self.shape
        return (
            all(t.dtype == self.dtype and list(t.shape[1:]) == tail and t.dim() for t in rows)
            and sum(t.shape[0] for t in rows) == head
        )


class ExpertWeight:
    """[rows, *form.shape] of which the experts mapped so far exist; reading others is not allowed.

    ``base`` [E, *form.shape] has a storage of its own over the same bytes, so that saving or
    copying it never touches what is not mapped.
    """

    def __init__(
        self,
        base: torch.Tensor,
        rows: int,
        *,
        kind: str = "auto",
        page: int | None = None,
    ) -> None:
        """Reserves ``rows`` experts and copies ``base`` [E, *shape], the first of them.

        The range is on the device of ``base``. Raises ExpertError, SettingError as ``reserve``.
        """
        assert 0 < base.shape[0] <= rows and base.numel(), "at least one expert, of some size"
        self.device = base.device
        self.form = WeightForm(tuple(base.shape[1:]), base.dtype)
        self.rows = rows
        self.experts = base.shape[0]
        self._range = reserve(rows * self.form.nbytes, base.device, kind, page)
        self._table = PageTable(self._range.size, self._range.page)
        self._existing = 0
        self.map(0, self.experts)
        for expert in range(self.experts):
            self.write(expert, [base[expert]])
        self.finish(0, self.experts)
        size = self.form.nbytes
        self.tensor = self._view(self._range.tensor(rows * size))
        self.base = self._view(self._range.tensor(self.experts * size))

    @property
    def page(self) -> int:
        return self._range.page

    @property
    def mapped_bytes(self) -> int:
        """What the mapped pages hold; with padding the whole range."""
        return self._table.mapped_bytes if self._range.on_demand else self._range.size

    @property
    def existing_bytes(self) -> int:
        """What the experts that exist take."""
        return self._existing * self.form.nbytes

    @property
    def padded_bytes(self) -> int:
        """What all rows would take."""
        return self.rows * self.form.nbytes

    def map(self, first: int, count: int) -> None:
        """Memory for experts [first, first + count), which had none. All or nothing."""
        start, stop = self._bytes(first, count)
        done: list[Piece] = []
        try:
            for piece in self._table.missing(start, stop):
                self._range.map(piece)
                done.append(piece)
        except BaseException:
            for piece in done:
                self._range.unmap(piece)
            raise
        self._table.take(start, stop)
        self._existing += count

    def unmap(self, first: int, count: int, pace: Pace = FULL) -> None:
        """Gives back what ``map`` got. Nothing reads these experts any more."""
        for piece in self._table.give_back(*self._bytes(first, count)):
            self._range.unmap(piece, pace)
        self._existing -= count

    def write(self, expert: int, rows: Rows, pace: Pace = FULL) -> None:
        """Copies one expert into mapped rows, in chunks: every byte of it, nobody else's.

        ``rows``: tensors that fit the form, of any strides, on any device.
        """
        assert self.form.fits(rows)
        at = expert * self.form.nbytes
        for data in rows:
            flat = data.detach().contiguous().reshape(-1).view(torch.uint8)
            self._range.write(at, flat, pace)
            at += len(flat)

    def finish(self, first: int, count: int, pace: Pace = FULL) -> None:
        """What was written into these experts can be read by every thread and stream."""
        self._range.finish(*self._bytes(first, count), pace)

    def settle(self) -> None:
        """Returns when no kernel started before still reads."""
        self._range.settle()

    def _bytes(self, first: int, count: int) -> tuple[int, int]:
        size = self.form.nbytes
        return first * size, (first + count) * size

    def _view(self, data: torch.Tensor) -> torch.Tensor:
        """uint8 [n] as experts."""
        return data.view(self.form.dtype).reshape(-1, *self.form.shape)
