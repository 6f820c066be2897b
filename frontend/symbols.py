"""From Dynamo's symbolic integers to the IR's size names, and the guards that fix some of them.

Dynamo describes a dimension by a sympy expression such as ``s34 + 1``. A region's program only sees
the shapes of its inputs, so every size in it has to follow from those; what does not is refused.
Guards are added to Dynamo's own shape environment: when one no longer holds, Dynamo captures again.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size, product

Dim = int | torch.SymInt
Expr = Any  # a sympy expression; sympy itself is not imported here and ships no types


def expression(dim: Dim) -> Expr | int:
    """The dimension's expression with everything that guards already tell put in."""
    if isinstance(dim, int):
        return dim
    expr = dim.node.expr
    expr = _equals(dim).get(expr, expr)
    return int(expr) if expr.is_Integer else expr


_tables: weakref.WeakKeyDictionary[Any, tuple[int, dict[Expr, Expr]]] = weakref.WeakKeyDictionary()


def _equals(dim: torch.SymInt) -> dict[Expr, Expr]:
    """What guards say of whole expressions: each to the simplest one that it is equal to.

    torch's own shape rules add such guards, and puts them in by itself only where one side is a
    symbol: ``silu(g) * u`` of the two halves of a row says ``(s + 1)//2 == s - (s + 1)//2``.
    """
    env = dim.node.shape_env
    seen, table = _tables.get(env, (0, {}))
    if seen < len(env.guards):
        table = {}
        for left, right in _equalities(env):
            _unite(table, left, right)
        _tables[env] = (len(env.guards), table)
    return table


def _equalities(env: Any) -> list[list[Expr]]:
    """The two sides of every equality that is guarded."""
    found = [g.expr for g in env.guards if g.expr.func.__name__ == "Equality"]
    return [[env.replace(side) for side in expr.args] for expr in found]


def _unite(table: dict[Expr, Expr], left: Expr, right: Expr) -> None:
    if _monomial(left) and _monomial(right):
        return  # b*t == c*u, 10*s == 30: what is made by merging dimensions has to say which
    plain, other = sorted((table.get(x, x) for x in (left, right)), key=_effort)
    if plain != other:
        table.update({x: plain for x, found in table.items() if found == other})
        table[other] = plain


def _monomial(expr: Expr) -> bool:
    factors = expr.args if expr.is_Mul else (expr,)
    return all(f.is_Symbol or f.is_Integer for f in factors)


def _effort(expr: Expr) -> tuple[int, str]:
    return int(expr.count_ops()), str(expr)


def settle_equal_products(dims: Iterable[torch.SymInt]) -> None:
    """Where guards say no more of symbols than that their products are equal, and each has the
    value of one of the other product's, adds guards for these pairs: tokens [b, t] that are
    labels' [b', t'] flattened, of which torch only knows that b*t == b'*t'."""
    named = {d.node.expr: d for d in dims if d.node.expr.is_Symbol}
    guarded = [sides for d in list(named.values())[:1] for sides in _equalities(d.node.shape_env)]
    for sides in guarded:
        if not all(x.is_Mul and all(f in named for f in x.args) for x in sides):
            continue
        ours, theirs = ([named[f] for f in side.args] for side in sides)
        if Counter(map(hint, ours)) == Counter(map(hint, theirs)):
            for one, other in zip(sorted(ours, key=hint), sorted(theirs, key=hint), strict=True):
                must_equal(one, other)


def hint(dim: Dim) -> int:
    """The value a dimension had in the call that was captured."""
    return dim if isinstance(dim, int) else int(dim.node.hint)


def depends_on_data(shape: Iterable[Dim]) -> bool:
    """Whether a dimension is known only once its tensor is made (``bincount``)."""
    return any(not isinstance(d, int) and d.node.hint is None for d in shape)


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are known to be equal without a new guard."""
    return bool(expression(a) == expression(b))


def must_equal(a: Dim, b: Dim) -> None:
    """Adds the guard a == b; UnsupportedError if the captured call does not fulfil it."""
    if not same(a, b) and not bool(a == b):
        raise UnsupportedError(f"sizes {hint(a)} and {hint(b)} should be equal")


def must_be_multiple(whole: Dim, part: Dim) -> None:
    """Adds the guard whole == ratio * part with the ratio of the captured call (grouped heads)."""
    if isinstance(whole, int) and isinstance(part, int):
        return
    if hint(part) == 0 or hint(whole) % hint(part):
        raise UnsupportedError(f"{hint(whole)} heads are not a multiple of {hint(part)}")
    must_equal(whole, part * (hint(whole) // hint(part)))


def make_static(dim: Dim) -> int:
    """Adds the guard that ``dim`` keeps its value."""
    return int(dim)


def _exact_quotient(whole: Size | None, part: Size | None) -> Size | None:
    """whole / part where every term of whole is a multiple of the single term of part, else None.

    torch's rules for broadcast products leave sizes such as (N*N) // N.
    """
    if whole is None or part is None or len(part.terms) != 1:
        return None
    (names, divisor), total = part.terms[0], Size()
    for monomial, coefficient in whole.terms:
        rest = list(monomial)
        for name in names:
            if name not in rest:
                return None
            rest.remove(name)
        if coefficient % divisor:
            return None
        total = total + product([coefficient // divisor, *rest])
    return total


class SizeTable:
    """Names for the sizes of one region, chosen so that its inputs' shapes give their values."""

    def __init__(self, shapes: Iterable[Sequence[Dim]]) -> None:
        self._symbols: dict[Expr, Size] = {}
        self._whole: dict[Expr, Size] = {}
        self._sources: dict[Size, torch.SymInt] = {}
        self._count = 0
        dims = [d for shape in shapes for d in shape if not isinstance(expression(d), int)]
        self._name_all(list(dict.fromkeys(expression(d) for d in dims)))

    def of(self, dim: Dim) -> Size:
        """The size of a dimension; UnsupportedError if it does not follow from the inputs."""
        expr = expression(dim)
        if isinstance(expr, int):
            return Size.of(expr)
        size = self._size(expr)
        if size is None:
            raise UnsupportedError(f"the size {expr} does not follow from the inputs' shapes")
        assert isinstance(dim, torch.SymInt)
        if expr.is_Symbol or size not in self._sources:  # a guard on (s*s)//s says nothing of s
            self._sources[size] = dim
        return size

    def shape(self, dims: Sequence[Dim]) -> tuple[Size, ...]:
        """The sizes of a whole shape."""
        return tuple(self.of(d) for d in dims)

    def source(self, size: Size) -> torch.SymInt | None:
        """A symbolic dimension that has this size, if one was asked for."""
        return self._sources.get(size)

    def _fresh(self) -> Size:
        self._count += 1
        return Size.of(f"N{self._count - 1}")

    def _name_all(self, exprs: list[Expr]) -> None:
        """Bare symbols first, then products and sums with one symbol that is still unknown."""
        for expr in exprs:
            if expr.is_Symbol:
                self._symbols[expr] = self._fresh()
        pending = [e for e in exprs if not e.is_Symbol]
        for solve in (self._solve_product, self._solve_sum, self._take_whole):
            pending = [e for e in pending if self._size(e) is None and not solve(e)]

    def _unknown(self, expr: Expr) -> list[Expr]:
        return [s for s in sorted(expr.free_symbols, key=str) if s not in self._symbols]

    def _solve_product(self, expr: Expr) -> bool:
        """4*s0*s1 with s0 known: s1 gets a name (``bind_sizes`` divides)."""
        unknown = self._unknown(expr)
        if not expr.is_Mul or len(unknown) != 1 or expr.args.count(unknown[0]) != 1:
            return False
        rest = [self._size(f) for f in expr.args if f != unknown[0]]
        if any(r is None or len(r.terms) != 1 for r in rest):
            return False
        self._symbols[unknown[0]] = self._fresh()
        return True

    def _solve_sum(self, expr: Expr) -> bool:
        """s0 + 1: the whole gets the name N, and s0 is N - 1 wherever else it occurs."""
        unknown = self._unknown(expr)
        if not expr.is_Add or len(unknown) != 1 or expr.args.count(unknown[0]) != 1:
            return False
        rest = [self._size(term) for term in expr.args if term != unknown[0]]
        if any(r is None for r in rest):
            return False
        total = self._fresh()
        for part in rest:
            total = total - (part or 0)
        self._symbols[unknown[0]] = total
        return True

    def _take_whole(self, expr: Expr) -> bool:
        """Anything else: the expression itself is the unknown."""
        self._whole[expr] = self._fresh()
        return True

    def _size(self, expr: Expr) -> Size | None:
        """The polynomial for a known expression, else None."""
        if expr.is_Integer:
            return Size.of(int(expr))
        if expr in self._whole:
            return self._whole[expr]
        if expr.is_Symbol:
            return self._symbols.get(expr)
        if expr.is_Pow and expr.args[1].is_Integer and int(expr.args[1]) > 0:
            base = self._size(expr.args[0])
            return None if base is None else product([base] * int(expr.args[1]))
        if expr.func.__name__ == "FloorDiv":
            return _exact_quotient(self._size(expr.args[0]), self._size(expr.args[1]))
        if not (expr.is_Add or expr.is_Mul):
            return None
        parts = [self._size(part) for part in expr.args]
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        return product(known) if expr.is_Mul else sum(known, Size())
