"""Attention from a layer's input in codes as a tensor program: keys and values are projected from
it, keys rotated. How they are made is up to a rewrite (``tilewright.passes.rematerialise``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from tilewright.frontend.attention.form import CacheSide
from tilewright.frontend.op_map.emitter import ONE, Emitter, tensor_type
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Region, Value, size_names
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_cache import CachedTensor
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.runtime.kv_cache.remade import FromInput
from tilewright.runtime.kv_cache.tokens import CachedTokens

Sizes = tuple[Size | int, ...]
Parameter = Callable[[str, Sizes, torch.dtype], Value]
B, H, G, N, M, R = (Size.of(name) for name in "BHGNMR")


@dataclass(frozen=True)
class InputForm:
    """What a program is compiled for: how the input lies, head sizes of keys and values, whether
    keys are rotated and queries see the tokens up to their own."""

    side: CacheSide
    head: int
    value_head: int
    rotated: bool
    causal: bool


@dataclass(frozen=True)
class Extents:
    """Key heads, query heads of each, queries, tokens: what the cheapest form depends on."""

    key_heads: int
    groups: int
    rows: int
    tokens: int


@lru_cache(maxsize=256)
def program_for(form: InputForm, extents: Extents) -> FromInput:
    """The kernel for a form. Raises UnsupportedError if there is none."""
    sizes = {"B": 1, "H": extents.key_heads, "G": extents.groups, "N": extents.rows}
    return FromInput(attention_graph(form), "M", {**sizes, "M": extents.tokens, "R": 1})


def attention_graph(form: InputForm) -> Graph:
    """%q [B, H, G, N, head] and the input of M tokens, %wk and %wv [H, width, head]; rotated ones
    take %cos and %sin [M, head]. The result is [B, H, G, N, value head]."""
    e = Emitter()
    params: list[Value] = []

    def parameter(name: str, shape: Sizes, dtype: torch.dtype) -> Value:
        sizes = tuple(ONE * s if isinstance(s, int) else s for s in shape)
        params.append(Value(TensorType(sizes, ir_dtype(dtype)), name))
        return params[-1]

    width = form.side.form.width
    q = parameter("q", (B, H, G, N, form.head), torch.float32)
    x = _input(e, form.side, parameter)
    weights = [
        parameter(name, (H, width, size), torch.float32)
        for name, size in (("wk", form.head), ("wv", form.value_head))
    ]
    k, v = (
        e.op(t.Contract, x, w, equation="bmc,hcd->bhmd", hint=name)
        for w, name in zip(weights, "kv", strict=True)
    )
    if form.rotated:
        tables = [parameter(name, (M, form.head), torch.float32) for name in ("cos", "sin")]
        k = _rotated(e, k, form.head, tables)
    scores = e.op(t.Contract, q, k, equation="bhgnd,bhmd->bhgnm", hint="scores")
    if form.causal:
        scores = _causal(e, scores)
    p = e.op(t.Softmax, scores, axis=4, safe=True, hint="p")
    out = e.op(t.Contract, p, v, equation="bhgnm,bhme->bhgne", hint="out")
    names = size_names([s for p in params for s in tensor_type(p).shape])
    body = Region(tuple(params), tuple(e.builder.ops), (out,))
    return Graph("graph", "attention_from_input", names, body)


def _input(e: Emitter, side: CacheSide, parameter: Parameter) -> Value:
    """The layer's input [B, M, width] that the codes stand for."""
    form = side.form
    if form.by != "token":
        raise UnsupportedError("a layer's input with scales by channel: take groups of a token")
    beside = (B, 1, form.channel_groups, M)
    given = [
        parameter("words", (B, 1, R, form.columns), torch.int32),
        parameter("scales", beside, side.scales),
    ]
    if side.zeros:
        given.append(parameter("zeros", beside, side.scales))
    x = e.op(
        CachedTensor,
        *given,
        tokens=form.tokens,
        bits=form.bits,
        by=form.by,
        group=form.group,
        length=M,
        width=form.width,
        zero=side.zero,
        zeros=side.zeros,
        hint="x",
    )
    return e.reshape(x, (B, M, ONE * form.width))


def _rotated(e: Emitter, k: Value, head: int, tables: list[Value]) -> Value:
    """k cos + (-second half, first half) sin"""
    first = e.op(t.Slice, k, axis=3, start=0, stop=head // 2)
    second = e.op(t.Slice, k, axis=3, start=head // 2, stop=head)
    turned = e.op(t.Concat, e.op(m.Neg, second), first, axis=3, hint="turned")
    cos, sin = tables
    both = e.op(m.Mul, k, cos), e.op(m.Mul, turned, sin)
    return e.op(m.Add, *both, hint="rotated")


def _causal(e: Emitter, scores: Value) -> Value:
    """Query n sees the tokens up to M - N + n: the queries are the last ones."""
    n, token = e.iota((N, ONE), 0), e.iota((ONE, M), 1)
    many, few = (e.op(m.SizeValue, size=s, type=TensorType((), I64)) for s in (M, N))
    last = e.op(m.Add, n, e.op(m.Sub, many, few))
    seen = e.op(m.Compare, token, last, relation="le")
    return e.op(m.Select, seen, scores, e.const(-math.inf, F32))


def inputs_of(x: CachedTokens) -> dict[str, torch.Tensor]:
    """The tensors of the layer's input by parameter name."""
    return dict(zip(("words", "scales", "zeros"), x.tensors(), strict=False))
