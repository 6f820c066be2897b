"""Blocks that come from a buffer through shared memory: what is copied where, and when.

A loop that walks a buffer in blocks reads ``stages`` blocks ahead: copies run beside the products,
and one barrier a turn says that a block has come and that the one before may be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.ops_tile_memory import Barrier, Commit, CopyAsync, Wait
from tilewright.ir.types import LINE_BYTES, BufferType, IndexType, RegisterType, SharedType
from tilewright.passes.to_threads.banks import choose_swizzle
from tilewright.passes.to_threads.layouts import BlockLayouts, Made, copies_of
from tilewright.passes.to_tile.emitter import TileBuilder

COPIED_BYTES = 16  # what a thread copies at once


@dataclass
class Staged:
    """A load that goes through shared memory [slots, rows, columns]; where warp groups read it,
    rows longer than a line of all banks are cut into ``parts``, each with a slot of its own."""

    load: t.Load | t.LoadLines
    order: tuple[int, int]  # the tile dimensions along the memory's rows and columns
    memory: Value
    parts: int = 1

    @property
    def type(self) -> SharedType:
        assert isinstance(self.memory.type, SharedType)
        return self.memory.type


@dataclass(frozen=True)
class Counted:
    """Which index of a load counts with a loop: ``factor`` times the counter, and ``offset``."""

    index: int
    factor: int
    offset: Value | None


@dataclass
class Ahead:
    """The loads of a loop that are begun before their turn, and how their places count."""

    staged: list[Staged] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    sliced: list[tuple[Staged, tuple[Op, ...]]] = field(default_factory=list)  # others: slices.py

    @property
    def every(self) -> list[Staged]:
        return [*self.staged, *(staged for staged, _ in self.sliced)]

    @property
    def some(self) -> bool:
        return bool(self.every)


@dataclass(frozen=True)
class Block:
    """How a tile lies in shared memory: its dimensions along rows and columns, into how many parts
    its columns are cut, the rows and columns of a part, and how many elements are copied at once.
    """

    order: tuple[int, int]
    parts: int
    shape: tuple[int, int]
    width: int

    @property
    def family(self) -> str:
        """The family of what says where the parts of a block lie in memory."""
        rows, columns = self.shape
        return copies_of(
            (rows, columns) if self.order == (0, 1) else (columns, rows), self.order, self.width
        )


def block_of(load: t.Load | t.LoadLines, lines: bool) -> Block | None:
    """How a load's tile lies in shared memory (``Staging.place``), if it can."""
    type_ = load.result.type
    assert isinstance(type_, RegisterType)
    size = type_.dtype.bits // 8
    width = COPIED_BYTES // size if size else 0
    if isinstance(load, t.LoadLines):
        along = [1 - load.dim, load.dim]
    else:
        along = [d for d in load.dims if d >= 0]
    if not isinstance(load.source.type, BufferType) or sorted(along) != [0, 1] or not width:
        return None
    order = along[0], along[1]
    rows, columns = (type_.shape[d] for d in order)
    if columns % width or rows < 8:
        return None
    parts = max(1, columns * size // LINE_BYTES) if lines else 1
    return Block(order, parts, (rows, columns // parts), width)


def shared_type(load: t.Load | t.LoadLines, block: Block, slots: int) -> SharedType:
    """Shared memory for several blocks of a load."""
    type_, shape = load.result.type, (slots * block.parts, *block.shape)
    assert isinstance(type_, RegisterType)
    return SharedType(shape, type_.dtype, choose_swizzle(shape[2] * type_.dtype.bits // 8))


class Staging:
    """Builds copies into shared memory and loads from it."""

    def __init__(self, build: TileBuilder, layouts: BlockLayouts, groups: bool) -> None:
        """``groups``: warp groups read shared memory by themselves."""
        self.build, self.layouts, self.groups = build, layouts, groups

    def place(self, load: t.Load | t.LoadLines, slots: int, lines: bool = False) -> Staged | None:
        """Shared memory for a load; None if its tile is no matrix of rows that copies take.

        ``lines``: rows of at most 128 bytes.
        """
        block = block_of(load, lines)
        if block is None:
            return None
        kind = shared_type(load, block, slots)
        memory = self.build(t.Alloc, type=kind, hint=load.result.hint or "block")
        return Staged(load, block.order, memory, block.parts)

    def copy_lines(
        self, staged: Staged, offset: Value, offsets: Value, limits: list[Value], slot: Value
    ) -> None:
        """Begins the copy of a block of lines; operands as ``tile.load_lines`` has them, offsets in
        the layout of the block's copies."""
        load, (_, rows, columns) = staged.load, staged.type.shape
        assert isinstance(load, t.LoadLines)
        shape = (rows, columns) if staged.order == (0, 1) else (columns, rows)
        width = COPIED_BYTES * 8 // staged.type.dtype.bits
        layout, zero = self.layouts.copies(shape, staged.order, width), self.build.index(0)
        first = slot if staged.parts == 1 else self.build.mul(slot, staged.parts)
        for part in range(staged.parts):
            here, place, ends = offset, first, limits
            if part:
                here, place = self.build.add(here, part * columns), self.build.add(first, part)
                ends = [self.build.sub(end, part * columns) for end in limits]
            given = load.source, staged.memory, here, offsets, place, zero, zero, *ends
            to = (-1, *staged.order)
            attrs = {"dim": load.dim, "gaps": load.gaps, "layout": layout, "to": to}
            self.build.effect(t.CopyLines, *given, **attrs)

    def copy(self, staged: Staged, rest: list[Value], slot: Value, ends: dict[int, Value]) -> None:
        """Begins the copy of a block; ``rest``: a load's indices and limits, ``ends``: more limits
        along tile dimensions that have none."""
        load = staged.load
        assert isinstance(load, t.Load)
        rank = len(load.dims)
        bounds, limits = load.bounds, rest[rank:]
        for dim, end in ends.items():
            bounds, limits = (*bounds, (dim, "zero")), [*limits, end]
        zero, (_, rows, columns) = self.build.index(0), staged.type.shape
        shape = (rows, columns) if staged.order == (0, 1) else (columns, rows)
        layout = self.layouts.copies(
            shape, staged.order, COPIED_BYTES * 8 // staged.type.dtype.bits
        )
        across = load.dims.index(staged.order[1])
        first = slot if staged.parts == 1 else self.build.mul(slot, staged.parts)
        for part in range(staged.parts):
            at = list(rest[:rank])
            if part:
                at[across] = self.build.add(at[across], part * columns)
            place = first if part == 0 else self.build.add(first, part)
            self.build.effect(
                CopyAsync,
                load.source,
                staged.memory,
                *at,
                place,
                zero,
                zero,
                *limits,
                dims=load.dims,
                bounds=bounds,
                to=(-1, *staged.order),
                layout=layout,
            )

    def group_product(self, acc: Value, a: Value, staged: Staged, slot: Value, hint: str) -> Value:
        """A product of warp groups with a block in shared memory as its right side."""
        first = slot if staged.parts == 1 else self.build.mul(slot, staged.parts)
        return self.build(
            t.GroupProduct, acc, a, staged.memory, first, dims=staged.order, hint=hint
        )

    def made(self, value: Value, made: Made, family: str) -> Value:
        """A tile that threads have made together, in the layout of a family: by shared memory."""
        type_ = value.type
        assert isinstance(type_, RegisterType)
        order = 1 - made.dim, made.dim
        rows, columns = (made.shape[d] for d in order)
        swizzle = choose_swizzle(columns * type_.dtype.bits // 8)
        kind = SharedType((1, rows, columns), type_.dtype, swizzle)
        memory, zero = self.build(t.Alloc, type=kind, hint=value.hint), self.build.index(0)
        at, dims = [zero, zero, zero], (-1, *order)
        self.build.effect(Barrier)
        self.build.store(value, memory, at, dims)
        self.build.effect(Barrier)
        layout = self.layouts.of(family, made.shape)
        return self.build.load(memory, at, dims, layout, hint=value.hint)

    def load(self, staged: Staged, slot: Value, family: str) -> Value:
        """A block out of shared memory."""
        type_ = staged.load.result.type
        assert isinstance(type_, RegisterType)
        layout = self.layouts.of(family, type_.shape)
        zero = self.build.index(0)
        at, dims = [slot, zero, zero], (-1, *staged.order)
        return self.build.load(staged.memory, at, dims, layout, hint=staged.load.result.hint)

    def commit(self) -> None:
        self.build.effect(Commit)

    def wait(self, pending: int) -> None:
        """Until all but ``pending`` groups have come, for all threads."""
        self.build.effect(Wait, pending=pending)
        if self.groups:
            self.build.effect(t.Fence)
        self.build.effect(Barrier)


def counted_index(
    load: t.Load, counter: Value, made: Callable[[Value], Op | None]
) -> Counted | None:
    """The index of a load that is a multiple of the counter, plus something that stays the same in
    the loop, if it runs along the tile and no other depends on the counter.

    ``made`` gives the op of the loop's body that made a value, None for what comes from outside.
    """
    rank, found = len(load.dims), None
    for number, index in enumerate(load.rest):
        if not _depends(index, counter, made):
            continue
        linear = _linear(index, counter, made)
        if found is not None or linear is None or number >= rank or load.dims[number] < 0:
            return None
        found = Counted(number, *linear)
    return found


def _depends(value: Value, counter: Value, made: Callable[[Value], Op | None]) -> bool:
    """True for the counter and for what the loop computes, constants apart."""
    if value is counter:
        return True
    op = made(value)
    return isinstance(value.type, IndexType) and op is not None and not isinstance(op, m.Const)


def _linear(
    index: Value, counter: Value, made: Callable[[Value], Op | None]
) -> tuple[int, Value | None] | None:
    """An index as a factor of the counter and what is added to it."""
    if index is counter:
        return 1, None
    op = made(index)
    if isinstance(op, m.Mul):
        for one, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            number = made(other)
            if one is counter and isinstance(number, m.Const) and int(number.value) > 0:
                return int(number.value), None
    if isinstance(op, m.Add):
        for one, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            found = _linear(one, counter, made)
            if found is not None and found[1] is None and not _depends(other, counter, made):
                return found[0], other
    return None
