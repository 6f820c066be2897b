"""Products of tokens with the gate: sums of x[t, h] * w[e, h] over h.

For many tokens these lie on lanes: blocks of x are turned over in registers, and every weight is
broadcast to a register tile of experts. For few, h lies on lanes: each weight is read as part of a
vector, and what a token's lanes summed is added up at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import StreamType
from tilewright.passes.to_tile.routing.info import FEW_PRODUCT
from tilewright.passes.to_tile.routing.values import Stored, Values

CHUNK = 64  # of h: x turned over stays in the nearest cache
EXPERTS = {True: 12, False: 6}  # in a register tile, for targets that broadcast in the multiply-add


@dataclass(frozen=True)
class _Product:
    """``x`` and ``weight``: sources along ``axis`` of ``length``; ``weight_value``: with casts."""

    axis: str
    length: Size
    x: s.Source
    weight: s.Source
    weight_value: Value


def product(values: Values, op: s.Reduce | s.Contract, rows: int) -> None:
    """The sums, in scratch. Raises UnsupportedError for other than products of two sources."""
    found = _parts(values, op)
    where = sums = values.new(op.result)
    dtype = values.state.dtype(op.result)
    if dtype != F32:
        sums = values.new_as(where.axes, F32)
    b = values.b
    with b.loop(b.index(0), b.index(max(1, values.count(sums.axes))), 1, hint="expert") as loop:
        b.store(
            b.filled(0, F32, values.across),
            sums.memory,
            [loop.counter, values.column(sums)],
            (0, 1),
        )
    few = values.info.single or (rows and rows <= FEW_PRODUCT)
    write = _few if few else _many
    write(values, found, sums)
    if dtype != F32:  # rounded once
        with values.places(where.axes, {}) as at:
            total = values.load(sums, values.flat(where.axes, at))
            values.write(where, at, values.b(m.Cast, total, dtype=dtype, hint="sum"))
    values.stored[op.result] = where
    if not where.axes:
        values.tiles[op.result] = values.load(where, values.b.index(0))


def _parts(values: Values, op: s.Reduce | s.Contract) -> _Product:
    """The operands: of a sum along a loop, or along an axis of both elements."""
    made = values.info.made
    if isinstance(op, s.Contract):
        terms, axes = op.operands, op.axes
    else:
        term = made.get(op.x)
        if op.kind != "sum" or len(op.operands) > 1 or not isinstance(term, m.Mul):
            raise UnsupportedError(f"{op.name} of other than products in a routing kernel", op.loc)
        terms, axes = term.operands, (op.axis,)
    sides = [_source(made, v) for v in terms]
    on = [_is_tokens(values, v, axes) for v in terms]
    if None in sides or on[0] == on[1] or len(axes) != 1:
        raise UnsupportedError("a product in a routing kernel is of tokens and weights", op.loc)
    at = on.index(True)
    x, weight = sides[at], sides[1 - at]
    assert x is not None and weight is not None
    places = [a.name for a in values.element(x.result)]
    apart = set(places) <= set(axes) and axes[0] in {n for d in weight.dims for n in d}
    floats = values.state.dtype(op.result) in (F32, BF16, F16)
    if not apart or not floats or axes not in x.dims:
        raise UnsupportedError("a product in a routing kernel is a token's with each row", op.loc)
    assert isinstance(x.type, StreamType)
    length = next(a.size for a in x.type.axes if a.name == axes[0])
    return _Product(axes[0], length, x, weight, terms[1 - at])


def _is_tokens(values: Values, value: Value, axes: tuple[str, ...]) -> bool:
    """Whether an operand is a token's: of one token, that which has no places of its own."""
    if not values.info.single:
        return values.on_tokens(value)
    return {a.name for a in values.element(value)} <= set(axes)


def _source(made: Mapping[Value, Op], value: Value) -> s.Source | None:
    op = made.get(value)
    while isinstance(op, m.Cast | s.Repeat):
        op = made.get(op.operands[0])
    return op if isinstance(op, s.Source) else None


def _wide(values: Values, x: Value) -> Value:
    same = getattr(x.type, "dtype", F32) == F32
    return x if same else values.b(m.Cast, x, dtype=F32, hint=x.hint)


def _many(values: Values, p: _Product, where: Stored) -> None:
    """Tokens on lanes."""
    b, lanes = values.b, values.lanes
    zero, places = b.index(0), b.index(max(1, values.count(where.axes)))
    turned = b.scratch([-(-CHUNK // lanes) * lanes, lanes], F32, "turned")
    length = b.size(p.length)
    tile = min(EXPERTS[values.state.schedule.lanes >= 16], max(1, values.count(where.axes)))
    with b.loop(zero, length, CHUNK, hint="chunk") as chunk:
        count = b.minimum(b.sub(length, chunk.counter), CHUNK)
        _turn(values, p, chunk.counter, (length, count), turned)
        with b.loop(zero, places, tile, hint="expert") as loop:
            last = b.sub(places, 1)
            rows = [b.minimum(b.add(loop.counter, i), last) for i in range(tile)]
            at = [values.state.split_position(row, where.axes) for row in rows]
            sums = [
                b.load(where.memory, [row, values.column(where)], (0, 1), values.across, hint="sum")
                for row in rows
            ]
            with b.loop(zero, count, 1, sums, hint="h") as inner:
                x = b.load(turned, [inner.counter, zero], (0, 1), values.across, hint="x")
                h = b.add(chunk.counter, inner.counter)
                inner.next = tuple(
                    b(m.Fma, x, _wide(values, values.at(p.weight_value, {**here, p.axis: h})), y)
                    for here, y in zip(at, inner.carried, strict=True)
                )
            for row, total in zip(rows, inner.results, strict=True):
                b.store(total, where.memory, [row, values.column(where)], (0, 1))


def _turn(
    values: Values, p: _Product, start: Value, limits: tuple[Value, Value], turned: Value
) -> None:
    """A chunk of the tokens' x as [h, tokens]."""
    b, lanes, (length, count) = values.b, values.lanes, limits
    square = Layout(2).local(lanes, 1).spatial(1, lanes)
    with b.loop(b.index(0), count, lanes, hint="h") as loop:
        here = b.add(start, loop.counter)
        rows = _load_x(values, p, (values.token_block.first, here), square, length)
        b.store(b(t.Transpose, rows, hint="turned"), turned, [loop.counter, b.index(0)], (0, 1))


def _load_x(
    values: Values, p: _Product, start: tuple[Value, Value], layout: Layout, length: Value
) -> Value:
    """A tile [tokens, h] of x, its last token again past the end, zeros past the last h."""
    b, token, bounds = values.b, values.info.token, [(1, "zero", length)]
    here = {p.axis: start[1]} if token is None else {token.name: start[0], p.axis: start[1]}
    indices, _ = values.state.source_index(p.x, here)
    dims = [1 if p.axis in n else -1 for n in p.x.dims]
    if token is not None and layout.shape[0] > 1:
        dims = [0 if token.name in n else d for n, d in zip(p.x.dims, dims, strict=True)]
        end = values.state.limit(p.x, indices, here, token.name, values.token_block.limit)
        bounds.append((0, "clamp", end))
    tile = b.load(values.state.buffers[p.x.tensor], indices, dims, layout, bounds, hint="x")
    return _wide(values, tile)


def _few(values: Values, p: _Product, where: Stored) -> None:
    """h on lanes, tokens one after the other."""
    b, lanes = values.b, values.width
    zero, count = b.index(0), max(1, values.count(where.axes))
    block, length = values.token_block, b.size(p.length)
    tokens = b.minimum(b.sub(block.limit, block.first), values.lanes)
    tile = min(8, count)
    along = Layout(2).spatial(1, lanes)
    with (
        b.loop(zero, tokens, 1, hint="token") as token,
        b.loop(zero, b.index(count), tile, hint="expert") as loop,
    ):
        rows = [b.minimum(b.add(loop.counter, i), count - 1) for i in range(tile)]
        at = [values.state.split_position(row, where.axes) for row in rows]
        sums = [b.filled(0, F32, along)] * tile
        with b.loop(zero, length, lanes, sums, hint="h") as inner:
            start = b.add(block.first, token.counter), inner.counter
            x = _load_x(values, p, start, along, length)
            weights = [_load_weight(values, p, {**h, p.axis: inner.counter}, length) for h in at]
            inner.next = tuple(
                b(m.Fma, x, w, y) for w, y in zip(weights, inner.carried, strict=True)
            )
        column = b.add(values.column(where), token.counter)
        for row, total in zip(rows, inner.results, strict=True):
            b.store(b(t.Reduce, total, kind="sum", dim=1), where.memory, [row, column], (0, 1))


def _load_weight(values: Values, p: _Product, at: Mapping[str, Value], length: Value) -> Value:
    """[1, h] of a row of weights."""
    b = values.b
    indices, _ = values.state.source_index(p.weight, dict(at))
    dims = [1 if p.axis in names else -1 for names in p.weight.dims]
    layout = Layout(2).spatial(1, values.width)
    bounds = [(1, "zero", length)]
    buffer = values.state.buffers[p.weight.tensor]
    return _wide(values, b.load(buffer, indices, dims, layout, bounds, hint="weight"))
