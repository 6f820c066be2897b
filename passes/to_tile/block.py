"""The loop over blocks of the inner axis: register tiles, running statistics, sums."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BF16, BOOL, F32, I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_stream import IDENTITY
from tilewright.passes.to_tile.block_range import BlockRange, Rows
from tilewright.passes.to_tile.block_walk import BlockWalk, Bodies, MaskTests
from tilewright.passes.to_tile.contraction import Contraction
from tilewright.passes.to_tile.gathers import gather_tile, source_tile
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.mask_range import find_mask_range
from tilewright.passes.to_tile.outer_sum import OuterSum
from tilewright.passes.to_tile.positions import TurnedSources, write_block
from tilewright.passes.to_tile.rows import RowLowering, strip_repeat
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.weights import weight_of


@dataclass
class Block:
    """One block being built: its first position, how many positions, whether bounds are needed."""

    first: Value
    count: Value
    limit: Value
    masked: bool
    memo: dict[Value, Value] = field(default_factory=dict)  # values that do not vary inside it
    stored: dict[Value, Value] = field(default_factory=dict)  # scratch [position, row]


@dataclass
class Tile:
    """One register tile of a block: positions ``at`` … of the inner axis, all rows."""

    offset: Value  # within the block
    at: Value  # on the inner axis
    valid: Value | None
    memo: dict[Value, Value] = field(default_factory=dict)


class BlockLowering:
    """Builds the blocks of a kernel."""

    def __init__(self, state: LoweringState, rows: RowLowering) -> None:
        self.state, self.rows = state, rows
        self.info, self.schedule, self.build = state.info, state.schedule, state.build
        self.mask = find_mask_range(self.info)
        self.scratch: dict[tuple[str, Value], Value] = {}
        self.contraction = Contraction(state, rows)
        self.outer = OuterSum(state)
        self.turned = TurnedSources(state, rows)
        ops = self.info.graph.body.ops
        self.scans = [op for op in ops if isinstance(op, s.Scan)]
        self.reduces = [op for op in ops if isinstance(op, s.Reduce)]
        self.sinks = self.info.numbers_per_position()
        self.weights = {op: weight_of(self.info, op) for op in self.reduces if self._is_outer(op)}
        self.phases = 1 + max((self._phase_of(op) for op in ops), default=0)
        self._allocate()

    # ---- what is computed when

    def _is_outer(self, op: s.Reduce) -> bool:
        return bool(self.info.element(op.result))

    def _phase_of(self, op: Op) -> int:
        """The phase in which an op's input is complete."""
        return max((self.info.phase.get(v, 0) for v in op.operands), default=0)

    def _needed(self, phase: int) -> list[Value]:
        """Values that this phase keeps in scratch: read in later phases or by vector-valued
        sums."""
        out: dict[Value, None] = {}
        for op in self.info.graph.body.ops:
            after = isinstance(op, s.Reduce) and self._is_outer(op)
            if after or not op.results or not self.info.in_block(op.results[0]):
                continue
            for value in op.operands:
                early = self.info.phase.get(value, 0) == phase < self.info.phase[op.results[0]]
                if early and self.info.heavy(value) and not isinstance(op, s.Scan):
                    out.setdefault(value)
        for scalar, _ in self.weights.values():
            if self.info.phase[scalar] == phase:
                out.setdefault(scalar)
        for sink in self.sinks:
            if self.info.phase[sink.x] == phase:
                out.setdefault(sink.x)
        return list(out)

    def _allocate(self) -> None:
        for op in self.reduces:
            if op in self.weights:
                self.outer.prepare(op, *self.weights[op])
        for phase in range(self.phases):
            for value in self._needed(phase):
                self._keep(value)

    def _keep(self, value: Value) -> None:
        """Scratch for ``value``: as numbers, or as pairs for the bf16 dot instruction."""
        y, b = self.schedule, self.build
        if value in self.outer.pair_scalars:
            shape = [y.inner_block // 2, y.rows, 2]
            self.scratch["pairs", value] = b.scratch(shape, BF16, f"{value.hint}_pairs")
        if value not in self.outer.pair_scalars or self._read_as_numbers(value):
            dtype = self.state.dtype(value)
            dtype = F32 if dtype.is_float and dtype.bits < 32 else dtype
            shape = self.state.kept_shape()
            self.scratch["numbers", value] = b.scratch(shape, dtype, f"{value.hint}_kept")

    def _read_as_numbers(self, value: Value) -> bool:
        weights = {w for w, _ in self.weights.values()}
        return value not in weights or any(s_.x is value for s_ in self.sinks)

    # ---- the loops over blocks

    def run(self) -> None:
        """All blocks of this work item."""
        self.contraction.begin_rows()
        BlockWalk(self.state, self.mask).run(Bodies(self._whole, self._cut))

    def _whole(self, first: Value, count: Value) -> None:
        limit = self.build.add(first, count)
        self._begin(Block(first, count, limit, masked=False))
        self.state.for_rows_left(lambda: self._block(Block(first, count, limit, masked=False)))

    def _cut(self, first: Value, count: Value, limit: Value) -> None:
        """A block where masks or its end cut: rows a vector at a time, each with what it sees."""
        state, b, lanes = self.state, self.build, self.schedule.lanes
        block = Block(first, count, limit, masked=True)
        self._begin(block)
        if not self._grouped():
            self.state.for_rows_left(lambda: self._block(Block(first, count, limit, masked=True)))
            return
        assert state.first_row is not None
        with b.loop(b.index(0), b.index(self.schedule.rows), lanes, hint="group") as group:
            rows = Rows(b.add(state.first_row, group.counter), lanes)
            part = self._seen_by(rows, block)
            with state.row_window(group.counter, lanes), b.when_less(part.first, part.limit):
                self._block(part)

    def _grouped(self) -> bool:
        """True if rows can be taken a vector at a time: several, and none turned together."""
        y = self.schedule
        several = y.rows_on_lanes and y.lanes > 1 and y.rows > y.lanes
        return several and not self.sinks and not self.turned.kept

    def _seen_by(self, rows: Rows, block: Block) -> Block:
        """The part of a block that some rows see; it starts on a whole vector of positions."""
        b, lanes = self.build, self.schedule.lanes
        span = BlockRange(self.state, self.mask, rows)
        end = b.add(block.first, block.count)
        first, last, _, _ = span.find(end)
        skipped = b.div(b.maximum(b.sub(first, block.first), 0), lanes)
        first = b.add(block.first, b.mul(skipped, lanes))
        if self.mask.tests:
            seen = MaskTests(self.state, self.mask, span).over(first, b.maximum(last, first))
            last = b.mul(last, seen.high)
        return Block(first, b.sub(last, first), last, masked=True)

    def _begin(self, block: Block) -> None:
        """Brings what the rows share into the form that products read."""
        self.contraction.begin_block(block.first, block.count, block.limit)
        self.outer.begin_block(block.first, block.count, block.limit)
        self.turned.begin_block(block)

    def _block(self, block: Block) -> None:
        for phase in range(self.phases):
            self._phase(block, phase)
        for op, (scalar, vector) in self.weights.items():
            rescale = self._rescale(block, op)
            kept = self.scratch.get(("numbers", scalar))
            pairs = self.scratch.get(("pairs", scalar))
            self.outer.accumulate(op, kept, pairs, vector, rescale, block)
        for sink in self.sinks:
            write_block(self.state, self.rows, block, sink, self.scratch["numbers", sink.x])

    def _phase(self, block: Block, phase: int) -> None:
        kept = self._needed(phase)
        scans = [op for op in self.scans if self.info.phase[op.x] == phase]
        sums = [op for op in self.reduces if op not in self.weights and self._phase_of(op) == phase]
        roots = [*kept, *(op.x for op in scans), *(op.x for op in sums)]
        if not roots:
            return
        product = any(self._has_product(block, root, phase) for root in roots)
        step = self.schedule.inner_tile if product else self.schedule.pointwise_tile
        self.state.tile_positions = step
        for root in roots:
            self._prepare(block, root, phase)
        statistics: list[s.Scan | s.Reduce] = [*scans, *sums]
        starts = [self._neutral(op) for op in statistics]
        b = self.build
        with b.loop(b.index(0), block.count, step, starts, "tile") as loop:
            tile = self._open_tile(block, loop.counter)
            for value in kept:
                self._store_tile(block, tile, value, phase)
            loop.next = tuple(
                self._partial(block, tile, op, carried, phase)
                for op, carried in zip(statistics, loop.carried, strict=True)
            )
        for value in kept:
            block.stored[value] = value
        for op, partial in zip(statistics, loop.results, strict=True):
            self._settle(block, op, partial)

    def _has_product(self, block: Block, value: Value, phase: int) -> bool:
        """True if building the root in this phase forms a contraction."""
        if value in block.stored and self.info.phase[value] < phase:
            return False
        op = self.info.made.get(value)
        if op is None or not self.info.varies(value):
            return False
        return isinstance(op, s.Contract) or any(
            self._has_product(block, v, phase) for v in op.operands
        )

    def _open_tile(self, block: Block, offset: Value) -> Tile:
        b = self.build
        at = b.add(block.first, offset)
        valid = None
        if block.masked:
            left = self.state.build.number_of(b.sub(block.limit, at), I32)
            here = self.state.positions(b.index(0), I32)
            valid = b(m.Compare, here, left, relation="lt", hint="valid")
        return Tile(offset, at, valid)

    # ---- values

    def _prepare(self, block: Block, value: Value, phase: int) -> None:
        """Builds, before the tile loop, what a root needs that does not vary within the block."""
        if value in block.stored and self.info.phase[value] < phase:
            return
        base = strip_repeat(self.info.made, value)
        if not self.info.varies(base):
            self._block_value(block, base)
            return
        op = self.info.made.get(value)
        if op is None or isinstance(op, s.Contract | s.Source | s.Index):
            self._prepare_memory(block, op)
            return
        for operand in op.indices if isinstance(op, s.Gather) else op.operands:
            self._prepare(block, operand, phase)

    def _prepare_memory(self, block: Block, op: Op | None) -> None:
        gathered = isinstance(op, s.Source) and op.result not in self.turned.kept
        if isinstance(op, s.Source) and gathered and self.info.on_rows(op.result):
            self._row_vector(block, ("offset", op.result))

    def _row_vector(self, block: Block, key: tuple[str, Value]) -> Value:
        marker = key[1] if key[0] == "value" else self._offset_marker(key[1])
        if marker not in block.memo:
            b, scratch = self.build, self.state.row_vectors[key]
            at = [b.index(0), self.state.row_start]
            block.memo[marker] = b.load(
                scratch, at, [0, 1], self.state.row_layout, hint=key[1].hint
            )
        return block.memo[marker]

    def _offset_marker(self, value: Value) -> Value:
        return self.state.row_vectors["offset", value]

    def _block_value(self, block: Block, value: Value) -> Value:
        """A value that is the same throughout the block, one number per row."""

        def leaf(v: Value) -> Value | None:
            if ("value", v) in self.state.row_vectors:
                return self._row_vector(block, ("value", v))
            if isinstance(self.info.made.get(v), s.Reduce):
                raise UnsupportedError("a sum that is read again along its own axis")
            return None

        return self.state.expression(value, leaf, block.memo)

    def _tile_value(self, block: Block, tile: Tile, value: Value, phase: int) -> Value:
        def leaf(v: Value) -> Value | None:
            return self._tile_leaf(block, tile, v, phase)

        return self.state.expression(value, leaf, tile.memo)

    def _tile_leaf(self, block: Block, tile: Tile, v: Value, phase: int) -> Value | None:
        base = strip_repeat(self.info.made, v)
        op = self.info.made.get(base)
        if isinstance(op, m.Const):
            return None
        if not self.info.varies(base):
            return self._block_value(block, base)
        if v in block.stored and self.info.phase[v] < phase:
            at = self.state.kept_at(tile.offset, self.state.row_start)
            kept, dims = self.scratch["numbers", v], self.state.kept_dims(0, 1)
            return self.build.load(kept, at, dims, self.state.tile_layout, hint=v.hint)
        if v in self.mask.conditions and not block.masked:
            return self.build.number(True, BOOL)
        if isinstance(op, s.Contract):
            return self.contraction.tile(op, tile.at, block.limit if block.masked else None)
        if isinstance(op, s.Index):
            return self.state.positions(tile.at, self.state.dtype(v))
        if base in self.turned.kept:
            return self.turned.tile(base, tile.offset)
        if isinstance(op, s.Source):
            start = self._row_vector(block, ("offset", base)) if self.info.on_rows(base) else None
            limit = block.limit if block.masked else None
            return source_tile(self.state, op, tile.at, start, limit)
        if isinstance(op, s.Gather):
            at = [self._tile_value(block, tile, x, phase) for x in op.indices]
            return gather_tile(self.state, op, at)
        return None

    # ---- keeping, statistics, sums

    def _store_tile(self, block: Block, tile: Tile, value: Value, phase: int) -> None:
        b = self.build
        x = self._full(self._tile_value(block, tile, value, phase))
        if ("pairs", value) in self.scratch:
            below, _ = strip_casts(self.info, value)
            wide = self._full(self._tile_value(block, tile, below, phase))
            wide = self._masked(tile, wide, 0.0)
            pairs = b(t.PackPairs, wide, dtype=BF16, hint="pairs")
            at = [b.div(tile.offset, 2), self.state.row_start, b.index(0)]
            b.store(pairs, self.scratch["pairs", value], at, [0, 1, 2])
        if ("numbers", value) in self.scratch:
            memory = self.scratch["numbers", value]
            dtype = getattr(memory.type, "dtype", F32)
            x = b(m.Cast, x, dtype=dtype) if self.state.dtype(value) != dtype else x
            at = self.state.kept_at(tile.offset, self.state.row_start)
            b.store(x, memory, at, self.state.kept_dims(0, 1))

    def _full(self, x: Value) -> Value:
        """A tile of all positions and rows, widened if it did not vary with one of them."""
        layout = self.state.tile_layout
        if getattr(x.type, "layout", None) == layout:
            return x
        dtype = getattr(x.type, "dtype", F32)
        if dtype == BOOL:
            raise UnsupportedError("a condition kept in memory")
        return self.build(m.Add, x, self.build.filled(0, dtype, layout), hint=x.hint)

    def _masked(self, tile: Tile, x: Value, neutral: float) -> Value:
        if tile.valid is None:
            return x
        dtype = getattr(x.type, "dtype", F32)
        return self.build(m.Select, tile.valid, x, self.build.number(neutral, dtype), hint=x.hint)

    def _neutral(self, op: s.Scan | s.Reduce) -> Value:
        layout = self.state.tile_layout
        if self.schedule.rows_on_lanes:
            layout = layout.collapse(0)
        dtype = self.state.dtype(op.results[0])
        return self.build.filled(IDENTITY[op.kind], dtype, layout)

    def _partial(
        self, block: Block, tile: Tile, op: s.Scan | s.Reduce, carried: Value, phase: int
    ) -> Value:
        x = self._full(self._tile_value(block, tile, op.x, phase))
        x = self._masked(tile, x, IDENTITY[op.kind])
        if self.schedule.in_order:
            return self._one_by_one(op, x, carried)
        if self.schedule.rows_on_lanes:
            x = self.build(t.Reduce, x, kind=op.kind, dim=0, hint=op.kind)
        return self.state.combine(op.kind, x, carried)

    def _one_by_one(self, op: s.Scan | s.Reduce, x: Value, carried: Value) -> Value:
        """A tile's positions in turn: whatever its size, the same sums."""
        for number in range(self.state.tile_positions):
            row = self.build(t.Take, x, at=number, hint=op.kind)
            carried = self.state.combine(op.kind, row, carried)
        return carried

    def _settle(self, block: Block, op: s.Scan | s.Reduce, partial: Value) -> None:
        """Brings a block's statistic into the running state."""
        b, scratch = self.build, self.state.sums[op.results[0]]
        if not self.schedule.rows_on_lanes:
            partial = b(t.Reduce, partial, kind=op.kind, dim=0, hint=op.kind)
        at = [b.index(0), self.state.row_start]
        old = b.load(scratch, at, [0, 1], self.state.row_layout, hint="before")
        scaled = old
        if isinstance(op, s.Reduce) and op.rescale:
            scaled = b(m.Mul, old, self._block_value(block, op.rescale[0]), hint="scaled")
        new = self.state.combine(op.kind, partial, scaled)
        b.store(new, scratch, at, [0, 1])
        if isinstance(op, s.Scan):
            if op.kind == "sum" and not op.blockwise:
                raise UnsupportedError("a running sum per element inside a kernel", op.loc)
            block.memo[op.results[0]], block.memo[op.results[1]] = new, old

    def _rescale(self, block: Block, op: s.Reduce) -> Value | None:
        return self._block_value(block, op.rescale[0]) if op.rescale else None
