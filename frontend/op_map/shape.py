"""Operations that only change the shape: they move no numbers, whatever torch does to memory.

The sizes of a result are those that torch's own shape rules gave while capturing.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from tilewright.frontend import symbols
from tilewright.frontend.op_map.emitter import ONE, Emitter, tensor_type
from tilewright.frontend.op_map.registry import Kind, handles, lookup
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError


def rank_of(value: Value) -> int:
    """The number of dimensions."""
    return len(tensor_type(value).shape)


def settle_ratios(node: Node) -> None:
    """Guards ratios of sizes among the arguments: ``q.size(1) // k.size(1)`` of grouped heads."""
    for argument in node.all_input_nodes:
        for source in (argument, *argument.all_input_nodes):
            if source.target is not operator.floordiv or is_tensor(source):
                continue
            parts = [a.meta["example_value"] for a in source.args if isinstance(a, Node)]
            if len(parts) == 2:
                symbols.must_be_multiple(parts[0], parts[1])


def settle_ratios_above(node: Node) -> None:
    """The same for all shape changes that lead to the operands of a product."""
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        entry = lookup(source)
        if entry is not None and entry.kind is Kind.SHAPE:
            settle_ratios(source)
            stack.extend(source.all_input_nodes)


def is_tensor(node: Node) -> bool:
    """Whether a node gives one tensor."""
    return isinstance(node.meta.get("example_value"), torch.Tensor)


@handles(
    "transpose",
    Kind.SHAPE,
    [torch.transpose, torch.swapaxes, torch.swapdims],
    ["transpose", "swapaxes", "swapdims"],
)
def transpose(e: Emitter, input: Value, dim0: int, dim1: int) -> Value:
    """Two dimensions exchanged"""
    order = list(range(rank_of(input)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return e.transpose(input, order)


@handles("t", Kind.SHAPE, [torch.t, torch.adjoint], ["t", ".T", ".mT"])
def matrix_transpose(e: Emitter, input: Value) -> Value:
    """The last two dimensions exchanged"""
    if rank_of(input) < 2:
        return input
    return transpose(e, input, -1, -2)


@handles("permute", Kind.SHAPE, [torch.permute], ["permute"])
def permute(e: Emitter, input: Value, *dims: int | tuple[int, ...]) -> Value:
    """Dimensions in another order, given one by one or as one tuple"""
    flat = [d for entry in dims for d in (entry if isinstance(entry, tuple) else (entry,))]
    rank = rank_of(input)
    return e.transpose(input, [d % rank for d in flat])


@handles(
    "reshape",
    Kind.SHAPE,
    [torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze],
    ["reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze"],
    settle=settle_ratios,
)
def reshape(e: Emitter, input: Value, *sizes: object, **_options: object) -> Value:
    """The same elements in row-major order under the shape of torch's result"""
    if any(isinstance(s, torch.dtype) for s in sizes):
        raise UnsupportedError("a view as another dtype; use .to(dtype) to convert")
    return e.reshape(input, e.shape)


@handles(
    "expand",
    Kind.SHAPE,
    [torch.broadcast_to],
    ["expand", "expand_as", "broadcast_to"],
    settle=settle_ratios,
)
def expand(e: Emitter, input: Value, *_sizes: object, **_options: object) -> Value:
    """Dimensions of size 1 widened, new ones in front"""
    return e.broadcast(input, e.shape)


@handles(
    "identity",
    Kind.SHAPE,
    [torch.clone, torch.detach, torch.Tensor.contiguous],
    ["contiguous", "clone", "detach"],
)
def identity(e: Emitter, input: Value, *_options: object, **_more: object) -> Value:
    """Copies and memory formats mean nothing here"""
    return input


@handles("getitem", Kind.SHAPE, [operator.getitem], ["__getitem__"])
def getitem(e: Emitter, input: Value | tuple[Value, ...], index: object) -> Value:
    """``x[:, None, :]``: new dimensions and whole ones only; ``max(dim)[0]``: the values, one of
    the results of ``topk`` and ``sort``"""
    if isinstance(input, tuple):
        if not isinstance(index, int) or index >= len(input):
            raise UnsupportedError("positions of the maximum; only its values")
        return input[index]
    entries = index if isinstance(index, tuple) else (index,)
    for entry in entries:
        if not (entry is None or entry is Ellipsis or isinstance(entry, slice)):
            raise UnsupportedError(f"indexing by {type(entry).__name__}")
        if isinstance(entry, slice) and not _starts_whole(entry):
            raise UnsupportedError("slices that leave elements out")
    # a slice with an end (mask[..., :n]) is whole if torch's shape rules kept the size
    if [s for s in e.shape if s != ONE] != [s for s in tensor_type(input).shape if s != ONE]:
        raise UnsupportedError("slices that leave elements out")
    return e.reshape(input, e.shape)


def _starts_whole(entry: slice) -> bool:
    return entry.start in (None, 0) and entry.step in (None, 1)


@handles(
    "repeat_interleave",
    Kind.SHAPE,
    [torch.repeat_interleave],
    ["repeat_interleave"],
    settle=settle_ratios,
)
def repeat_interleave(
    e: Emitter,
    input: Value,
    repeats: object,
    dim: int | None = None,
    *,
    output_size: object = None,
) -> Value:
    """[h] -> [h, 1] -> broadcast [h, r] -> [h*r]; no copy is made of it later"""
    if dim is None or not isinstance(repeats, int):
        raise UnsupportedError("repeat_interleave without dim or with a count per element")
    shape = tensor_type(input).shape
    at = dim % len(shape)
    apart = e.reshape(input, (*shape[: at + 1], ONE, *shape[at + 1 :]))
    wide = e.broadcast(apart, (*shape[: at + 1], ONE * repeats, *shape[at + 1 :]))
    return e.reshape(wide, (*shape[:at], shape[at] * repeats, *shape[at + 1 :]))
