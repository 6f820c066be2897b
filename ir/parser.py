"""Text to modules. Every mistake is a ParseError or VerifyError with line, column and caret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lark import Token

import tilewright.ir.ops_cache
import tilewright.ir.ops_lowbit
import tilewright.ir.ops_math
import tilewright.ir.ops_remake
import tilewright.ir.ops_routing
import tilewright.ir.ops_routing_stream
import tilewright.ir.ops_stream
import tilewright.ir.ops_tensor
import tilewright.ir.ops_tile
import tilewright.ir.ops_tile_memory  # noqa: F401  (these modules fill the registry)
from tilewright.ir.core import REGISTRY, Graph, Module, Op, Region, Value
from tilewright.ir.errors import Location, ParseError, VerifyError, close_to
from tilewright.ir.ops_tile import BlockId
from tilewright.ir.reader import GraphText, OpText, RegionText, Source, read
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, BufferType, StreamType, TensorType

_KEYWORDS = frozenset({"self", "regions", "loc", "hints"})  # of Op's constructor: no attributes
# Spaces of the operations that a graph of each level may hold.
_SPACES = {"graph": ("tensor", "math"), "stream": ("stream", "tensor", "math")}


@dataclass
class _Scope:
    """What an operation may refer to: values by name, spaces of operations, size names."""

    values: dict[str, Value]
    spaces: tuple[str, ...]
    sizes: frozenset[str]


def parse(text: str, file: str = "<text>") -> Module:
    """The module that ``text`` spells; ``file`` names it in errors. Raises ParseError,
    VerifyError; TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a program is text, not {type(text).__name__}: read it, or decode it")
    source = Source(text, file)
    return Module(tuple(_build_graph(source, g) for g in read(source)))


def _build_graph(source: Source, text: GraphText) -> Graph:
    """Without a header the sizes are those of the parameters."""
    level = str(text.level)
    in_params = [name for _, type_ in text.body.params for name in _names_in(type_)]
    sizes = text.sizes or tuple(dict.fromkeys(in_params))
    scope = _Scope({}, _SPACES.get(level, ("tile", "math")), frozenset(sizes))
    graph = Graph(level, str(text.name), sizes, _build_region(source, text.body, scope), text.attrs)
    place = source.token(text.name)
    _require_declared(text.attrs, scope, place)
    if level == "tile":
        _check_launch(graph, place)
    return graph


def _check_launch(graph: Graph, place: Location) -> None:
    """A grid is a list of [size, tile]; outputs counts the last parameters, which are buffers."""
    grid, outputs = graph.attrs.get("grid", ()), graph.attrs.get("outputs", 0)
    pairs = isinstance(grid, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in grid)
    if not pairs or not all(
        isinstance(size, int | Size) and isinstance(tile, int) and tile > 0 for size, tile in grid
    ):
        raise ParseError("grid must be a list of pairs [size, tile], tile at least 1", place)
    if not isinstance(outputs, int) or not 0 <= outputs <= len(graph.params):
        raise ParseError(
            f"outputs must be a number of parameters (0 to {len(graph.params)})", place
        )
    for op in graph.body.walk():
        if isinstance(op, BlockId) and not 0 <= op.dim < max(len(grid), 1):
            raise op.error(f"the grid has {len(grid)} dimensions")


def _names_in(attr: Any) -> Iterator[str]:
    """Size names in an attribute or a type."""
    if isinstance(attr, tuple):
        for item in attr:
            yield from _names_in(item)
    elif isinstance(attr, Size):
        yield from sorted(attr.names)
    elif isinstance(attr, Axis):
        yield from sorted(attr.size.names)
    elif isinstance(attr, TensorType | BufferType):
        yield from _names_in(attr.shape)
    elif isinstance(attr, StreamType):
        yield from _names_in(attr.axes)


def _require_declared(attrs: dict[str, Any], scope: _Scope, place: Location) -> None:
    for name in _names_in(tuple(attrs.values())):
        if name not in scope.sizes:
            raise ParseError(f"the size {name} is not declared in the graph's <…>", place)


def _build_region(source: Source, text: RegionText, outer: _Scope) -> Region:
    scope = replace(outer, values=dict(outer.values))
    params = []
    for token, type_ in text.params:
        _require_declared({"type": type_}, scope, source.token(token))
        params.append(_define(source, scope, token, Value(type_, token[1:])))
    ops = [_build_op(source, op, scope) for op in text.ops]
    yields = tuple(_lookup(source, scope, t) for t in text.yields)
    return Region(tuple(params), tuple(ops), yields)


def _define(source: Source, scope: _Scope, token: Token, value: Value) -> Value:
    if str(token) in scope.values:
        raise ParseError(f"{token} is defined twice", source.token(token))
    scope.values[str(token)] = value
    return value


def _lookup(source: Source, scope: _Scope, token: Token) -> Value:
    value = scope.values.get(str(token))
    if value is None:
        near = ", ".join(list(scope.values)[-6:]) or "none"
        raise ParseError(f"{token} is not defined here (last defined: {near})", source.token(token))
    return value


def _near(name: str) -> str:
    """The operation that was probably meant: of that word in another space, or a word like it."""
    word = name.partition(".")[2]
    same = [n for n in REGISTRY if word and n.partition(".")[2] == word]
    return f"; did you mean {same[0]!r}?" if same else close_to(name, REGISTRY)


def _build_op(source: Source, text: OpText, scope: _Scope) -> Op:
    loc = source.token(text.name)
    cls = REGISTRY.get(str(text.name))
    space = str(text.name).split(".")[0]
    if cls is None:
        known = ", ".join(n for n in REGISTRY if n.startswith(space))
        raise ParseError(f"unknown operation {text.name}{_near(text.name)}; known: {known}", loc)
    if space not in scope.spaces:
        message = (
            f"{text.name} is of another level; here belong {', '.join(scope.spaces)} operations"
        )
        raise ParseError(message, loc)
    if taken := _KEYWORDS & set(text.attrs):
        raise ParseError(f"{text.name} has no attribute {min(taken)!r}", loc)
    _require_declared(text.attrs, scope, loc)
    operands = [_lookup(source, scope, t) for t in text.operands]
    regions = [_build_region(source, r, scope) for r in text.regions]
    hints = [str(t)[1:] for t in text.results]
    try:
        op = cls(*operands, regions=regions, loc=loc, hints=hints, **text.attrs)
    except VerifyError as error:
        if error.location is None:  # from the arithmetic of sizes
            raise VerifyError(f"{text.name}: {error.message}", loc) from None
        raise
    if len(op.results) != len(text.results):
        raise ParseError(f"{text.name} has {len(op.results)} results", loc)
    if text.types is not None and list(text.types) != [r.type for r in op.results]:
        got = ", ".join(str(r.type) for r in op.results)
        raise ParseError(f"the type written after {text.name} differs from its result: {got}", loc)
    for token, value in zip(text.results, op.results, strict=True):
        _define(source, scope, token, value)
    return op
