"""Text to a tree of what is written, with limits that keep any text short work; ``parser.py`` makes
modules of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token, Transformer, v_args

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import Location, ParseError, known_words
from tilewright.ir.layout import Layout
from tilewright.ir.layout_text import WrongAtom, build_layout
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import (
    INDEX,
    Axis,
    BufferType,
    RegisterType,
    ScratchType,
    SharedType,
    StreamType,
    TensorType,
    Type,
)

MAX_NESTING = 64  # of regions and lists
MAX_DIGITS = 18  # of a size; numbers of an attribute may have two more
MAX_SIZE = 2**40
MAX_FACTORS = 16
MAX_TERMS = 64
MAX_RANK = 32
MAX_NAME = 255
# What is looked for before the text is parsed, so that any text ends in linear time.
_SCANNED = re.compile(
    rf"""
    "[^"\\\n]*(?:\\.[^"\\\n]*)*"? | //[^\n]*      # neither strings nor comments count
    | (?P<open>[\[{{]) | (?P<close>[\]}}])
    | (?P<name>\b\w{{{MAX_NAME + 1}}})
    | (?P<terms>\b(?:\w++\s*+[-+*]\s*+){{{MAX_TERMS}}})
    """,
    re.VERBOSE,
)


@dataclass
class OpText:
    """An operation as written."""

    results: list[Token]
    name: Token
    operands: list[Token]
    attrs: dict[str, Any]
    regions: list[RegionText]
    types: list[Type] | None


@dataclass
class RegionText:
    """A region or the body of a graph as written."""

    params: list[tuple[Token, Type]]
    ops: list[OpText]
    yields: list[Token]


@dataclass
class GraphText:
    """A graph as written."""

    level: Token
    name: Token
    sizes: tuple[str, ...]
    body: RegionText
    attrs: dict[str, Any]


@dataclass
class DimsText:
    """Sizes and element type of a type; the token is for errors."""

    sizes: tuple[Size, ...]
    dtype: DType
    token: Token


@dataclass
class Source:
    """The text being parsed, for locations."""

    text: str
    file: str
    lines: list[str] = field(default_factory=list)

    def at(self, line: int, column: int) -> Location:
        if not self.lines:
            self.lines = self.text.split("\n")
        shown = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return Location(self.file, line, column, shown)

    def offset(self, offset: int) -> Location:
        line = self.text.count("\n", 0, offset) + 1
        return self.at(line, offset - self.text.rfind("\n", 0, offset))

    def token(self, token: Token) -> Location:
        return self.at(token.line or 0, token.column or 0)


def _integer(token: Token, digits: int = MAX_DIGITS) -> int:
    if len(token.lstrip("-")) > digits:
        raise _Wrong(token, f"the number has more than {digits} digits")
    return int(token)


def _size(token: Token) -> int:
    number = _integer(token)
    if number > MAX_SIZE:
        raise _Wrong(token, f"sizes are at most 2**40, {number} is more")
    return number


class _Wrong(Exception):
    def __init__(self, token: Token, message: str) -> None:
        self.token, self.message = token, message
        super().__init__(message)


_ESCAPED = {'"': '"', "\\": "\\", "n": "\n", "r": "\r"}


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Runs while parsing (bottom up), so that deep nesting costs no recursion."""

    def number(self, token: Token) -> int | float:
        plain = token.lstrip("-").isdigit()
        return _integer(token, MAX_DIGITS + 2) if plain else float(token)

    def string(self, token: Token) -> str:
        return re.sub(r"\\(.)", lambda m: _ESCAPED.get(m[1], m[0]), token[1:-1])

    def word(self, token: Token) -> Any:
        if token in ("true", "false"):
            return token == "true"
        return self._dtype(token)

    def listing(self, *items: Any) -> tuple[Any, ...]:
        return tuple(items)

    def _dtype(self, token: Token) -> DType:
        if token not in TABLE:
            raise _Wrong(token, f"unknown dtype {token!s}{known_words(token, TABLE)}")
        return TABLE[token]

    def size_int(self, token: Token) -> Size:
        return Size.of(_size(token))

    def size_name(self, token: Token) -> Size:
        return Size.of(str(token))

    def product(self, *factors: Token) -> Size:
        if len(factors) > MAX_FACTORS:
            raise _Wrong(factors[0], f"a product of more than {MAX_FACTORS} factors")
        return product(_size(f) if f.type == "INT" else str(f) for f in factors)

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

    def numbers(self, *items: Token) -> tuple[int, ...]:
        return tuple(_integer(i) for i in items)

    def modes(self, kind: Token, *parts: tuple[int, ...]) -> tuple[Token, Any]:
        return kind, parts

    def layout(self, *atoms: tuple[Token, Any]) -> Layout:
        try:
            return build_layout([(str(kind), sizes) for kind, sizes in atoms])
        except WrongAtom as error:
            raise _Wrong(atoms[error.at][0], error.message) from None

    def dims(self, *items: Any) -> DimsText:
        if len(items) > MAX_RANK + 1:
            raise _Wrong(items[-1], f"a type has at most {MAX_RANK} dimensions")
        return DimsText(tuple(items[:-1]), self._dtype(items[-1]), items[-1])

    def tensor(self, dims: DimsText) -> Type:
        return TensorType(dims.sizes, dims.dtype)

    def buffer(self, dims: DimsText, unit: Token) -> Type:
        if not -1 <= _integer(unit) < len(dims.sizes):
            raise _Wrong(unit, "unit is a dimension, or -1 for none")
        return BufferType(dims.sizes, dims.dtype, int(unit))

    def scratch(self, dims: DimsText, name: str = "scratch") -> ScratchType:
        sizes = [s.constant for s in dims.sizes]
        fixed = tuple(s for s in sizes if s is not None and s >= 0)
        if len(fixed) < len(sizes):
            raise _Wrong(dims.token, f"{name} memory has constant sizes")
        if math.prod(fixed) > MAX_SIZE:
            raise _Wrong(dims.token, f"{name} memory has at most 2**40 elements")
        return ScratchType(fixed, dims.dtype)

    def shared(self, dims: DimsText, swizzle: Token | None = None) -> Type:
        number = _integer(swizzle) if swizzle is not None else 0
        plain = SharedType(self.scratch(dims, "shared").shape, dims.dtype)
        if not plain.fits_swizzle(number):
            raise _Wrong(swizzle or dims.token, "a swizzle is 2, 4 or 8 pieces of a row")
        return SharedType(plain.shape, plain.dtype, number)

    def reg(self, dims: DimsText, layout: Layout) -> Type:
        if tuple(s.constant for s in dims.sizes) != layout.shape:
            message = f"the layout {layout} has not the shape that the tile names"
            raise _Wrong(dims.token, message)
        return RegisterType(dims.dtype, layout)

    def loop(self, name: Token, size: Size) -> Axis:
        return Axis(str(name), size)

    def stream_loops(self, *axes: Axis) -> tuple[Axis, ...]:
        return axes

    def stream(self, *items: Any) -> Type:
        loops = items[0] if isinstance(items[0], tuple) else ()
        element = tuple(i for i in items if isinstance(i, Axis))
        names = {a.name for a in loops + element}
        if len(names) < len(loops + element):
            raise _Wrong(items[-1], "an axis occurs twice in the stream")
        if len(names) > MAX_RANK:
            raise _Wrong(items[-1], f"a type has at most {MAX_RANK} dimensions")
        return StreamType(loops, element, self._dtype(items[-1]))

    def index(self) -> Type:
        return INDEX

    def attr(self, name: Token, value: Any) -> tuple[Token, Any]:
        return name, value

    def attrs(self, *items: tuple[Token, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in items:
            if name in out:
                raise _Wrong(name, f"the attribute {name} is given twice")
            out[str(name)] = value
        return out

    def param(self, name: Token, type_: Type) -> tuple[Token, Type]:
        return name, type_

    def params(self, *items: Any) -> list[Any]:
        return [*items]

    def values(self, *items: Token) -> list[Token]:
        return [*items]

    operands = values
    types = params

    def sizes(self, *items: Token) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for item in items:
            if item in names:
                raise _Wrong(item, f"the size {item} is declared twice")
            names[str(item)] = None
        return tuple(names)

    def body(self, *items: Any) -> RegionText:
        ops = [i for i in items if isinstance(i, OpText)]
        yields = items[-1] if isinstance(items[-1], list) else []
        return RegionText([], ops, yields)

    def region(self, *items: Any) -> RegionText:
        text: RegionText = items[-1]
        text.params = items[0] if len(items) > 1 else []
        return text

    def op(self, results: Any, name: Token, operands: Any, attrs: Any, *rest: Any) -> OpText:
        regions = [r for r in rest if isinstance(r, RegionText)]
        return OpText(results or [], name, operands or [], attrs or {}, regions, rest[-1])

    def graph(self, level: Token, name: Token, *rest: Any) -> GraphText:
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
        return GraphText(level, name, sizes, rest[-1], attrs)

    def start(self, *graphs: Any) -> list[Any]:
        return [*graphs]


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = (Path(__file__).parent / "grammar.lark").read_text()
    starts = ["start", "layout"]
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=_Reader(), start=starts)


def read(source: Source) -> list[GraphText]:
    """The graphs as they are written, no name looked up yet. Raises ParseError."""
    graphs: list[GraphText] = _read(source, "start")
    return graphs


def read_layout(text: str) -> Layout:
    """The layout that prints as ``text``. Raises ParseError."""
    layout: Layout = _read(Source(text, "<layout>"), "layout")
    return layout


def _read(source: Source, start: str) -> Any:
    _scan(source)
    try:
        return _lark().parse(source.text, start=start)
    except lark.exceptions.UnexpectedInput as error:
        raise _unexpected(source, error) from None
    except _Wrong as error:
        raise ParseError(error.message, source.token(error.token)) from None


def _scan(source: Source) -> None:
    """Refuses what would take long to parse: deep nesting, long names and long sums."""
    depth = 0
    for match in _SCANNED.finditer(source.text):
        if match["open"]:
            depth += 1
            if depth > MAX_NESTING:
                message = f"regions and lists are nested more than {MAX_NESTING} deep"
                raise ParseError(message, source.offset(match.start()))
        elif match["close"]:
            depth -= 1
        elif match["name"]:
            message = f"a name or number of more than {MAX_NAME} characters"
            raise ParseError(message, source.offset(match.start()))
        elif match["terms"]:
            message = f"a size of more than {MAX_TERMS} terms or factors"
            raise ParseError(message, source.offset(match.start()))


_FRIENDLY = {
    "$END": "end",
    "ATOM": "a layout",
    "MODES": "a layout",
    "END": "'return' or 'yield'",
    "ESCAPED_STRING": "a string",
    "INT": "a number",
    "INTEGER": "a number",
    "LEVEL": "'graph', 'stream' or 'tile'",
    "NAME": "a name",
    "NUMBER": "a number",
    "OPNAME": "an operation",
    "SIGN": "'+' or '-'",
    "VALUE": "a value (%name)",
}


def _unexpected(source: Source, error: lark.exceptions.UnexpectedInput) -> ParseError:
    # not error.accepts: it copies the whole stack for every terminal
    expected = getattr(error, "expected", None)
    expected = expected or getattr(error, "allowed", None) or ()
    terminals = {t.name: t.pattern.value for t in _lark().terminals if t.pattern.type == "str"}
    names = sorted({_FRIENDLY.get(n) or repr(terminals.get(n, n)) for n in expected})
    listing = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    place = source.at(error.line, error.column)
    token = getattr(error, "token", None)
    if (token is not None and token.type == "$END") or error.line in (-1, None):
        place = source.offset(len(source.text.rstrip()))
        found = "the text ends here"
    elif token is not None:
        found = f"unexpected {str(token)[:40]!r}"
    else:
        found = f"unexpected {getattr(error, 'char', '?')!r}"
    return ParseError(f"{found}; expected {listing or 'nothing more'}", place)
