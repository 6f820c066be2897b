"""One block of scores: running statistics, sums, and results that come once per position."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_stream import IDENTITY
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.kernel_info import finite_past_end
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.weights import weight_of
from tilewright.passes.to_tile.whole_blocks.codes import has_one_scale
from tilewright.passes.to_tile.whole_blocks.frame import Frame, Place
from tilewright.passes.to_tile.whole_blocks.values import Scope, Values, is_bounded
from tilewright.passes.to_tile.whole_blocks.walk import Carried

Statistic = s.Scan | s.Reduce


@dataclass(frozen=True)
class Weights:
    """The terms of a vector-valued sum: a number for every row and position, a vector that rows
    share, and the dtype in which they are multiplied."""

    scalar: Value
    vector: Value
    dtype: DType


class BlockBuilder:
    """Builds blocks of one kernel. What is carried from block to block: a tile for every scan and
    every sum, in the order of ``statistics``."""

    def __init__(self, state: LoweringState, values: Values) -> None:
        self.state, self.info, self.build, self.values = state, state.info, state.build, values
        self.frame = values.score_frame
        ops = self.info.graph.body.ops
        self.statistics = [op for op in ops if isinstance(op, s.Scan | s.Reduce)]
        self.sinks = self.info.numbers_per_position()
        sums = [op for op in self.statistics if isinstance(op, s.Reduce)]
        self.weights = {op: self._weights(op) for op in sums if self.info.element(op.result)}
        for op in self.statistics:
            self._check(op)

    def _check(self, op: Statistic) -> None:
        if self.state.dtype(op.x) != F32:
            raise UnsupportedError(f"a {op.kind} of {self.state.dtype(op.x)} on a GPU", op.loc)
        if isinstance(op, s.Scan) and op.kind == "sum" and not op.blockwise:
            raise UnsupportedError("a running sum per element inside a kernel", op.loc)
        if len(self.info.element(op.results[0])) > 1:
            raise UnsupportedError("a sum of matrices inside one kernel", op.loc)

    def _weights(self, op: s.Reduce) -> Weights:
        scalar, vector = weight_of(self.info, op)
        (below, dtype), (narrow, same) = self.values.narrow(scalar), self.values.narrow(vector)
        if isinstance(self.info.made.get(narrow), CachedStream):
            return Weights(scalar, narrow, self.values.code_dtype)
        if dtype == same:
            return Weights(below, narrow, dtype)
        if same == F16 and is_bounded(self.info, scalar):  # no number leaves f16's range
            return Weights(scalar, narrow, F16)
        return Weights(scalar, vector, F32)

    # ---- states

    def _state_frame(self, op: Statistic) -> Frame:
        element = self.info.element(op.results[0])
        return self.values.row_frame(element[0].name if element else "")

    def start(self) -> list[Value]:
        """Every statistic before the first block."""
        out = []
        for op in self.statistics:
            tile = self.build.filled(IDENTITY[op.kind], F32, self._state_frame(op).layout)
            tile.hint = op.results[0].hint
            out.append(tile)
        return out

    def finish(self, carried: Carried, scope: Scope) -> None:
        """Makes the sums known to what comes after the last block."""
        for op, tile in zip(self.statistics, carried, strict=True):
            if isinstance(op, s.Reduce):
                scope.statistics[op.result] = tile

    # ---- a block

    def body(self, first: Value, end: Value | None, carried: Carried) -> Carried:
        """The statistics after one block."""
        outer, inner = self.values.scope.place, self.info.inner.name
        limits, ends = dict(outer.limits), {}
        if end is not None:
            limits[inner], ends[inner] = self.build.size(self.info.inner.size), end
        place = Place({**outer.at, inner: first}, limits, ends)
        with self.values.within(place, end is not None):
            after = [self._step(op, x) for op, x in zip(self.statistics, carried, strict=True)]
            for sink in self.sinks:
                self._write(sink)
        return tuple(after)

    def _step(self, op: Statistic, before: Value) -> Value:
        if isinstance(op, s.Scan):
            after = self.state.combine(op.kind, self._partial(op), before)
            self.values.scope.statistics |= {op.results[0]: after, op.results[1]: before}
            return after
        scaled = before
        if op.rescale:
            factor = self.values.tile(op.rescale[0], self.frame)
            if getattr(factor.type, "shape", (0, 0))[1] != 1:
                raise UnsupportedError("a sum that is rescaled at every position", op.loc)
            scaled = self.build(m.Mul, before, factor, hint=f"{op.result.hint}_scaled")
        if op in self.weights:
            return self._weighted(op, self.weights[op], scaled)
        return self.state.combine(op.kind, self._partial(op), scaled)

    def _partial(self, op: Statistic) -> Value:
        """The reduction of a block's numbers, one for every row."""
        x, factor = self.values.tile(op.x, self.frame), 1.0
        if op.kind == "max":
            x, factor = self.values.scaled(op.x, self.frame)
        x = self._whole(x, IDENTITY[op.kind])
        hint = op.results[0].hint
        total = self.build(t.Reduce, x, kind=op.kind, dim=1, hint=f"{hint}_{op.kind}")
        if factor == 1.0:
            return total
        return self.build(m.Mul, total, self.build.number(factor, F32), hint=hint)

    def _whole(self, x: Value, neutral: float) -> Value:
        """A tile with all positions, ``neutral`` at those past the end."""
        rows = getattr(x.type, "shape", (1, 1))[0]
        shape = rows, self.frame.sizes[1]
        x = self.values.memory.widened(x, Layout(2).local(*shape))
        inner, place = self.info.inner.name, self.values.scope.place
        return self.values.memory.masked(x, inner, self.frame, place, neutral)

    def _weighted(self, op: s.Reduce, weights: Weights, acc: Value) -> Value:
        (axis,) = self.info.element(op.result)
        shared = Frame(
            (self.info.inner.name, axis.name),
            (self.frame.sizes[1], self.values.length(axis.name)),
        )
        values, memory = self.values, self.values.memory
        scalar = self._whole(values.tile(weights.scalar, self.frame), 0.0)
        cache = self.info.made.get(weights.vector)
        wide = weights.dtype != F16 or values.one_warp
        if isinstance(cache, CachedStream) and has_one_scale(cache) and wide:
            return self._coded(op, cache, scalar, shared, acc)
        if self.state.dtype(weights.scalar) != weights.dtype:
            scalar = self.build(m.Cast, scalar, dtype=weights.dtype, hint=scalar.hint)
        scalar = memory.widened(scalar, self.frame.layout)
        vector = memory.widened(values.tile(weights.vector, shared), shared.layout)
        if not finite_past_end(self.info, weights.vector):  # times a weight of 0 it stays so
            vector = memory.masked(vector, shared.axes[0], shared, values.scope.place, 0.0)
        if vector.type != RegisterType(weights.dtype, shared.layout):
            vector = self.build(m.Cast, vector, dtype=weights.dtype, hint=vector.hint)
        return self.build(t.Product, acc, scalar, vector, hint=op.result.hint)

    def _coded(
        self, op: s.Reduce, cache: CachedStream, scalar: Value, shared: Frame, acc: Value
    ) -> Value:
        """A sum of codes: their scales are in the weights, and their zeros come off. In f16 a
        weight times a small scale has few bits left: there are two in bf16 for one in f16."""
        b, values, hint = self.build, self.values, op.result.hint
        block, given = values.code_block(cache, shared), values.code_dtype
        scale, zero = block.factors(1)
        scaled = values.memory.widened(b(m.Mul, scalar, scale, hint="weight"), self.frame.layout)
        dtype = F32 if given == F32 else BF16
        parts = [scaled] if given == F32 else self._narrowed(scaled, 2 if given == F16 else 1)

        def lessened(x: Value) -> Value:
            wide = self._sum([self._wide(part) for part in parts])
            less = b(m.Mul, wide, zero, hint="less")
            less = b(t.Reduce, less, kind="sum", dim=1, hint="less")
            return b(m.Sub, x, less, hint=hint)

        acc = lessened(acc) if values.one_warp else acc  # with what rescales it, one operation
        codes = block.codes(dtype)
        for part in parts:
            acc = b(t.Product, acc, part, codes, hint=hint)
        return acc if values.one_warp else lessened(acc)

    def _narrowed(self, x: Value, count: int) -> list[Value]:
        """Tiles in bf16, so many, whose sum a tile is."""
        parts: list[Value] = []
        for _ in range(count):
            rest = x
            if parts:
                rest = self.build(m.Sub, x, self._sum([self._wide(y) for y in parts]), hint="rest")
            parts.append(self.build(m.Cast, rest, dtype=BF16, hint=x.hint))
        return parts

    def _wide(self, x: Value) -> Value:
        same = getattr(x.type, "dtype", F32) == F32
        return x if same else self.build(m.Cast, x, dtype=F32, hint=x.hint)

    def _sum(self, parts: list[Value]) -> Value:
        total, *rest = parts
        for part in rest:
            total = self.build(m.Add, total, part, hint=total.hint)
        return total

    def _write(self, sink: s.Sink) -> None:
        if self.info.element(sink.x):
            raise UnsupportedError("a vector for every position as a result on a GPU", sink.loc)
        values = self.values
        values.memory.store(sink, values.tile(sink.x, self.frame), self.frame, values.scope.place)
