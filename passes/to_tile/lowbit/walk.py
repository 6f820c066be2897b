"""Going through the groups of a row: chunk by chunk, unit by unit, in loops of constant length.

A *unit* is what one step of a product takes: four codes for bytes, one code for floats. A group is
some chunks, or a chunk some groups (ir/packing.py); the last group may be short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir.core import Value
from tilewright.passes.to_tile.emitter import TileBuilder

Tiles = list[Value]
MOST_STATIC = 4  # chunks of a group that are written out


@dataclass(frozen=True)
class Units:
    """How units lie: ``group`` units of a whole group, ``in_chunk`` of a chunk, ``slots`` of a
    group's place in the packing, padding included; ``total`` units and ``groups`` in all."""

    group: int
    in_chunk: int
    slots: int
    total: int

    @property
    def groups_per_chunk(self) -> int:
        return max(1, self.in_chunk // self.slots)

    @property
    def chunks_per_group(self) -> int:
        return max(1, self.slots // self.in_chunk)


@dataclass
class GroupBody:
    """What happens: ``start`` gives a group's sums, ``chunk`` adds some units of a chunk to them
    (chunk number, units of it, first activation of these), ``finish`` adds a group to the
    totals."""

    start: Callable[[Value], Tiles]
    chunk: Callable[[Tiles, Value, Sequence[int], Value], Tiles]
    finish: Callable[[Tiles, Tiles, Value], Tiles]


def walk_groups(b: TileBuilder, units: Units, body: GroupBody, totals: Tiles) -> Tiles:
    """The totals after all groups."""
    whole, rest = divmod(units.total, units.group)
    per_chunk = units.groups_per_chunk
    if per_chunk == 1:
        if whole:
            with b.loop(b.index(0), b.index(whole), 1, totals, hint="group") as loop:
                loop.next = tuple(
                    _group(b, units, body, list(loop.carried), loop.counter, units.group)
                )
            totals = list(loop.results)
        if rest:
            totals = _group(b, units, body, totals, b.index(whole), rest)
        return totals
    chunks, left = divmod(whole, per_chunk)
    if chunks:
        with b.loop(b.index(0), b.index(chunks), 1, totals, hint="chunk") as loop:
            inner = list(loop.carried)
            for at in range(per_chunk):
                inner = _part(b, units, body, inner, loop.counter, at, units.group)
            loop.next = tuple(inner)
        totals = list(loop.results)
    for at in range(left + (rest > 0)):
        count = units.group if at < left else rest
        totals = _part(b, units, body, totals, b.index(chunks), at, count)
    return totals


def _group(
    b: TileBuilder, units: Units, body: GroupBody, totals: Tiles, group: Value, count: int
) -> Tiles:
    """A group of one or several chunks."""
    first, start = b.mul(group, units.chunks_per_group), b.mul(group, units.group)
    sums = body.start(group)
    whole, rest = divmod(count, units.in_chunk)
    every = range(units.in_chunk)
    if whole <= MOST_STATIC:
        for at in range(whole):
            sums = body.chunk(sums, b.add(first, at), every, b.add(start, at * units.in_chunk))
    else:
        with b.loop(b.index(0), b.index(whole), 1, sums, hint="chunk") as loop:
            here = b.add(start, b.mul(loop.counter, units.in_chunk))
            added = body.chunk(list(loop.carried), b.add(first, loop.counter), every, here)
            loop.next = tuple(added)
        sums = list(loop.results)
    if rest:
        here = b.add(start, whole * units.in_chunk)
        sums = body.chunk(sums, b.add(first, whole), range(rest), here)
    return body.finish(totals, sums, group)


def _part(
    b: TileBuilder,
    units: Units,
    body: GroupBody,
    totals: Tiles,
    chunk: Value,
    at: int,
    count: int,
) -> Tiles:
    """Group number ``at`` of those in a chunk."""
    group = b.add(b.mul(chunk, units.groups_per_chunk), at)
    inside = range(at * units.slots, at * units.slots + count)
    sums = body.chunk(body.start(group), chunk, inside, b.mul(group, units.group))
    return body.finish(totals, sums, group)
