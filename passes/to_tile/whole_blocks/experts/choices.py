"""The choices of a call as tiles: which token made each, and which expert it means."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32, I64, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.passes.to_tile.emitter import TileBuilder

CHUNK = 64  # choices that are looked at at once


@dataclass(frozen=True)
class PlanForm:
    """Plans for ids [T, ``chosen``] (dtypes ``ids``, ``weights``) of ``experts`` experts, in blocks
    of ``rows`` rows.

    With ``base`` above 0 ids are of so many base experts, and a token's adapter says what they
    mean. ``skip``: ids from ``experts`` on are of no expert, else they are wrong.
    """

    experts: int
    chosen: int
    ids: DType
    weights: DType
    base: int
    skip: bool
    rows: int


@dataclass(frozen=True)
class Chunk:
    """Choices from ``first`` on, along a dimension of tiles: ``at`` i32, their numbers; ``expert``
    i32, the number of experts where there is none; ``wrong`` and ``inside`` bool."""

    first: Value
    at: Value
    expert: Value
    wrong: Value
    inside: Value


class Choices:
    """Reads choices: ids [P], and with adapters the adapter of a token and its map."""

    def __init__(
        self, b: TileBuilder, form: PlanForm, ids: Value, adapters: tuple[Value, ...]
    ) -> None:
        self.b, self.form, self.ids, self.adapters = b, form, ids, adapters

    @property
    def count(self) -> Value:
        """P"""
        return self.b.size(Size.of("T") * self.form.chosen)

    def layout(self, dim: int) -> Layout:
        """Of a chunk along a dimension of tiles."""
        return Layout(2).local(CHUNK, 1) if dim == 0 else Layout(2).local(1, CHUNK)

    def read(self, first: Value, end: Value, dim: int) -> Chunk:
        """The chunk that begins at ``first``; those from ``end`` on mean no expert."""
        b, form, layout = self.b, self.form, self.layout(dim)
        here = b(m.Cast, b(t.Coordinate, dim=dim, layout=layout), dtype=I32, hint="here")
        at = b(m.Add, here, as_i32(b, first), hint="choice")
        inside = b(m.Compare, at, as_i32(b, end), relation="lt", hint="inside")
        ids = b.load(self.ids, [first], (dim,), layout, [(dim, "zero", end)], hint="id")
        ids = b(m.Cast, ids, dtype=I64, hint="id")
        known = form.base or form.experts
        zero, last = b.number(0, I64), b.number(known - 1, I64)
        wrong = b(m.Compare, ids, zero, relation="lt", hint="wrong")
        if form.base or not form.skip:
            above = b(m.Compare, ids, last, relation="gt", hint="above")
            wrong = b(m.Or, wrong, above, hint="wrong")
        expert = self._meant(at, inside, b(m.Max, b(m.Min, ids, last), zero)) if form.base else ids
        none = b.number(form.experts, I64)
        expert = b(m.Min, expert, none, hint="expert")
        outside = b(m.Or, wrong, b(m.Not, inside), hint="outside")
        expert = b(m.Select, outside, none, expert, hint="expert")
        return Chunk(first, at, b(m.Cast, expert, dtype=I32, hint="expert"), wrong, inside)

    def token(self, chunk: Chunk) -> Value:
        """i32, the token that made each choice."""
        return self._token(chunk.at)

    def _token(self, at: Value) -> Value:
        return self.b(m.Div, at, self.b.number(self.form.chosen, I32), hint="token")

    def _meant(self, at: Value, inside: Value, ids: Value) -> Value:
        """i64, the experts that base experts mean to the tokens' adapters."""
        b = self.b
        adapters, table = self.adapters
        zero = b.number(0, I64)
        token = b(m.Select, inside, self._token(at), b.number(0, I32), hint="token")
        token = b(m.Cast, token, dtype=I64, hint="token")
        adapter = b(t.Gather, adapters, b.index(0), token, hint="adapter")
        adapter = b(m.Cast, adapter, dtype=I64, hint="adapter")
        row = b(m.Mul, b(m.Max, adapter, zero), b.splat(b(t.StrideOf, table, dim=0)), hint="row")
        mapped = b(t.Gather, table, b.index(0), b(m.Add, row, ids), hint="mapped")
        mapped = b(m.Max, b(m.Cast, mapped, dtype=I64), zero, hint="mapped")
        own = b(m.Compare, adapter, zero, relation="ge", hint="own")
        return b(m.Select, own, mapped, ids, hint="expert")


def as_i32(b: TileBuilder, x: Value) -> Value:
    """A run-time integer as a tile of one."""
    return b(m.Cast, b.splat(x), dtype=I32, hint=x.hint)


def one_hot(b: TileBuilder, chunk: Value, experts: Value) -> Value:
    """i32, 1 where a choice is an expert's."""
    same = b(m.Compare, chunk, experts, relation="eq", hint="same")
    return b(m.Cast, same, dtype=I32, hint="same")
