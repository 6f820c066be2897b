"""Values of routing kernels as tiles: memory, expressions, folds, look-ups, choices.

What a CPU walks place by place is here one comparison with all places at once: a number at a
position that a token computed is the sum over the places of those numbers whose place it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_routing_stream import (
    StreamPrefixSum,
    StreamScatter,
    StreamTakeAlong,
    StreamTopK,
    without,
)
from tilewright.ir.ops_stream import IDENTITY
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.routing.choice import NONE, from_key, key_of
from tilewright.passes.to_tile.whole_blocks.routing.frame import TokenFrame, dtype_of
from tilewright.passes.to_tile.whole_blocks.routing.products import product

LARGE = 4096  # numbers of a tile that registers hold easily
ADDED = 4 * LARGE  # of one that is only added up, by more warps
_PAST = (1 << 31) - 1  # a position that nothing has


class TokenValues:
    """Builds tiles of one kernel; ``tiles`` are those that were built."""

    def __init__(
        self, b: TileBuilder, frame: TokenFrame, buffers: dict[Value, Value], made: dict[Value, Op]
    ) -> None:
        self.b, self.frame, self.buffers, self.made = b, frame, buffers, made
        self.tiles: dict[Value, Value] = {}
        self.total: Value | None = None  # tokens of the call

    def axes(self, value: Value) -> tuple[str, ...]:
        """What a value runs along: the tokens, if it has one for each, and the element's axes."""
        type_ = value.type
        assert isinstance(type_, StreamType)
        token = (self.frame.token,) if type_.loops else ()
        return (*token, *(a.name for a in type_.element))

    def tile(self, value: Value) -> Value:
        if value not in self.tiles:
            self.tiles[value] = self._built(value)
        return self.tiles[value]

    def _built(self, value: Value) -> Value:
        op = self.made.get(value)
        rule = _RULES.get(type(op))
        if isinstance(op, StreamTopK):
            self._choose(op)
            return self.tiles[value]
        if rule is not None:
            found: Value = rule(self, op)
            return found
        if op is None or "pointwise" not in op.traits:
            name = op.name if op is not None else "an input"
            raise UnsupportedError(f"{name} in a routing kernel on a GPU", op.loc if op else None)
        return self.b(type(op), *(self.tile(v) for v in op.operands), hint=value.hint, **op.attrs)

    def _const(self, op: m.Const) -> Value:
        return self.frame.number(op.value, _dtype(op.result))

    def _size(self, op: m.SizeValue) -> Value:
        return self.frame.splat(self.b.size(op.size), _dtype(op.result))

    def _index(self, op: s.Index) -> Value:
        return self.frame.position(op.axis, _dtype(op.result))

    def _repeat(self, op: s.Repeat) -> Value:
        return self.tile(op.x)

    # ---- memory

    def _source(self, op: s.Source) -> Value:
        if all(len(dim) < 2 for dim in op.dims):
            dims, at, bounds = self._straight(op.dims)
            layout = self.frame.layout(a for dim in op.dims for a in dim)
            buffer = self.buffers[op.tensor]
            kinds = [(d, "zero", end) for d, end in bounds]
            return self.b.load(buffer, at, dims, layout, kinds, hint=op.result.hint)
        assert isinstance(op.tensor.type, TensorType)
        at = [self._mixed(dim) for dim in op.dims]
        return self._at(op.tensor, at, op.result.hint)

    def _straight(self, dims: Any) -> tuple[list[int], list[Value], list[tuple[int, Value]]]:
        """How tiles lie in memory each of whose dimensions is one axis: the tile's dimensions,
        where they begin, and where those end that may pass the end."""
        b, frame = self.b, self.frame
        runs: list[int] = []
        at: list[Value] = []
        bounds: list[tuple[int, Value]] = []
        for names in dims:
            dim = frame.dim(names[0]) if names else -1
            is_token = dim == 0
            at.append(frame.block_first if is_token else b.index(0))
            if names and frame.padded(names[0]) == 1:
                runs.append(-1)  # one position
                continue
            runs.append(dim)
            if is_token:
                assert frame.end is not None
                bounds.append((dim, frame.end))
            elif names and frame.sizes[names[0]] != frame.padded(names[0]):
                bounds.append((dim, b.index(frame.sizes[names[0]])))
        return runs, at, bounds

    def _mixed(self, names: Sequence[str]) -> Value:
        """Positions in a dimension of memory that is made up of axes."""
        b, frame = self.b, self.frame
        total = frame.number(0, I64)
        for name in names:
            size = frame.sizes.get(name)
            wide = frame.number(size, I64) if size is not None else frame.number(1, I64)
            total = b(m.Mul, total, wide)
            total = b(m.Add, total, frame.position(name, I64), hint="index")
        return total

    def _at(self, tensor: Value, at: Sequence[Value], hint: str) -> Value:
        """Memory at a tile of positions for each dimension, moved inside it."""
        b, frame, total = self.b, self.frame, self.frame.number(0, I64)
        assert isinstance(tensor.type, TensorType)
        for dim, (index, size) in enumerate(zip(at, tensor.type.shape, strict=True)):
            last = frame.splat(b.sub(b.size(size), 1), I64)
            inside = b(m.Max, b(m.Min, self._wide(index), last), frame.number(0, I64))
            stride = frame.splat(b(t.StrideOf, self.buffers[tensor], dim=dim, hint="stride"), I64)
            total = b(m.Add, total, b(m.Mul, inside, stride), hint="offsets")
        return b(t.Gather, self.buffers[tensor], b.index(0), total, hint=hint)

    def _wide(self, x: Value) -> Value:
        return x if dtype_of(x) == I64 else self.b(m.Cast, x, dtype=I64, hint=x.hint)

    def _gather(self, op: s.Gather) -> Value:
        given = list(op.indices)
        at = [
            self.tile(given.pop(0)) if names == (s.INDEXED,) else self._mixed(names)
            for names in op.dims
        ]
        return self._at(op.tensor, at, op.result.hint)

    def store(self, op: s.Sink) -> None:
        """Writes a result."""
        b, frame, memory = self.b, self.frame, self.buffers[op.result]
        axes = [a for dim in op.dims for a in dim]
        value = frame.widened(self.tile(op.x), axes)
        if all(len(dim) < 2 for dim in op.dims):
            dims, at, bounds = self._straight(op.dims)
            b.store(value, memory, at, dims, bounds)
            return
        total = frame.number(0, I64)
        for dim, names in enumerate(op.dims):
            stride = frame.splat(b(t.StrideOf, memory, dim=dim, hint="stride"), I64)
            total = b(m.Add, total, b(m.Mul, self._mixed(names), stride), hint="offsets")
        inside = frame.inside(axes)
        every = frame.number(True, BOOL) if inside is None else inside
        masks = frame.widened(every, axes)
        b.effect(t.Scatter, value, memory, b.index(0), frame.widened(total, axes), masks)

    def load_back(self, op: s.Sink) -> Value:
        """What a block just wrote as a result."""
        dims, at, bounds = self._straight(op.dims)
        layout = self.frame.layout(a for dim in op.dims for a in dim)
        kinds = [(d, "zero", end) for d, end in bounds]
        return self.b.load(self.buffers[op.result], at, dims, layout, kinds, hint=op.x.hint)

    # ---- folds

    def _fold(self, op: s.Fold) -> Value:
        b, dtype = self.b, _dtype(op.result)
        source = self.made.get(op.x)
        if isinstance(source, s.Source) and self._is_large(op, source):
            return self._fold_in_memory(op, source)
        x = self.tile(op.x)
        if dtype in (BF16, F16):
            x = b(m.Cast, x, dtype=F32, hint=x.hint)
        neutral = _neutral(op.kind, dtype_of(x))
        x = self.frame.masked(self.frame.widened(x, self.axes(op.x)), [op.axis], neutral)
        found = self.frame.reduced(x, [op.axis], op.kind)
        return found if dtype_of(found) == dtype else b(m.Cast, found, dtype=dtype, hint=op.kind)

    def _is_large(self, op: s.Fold, source: s.Source) -> bool:
        """Whether a sum of integers in memory, none of a token, is read by blocks."""
        axes = self.axes(op.x)
        apart = all(len(dim) == 1 for dim in source.dims) and self.frame.token not in axes
        sums = op.kind == "sum" and _dtype(op.x).is_int
        return apart and sums and math.prod(self.frame.padded(a) for a in axes) > LARGE

    def _fold_in_memory(self, op: s.Fold, source: s.Source) -> Value:
        """A sum along an axis of what memory has, some places at a time."""
        b, frame, dim = self.b, self.frame, self.frame.dim(op.axis)
        dims, at, bounds = self._straight(source.dims)
        sizes = list(frame.layout(self.axes(op.x)).shape)
        sizes[dim] = max(1, min(sizes[dim], ADDED * sizes[dim] // math.prod(sizes)))
        end = b.index(frame.sizes[op.axis])
        kinds = [(d, "zero", x) for d, x in bounds if d != dim]
        kinds += [(dim, "zero", end)] if sizes[dim] > 1 else []
        where, layout = dims.index(dim), Layout(frame.rank).local(*sizes)
        dims[where] = dim if sizes[dim] > 1 else -1
        zero = b.filled(0, _dtype(op.result), layout)
        with b.loop(b.index(0), end, sizes[dim], [zero], hint=op.axis) as loop:
            at[where] = loop.counter
            part = b.load(self.buffers[source.tensor], at, dims, layout, kinds, hint="part")
            loop.next = (b(m.Add, loop.carried[0], part, hint=op.axis),)
        return frame.reduced(loop.results[0], [op.axis], "sum")

    def _prefix_sum(self, op: StreamPrefixSum) -> Value:
        b, element = self.b, self.axes(op.x)
        if len(op.axes) > 1 or op.axes[0] not in element or op.axes[0] == self.frame.token:
            raise UnsupportedError("running sums along a loop or several axes on a GPU", op.loc)
        dtype = _dtype(op.result)
        if op.exclusive and not dtype.is_int:
            raise UnsupportedError(f"exclusive running sums of {dtype} on a GPU", op.loc)
        x = self.frame.widened(self.tile(op.x), element)
        if self.frame.padded(op.axes[0]) == 1:
            return b(m.Sub, x, x) if op.exclusive else x
        sums = b(t.Scan, x, dim=self.frame.dim(op.axes[0]), hint=op.result.hint)
        return b(m.Sub, sums, x, hint=op.result.hint) if op.exclusive else sums

    # ---- look-ups in a token's own numbers

    def _apart(self, op: Op, first: Sequence[str], second: Sequence[str]) -> None:
        if set(first) & set(second):
            raise UnsupportedError(f"{op.name} of an axis at positions along it on a GPU", op.loc)

    def _picked(self, x: Value, here: Value, axes: Sequence[str]) -> Value:
        """The number of ``x`` at that one place along axes where ``here`` holds; else 0."""
        b, dtype = self.b, dtype_of(x)
        wide = I32 if dtype == BOOL else F32 if dtype in (BF16, F16) else dtype
        x = x if wide == dtype else b(m.Cast, x, dtype=wide, hint=x.hint)
        own = b(m.Select, here, x, self.frame.number(0, wide), hint="own")
        found = self.frame.reduced(own, axes, "sum")
        return found if wide == dtype else b(m.Cast, found, dtype=dtype, hint=x.hint)

    def _take_along(self, op: StreamTakeAlong) -> Value:
        b, frame = self.b, self.frame
        self._apart(op, op.axes, self.axes(op.ids))
        ids = self._wide(self.tile(op.ids))
        last = frame.number(frame.count(op.axes) - 1, I64)
        ids = b(m.Max, b(m.Min, ids, last), frame.number(0, I64))
        ids = b(m.Cast, ids, dtype=I32, hint="ids")
        here = b(m.Compare, ids, self._places(op.axes), relation="eq", hint="here")
        return self._picked(frame.widened(self.tile(op.x), self.axes(op.x)), here, op.axes)

    def _places(self, axes: Sequence[str]) -> Value:
        """i32, positions in several axes; none where there is no such place."""
        frame = self.frame
        return frame.masked(frame.flat(axes, I32), axes, _PAST)

    def _scatter(self, op: StreamScatter) -> Value:
        b, frame = self.b, self.frame
        self._apart(op, op.axes, op.given)
        ids = self._wide(self.tile(op.ids))
        last = frame.number(_PAST - 1, I64)
        ids = b(m.Max, b(m.Min, ids, last), frame.number(-1, I64))
        ids = b(m.Cast, ids, dtype=I32, hint="ids")
        here = b(m.Compare, ids, self._places(op.axes), relation="eq", hint="here")
        inside = frame.inside(op.given)
        here = here if inside is None else b(m.And, here, inside, hint="here")
        x, source = self.tile(op.x), self.tile(op.source)
        if op.kind == "sum":
            return b(m.Add, x, self._picked(source, here, op.given), hint="sum")
        order = frame.flat(op.given, I32)  # of equal ids the last one counts
        turns = b(m.Select, here, order, frame.number(-1, I32), hint="turn")
        latest = frame.reduced(turns, op.given, "max")
        some = b(m.Compare, latest, frame.number(0, I32), relation="ge", hint="some")
        new = self._picked(source, b(m.Compare, turns, latest, relation="eq"), op.given)
        return b(m.Select, some, new, x, hint=op.result.hint)

    # ---- choices

    def _choose(self, op: StreamTopK) -> None:
        """Values and positions: the largest that is left, k times; of equal ones the lowest."""
        b, frame, dtype = self.b, self.frame, _dtype(op.x)
        if dtype not in (F32, BF16, F16):
            raise UnsupportedError(f"the largest of {dtype} on a GPU", op.loc)
        self._apart(op, op.axes, [op.kept.name])
        axes = self.axes(op.x)
        if not set(op.axes) <= set(axes) or frame.token in op.axes:
            raise UnsupportedError("a choice along a loop", op.loc)
        rest = without([Axis(a, op.kept.size) for a in axes], op.axes)
        kept = op.kept.name
        out = frame.layout([*(a.name for a in rest), kept])
        key = key_of(b, frame.widened(self.tile(op.x), axes), dtype, op.largest)
        key = frame.masked(key, op.axes, NONE)
        places = frame.flat(op.axes, I32)
        start = [key, b.filled(0, I32, out), b.filled(0, I32, out)]
        start = [frame.widened(start[0], axes), *start[1:]]
        end = b.index(frame.sizes[kept])
        with b.loop(b.index(0), end, 1, start, hint="turn") as loop:
            left, keys, ids = loop.carried
            best = frame.reduced(left, op.axes, "max")
            first = b(m.Compare, left, best, relation="eq", hint="first")
            at = b(m.Select, first, places, frame.number(_PAST, I32), hint="at")
            at = frame.reduced(at, op.axes, "min")
            turn = frame.coordinate(kept, I32)
            now = b(m.Compare, turn, frame.splat(loop.counter, I32), relation="eq", hint="now")
            taken = b(m.Compare, places, at, relation="eq", hint="taken")
            loop.next = (
                b(m.Select, taken, frame.number(NONE, I32), left, hint="left"),
                b(m.Select, now, best, keys, hint="keys"),
                b(m.Select, now, at, ids, hint="ids"),
            )
        _, keys, ids = loop.results
        self.tiles[op.results[0]] = from_key(b, keys, dtype, op.largest)
        self.tiles[op.results[1]] = ids

    def _product(self, op: s.Reduce | s.Contract) -> Value:
        return product(self, op)


def _neutral(kind: str, dtype: DType) -> float:
    """What changes no reduction."""
    if kind == "sum" or dtype.is_float:
        return IDENTITY[kind]
    most = (1 << dtype.bits - 1) - 1 if dtype != BOOL else 1
    return most if kind == "min" else -most - 1


def _dtype(value: Value) -> DType:
    assert isinstance(value.type, StreamType)
    return value.type.dtype


_RULES: dict[type, Callable[[TokenValues, Any], Value]] = {
    m.Const: TokenValues._const,
    m.SizeValue: TokenValues._size,
    s.Index: TokenValues._index,
    s.Repeat: TokenValues._repeat,
    s.Source: TokenValues._source,
    s.Gather: TokenValues._gather,
    s.Fold: TokenValues._fold,
    s.Reduce: TokenValues._product,
    s.Contract: TokenValues._product,
    StreamPrefixSum: TokenValues._prefix_sum,
    StreamTakeAlong: TokenValues._take_along,
    StreamScatter: TokenValues._scatter,
}
