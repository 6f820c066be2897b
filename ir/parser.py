"""Text to modules. Every mistake is a ParseError or VerifyError with line, column and caret."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token, Transformer, v_args

import tilewright.ir.ops_math
import tilewright.ir.ops_stream
import tilewright.ir.ops_tensor
import tilewright.ir.ops_tile  # noqa: F401  (the four modules fill the registry)
from tilewright.ir.core import REGISTRY, Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import Location, ParseError, VerifyError
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    INDEX,
    Axis,
    BufferType,
    RegisterType,
    ScratchType,
    StreamType,
    TensorType,
    Type,
)

MAX_NESTING = 64
MAX_DIGITS = 18


@dataclass
class _OpText:
    results: list[Token]
    name: Token
    operands: list[Token]
    attrs: dict[str, Any]
    regions: list[_RegionText]
    types: list[Type] | None


@dataclass
class _RegionText:
    params: list[tuple[Token, Type]]
    ops: list[_OpText]
    yields: list[Token]
    depth: int = 0


@dataclass
class _Source:
    """The text being parsed, for locations."""

    text: str
    file: str
    lines: list[str] = field(default_factory=list)

    def at(self, line: int, column: int) -> Location:
        if not self.lines:
            self.lines = self.text.split("\n")
        shown = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return Location(self.file, line, column, shown)

    def token(self, token: Token) -> Location:
        return self.at(token.line or 0, token.column or 0)


def _integer(token: Token) -> int:
    if len(token) > MAX_DIGITS:
        raise _Wrong(token, f"the number has more than {MAX_DIGITS} digits")
    return int(token)


class _Wrong(Exception):
    def __init__(self, token: Token, message: str) -> None:
        self.token, self.message = token, message
        super().__init__(message)


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Runs while parsing (bottom up), so that deep nesting costs no recursion."""

    def number(self, token: Token) -> int | float:
        plain = token.lstrip("-").isdigit()
        return _integer(token) if plain else float(token)

    def string(self, token: Token) -> str:
        return token[1:-1].replace('\\"', '"').replace("\\\\", "\\")

    def word(self, token: Token) -> Any:
        if token in ("true", "false"):
            return token == "true"
        return self._dtype(token)

    def listing(self, *items: Any) -> tuple[Any, ...]:
        return tuple(items)

    def _dtype(self, token: Token) -> DType:
        if token not in TABLE:
            raise _Wrong(token, f"unknown dtype {token!s}; known: {', '.join(TABLE)}")
        return TABLE[token]

    def size_int(self, token: Token) -> Size:
        return Size.of(_integer(token))

    def size_name(self, token: Token) -> Size:
        return Size.of(str(token))

    def product(self, *factors: Size) -> Size:
        total = Size.of(1)
        if len(factors) > 16:
            raise ValueError("a product of more than 16 factors")
        for factor in factors:
            total = total * factor
        return total

    def sum(self, *items: Any) -> Size:
        total, sign = Size(), 1
        for item in items:
            if isinstance(item, Token):
                sign = -1 if item == "-" else 1
            else:
                total = total + item * sign
        return total

    def size_value(self, size: Size) -> Size:
        return size

    def axis_value(self, name: Token, size: Size) -> Axis:
        return Axis(str(name), size)

    def atom(self, kind: Token, *sizes: Token) -> tuple[Token, tuple[int, ...]]:
        return kind, tuple(_integer(s) for s in sizes)

    def layout(self, *atoms: tuple[Token, tuple[int, ...]]) -> Layout:
        ranks = {len(sizes) for kind, sizes in atoms if kind != "replicate"} or {2}
        if len(ranks) != 1:
            raise _Wrong(atoms[0][0], "the atoms of a layout must have one rank")
        out = Layout(ranks.pop())
        for kind, sizes in atoms:
            if 0 in sizes:
                raise _Wrong(kind, "sizes of a layout are positive")
            out = out.replicate(sizes[0]) if kind == "replicate" else getattr(out, kind)(*sizes)
        return out

    def dims(self, *items: Any) -> tuple[tuple[Size, ...], DType]:
        return tuple(items[:-1]), self._dtype(items[-1])

    def tensor(self, dims: Any) -> Type:
        return TensorType(*dims)

    def buffer(self, dims: Any, unit: Token) -> Type:
        return BufferType(dims[0], dims[1], int(unit))

    def scratch(self, dims: Any) -> Type:
        sizes = [s.constant for s in dims[0]]
        if any(s is None for s in sizes):
            raise ValueError("scratch memory has constant sizes")
        return ScratchType(tuple(s for s in sizes if s is not None), dims[1])

    def reg(self, dims: Any, layout: Layout) -> Type:
        if tuple(s.constant for s in dims[0]) != layout.shape:
            # a layout of rank two with all sizes one prints as local(1, 1); take the rank given
            raise ValueError(f"the layout {layout} has not the shape that the tile names")
        return RegisterType(dims[1], layout)

    def loop(self, name: Token, size: Size) -> Axis:
        return Axis(str(name), size)

    def stream_loops(self, *axes: Axis) -> tuple[Axis, ...]:
        return axes

    def stream(self, *items: Any) -> Type:
        loops = items[0] if isinstance(items[0], tuple) else ()
        element = tuple(i for i in items if isinstance(i, Axis))
        return StreamType(loops, element, self._dtype(items[-1]))

    def index(self) -> Type:
        return INDEX

    def attr(self, name: Token, value: Any) -> tuple[str, Any]:
        return str(name), value

    def attrs(self, *items: tuple[str, Any]) -> dict[str, Any]:
        return dict(items)

    def param(self, name: Token, type_: Type) -> tuple[Token, Type]:
        return name, type_

    def params(self, *items: Any) -> list[Any]:
        return [*items]

    def values(self, *items: Token) -> list[Token]:
        return [*items]

    operands = values
    types = params

    def sizes(self, *items: Token) -> tuple[str, ...]:
        return tuple(map(str, items))

    def body(self, *items: Any) -> _RegionText:
        ops = [i for i in items if isinstance(i, _OpText)]
        yields = items[-1] if isinstance(items[-1], list) else []
        inner = [r.depth for op in ops for r in op.regions]
        depth = 1 + max(inner, default=0)
        if depth > MAX_NESTING:
            token = next(i for i in items if isinstance(i, Token))
            raise _Wrong(token, f"regions are nested more than {MAX_NESTING} deep")
        return _RegionText([], ops, yields, depth)

    def region(self, *items: Any) -> _RegionText:
        text: _RegionText = items[-1]
        text.params = items[0] if len(items) > 1 else []
        return text

    def op(self, results: Any, name: Token, operands: Any, attrs: Any, *rest: Any) -> _OpText:
        regions = [r for r in rest if isinstance(r, _RegionText)]
        return _OpText(results or [], name, operands or [], attrs or {}, regions, rest[-1])

    def graph(self, level: Token, name: Token, *rest: Any) -> tuple[Any, ...]:
        sizes: tuple[str, ...] = ()
        params: list[Any] = []
        attrs: dict[str, Any] = {}
        for item in rest:
            if isinstance(item, tuple):
                sizes = item
            elif isinstance(item, list):
                params = item
            elif isinstance(item, dict):
                attrs = item
        rest[-1].params = params
        return str(level), str(name), sizes, rest[-1], attrs

    def start(self, *graphs: Any) -> list[Any]:
        return [*graphs]


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=_Reader())


def parse(text: str, file: str = "<text>") -> Module:
    """The module that ``text`` spells; ``file`` names it in errors. Raises ParseError,
    VerifyError."""
    source = _Source(text, file)
    try:
        graphs: Any = _lark().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        raise _unexpected(source, error) from None
    except lark.exceptions.VisitError as error:
        raise _visit_error(source, error) from None
    except _Wrong as error:
        raise ParseError(error.message, source.token(error.token)) from None
    except ValueError as error:
        raise ParseError(str(error), source.at(1, 1)) from None
    return Module(tuple(_build_graph(source, *g) for g in graphs))


def _visit_error(source: _Source, error: lark.exceptions.VisitError) -> ParseError:
    cause = error.orig_exc
    if isinstance(cause, _Wrong):
        return ParseError(cause.message, source.token(cause.token))
    meta = getattr(error.obj, "meta", None)
    place = (getattr(meta, "line", 1), getattr(meta, "column", 1))
    return ParseError(str(cause), source.at(*place))


_FRIENDLY = {"VALUE": "a value (%name)", "OPNAME": "an operation", "NAME": "a name", "$END": "end"}


def _unexpected(source: _Source, error: lark.exceptions.UnexpectedInput) -> ParseError:
    # not error.accepts: it copies the whole stack for every terminal
    expected = getattr(error, "expected", None)
    expected = expected or getattr(error, "allowed", None) or ()
    terminals = {t.name: t.pattern.value for t in _lark().terminals if t.pattern.type == "str"}
    names = sorted(_FRIENDLY.get(n) or repr(terminals.get(n, n)) for n in expected)
    listing = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    line, column = error.line, error.column
    token = getattr(error, "token", None)
    if (token is not None and token.type == "$END") or line in (-1, None):
        line, column = source.text.count("\n") + 1, len(source.text.split("\n")[-1]) + 1
        found = "the text ends here"
    elif token is not None:
        found = f"unexpected {str(token)[:40]!r}"
    else:
        found = f"unexpected {getattr(error, 'char', '?')!r}"
    return ParseError(f"{found}; expected {listing or 'nothing more'}", source.at(line, column))


def _build_graph(
    source: _Source,
    level: str,
    name: str,
    sizes: tuple[str, ...],
    body: _RegionText,
    attrs: dict[str, Any],
) -> Graph:
    region = _build_region(source, body, {}, sizes)
    return Graph(level, name, sizes, region, attrs)


def _build_region(
    source: _Source, text: _RegionText, outer: dict[str, Value], sizes: tuple[str, ...]
) -> Region:
    scope = dict(outer)
    params = []
    for token, type_ in text.params:
        params.append(_define(source, scope, token, Value(type_, token[1:])))
    ops = [_build_op(source, op, scope, sizes) for op in text.ops]
    yields = tuple(_lookup(source, scope, t) for t in text.yields)
    return Region(tuple(params), tuple(ops), yields)


def _define(source: _Source, scope: dict[str, Value], token: Token, value: Value) -> Value:
    if str(token) in scope:
        raise ParseError(f"{token} is defined twice", source.token(token))
    scope[str(token)] = value
    return value


def _lookup(source: _Source, scope: dict[str, Value], token: Token) -> Value:
    if str(token) not in scope:
        near = ", ".join(list(scope)[-6:]) or "none"
        raise ParseError(f"{token} is not defined here (last defined: {near})", source.token(token))
    return scope[str(token)]


def _build_op(
    source: _Source, text: _OpText, scope: dict[str, Value], sizes: tuple[str, ...]
) -> Op:
    loc = source.token(text.name)
    cls = REGISTRY.get(str(text.name))
    if cls is None:
        space = str(text.name).split(".")[0]
        known = ", ".join(n for n in REGISTRY if n.startswith(space))
        raise ParseError(f"unknown operation {text.name}; known: {known}", loc)
    operands = [_lookup(source, scope, t) for t in text.operands]
    regions = [_build_region(source, r, scope, sizes) for r in text.regions]
    hints = [str(t)[1:] for t in text.results]
    try:
        op = cls(*operands, regions=regions, loc=loc, hints=hints, **text.attrs)
    except VerifyError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ParseError(f"{text.name}: bad attribute ({error})", loc) from None
    if len(op.results) != len(text.results):
        raise ParseError(f"{text.name} has {len(op.results)} results", loc)
    if text.types is not None and list(text.types) != [r.type for r in op.results]:
        got = ", ".join(str(r.type) for r in op.results)
        raise ParseError(f"the type written after {text.name} differs from its result: {got}", loc)
    for token, value in zip(text.results, op.results, strict=True):
        _define(source, scope, token, value)
    return op
