"""How many choices of a block's tokens are each expert's, and where each of them stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.emitter import Loop
from tilewright.passes.to_tile.whole_blocks.routing.frame import dtype_of
from tilewright.passes.to_tile.whole_blocks.routing.values import TokenValues

CHUNK = 16  # parts whose counts are read at once


def matches(values: TokenValues, ids: Value, choice: Value | None, segment: str) -> Value:
    """i32 [tokens, segments], 1 where a token's id is a segment's: its only one, or the one with
    number ``choice`` along its element's axis."""
    b, frame = values.b, values.frame
    axes, element = values.axes(ids), _element(values, ids)
    if segment in axes:
        raise UnsupportedError("counts of segments along which ids run on a GPU")
    found = values.tile(ids)
    if dtype_of(found) == I64:  # far outside is outside
        found = b(m.Max, b(m.Min, found, frame.number(1 << 30, I64)), frame.number(-1, I64))
    if dtype_of(found) != I32:
        found = b(m.Cast, found, dtype=I32, hint="ids")
    if choice is not None:
        turn = frame.splat(choice, I32)
        here = b(m.Compare, frame.coordinate(element, I32), turn, relation="eq", hint="here")
        found = frame.widened(found, axes)
        found = frame.reduced(b(m.Select, here, found, frame.number(0, I32)), [element], "sum")
    found = frame.masked(frame.widened(found, [frame.token]), [frame.token], -1)
    same = b(m.Compare, found, frame.coordinate(segment, I32), relation="eq", hint="same")
    inside = frame.inside([segment])
    same = same if inside is None else b(m.And, same, inside, hint="same")
    return frame.widened(b(m.Cast, same, dtype=I32, hint="same"), [frame.token, segment])


def _element(values: TokenValues, ids: Value) -> str:
    """The axis of a token's ids ("": it has one)."""
    axes = [a for a in values.axes(ids) if a != values.frame.token]
    if len(axes) > 1:
        raise UnsupportedError("counts and ranks of ids along several axes on a GPU")
    return axes[0] if axes else ""


@contextmanager
def _choices(
    values: TokenValues, ids: Value, segment: str, carried: Sequence[Value]
) -> Iterator[tuple[Loop, Value, Value | None]]:
    """A loop over a token's choices, which of them are which segment's, and the choice's number:
    tiles with all choices and all segments at once would be too large."""
    b, frame, element = values.b, values.frame, _element(values, ids)
    values.tile(ids)  # before the loop
    count = frame.sizes[element] if element else 1
    with b.loop(b.index(0), b.index(count), 1, carried, hint="choice") as loop:
        choice = loop.counter if count > 1 else None
        before = dict(values.tiles)
        yield loop, matches(values, ids, choice, segment), choice
        values.tiles = before


def counted(values: TokenValues, ids: Value, segment: str) -> Value:
    """i32 [segments]: how many of a block's choices are each segment's."""
    b, frame = values.b, values.frame
    start = b.filled(0, I32, frame.layout([frame.token, segment]))
    with _choices(values, ids, segment, [start]) as (loop, same, _):
        loop.next = (b(m.Add, loop.carried[0], same, hint="row"),)
    return frame.reduced(loop.results[0], [frame.token], "sum")


def early(
    values: TokenValues, counts: Value, part: Value, offsets: Value, segment: str, parts: int
) -> Value:
    """i32 [segments]: where the next choice of each stands when a part begins, from the ``counts``
    [parts, segments] of all parts."""
    b, frame, dim = values.b, values.frame, values.frame.dim(segment)
    sizes = [1] * frame.rank
    sizes[0], sizes[dim] = CHUNK, frame.padded(segment)
    bounds = [(0, "zero", part)]
    if frame.sizes[segment] != frame.padded(segment):
        bounds.append((dim, "zero", b.index(frame.sizes[segment])))
    layout, dims = Layout(frame.rank).local(*sizes), (0, dim if sizes[dim] > 1 else -1)
    if dtype_of(offsets) != I32:
        offsets = b(m.Cast, offsets, dtype=I32, hint="offsets")
    start = frame.widened(offsets, [segment])
    # summed over the chunk's parts at last: threads meet once, not in every turn
    with b.loop(b.index(0), part, CHUNK, [b.filled(0, I32, layout)], hint="other") as loop:
        each = b.load(counts, [loop.counter, b.index(0)], dims, layout, bounds, hint="each")
        loop.next = (b(m.Add, loop.carried[0], each, hint="before"),)
    found = b(t.Reduce, loop.results[0], kind="sum", dim=0, hint="before")
    return b(m.Add, start, found, hint="next")


def ranked(values: TokenValues, ids: Value, before: Value, segment: str) -> tuple[Value, Value]:
    """i32, where a block's choices stand (-1: ids of no segment), and where the next ones do."""
    b, frame = values.b, values.frame
    start = b.filled(0, I32, frame.layout([frame.token, segment]))
    with _choices(values, ids, segment, [start]) as (loop, same, _):
        loop.next = (b(m.Add, loop.carried[0], same, hint="row"),)
    row = loop.results[0]
    next_ = b(m.Add, _earlier(values, row, frame.token), before, hint="next")
    next_ = frame.widened(next_, [frame.token, segment])
    out = b.filled(-1, I32, frame.layout(values.axes(ids)))
    with _choices(values, ids, segment, [next_, out]) as (loop, same, choice):
        left, found = loop.carried
        chosen = b(m.Compare, same, frame.number(1, I32), relation="eq", hint="chosen")
        place = b(m.Select, chosen, left, frame.number(0, I32), hint="place")
        place = frame.reduced(place, [segment], "sum")
        some = frame.reduced(same, [segment], "sum")
        some = b(m.Compare, some, frame.number(1, I32), relation="eq", hint="some")
        place = b(m.Select, some, place, frame.number(-1, I32), hint="place")
        if choice is not None:
            turn, here = frame.splat(choice, I32), frame.coordinate(_element(values, ids), I32)
            now = b(m.Compare, here, turn, relation="eq", hint="now")
            place = b(m.Select, now, place, found, hint="place")
        loop.next = (b(m.Add, left, same, hint="next"), frame.widened(place, values.axes(ids)))
    after = b(m.Add, before, frame.reduced(row, [frame.token], "sum"), hint="next")
    return loop.results[1], after


def _earlier(values: TokenValues, x: Value, axis: str) -> Value:
    """The sums of what comes before each place along an axis."""
    b, dim = values.b, values.frame.dim(axis)
    if x.type.shape[dim] == 1:  # type: ignore[union-attr]
        return b(m.Sub, x, x, hint="none")
    return b(m.Sub, b(t.Scan, x, dim=dim), x, hint="earlier")
