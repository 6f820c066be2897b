"""Products of tokens with the gate: sums of x[t, h] * w[e, h] over h, by blocks of h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.types import StreamType
from tilewright.passes.to_tile.whole_blocks.schedule import LEAST, power_of_two

if TYPE_CHECKING:
    from tilewright.passes.to_tile.whole_blocks.routing.values import TokenValues

ROWS = LEAST  # tokens of a block with a product
TERMS = 32  # of h at a time


@dataclass(frozen=True)
class _Gate:
    """``x`` [tokens, h] and ``weight`` [e, h], sources in memory."""

    x: s.Source
    weight: s.Source
    terms: int
    expert: str


def product(values: TokenValues, op: s.Reduce | s.Contract) -> Value:
    """f32 sums [tokens, e]. Raises UnsupportedError for other than products of two sources."""
    b, frame, gate = values.b, values.frame, _parts(values, op)
    columns = max(LEAST, frame.padded(gate.expert))
    if frame.padded(gate.expert) != columns or frame.rows < ROWS:
        raise UnsupportedError(f"a gate for {frame.sizes[gate.expert]} experts on a GPU", op.loc)
    acc = b.filled(0.0, F32, Layout(2).local(frame.rows, columns))
    step = min(TERMS, max(LEAST, power_of_two(gate.terms)))
    end = b.index(gate.terms)
    assert frame.end is not None
    with b.loop(b.index(0), end, step, [acc], hint="h") as loop:
        cut = [(1, "zero", end)] if gate.terms % step else []
        at = [frame.block_first, loop.counter]
        bounds = [(0, "zero", frame.end), *cut]
        x = b.load(
            values.buffers[gate.x.tensor], at, (0, 1), Layout(2).local(frame.rows, step), bounds,
            hint="x",
        )  # fmt: skip
        bounds = [(0, "zero", end)] if cut else []
        if frame.sizes[gate.expert] != columns:
            bounds.append((1, "zero", b.index(frame.sizes[gate.expert])))
        w = b.load(
            values.buffers[gate.weight.tensor], [b.index(0), loop.counter], (1, 0),
            Layout(2).local(step, columns), bounds, hint="w",
        )  # fmt: skip
        sides = [v if _dtype(v) == F32 else b(m.Cast, v, dtype=F32, hint=v.hint) for v in (x, w)]
        loop.next = (b(t.Product, loop.carried[0], *sides, hint="sum"),)
    layout = frame.layout([frame.token, gate.expert])
    found = loop.results[0]
    if layout.rank > 2:
        found = b(t.Reshape, found, layout=layout, hint=op.result.hint)
    dtype = op.result.type.dtype  # type: ignore[union-attr]
    return found if dtype == F32 else b(m.Cast, found, dtype=dtype, hint=op.result.hint)


def _dtype(value: Value) -> object:
    return getattr(value.type, "dtype", None)


def _parts(values: TokenValues, op: s.Reduce | s.Contract) -> _Gate:
    """The operands: of a sum along a loop, or along an axis of both elements."""
    term = values.made.get(op.operands[0])
    if isinstance(op, s.Contract):
        sides, axes = op.operands, op.axes
    elif op.kind == "sum" and len(op.operands) == 1 and isinstance(term, m.Mul):
        sides, axes = term.operands, (op.axis,)
    else:
        raise UnsupportedError(f"{op.name} of other than products in a routing kernel", op.loc)
    found = [_source(values, v) for v in sides]
    token = values.frame.token
    by = {source.dims[0]: source for source in found if source is not None and source.dims}
    x = by.get((token,))
    weights = [source for source in found if source is not None and source is not x]
    plain = x is not None and len(axes) == 1 and x.dims == ((token,), axes) and len(weights) == 1
    if not plain or len(weights[0].dims) != 2 or weights[0].dims[1] != axes:
        raise UnsupportedError("a product in a routing kernel is of tokens and weights", op.loc)
    names, dtype = weights[0].dims[0], op.result.type.dtype  # type: ignore[union-attr]
    if len(names) != 1 or names == (token,) or dtype not in (F32, BF16, F16):
        raise UnsupportedError("a product in a routing kernel is a token's with each row", op.loc)
    assert x is not None and isinstance(x.type, StreamType)
    length = next(a.size for a in x.type.axes if a.name == axes[0]).constant
    if length is None:
        raise UnsupportedError("a product in a routing kernel has a known number of terms", op.loc)
    return _Gate(x, weights[0], length, names[0])


def _source(values: TokenValues, value: Value) -> s.Source | None:
    op = values.made.get(value)
    while isinstance(op, m.Cast | s.Repeat):
        op = values.made.get(op.operands[0])
    return op if isinstance(op, s.Source) else None
