"""From a form and traced functions to one graph: scores, their changes, masks, softmax, values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.form import PAGED, RAGGED, Form, Space
from tilewright.frontend.attention.low_bit import CACHE_NAMES, cached
from tilewright.frontend.attention.recipe import Recipe
from tilewright.frontend.attention.source import definition
from tilewright.frontend.attention.symbols import Symbol, make_symbol
from tilewright.frontend.attention.tracer import Tracer
from tilewright.frontend.op_map.attention import safe_softmax, scaled, weighted
from tilewright.frontend.op_map.emitter import ONE, Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.torch_dtypes import ir_dtype, torch_dtype
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Region, Value, size_names
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

Function = Callable[..., Any]


@dataclass(frozen=True)
class Traced:
    """A module; which of the layout's tensors it takes, by name; then those of the recipe."""

    module: Module
    given: tuple[str, ...]
    recipe: Recipe


def build(
    form: Form,
    score_mod: Function | None,
    mask_mod: Function | None,
    closure: Closure,
    device: torch.device,
) -> Traced:
    """Traces the functions and emits the whole program.

    Raises UnsupportedError with the user's line for what cannot be traced.
    """
    e = Emitter()
    space = Space(e, form)
    recipe = Recipe(closure, taken=_NAMES)
    tracer = Tracer(e, recipe, device)
    scores, value = _scores(space)
    limits, positions = _limits(space)
    if score_mod is not None:
        scores = _changed(space, tracer, score_mod, scores, positions)
    scores = _with_tensors(space, scores, limits)
    if mask_mod is not None:
        result = tracer.run(mask_mod, *positions())
        if result is not True:
            limits.append(_truth(tracer, result, mask_mod))
    scores = _masked(space, scores, limits)
    results = _results(space, scores, value)
    recipe.finish()
    parameters = (*space.parameters.values(), *recipe.parameters)
    sizes = [s for p in parameters for s in tensor_type(p).shape]
    body = Region(parameters, _used(e.builder.ops, results), results)
    module = Module((Graph("graph", "attention", size_names(sizes), body),))
    return Traced(module, tuple(space.parameters), recipe)


def _used(ops: Sequence[Op], results: Sequence[Value]) -> tuple[Op, ...]:
    """Operations that a result depends on: tracing makes sizes and positions that nobody reads."""
    needed = set(results)
    kept: list[Op] = []
    for op in reversed(ops):
        if needed.intersection(op.results):
            kept.append(op)
            needed.update(op.operands)
    return tuple(reversed(kept))


# parameters and sizes of the layouts, which closed-over tensors must not be called
_TAKEN = "q k v seqused_k block_table sinks mask bias first_key end_key sequence first_query"
_NAMES = (*_TAKEN.split(), *"BHKNMTP", *CACHE_NAMES)


def _scores(space: Space) -> tuple[Value, Value]:
    """Scaled products of queries and keys in the scores' dimensions, and the values for them."""
    e, form, sizes = space.e, space.form, space.sizes
    inner, outer = form.widths
    batch = () if form.layout == RAGGED else (sizes["b"],)
    rows = (sizes["n"], space.heads) if form.layout == RAGGED else (space.heads, sizes["n"])
    query = space.parameter("q", (*batch, *rows, ONE * inner), form.dtype)
    if form.layout == RAGGED:
        query = e.transpose(query, (1, 0, 2))
    if form.groups > 1:
        query = e.reshape(query, (*batch, sizes["k"], sizes["g"], sizes["n"], ONE * inner))
    key, value = _keys(space, "k", inner), _keys(space, "v", outer)
    letters = space.lead.replace("g", "") + "md"
    if form.keys is not None:
        query = e.cast(query, tensor_type(key).dtype)
    scores = e.contract(f"{space.lead}nd,{letters}->{space.letters}", query, key)
    return scaled(e, scores, form.scale, ONE * inner), value


def _keys(space: Space, name: str, width: int) -> Value:
    """Keys or values as [b, k, m, width] ([k, m, width] if ragged)."""
    form, sizes, e = space.form, space.sizes, space.e
    side = form.keys if name == "k" else form.values
    if side is not None:
        return cached(space, name, side)
    if form.layout == RAGGED:
        given = space.parameter(name, (sizes["m"], space.key_heads, ONE * width), form.dtype)
        return e.transpose(given, (1, 0, 2))
    if form.layout != PAGED:
        batch = ONE if form.one_batch else sizes["b"]
        shape = (batch, space.key_heads, sizes["m"], ONE * width)
        return space.parameter(name, shape, form.dtype)
    return _from_pages(space, name, width)


def _from_pages(space: Space, name: str, width: int) -> Value:
    """pages[block_table[b, m // page], m % page, head, d]; values past the used length are zeros,
    since memory that nobody wrote may hold NaN, and NaN times weight 0 is NaN."""
    form, sizes, e = space.form, space.sizes, space.e
    assert form.table is not None
    pages = (Size.of("P"), ONE * form.page, space.key_heads, ONE * width)
    given = space.parameter(name, pages, form.dtype)
    table = space.parameter("block_table", (sizes["b"], Size.of("T")), form.table)
    shape = (sizes["b"], space.key_heads, sizes["m"], ONE * width)

    def along(dim: int) -> Value:
        return e.iota([s if i == dim else ONE for i, s in enumerate(shape)], dim, I64)

    page = e.const(form.page, I64)
    entry = e.op(t.Gather, table, along(0), e.op(m.Div, along(2), page), hint="page")
    place = e.op(m.Mod, along(2), page)
    taken = e.op(t.Gather, given, entry, place, along(1), along(3), hint=name)
    if name == "k" or form.used is None:
        return taken
    used = space.parameter("seqused_k", (sizes["b"],), form.used)
    length = e.cast(e.op(t.Gather, used, along(0)), I64)
    inside = e.compare(along(2), length, "lt")
    wide = arithmetic_dtype(tensor_type(taken).dtype)
    return e.select(inside, taken, e.const(0.0, wide), tensor_type(taken).dtype)


def _limits(space: Space) -> tuple[list[Value], Callable[[], list[Symbol]]]:
    """Conditions that the layout and is_causal put on a score, and b, h, q_idx, kv_idx for the
    user's functions."""
    return _ragged_limits(space) if space.form.layout == RAGGED else _dense_limits(space)


def _dense_limits(space: Space) -> tuple[list[Value], Callable[[], list[Symbol]]]:
    e, form = space.e, space.form
    limits: list[Value] = []
    row, column = space.position("n"), space.position("m")
    if form.used is not None:
        used = space.looked_up("seqused_k", "b", form.used)
        limits.append(e.compare(column, used, "lt"))
        if form.causal:  # the last query sees the last key
            shift = e.op(m.Sub, used, space.size("n"))
            limits.append(e.compare(column, e.op(m.Add, row, shift), "le"))
    elif form.causal and (form.keys or form.values):  # as with lengths: the queries are its end
        shift = e.op(m.Sub, space.size("m"), space.size("n"))
        limits.append(e.compare(column, e.op(m.Add, row, shift), "le"))
    elif form.causal:
        limits.append(e.compare(row, column, "ge"))

    def positions() -> list[Symbol]:
        indices = (space.position("b"), space.head(), row, column)
        return [make_symbol(x, torch.int64, nonnegative=True) for x in indices]

    return limits, positions


def _ragged_limits(space: Space) -> tuple[list[Value], Callable[[], list[Symbol]]]:
    """Each row takes the keys from ``first_key`` to before ``end_key`` of its sequence (with
    is_causal only to its own place): two comparisons with numbers of the row, which intervals over
    blocks decide at once; no key needs to know its sequence."""
    e = space.e
    column = space.position("m")
    first, end = space.looked_up("first_key", "n"), space.looked_up("end_key", "n")
    limits = [e.compare(column, first, "ge"), e.compare(column, end, "lt")]

    def positions() -> list[Symbol]:
        start = space.looked_up("first_query", "n")
        row = e.op(m.Sub, space.position("n"), start)
        # below 0 only for keys before the row's sequence, which are masked whatever is read there
        key = e.op(m.Sub, column, first)
        indices = (space.looked_up("sequence", "n"), space.head(), row, key)
        return [make_symbol(x, torch.int64, nonnegative=True) for x in indices]

    return limits, positions


def _changed(
    space: Space,
    tracer: Tracer,
    score_mod: Function,
    scores: Value,
    positions: Callable[[], list[Symbol]],
) -> Value:
    """What the user's function makes of the scores, in their dtype and shape."""
    dtype = torch_dtype(tensor_type(scores).dtype)
    result = tracer.run(score_mod, make_symbol(scores, dtype), *positions())
    value = tracer.value(result, dtype, definition(score_mod))
    return space.e.broadcast(value, space.shape(space.letters))


def _with_tensors(space: Space, scores: Value, limits: list[Value]) -> Value:
    """Scores plus what the form's tensors add to them; a bool mask joins the limits."""
    e, dtype = space.e, tensor_type(scores).dtype
    for name, given in (("bias", space.form.bias), ("mask", space.form.mask)):
        if given is None:
            continue
        value = space.over_scores(name, given)
        if given[0] == torch.bool:
            limits.append(value)
        else:
            scores = e.op(m.Add, scores, e.cast(value, dtype))
    return scores


def _truth(tracer: Tracer, result: Any, mask_mod: Function) -> Value:
    """A mask function's result as bool; numbers other than 0 take part."""
    if isinstance(result, Symbol) and tensor_type(result.value).dtype != BOOL:
        dtype = tensor_type(result.value).dtype
        return tracer.emitter.compare(result.value, tracer.emitter.const(0, dtype), "ne")
    return tracer.value(result, torch.bool, definition(mask_mod))


def _masked(space: Space, scores: Value, limits: Sequence[Value]) -> Value:
    if not limits:
        return scores
    e = space.e
    mask = limits[0]
    for other in limits[1:]:
        mask = e.op(m.And, mask, other)
    return e.op(m.Select, mask, scores, e.const(-math.inf, tensor_type(scores).dtype))


def _results(space: Space, scores: Value, value: Value) -> tuple[Value, ...]:
    """The weighted values, then the logarithm of the sum and the maximum as far as wanted."""
    e, form = space.e, space.form
    equation = f"{space.letters},{space.lead.replace('g', '')}me->{space.lead}ne"
    statistics: list[Value] = []
    if form.lse or form.largest or form.sinks is not None:
        soft = safe_softmax(e, scores, _sinks(space, tensor_type(scores)))
        weights = soft.weights
        if form.lse:
            statistics.append(soft.logarithm)
        if form.largest:
            statistics.append(soft.largest)
    else:
        axis = len(space.letters) - 1
        weights = e.op(t.Softmax, scores, axis=axis, safe=True, hint="weights")
    output = weighted(e, weights, value, equation)
    lead = () if form.layout == RAGGED else (space.sizes["b"],)
    rows = (*lead, space.heads, space.sizes["n"])
    output = e.cast(e.reshape(output, (*rows, ONE * form.widths[1])), ir_dtype(form.dtype))
    if form.layout == RAGGED:
        output = e.transpose(output, (1, 0, 2))
    elif form.heads_last:
        output = e.transpose(output, (0, 2, 1, 3))
    return (output, *(e.reshape(x, rows) for x in statistics))


def _sinks(space: Space, scores: TensorType) -> Value | None:
    if space.form.sinks is None:
        return None
    e = space.e
    given = space.parameter("sinks", (space.heads,), space.form.sinks)
    return e.cast(e.op(t.Gather, given, space.head(), hint="sink"), scores.dtype)
