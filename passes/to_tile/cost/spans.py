"""How many positions of the inner axis the work items of all schedules compute, and in which form:
whole blocks without masks, and cut ones (block_walk.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tilewright.ir.sizes import product
from tilewright.passes.to_tile.cost.counts import Number
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.mask_range import Bound, MaskRange

MOST_ITEMS = 64  # blocks of rows that are looked at, spread over all of them


class Tiles(Protocol):
    """What of a schedule decides where blocks end."""

    @property
    def tile(self) -> Number: ...

    @property
    def block(self) -> Number: ...

    @property
    def vectors(self) -> Number: ...

    @property
    def lanes(self) -> int: ...


@dataclass(frozen=True)
class Stretch:
    """Positions of an average work item: ``seen`` by passes of ``vectors`` registers of rows each,
    ``passes`` blocks of them; ``begun``: positions of the blocks, whatever part of the rows sees.
    All are arrays [schedules, items, groups of rows] whose mean over items is taken."""

    seen: Number
    block: Number
    vectors: Number
    masked: bool
    begun: Number
    passes: Number

    def tiles(self, step: Number) -> Number:
        """Register tiles of ``step`` positions."""
        return _average(np.ceil(self.seen / _wide(step)))

    def tiled(self, step: Number) -> Number:
        """Positions of the blocks in whole tiles."""
        return np.ceil(self.begun / step) * step

    def steps(self, unroll: Number, packed: int) -> tuple[Number, Number]:
        """Turns of an unrolled loop over a block's positions (``packed`` at a time), and of the
        loop over the rest."""
        whole = np.floor(self.seen / _wide(self.block))
        left = self.seen - whole * _wide(self.block)
        full, more = (np.ceil(x / packed) for x in (np.asarray(self.block), left))
        turns = whole * _wide(full // unroll) + more // _wide(unroll)
        rest = whole * _wide(full % unroll) + more % _wide(unroll)
        return _average(turns), _average(rest)


def _wide(x: Number) -> Number:
    return np.asarray(x, float)[..., None, None]


def _average(x: Number) -> Number:
    """Sum over groups of rows, mean over items."""
    return x.sum(axis=-1).mean(axis=-1)


class Spans:
    """Spans of positions for every block of rows."""

    def __init__(
        self,
        info: KernelInfo,
        mask: MaskRange,
        sizes: Mapping[str, int],
        rows: Number,
        lanes: int,
    ) -> None:
        self.info, self.sizes, self.lanes = info, sizes, lanes
        self.length = info.inner.size.evaluate(sizes)
        count = info.row_count.evaluate(sizes)
        grid = product(a.size for a in info.grid).evaluate(sizes)
        blocks = np.ceil(count / rows)
        self.items = grid * blocks
        self.rows = count / blocks  # of an average work item
        self.groups = self._groups(count, rows, blocks, lanes)
        most = int(min(MOST_ITEMS, blocks.max()))
        at = (np.arange(most) + 0.5) / most  # the middle of equal parts of the blocks
        self.first_row = np.floor(at * blocks[..., None]) * rows[..., None]
        self.height = rows[..., None]
        self.count = count
        self.span = self._span(mask.bounds, self.first_row, self.height)
        self.bounds = mask.bounds

    @staticmethod
    def _groups(count: int, rows: Number, blocks: Number, lanes: int) -> Number:
        """Registers of rows that have any, of an average work item."""
        last = count - (blocks - 1) * rows
        return ((blocks - 1) * rows / lanes + np.ceil(last / lanes)) / blocks

    def _span(self, bounds: list[Bound], first: Number, height: Number) -> tuple[Number, ...]:
        """First and last position that some rows see, first and last that all see."""
        shape = np.broadcast(first, height).shape
        begin, last = np.zeros(shape), np.full(shape, float(self.length))
        start, end = np.zeros(shape), np.full(shape, float(self.length))
        for bound in bounds:
            low, high = self._extremes(bound, first, height)
            if bound.upper:
                last = np.minimum(last, np.maximum(high + 1, 0))
                end = np.minimum(end, np.maximum(low + 1, 0))
            else:
                begin, start = np.maximum(begin, low), np.maximum(start, high)
        begin = np.minimum(begin, last)
        start = np.minimum(np.maximum(start, begin), last)
        return begin, last, start, np.maximum(np.minimum(end, last), start)

    def _extremes(self, bound: Bound, first: Number, height: Number) -> tuple[Number, Number]:
        low = high = np.full(np.broadcast(first, height).shape, bound.constant.evaluate(self.sizes))
        for name, factor in bound.terms:
            least, most = self._axis(name, first, height)
            least, most = (most, least) if factor < 0 else (least, most)
            low, high = low + factor * least, high + factor * most
        return low, high

    def _axis(self, name: str, first: Number, height: Number) -> tuple[Number, Number]:
        """Least and greatest position on an axis of the rows."""
        names = [a.name for a in self.info.rows]
        if name not in names:
            middle = self.sizes_of(name) / 2
            return np.asarray(middle), np.asarray(middle)
        at = names.index(name)
        inner = product(a.size for a in self.info.rows[at + 1 :]).evaluate(self.sizes)
        size = self.info.rows[at].size.evaluate(self.sizes)
        final = np.minimum(first + height, self.count) - 1
        begin = np.minimum(first, self.count - 1)
        low, high = np.floor(begin / inner), np.floor(final / inner)
        if not at:
            return low, high
        crossed = np.floor(low / size) != np.floor(high / size)
        return np.where(crossed, 0, low % size), np.where(crossed, size - 1, high % size)

    def sizes_of(self, name: str) -> int:
        """The length of an axis of the grid."""
        found = [a.size for a in self.info.grid if a.name == name]
        return found[0].evaluate(self.sizes) if found else 0

    def units(self, y: Tiles) -> Number:
        """Positions of whole blocks are a multiple of it."""
        return np.lcm(np.asarray(y.tile, int), y.lanes).astype(float)[..., None]

    def whole(self, y: Tiles) -> Stretch:
        """What no mask touches, in whole register tiles."""
        _, _, start, end = self.span
        unit = self.units(y)
        seen = np.floor((end - start) / unit) * unit
        passes = _average(np.ceil(seen / np.asarray(y.block, float)[..., None])[..., None])
        begun = _average(seen[..., None])
        return Stretch(seen[..., None], y.block, y.vectors, False, begun, passes)

    def cut(self, y: Tiles, grouped: bool) -> Stretch:
        """What masks or the end cut."""
        begin, last, start, end = self.span
        unit = self.units(y)
        stop = start + np.floor((end - start) / unit) * unit
        sides = [(begin, start), (stop, last)]
        block = np.asarray(y.block, float)[..., None]
        begun = sum(high - low for low, high in sides)
        several = np.asarray(y.vectors) > 1
        if not grouped and not several.any():
            seen = begun[..., None]
            passes = _average(sum(np.ceil((high - low) / block) for low, high in sides)[..., None])
            return Stretch(seen, y.block, y.vectors, True, _average(seen), passes)
        return self._by_groups(y, sides, several & grouped)

    def _by_groups(self, y: Tiles, sides: list[tuple[Number, Number]], grouped: Number) -> Stretch:
        """Rows a register at a time, each with what it sees."""
        most = int(np.max(y.vectors))
        group = np.arange(most)
        first = self.first_row[..., None] + group * self.lanes
        begin, last, _, _ = self._span(self.bounds, first, np.asarray(float(self.lanes)))
        there = group < _wide(y.vectors)
        block = np.asarray(y.block, float)[..., None, None]
        seen: Number = 0.0
        passes: Number = 0.0
        begun: Number = 0.0
        for start, stop in sides:
            low, high = start[..., None], stop[..., None]
            at = low + np.floor(np.maximum(begin - low, 0) / self.lanes) * self.lanes
            part = np.maximum(np.minimum(last, high) - at, 0) * there
            alone = (group == 0) * (high - low)
            some = np.where(grouped[..., None, None], part, alone)
            seen = seen + some
            passes = passes + np.ceil(some / block)
            begun = begun + (high - low)[..., 0]
        vectors = np.where(grouped, 1.0, y.vectors)
        return Stretch(seen, y.block, vectors, True, begun.mean(axis=-1), _average(passes))
