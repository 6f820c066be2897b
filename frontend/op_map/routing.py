"""Choosing, counting and moving by computed positions: what routers of tokens to experts do.

Torch's positions are i64, ours i32: results are cast. A negative position means one from the end
in torch's indexing and nothing in gather and scatter, which refuse it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.fx import Node

from tilewright.frontend import symbols
from tilewright.frontend.op_map.emitter import ONE, Emitter, Shape, tensor_type
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.positions import ZERO, look_up, range_of
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import INDEX, POSITIONS, Kind, axes_named, handles
from tilewright.frontend.op_map.shape import is_tensor
from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size, product


def _rank(x: Value) -> int:
    return len(tensor_type(x).shape)


def _whole(number: object, what: str) -> int:
    if not isinstance(number, int):
        raise UnsupportedError(f"{what} that is no constant integer")
    return number


def settle_numbers(node: Node) -> None:
    """Guards the values of numbers that decide what is compiled, such as k."""
    for argument in (*node.args, *node.kwargs.values()):
        value = argument.meta.get("example_value") if isinstance(argument, Node) else None
        if isinstance(value, torch.SymInt):
            symbols.make_static(value)


def _moved(e: Emitter, x: Value, axis: int, to: int) -> Value:
    """A dimension brought to another place, the others in order."""
    order = [d for d in range(_rank(x)) if d != axis]
    order.insert(to, axis)
    return e.transpose(x, order)


def _chosen(
    e: Emitter, x: Value, k: int, dim: int, largest: bool, ties: str, ordered: bool
) -> tuple[Value, Value]:
    """Values and positions (i32) of a choice along any dimension."""
    axis, last = dim % _rank(x), _rank(x) - 1
    rows = _moved(e, x, axis, last)
    loc, hints = e.builder.loc, ["values", "ids"]
    made = r.TopK(rows, k=k, largest=largest, ties=ties, ordered=ordered, loc=loc, hints=hints)
    op = e.builder.add(made)
    values, ids = (_moved(e, v, last, axis) for v in op.results)
    return values, ids


@handles("topk", Kind.ROUTING, [torch.topk], ["topk"], settle=settle_numbers)
def topk(
    e: Emitter, input: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    """The k largest and their positions, ties in torch's order"""
    count = _whole(k, "topk with a k")
    values, ids = _chosen(e, input, count, dim, largest, "torch", sorted)
    return values, e.cast(ids, I64)


def _extreme(e: Emitter, x: Value, dim: int, keepdim: bool, largest: bool) -> tuple[Value, ...]:
    """The largest (smallest) of a dimension and where it is: NaN if there is one, the first of
    equals."""
    negate = not largest and tensor_type(x).dtype.is_float  # NaN comes first in both
    given = e.compute(m.Neg, x, dtype=tensor_type(x).dtype) if negate else x
    values, ids = _chosen(e, given, 1, dim, largest or negate, "lowest", ordered=True)
    shape = tensor_type(values).shape
    axis = dim % len(shape)
    kept = shape if keepdim else (*shape[:axis], *shape[axis + 1 :])
    values = e.compute(m.Neg, values, dtype=tensor_type(x).dtype) if negate else values
    return e.reshape(values, kept), e.reshape(e.cast(ids, I64), kept)


def _register_extreme(name: str, largest: bool) -> None:
    @handles(f"arg{name}", Kind.ROUTING, [getattr(torch, f"arg{name}")], [f"arg{name}"])
    def position(e: Emitter, input: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        """top_k with k = 1"""
        if dim is None:
            raise UnsupportedError(f"arg{name} without dim; say which dimension")
        return _extreme(e, input, dim, keepdim, largest)[1]

    @handles(f"{name}{POSITIONS}", Kind.ROUTING, [f"{name}{POSITIONS}"])
    def both(e: Emitter, input: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
        """``max(dim)`` whose second result is used"""
        return _extreme(e, input, dim, keepdim, largest)


_register_extreme("max", largest=True)
_register_extreme("min", largest=False)


@handles("argsort", Kind.ROUTING, [torch.argsort], ["argsort"])
def argsort(
    e: Emitter, input: Value, dim: int = -1, descending: bool = False, stable: bool = False
) -> Value:
    """tensor.sort_order; torch leaves open how equals stand without stable=True"""
    order = e.op(r.SortOrder, input, axis=dim % _rank(input), descending=descending)
    return e.cast(order, I64)


@handles("sort", Kind.ROUTING, [torch.sort], ["sort"])
def sort(
    e: Emitter,
    input: Value,
    dim: int = -1,
    descending: bool = False,
    *,
    stable: bool | None = None,
) -> tuple[Value, Value]:
    """Sorted elements and where they were"""
    axis = dim % _rank(input)
    order = e.op(r.SortOrder, input, axis=axis, descending=descending)
    return e.op(r.TakeAlong, input, order, axis=axis), e.cast(order, I64)


def _others(x: Value, axis: int) -> Shape:
    shape = tensor_type(x).shape
    return (*shape[:axis], *shape[axis + 1 :])


def _same_rows(x: Value, ids: Value, axis: int) -> None:
    if _rank(x) != _rank(ids) or _others(x, axis) != _others(ids, axis):
        raise UnsupportedError("an index that leaves out rows of the other dimensions")


def _look_up_along(e: Emitter, x: Value, dim: int, ids: Value) -> None:
    look_up(e, ids, tensor_type(x).shape[dim % _rank(x)])


def _settle_rows(node: Node) -> None:
    """Guards that an index has the rows of what it looks up, if it had in the captured call."""
    operands = [n.meta["example_value"] for n in node.all_input_nodes if is_tensor(n)]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if len(operands) != 2 or not isinstance(axis, int) or operands[0].dim() != operands[1].dim():
        return
    x, ids = ([*o.shape] for o in operands)
    pairs = [pair for at, pair in enumerate(zip(x, ids, strict=True)) if at != axis % len(x)]
    if all(symbols.hint(a) == symbols.hint(b) for a, b in pairs):
        for a, b in pairs:
            symbols.must_equal(a, b)


@handles("gather", Kind.ROUTING, [torch.gather], ["gather"], _settle_rows, axes_named(1, None))
def gather(e: Emitter, input: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    """tensor.take_along"""
    axis = dim % _rank(input)
    _same_rows(input, index, axis)
    _look_up_along(e, input, axis, index)
    return e.op(r.TakeAlong, input, index, axis=axis)


@handles(
    "take_along_dim",
    Kind.ROUTING,
    [torch.take_along_dim],
    ["take_along_dim"],
    axes=axes_named(2, None),
    settle=_settle_rows,
)
def take_along_dim(e: Emitter, input: Value, indices: Value, dim: int | None = None) -> Value:
    """tensor.take_along after both were widened to each other's other dimensions; positions count
    modulo the dimension"""
    if dim is None or _rank(input) != _rank(indices):
        raise UnsupportedError("take_along_dim without dim, or of other ranks")
    axis = dim % _rank(input)
    size = tensor_type(input).shape[axis]
    if not range_of(e.builder.ops, indices).is_inside(ZERO, size - ONE):
        dtype = tensor_type(indices).dtype
        indices = e.op(m.Mod, indices, e.count((size,), dtype))
    wide = e.broadcast(input, (*e.shape[:axis], size, *e.shape[axis + 1 :]))
    return e.op(r.TakeAlong, wide, e.broadcast(indices, e.shape), axis=axis)


def _scattered(e: Emitter, x: Value, dim: int, ids: Value, source: object, kind: str) -> Value:
    axis = dim % _rank(x)
    _same_rows(x, ids, axis)
    shape = tensor_type(ids).shape
    values = as_value(e, source, tensor_type(x).dtype)
    if _rank(values) and tensor_type(values).shape != shape:
        raise UnsupportedError("a source that is larger than the index")
    values = e.broadcast(values, shape)
    return e.op(r.Scatter, x, ids, values, axis=axis, kind=kind)


@handles("scatter", Kind.ROUTING, [torch.scatter], ["scatter"])
def scatter(
    e: Emitter,
    input: Value,
    dim: int,
    index: Value,
    src: Operand | None = None,
    *,
    value: Operand | None = None,
    reduce: str | None = None,
) -> Value:
    """tensor.scatter: in the order of the index, which torch leaves open where places meet"""
    if reduce not in (None, "add"):
        raise UnsupportedError(f"scatter with reduce={reduce!r}; only 'add'")
    source = value if src is None else src
    _look_up_along(e, input, dim, index)
    return _scattered(e, input, dim, index, source, "set" if reduce is None else "sum")


@handles("scatter_add", Kind.ROUTING, [torch.scatter_add], ["scatter_add"])
def scatter_add(e: Emitter, input: Value, dim: int, index: Value, src: Value) -> Value:
    """tensor.scatter {kind = "sum"}"""
    _look_up_along(e, input, dim, index)
    return _scattered(e, input, dim, index, src, "sum")


@handles("index_add", Kind.ROUTING, [torch.index_add], ["index_add"])
def index_add(
    e: Emitter, input: Value, dim: int, index: Value, source: Value, *, alpha: float = 1
) -> Value:
    """tensor.scatter with one position for a whole row"""
    axis, shape = dim % _rank(input), tensor_type(source).shape
    column = [ONE] * len(shape)
    column[axis] = shape[axis]
    _look_up_along(e, input, axis, index)
    ids = e.broadcast(e.reshape(index, column), shape)
    if alpha != 1:
        source = binary(e, m.Mul, source, alpha, e.dtype)
    return _scattered(e, input, axis, ids, source, "sum")


@handles("index_put", Kind.ROUTING, [torch.index_put], ["index_put"])
def index_put(
    e: Emitter, input: Value, indices: tuple[Value, ...], values: Value, accumulate: bool = False
) -> Value:
    """tensor.scatter into a tensor of one dimension"""
    if _rank(input) != 1 or len(indices) != 1 or not tensor_type(indices[0]).dtype.is_int:
        raise UnsupportedError("index_put; only into one dimension at integer positions")
    ids, size = indices[0], tensor_type(input).shape[0]
    count = product(tensor_type(ids).shape)
    flat = e.reshape(e.broadcast(values, tensor_type(ids).shape), (count,))
    at = e.reshape(_from_start(e, ids, size), (count,))
    return _scattered(e, input, 0, at, flat, "sum" if accumulate else "set")


# ---- tables


def _from_start(e: Emitter, ids: Value, size: Size) -> Value:
    """i + size for negative positions i"""
    look_up(e, ids, size, from_end=True)
    if range_of(e.builder.ops, ids).natural:
        return ids
    dtype = tensor_type(ids).dtype
    wrapped = e.op(m.Add, ids, e.count((size,), dtype))
    return e.select(e.compare(ids, e.const(0, dtype), "lt"), wrapped, ids, dtype)


def _read(e: Emitter, x: Value, at: dict[int, Value]) -> Value:
    """x at positions for some neighbouring dimensions, whole in the others."""
    shape = tensor_type(x).shape
    first, rank = min(at), max(_rank(v) for v in at.values())
    after = len(shape) - first - len(at)
    total = first + rank + after
    indices = []
    for dim in range(len(shape)):
        if dim in at:
            given = tensor_type(at[dim]).shape
            indices.append(e.reshape(at[dim], (*given, *[ONE] * after)))
            continue
        place = dim if dim < first else dim - len(at) + rank
        own = [ONE] * total
        own[place] = shape[dim]
        indices.append(e.iota(own, place))
    return e.op(t.Gather, x, *indices)


@handles("index", Kind.ROUTING, [INDEX])
def index(e: Emitter, input: Value, index: object) -> Value:
    """``table[ids]``, ``map[adapter, ids]``, ``x[:, ids]``: integer tensors for neighbouring
    dimensions, the others whole"""
    entries = index if isinstance(index, tuple) else (index,)
    at: dict[int, Value] = {}
    for dim, entry in enumerate(entries):
        if isinstance(entry, Value):
            if not tensor_type(entry).dtype.is_int:
                raise UnsupportedError("indexing by a mask: the result's size is not known")
            at[dim] = _from_start(e, entry, tensor_type(input).shape[dim])
        elif entry != slice(None):
            raise UnsupportedError(f"indexing by tensors and {entry!r}")
    if sorted(at) != list(range(min(at), min(at) + len(at))):
        raise UnsupportedError("indexing by tensors that are not neighbours")
    return _read(e, input, at)


@handles("index_select", Kind.ROUTING, [torch.index_select], ["index_select"])
def index_select(e: Emitter, input: Value, dim: int, index: Value) -> Value:
    """Rows of a table"""
    _look_up_along(e, input, dim, index)
    return _read(e, input, {dim % _rank(input): index})


# ---- counts and sums


@handles("one_hot", Kind.ROUTING, [F.one_hot], settle=settle_numbers)
def one_hot(e: Emitter, tensor: Value, num_classes: int = -1) -> Value:
    """Where each position is, of ``num_classes``"""
    count = _whole(num_classes, "one_hot without num_classes, or with one")
    shape = tensor_type(tensor).shape
    look_up(e, tensor, Size.of(count))
    ids = e.cast(e.reshape(tensor, (*shape, ONE)), I64)
    classes = e.iota((*[ONE] * len(shape), Size.of(count)), len(shape))
    return e.cast(e.compare(ids, classes, "eq"), e.dtype)


@handles("histc", Kind.ROUTING, [torch.histc], ["histc"], settle=settle_numbers)
def histc(e: Emitter, input: Value, bins: int = 100, min: float = 0, max: float = 0) -> Value:
    """tensor.segment_count of integers 0 … bins - 1, which a cast made floats"""
    count = _whole(bins, "histc with bins")
    made: dict[Value, Op] = {v: op for op in e.builder.ops for v in op.results}
    op = made.get(input)
    ids = op.operands[0] if isinstance(op, m.Cast) else input
    if not tensor_type(ids).dtype.is_int or min != 0 or max != count - 1:
        raise UnsupportedError("histc of other than integers with min=0 and max=bins-1")
    return e.cast(e.op(r.SegmentCount, ids, segments=Size.of(count)), e.dtype)


@handles("cumsum", Kind.ROUTING, [torch.cumsum], ["cumsum"])
def cumsum(e: Emitter, input: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
    """tensor.prefix_sum of f32, f64 and integers"""
    if e.dtype.is_float and e.dtype.bits < 32:
        raise UnsupportedError("cumsum of 16-bit floats; convert to float32")
    return e.op(r.PrefixSum, e.cast(input, e.dtype), axis=dim % _rank(input))
