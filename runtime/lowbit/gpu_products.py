"""Kernels with packed weights on GPUs by Triton: one form for any number of rows of a class, shared
out along k by what the sizes of a call are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import STRIP
from tilewright.ir.target import Target
from tilewright.passes.to_tile.choices import DEFAULT, Choice, with_choice
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.lowbit.info import packed_products
from tilewright.passes.to_tile.lower import prepared
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.program import (
    COUNTERS,
    PackedPrograms,
    default_product_schedule,
    packed_programs,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule, parts_of
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.cuda.counters import counters
from tilewright.runtime.cuda.repeat import bound
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_parts import MakeKernel, processors
from tilewright.runtime.once import Once

AT_ONCE = 4  # work items with few rows that a multiprocessor holds


def forced_product(forced: BlockSchedule | None, parts: int = 1) -> ProductSchedule | None:
    """A forced schedule as one of products."""
    if forced is None:
        return None
    strips = max(1, forced.inner // STRIP)
    return ProductSchedule(forced.rows, 1, strips, forced.warps, forced.stages, parts)


def product_programs(
    graph: Graph,
    target: Target,
    rows: int,
    units: dict[str, int],
    *,
    choice: Choice = DEFAULT,
    forced: BlockSchedule | None = None,
    parts: int = 1,
    counting: bool = False,
) -> PackedPrograms:
    """The programs of a stream graph for up to ``rows`` rows (0: any number), of whose k ``parts``
    work items take a part each; ``counting``: the last of them finishes. Raises UnsupportedError
    where there are none."""
    info = analyse(prepared(graph))
    schedule = forced_product(forced, parts)
    if schedule is None:
        schedule = with_choice(default_product_schedule(info, target, rows, parts), choice)
    return packed_programs(info, units, target, rows, schedule, parts, counting)


class PackedCall:
    """A form of a kernel with packed weights. ``call`` takes the inputs of its graph;
    ``counting``: work items that share out k may count themselves."""

    def __init__(
        self,
        variant: Variant,
        target: Target,
        forced: BlockSchedule | None,
        make: MakeKernel,
        counting: bool,
    ) -> None:
        self.variant, self.target, self.forced, self.make = variant, target, forced, make
        self.counting = counting
        info = analyse(prepared(variant.graph))
        default = default_product_schedule(info, target, variant.rows)
        self.schedule = forced_product(forced) or with_choice(default, variant.choice)
        self.products = packed_products(info.graph)
        given = self.products[0].weights.words, self.products[0].activations.operands[0]
        self.words, self.activations = (info.graph.params.index(value) for value in given)
        self.length = self.products[0].length
        self.bits = sum(p.weights.dtype.bits for p in self.products) // len(self.products)
        self.forms: Once[int, _Form] = Once(self._form)
        self.whole = self.forms[1]  # what cannot be made is refused when the form is

    @property
    def program(self) -> Graph:
        """The program that takes all of k."""
        return self.whole.programs.main

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated."""
        return self.forms[self.parts(tensors)](*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        return self.forms[self.parts(tensors)].bind(tensors)

    def parts(self, tensors: tuple[torch.Tensor, ...]) -> int:
        """How many work items share out k for these inputs."""
        blocks, rows = tensors[self.words].shape[0], self._rows(tensors)
        slots = min(AT_ONCE * processors(tensors[0].device), 2 * COUNTERS)
        return parts_of(self.schedule, blocks, rows, self.length, self.bits, slots)

    def _rows(self, tensors: tuple[torch.Tensor, ...]) -> int:
        return tensors[self.activations].numel() // max(1, self.length)

    def _form(self, parts: int) -> _Form:
        variant = self.variant
        programs = partial(
            product_programs,
            variant.graph,
            self.target,
            variant.rows,
            variant.unit_dims,
            choice=variant.choice,
            forced=self.forced,
            counting=self.counting,
        )
        if parts == 1:
            return _Form(programs(), self.make)
        with suppress(UnsupportedError):  # what follows the product cannot be done apart
            made = programs(parts=parts)
            between = partial(self._between, parts, made.sums) if made.sums else None
            return _Form(made, self.make, between)
        return self.whole

    def _between(
        self, parts: int, count: int, tensors: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Memory for every part's sums, and counters of who is done."""
        device, columns = tensors[0].device, tensors[self.words].shape[0] * LANES
        shape, dtype = (parts, self._rows(tensors), columns), torch.float32
        sums = [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]
        return [*sums, counters.of(device)]


class _Form:
    """One or two kernels, and what the first one takes besides: tables, and what ``between`` gives
    for the inputs of a call."""

    def __init__(
        self,
        programs: PackedPrograms,
        make: MakeKernel,
        between: Callable[[tuple[torch.Tensor, ...]], list[torch.Tensor]] | None = None,
    ) -> None:
        self.programs, self.between = programs, between
        self.main: Call = make(programs.main)
        self.finish = None if programs.finish is None else make(programs.finish)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        device = tensors[0].device
        tables = [table_on(table, device) for table in self.programs.tables]
        more = self.between(tensors) if self.between else ()
        made = self.main(*tensors, *tables, *more)
        return made if self.finish is None else self.finish(*made, *tensors)

    def bind(self, tensors: tuple[torch.Tensor, ...]) -> Call | None:
        """What repeats a call of one kernel."""
        tables = [table_on(table, tensors[0].device) for table in self.programs.tables]
        between = self.between or _nothing
        main = bound(self.main, (*tensors, *tables, *between(tensors)))
        if main is None or self.finish is not None:
            return None
        return lambda *tensors: main(*tensors, *tables, *between(tensors))


def _nothing(_: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return []


@cache
def table_on(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What codes stand for, on a device."""
    return torch.tensor(values, dtype=torch.float32, device=device)
