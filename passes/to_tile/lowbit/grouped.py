"""What products with packed weights share: they are summed group by group, chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place
from tilewright.passes.to_tile.lowbit.walk import GroupBody, Tiles, Units, walk_groups
from tilewright.passes.to_tile.lowbit.weights import WeightStream, Workplace


class GroupedProduct(ABC):
    """The sums of one product for a register tile of each vector."""

    def __init__(self, work: Workplace, product: PackedProduct, schedule: PackedSchedule) -> None:
        self.b, self.shapes, self.product = work.build, schedule.shapes, product
        self.packing = product.packing
        self.stream = WeightStream(work, product, schedule)

    def run(self, place: Place) -> Tiles:
        """[rows, lanes] in f32 for each vector."""
        zeros = [self.b.filled(0.0, F32, self.shapes.sums) for _ in place.blocks]
        body = GroupBody(
            lambda group: self.start(place, group),
            lambda sums, chunk, units, first: self.chunk(place, sums, chunk, units, first),
            lambda totals, sums, group: self.finish(place, totals, sums, group),
        )
        return walk_groups(self.b, self.units(), body, zeros)

    @abstractmethod
    def units(self) -> Units:
        """How the units of a row lie."""

    @abstractmethod
    def start(self, place: Place, group: Value) -> Tiles:
        """A group's sums before its first unit."""

    @abstractmethod
    def chunk(
        self, place: Place, sums: Tiles, chunk: Value, units: Sequence[int], first: Value
    ) -> Tiles:
        """The sums with some units of a chunk, whose activations begin at number ``first``."""

    @abstractmethod
    def finish(self, place: Place, totals: Tiles, sums: Tiles, group: Value) -> Tiles:
        """The totals with a group's sums."""
