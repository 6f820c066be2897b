"""Indexing of closed-over tensors by positions, as tensor.gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tilewright.frontend.attention import source
from tilewright.frontend.attention.symbols import Partial, Symbol, make_partial, make_symbol
from tilewright.frontend.torch_dtypes import torch_dtype
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    from tilewright.frontend.attention.tracer import Tracer


def start_partial(tracer: Tracer, x: torch.Tensor) -> Partial:
    """A closed-over tensor with no dimension indexed yet."""
    table = tracer.recipe.parameter(x)
    if not x.dim():
        raise source.refused("indexing of a tensor without dimensions", "use it as it is")
    like = torch.empty(x.shape, dtype=x.dtype, device="meta")
    return make_partial(table, tracer.sizes_of(x, table), (None,) * x.dim(), like)


def index(tracer: Tracer, x: Partial, entries: Sequence[Any]) -> Symbol:
    """``x[entries]``: a number if no dimension is left, else the tensor with fewer dimensions."""
    open_dims = [d for d, known in enumerate(x.places) if known is None]
    given = _spread(entries, len(open_dims))
    indices = list(x.places)
    for dim, entry in zip(open_dims, given, strict=False):
        if not _is_whole(entry):
            indices[dim] = _position(tracer, entry, x.sizes[dim])
    assert isinstance(x.table.type, TensorType)
    if None in indices:
        left = [n for n, i in zip(_known(x.sizes), indices, strict=True) if i is None]
        like = torch.empty(left, dtype=torch_dtype(x.table.type.dtype), device="meta")
        return make_partial(x.table, x.sizes, tuple(indices), like)
    value = gather(tracer, x.table, indices)
    return make_symbol(value, torch_dtype(x.table.type.dtype))


def _known(sizes: Sequence[Symbol]) -> list[int]:
    return [size.known[0] if size.known else 0 for size in sizes]


def gather(tracer: Tracer, table: Value, indices: Sequence[Value | None]) -> Value:
    """table[indices] with the place in the user's file."""
    tracer.emitter.builder.loc = source.here()
    return tracer.emitter.op(t.Gather, table, *(i for i in indices if i is not None))


def _spread(entries: Sequence[Any], dims: int) -> list[Any]:
    """Entries with ``...`` written out as whole dimensions."""
    if any(e is None for e in entries):
        raise source.refused("None as an index (a new dimension)", "index existing dimensions")
    if sum(e is Ellipsis for e in entries) == 1:
        at = next(i for i, e in enumerate(entries) if e is Ellipsis)
        whole = [slice(None)] * (dims - len(entries) + 1)
        return [*entries[:at], *whole, *entries[at + 1 :]]
    if len(entries) > dims:
        raise source.refused(
            f"{len(entries)} indices for {dims} dimensions", "give one index per dimension"
        )
    return list(entries)


def _is_whole(entry: Any) -> bool:
    if not isinstance(entry, slice):
        return False
    if entry.start is not None or entry.stop is not None or entry.step is not None:
        raise source.refused("a slice together with positions", "slice the tensor before")
    return True


def _position(tracer: Tracer, entry: Any, size: Symbol) -> Value:
    """An index from the front: a negative one counts from the end, as in Python."""
    e = tracer.emitter
    if isinstance(entry, torch.Tensor) and not isinstance(entry, Symbol) and not entry.dim():
        entry = tracer.real_number(entry)
    if isinstance(entry, bool) or not isinstance(entry, int | Symbol):
        raise source.refused(
            f"indexing by {type(entry).__name__}", "index by integers: positions or arithmetic"
        )
    if isinstance(entry, int):
        number = e.const(entry, I64)
        return number if entry >= 0 else e.op(m.Add, size.value, number)
    assert isinstance(entry.value.type, TensorType)
    if isinstance(entry, Partial) or not entry.value.type.dtype.is_int:
        raise source.refused(
            f"indexing by a number of dtype {torch_dtype(entry.value.type.dtype)}",
            "index by integers; write .to(torch.int64), or torch.where for a condition",
        )
    if entry.nonnegative:
        return entry.value
    wide = e.cast(entry.value, I64)
    negative = e.compare(wide, e.const(0, I64), "lt")
    return e.op(m.Select, negative, e.op(m.Add, wide, size.value), wide)
