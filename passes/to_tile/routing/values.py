"""Numbers of a block of tokens: in registers, in scratch, or computed where they are needed.

A tile holds one number for each token of the block, a lane each. Numbers with places of their own
(experts, groups, the k chosen) are walked place by place: at each an expression is computed from
what lies in scratch, [places, tokens].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_routing_stream import StreamScatter, StreamTakeAlong
from tilewright.ir.types import Axis, BufferType, StreamType
from tilewright.passes.to_tile.routing.info import FEW, TERM, TOKEN, RoutingInfo
from tilewright.passes.to_tile.routing.lookups import gather, scatter, take_along
from tilewright.passes.to_tile.state import LoweringState

At = Mapping[str, Value]
SINGLE = Layout(2)
_HEAVY = (
    m.Exp, m.Exp2, m.Log, m.Log2, m.Tanh, m.Erf, m.Sqrt, m.Rsqrt, m.Sigmoid, m.Pow, m.Div, m.Mod,
    s.Gather, StreamTakeAlong, StreamScatter,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a value lies: memory [places, tokens] (without ``tokens`` [places, 1]), its places
    those of ``axes``, the last fastest; ``wide``: it holds the tokens of all blocks, not of one."""

    memory: Value
    axes: tuple[Axis, ...]
    tokens: bool
    wide: bool = False


@dataclass
class Block:
    """The tokens being worked on: from ``first`` on, below ``limit``."""

    first: Value
    limit: Value


class Values:
    """What is known of the values of one kernel while its program is written."""

    def __init__(self, state: LoweringState, info: RoutingInfo) -> None:
        self.state, self.info, self.b = state, info, state.build
        self.width = state.schedule.lanes  # of a vector of what is no token's
        self.lanes = 1 if info.single else self.width
        self.across = Layout(2).spatial(1, self.lanes)  # a tile of tokens
        self.tiles: dict[Value, Value] = {}
        self.stored: dict[Value, Stored] = {}
        self.wide: dict[Value, Value] = {}  # scratch for the tokens of all blocks
        self.block: Block | None = None
        self.along = ""  # the axis that lies on lanes, of what runs once

    # ---- places

    def element(self, value: Value) -> tuple[Axis, ...]:
        assert isinstance(value.type, StreamType)
        return value.type.element

    def size(self, axis: Axis) -> int:
        known = axis.size.constant
        if known is None:
            raise UnsupportedError(f"axis {axis.name!r}: its size {axis.size} must be a number")
        return known

    def count(self, axes: Sequence[Axis]) -> int:
        total = 1
        for axis in axes:
            total *= self.size(axis)
        return total

    @contextmanager
    def places(self, axes: Sequence[Axis], at: At) -> Iterator[At]:
        """Loops over the places of ``axes``, the last innermost."""
        if not axes:
            yield at
            return
        axis, rest = axes[0], axes[1:]
        with (
            self.b.loop(self.b.index(0), self.b.index(self.size(axis)), 1, hint=axis.name) as loop,
            self.places(rest, {**at, axis.name: loop.counter}) as inner,
        ):
            yield inner

    @contextmanager
    def vectors(self, axes: Sequence[Axis], at: At) -> Iterator[At]:
        """Loops over the places of ``axes`` of what runs once, the last by vectors."""
        if not axes:
            yield at
            return
        b, last = self.b, axes[-1]
        with (
            self.places(axes[:-1], at) as outer,
            b.loop(b.index(0), b.index(self.size(last)), self.lanes, hint=last.name) as loop,
        ):
            before, self.along = self.along, last.name
            yield {**outer, last.name: loop.counter}
            self.along = before

    def cut(self, axis: Axis, start: Value) -> list[tuple[int, str, Value]]:
        """The bound of a vector's places from ``start`` along an axis in flat memory, if it has
        one."""
        size = self.size(axis)
        if size % self.lanes == 0:
            return []
        b = self.b
        return [(1, "zero", b.add(b.sub(start, b.mod(start, size)), size))]

    def flat(self, axes: Sequence[Axis], at: At) -> Value:
        """The number of a place."""
        b, total = self.b, None
        for axis in axes:
            here = at[axis.name]
            total = here if total is None else b.add(b.mul(total, self.size(axis)), here)
        return b.index(0) if total is None else total

    def on_tokens(self, value: Value) -> bool:
        """Whether a value differs between tokens."""
        return (
            self.info.token is not None and self.info.token.name in self.state.info.depends[value]
        )

    # ---- scratch

    def reserve(self, value: Value) -> None:
        """Scratch for a value of all tokens, before the loop over them."""
        shape = [max(1, self.count(self.element(value))), FEW]
        self.wide[value] = self.b.scratch(shape, self.state.dtype(value), value.hint or "value")

    def new(self, value: Value) -> Stored:
        """Scratch for a value: for a block of tokens, or what was reserved."""
        axes, tokens = self.element(value), self.info.depth(value) >= TOKEN
        if value in self.wide:
            return Stored(self.wide[value], axes, tokens, wide=True)
        count = max(1, self.count(axes))
        shape = [count, self.lanes] if tokens else [count + self.lanes, 1]  # room for a vector
        memory = self.b.scratch(shape, self.state.dtype(value), value.hint or "value")
        return Stored(memory, axes, tokens)

    def new_as(self, axes: tuple[Axis, ...], dtype: DType) -> Stored:
        """Scratch of another dtype for a block of tokens."""
        shape = [max(1, self.count(axes)), self.lanes]
        return Stored(self.b.scratch(shape, dtype, "sums"), axes, tokens=True)

    def column(self, where: Stored) -> Value:
        """Where the block's tokens begin."""
        return self.token_block.first if where.wide else self.b.index(0)

    def write(self, where: Stored, at: At, tile: Value) -> None:
        place = self.flat(where.axes, at)
        if where.tokens:
            tile = self.spread(tile)
        dims, bounds = self._dims(where), self._bounds(where, place)
        limits = [(d, limit) for d, _, limit in bounds]
        self.b.store(tile, where.memory, [place, self.column(where)], dims, limits)

    def _dims(self, where: Stored) -> tuple[int, int]:
        """Which tile dimensions run along scratch."""
        return (1, -1) if self.on_lanes(where) else (0, 1)

    def _bounds(self, where: Stored, place: Value) -> list[tuple[int, str, Value]]:
        return self.cut(where.axes[-1], place) if self.on_lanes(where) else []

    def on_lanes(self, where: Stored) -> bool:
        """Whether places of what runs once are being worked on by vectors."""
        return bool(self.along and where.axes) and where.axes[-1].name == self.along

    def spread(self, tile: Value) -> Value:
        """A tile of tokens, of a number that is the same for all of them too."""
        layout = tile.type.layout  # type: ignore[union-attr]
        if layout == self.across:
            return tile
        condition = self.b.filled(1, BOOL, self.across)
        return self.b(m.Select, condition, tile, tile, hint=tile.hint)

    def load(self, where: Stored, place: Value) -> Value:
        wide = where.tokens or self.on_lanes(where)
        index, layout = [place, self.column(where)], self.across if wide else SINGLE
        bounds = self._bounds(where, place)
        return self.b.load(where.memory, index, self._dims(where), layout, bounds, hint="held")

    def keep(self, value: Value) -> Stored:
        """Computes a value at all of its places into scratch."""
        where = self.new(value)
        self.stored[value] = where
        op = self.info.made[value]
        if isinstance(op, s.Source) and self._rows_of_places(op):
            self._keep_turned(op, where)
            return where
        del self.stored[value]  # computed from what it is made of, until all of it is there
        places = self.places if where.tokens else self.vectors
        with places(where.axes, {}) as at:
            self.write(where, at, self.at(value, at))
        self.stored[value] = where
        return where

    def _rows_of_places(self, op: s.Source) -> bool:
        """Whether a token's places lie side by side in memory, a row of 32-bit numbers each."""
        token, buffer = self.info.token, self.state.buffers[op.tensor].type
        assert isinstance(buffer, BufferType)
        names = tuple(a.name for a in self.element(op.result))
        rows = token is not None and op.dims == ((token.name,), names)
        return rows and buffer.unit == 1 and buffer.dtype.bits == 32 and self.lanes > 1

    def _keep_turned(self, op: s.Source, where: Stored) -> None:
        """Reads rows of tokens and turns them over in registers, instead of single numbers."""
        b, block, lanes = self.b, self.token_block, self.lanes
        square = Layout(2).local(lanes, 1).spatial(1, lanes)
        count = self.count(where.axes)
        with b.loop(b.index(0), b.index(count), lanes, hint="place") as loop:
            at, bounds = loop.counter, [(0, "clamp", block.limit)]
            limits = []
            if count % lanes:
                bounds.append((1, "zero", b.index(count)))
                limits = [(0, b.index(count))]
            rows = b.load(
                self.state.buffers[op.tensor],
                [block.first, at],
                (0, 1),
                square,
                bounds,
                hint="rows",
            )
            turned = b(t.Transpose, rows, hint="turned")
            b.store(turned, where.memory, [at, self.column(where)], (0, 1), limits)

    # ---- expressions

    def at(self, value: Value, at: At, memo: dict[Value, Value] | None = None) -> Value:
        """The tile of a value at a place."""
        memo = {} if memo is None else memo
        if value in self.tiles:
            return self.tiles[value]
        if value not in memo:
            memo[value] = self._compute(value, at, memo)
        return memo[value]

    def _compute(self, value: Value, at: At, memo: dict[Value, Value]) -> Value:
        where = self.stored.get(value)
        if where is not None:
            return self.load(where, self.flat(where.axes, at))
        op = self.info.made[value]
        if isinstance(op, m.Const):
            return self.b.number(op.value, self.state.dtype(value))
        if isinstance(op, m.SizeValue):
            return self.state.build.number_of(self.b.size(op.size), self.state.dtype(value))
        rule = _RULES.get(type(op))
        if rule is not None:
            found: Value = rule(self, op, at, memo)
            return found
        if "pointwise" not in op.traits:
            raise UnsupportedError(f"{op.name} cannot be computed here", op.loc)
        operands = [self.at(v, at, memo) for v in op.operands]
        return self.b(type(op), *operands, hint=value.hint, **op.attrs)

    def _repeat(self, op: s.Repeat, at: At, memo: dict[Value, Value]) -> Value:
        return self.at(op.x, at, memo)

    def _index(self, op: s.Index, at: At, memo: dict[Value, Value]) -> Value:
        dtype = self.state.dtype(op.result)
        if op.axis == self.along:
            return self.state.build.positions_along(1, self.across, at[op.axis], dtype, "place")
        if op.axis in at:
            return self.state.build.number_of(at[op.axis], dtype)
        first = self.token_block.first
        return self.state.build.positions_along(1, self.across, first, dtype, "token")

    @property
    def token_block(self) -> Block:
        if self.block is None:
            raise UnsupportedError("a number of every token outside of the loop over tokens")
        return self.block

    def _source(self, op: s.Source, at: At, memo: dict[Value, Value]) -> Value:
        """A number of memory: the block's tokens' if it has one for each."""
        token, buffer = self.info.token, self.state.buffers[op.tensor]
        if not self.on_tokens(op.result):
            return self._source_once(op, at, buffer)
        assert token is not None
        block = self.token_block
        here = {**at, token.name: block.first}
        indices, _ = self.state.source_index(op, here)
        dims = [1 if token.name in names else -1 for names in op.dims]
        end = self.state.limit(op, indices, here, token.name, block.limit)
        bounds = [(1, "clamp", end)] if self.lanes > 1 else []
        return self.b.load(buffer, indices, dims, self.across, bounds, hint=op.result.hint)

    def _source_once(self, op: s.Source, at: At, buffer: Value) -> Value:
        """A number that is the same for all tokens, or a vector of them."""
        b, (indices, runs) = self.b, self.state.source_index(op, dict(at))
        if not self.along or self.along not in runs:
            return b.load(buffer, indices, [-1] * len(indices), SINGLE, hint=op.result.hint)
        axis = next(a for a in self.element(op.result) if a.name == self.along)
        dim = runs.index(self.along)
        dims = [1 if d == dim else -1 for d in range(len(runs))]
        bounds = self.cut(axis, indices[dim])
        return b.load(buffer, indices, dims, self.across, bounds, hint=op.result.hint)

    # ---- what to keep

    def heavy(self, value: Value) -> bool:
        """Whether computing a value again costs more than reading it."""
        if value in self.stored or value in self.tiles:
            return False
        op = self.info.made.get(value)
        if op is None or isinstance(op, s.Source) or self.info.depth(value) == TERM:
            return op is not None and isinstance(op, s.Source) and self.on_tokens(value)
        return isinstance(op, _HEAVY) or any(self.heavy(v) for v in op.operands)


_RULES: dict[type[Op], Any] = {
    s.Repeat: Values._repeat,
    s.Index: Values._index,
    s.Source: Values._source,
    s.Gather: gather,
    StreamTakeAlong: take_along,
    StreamScatter: scatter,
}
