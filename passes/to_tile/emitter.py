"""A builder for tile programs: nested regions, index arithmetic, tiles over lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Builder, Op, Region, Value
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import INDEX, RegisterType, ScratchType


@dataclass
class Loop:
    """An open ``tile.for``: its counter and carried values; ``carry`` sets what comes next."""

    counter: Value
    carried: tuple[Value, ...]
    next: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()


@dataclass
class While:
    """An open ``tile.while``: whether it goes on, and its carried values."""

    go: Value
    carried: tuple[Value, ...]
    next: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()


@dataclass
class TileBuilder:
    """Appends to the innermost open region."""

    stack: list[Builder] = field(default_factory=lambda: [Builder()])

    @property
    def top(self) -> Builder:
        return self.stack[-1]

    def __call__(self, cls: type[Op], *operands: Value, hint: str = "", **attrs: Any) -> Value:
        return self.top(cls, *operands, hint=hint, **attrs)

    def effect(self, cls: type[Op], *operands: Value, **attrs: Any) -> None:
        self.top.add(cls(*operands, loc=self.top.loc, **attrs))

    def index(self, number: int) -> Value:
        return self(m.Const, value=number, type=INDEX, hint="c")

    def size(self, size: Size) -> Value:
        known = size.constant
        if known is not None:
            return self.index(known)
        return self(t.SizeOf, size=size, hint="size")

    def whole(self, size: Size, step: int) -> Value:
        """``size`` without what is left behind whole steps."""
        known = size.constant
        if known is not None:
            return self.index(known // step * step)
        return self.mul(self.div(self.size(size), step), step)

    def add(self, a: Value, b: Value | int) -> Value:
        return self(m.Add, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def sub(self, a: Value, b: Value | int) -> Value:
        return self(m.Sub, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def mul(self, a: Value, b: Value | int) -> Value:
        return self(m.Mul, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def div(self, a: Value, b: Value | int) -> Value:
        return self(m.Div, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def mod(self, a: Value, b: Value | int) -> Value:
        return self(m.Mod, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def minimum(self, a: Value, b: Value | int) -> Value:
        return self(m.Min, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def maximum(self, a: Value, b: Value | int) -> Value:
        return self(m.Max, a, self.index(b) if isinstance(b, int) else b, hint="at")

    def number(self, value: float, dtype: DType, rank: int = 2) -> Value:
        """A constant that broadcasts over tiles of ``rank`` dimensions."""
        return self(m.Const, value=value, type=RegisterType(dtype, Layout(rank)), hint="c")

    def splat(self, x: Value, rank: int = 2) -> Value:
        return self(t.Splat, x, rank=rank, hint=x.hint)

    def number_of(self, index: Value, dtype: DType, rank: int = 2) -> Value:
        """An index as a tile of one integer."""
        number = self.splat(index, rank)
        return number if dtype == I64 else self(m.Cast, number, dtype=dtype, hint=index.hint)

    def positions_along(
        self, dim: int, layout: Layout, at: Value, dtype: DType, hint: str
    ) -> Value:
        """The positions on tile dimension ``dim``, counted from ``at``."""
        here = self(t.Coordinate, dim=dim, layout=layout)
        here = here if dtype == I64 else self(m.Cast, here, dtype=dtype, hint="here")
        return self(m.Add, here, self.number_of(at, dtype, layout.rank), hint=hint)

    def filled(self, value: float, dtype: DType, layout: Layout) -> Value:
        """A tile of one number in every element."""
        return self(m.Const, value=value, type=RegisterType(dtype, layout), hint="zero")

    def scratch(self, shape: Sequence[int], dtype: DType, hint: str) -> Value:
        return self(t.Alloc, type=ScratchType(tuple(shape), dtype), hint=hint)

    def load(
        self,
        memory: Value,
        at: Sequence[Value],
        dims: Sequence[int],
        layout: Layout,
        bounds: Sequence[tuple[int, str, Value]] = (),
        hint: str = "",
    ) -> Value:
        """A tile of ``layout`` starting at index ``at``; ``bounds``: (tile dim, kind, limit)."""
        kinds = tuple((d, k) for d, k, _ in bounds)
        limits = [limit for _, _, limit in bounds]
        return self(
            t.Load, memory, *at, *limits, dims=tuple(dims), bounds=kinds, layout=layout, hint=hint
        )

    def prefetch(
        self, memory: Value, at: Sequence[Value], dims: Sequence[int], layout: Layout
    ) -> None:
        """Asks for what a load would read, ahead of time."""
        self.effect(t.Prefetch, memory, *at, dims=tuple(dims), layout=layout)

    def store(
        self,
        value: Value,
        memory: Value,
        at: Sequence[Value],
        dims: Sequence[int],
        bounds: Sequence[tuple[int, Value]] = (),
    ) -> None:
        kinds = tuple((d, "zero") for d, _ in bounds)
        limits = [limit for _, limit in bounds]
        self.effect(t.Store, value, memory, *at, *limits, dims=tuple(dims), bounds=kinds)

    @contextmanager
    def loop(
        self, lo: Value, hi: Value, step: int, carried: Sequence[Value] = (), hint: str = "i"
    ) -> Iterator[Loop]:
        """A ``tile.for``; set ``loop.next`` inside, read ``loop.results`` after."""
        params = (Value(INDEX, hint), *(Value(c.type, c.hint) for c in carried))
        loop = Loop(params[0], params[1:])
        self.stack.append(Builder(self.top.loc))
        yield loop
        body = self.stack.pop()
        region = Region(params, tuple(body.ops), loop.next or loop.carried)
        op = t.For(lo, hi, *carried, regions=[region], step=step, hints=[c.hint for c in carried])
        self.top.add(op)
        loop.results = op.results

    @contextmanager
    def repeat(self, go: Value, carried: Sequence[Value] = ()) -> Iterator[While]:
        """A ``tile.while``; set ``loop.go`` and ``loop.next`` inside, read ``loop.results``
        after."""
        params = tuple(Value(c.type, c.hint) for c in carried)
        loop = While(go, params)
        self.stack.append(Builder(self.top.loc))
        yield loop
        body = self.stack.pop()
        region = Region(params, tuple(body.ops), (loop.go, *(loop.next or loop.carried)))
        op = t.While(go, *carried, regions=[region], hints=[c.hint for c in carried])
        self.top.add(op)
        loop.results = op.results

    @contextmanager
    def when_less(self, lo: Value, hi: Value) -> Iterator[None]:
        """A ``tile.if`` that runs while lo < hi."""
        self.stack.append(Builder(self.top.loc))
        yield
        body = self.stack.pop()
        self.top.add(t.If(lo, hi, regions=[Region((), tuple(body.ops))]))
