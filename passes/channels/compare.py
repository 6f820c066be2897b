"""Which of two symbolic times is later, for sizes of some length.

Depths are compared for loops that are long against the latencies of the nodes (``Regime``): there
``N + 2 > 7``. What no such rule decides (is N or M larger?) is bounded from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.ir.sizes import Monomial, Size


@dataclass(frozen=True)
class Regime:
    """All sizes are at least ``least``."""

    least: int

    def at_least(self, a: Size, b: Size) -> bool:
        """Whether a >= b is certain."""
        difference = a - b
        terms = difference.terms
        if all(c >= 0 for _, c in terms):
            return True
        if all(len(names) <= 1 for names, _ in terms):  # N = least + what is not negative
            total = sum(c * self.least if names else c for names, c in terms)
            return total >= 0 and all(c >= 0 for names, c in terms if names)
        above = {name: Size.of(name) + self.least for name in difference.names}
        return difference.substitute(above).at_least(0)

    def positive(self, a: Size) -> bool:
        """Whether a > 0 is certain."""
        return self.at_least(a, Size.of(1))

    def latest(self, sizes: Iterable[Size]) -> Size:
        """The largest of the sizes, or an upper bound; 0 for none."""
        best: Size | None = None
        for size in sizes:
            if best is None or self.at_least(size, best):
                best = size
            elif not self.at_least(best, size):
                best = _bound(best, size)
        return best or Size()

    def earliest(self, sizes: Iterable[Size]) -> Size:
        """The smallest of the sizes (at least one), or a lower bound."""
        least: Size | None = None
        for size in sizes:
            if least is None or self.at_least(least, size):
                least = size
            elif not self.at_least(size, least):
                least = _bound(least * -1, size * -1) * -1
        assert least is not None, "the smallest of nothing"
        return least


_ONE = Size.of(1)


def _bound(a: Size, b: Size) -> Size:
    """The larger coefficient of every term: no less than either, since sizes are not negative."""
    left, right = dict(a.terms), dict(b.terms)
    terms: dict[Monomial, int] = {
        term: max(left.get(term, 0), right.get(term, 0)) for term in {*left, *right}
    }
    return Size(tuple(sorted((term, c) for term, c in terms.items() if c)))


@dataclass(frozen=True)
class Depth:
    """``tokens / per``, rounded up, and at least 1: so many tokens are under way in a channel that
    takes one every ``per`` cycles."""

    tokens: Size
    per: Size = _ONE

    def evaluate(self, sizes: dict[str, int]) -> int:
        """The number of places for given sizes. KeyError names a missing one."""
        tokens, per = self.tokens.evaluate(sizes), self.per.evaluate(sizes)
        return max(1, math.ceil(tokens / per)) if per > 0 else max(1, tokens)

    @property
    def bound(self) -> Size:
        """A polynomial that is no less for any sizes of 1 and more: a fraction counts as whole."""
        whole, rest = _divided(self.tokens, self.per)
        bound = whole + Size(tuple((term, c) for term, c in rest.terms if c > 0))
        return bound if bound.terms else Size.of(1)

    def __str__(self) -> str:
        if self.per.constant == 1:
            return str(self.tokens)
        whole, rest = _divided(self.tokens, self.per)
        if not rest.terms:
            return str(whole)
        shown = f"ceil({_factor(rest)}/{_factor(self.per)})"
        return f"{whole} + {shown}" if whole.terms else shown


def _factor(size: Size) -> str:
    return f"({size})" if len(size.terms) > 1 or "*" in str(size) else str(size)


def _divided(size: Size, by: Size) -> tuple[Size, Size]:
    """``whole, rest`` with size = whole * by + rest; ``by`` is one term (else all is rest)."""
    if len(by.terms) != 1:
        return Size(), size
    (names, factor), whole, rest = by.terms[0], Size(), Size()
    for monomial, coefficient in size.terms:
        left = list(monomial)
        fits = coefficient % factor == 0
        for name in names:
            if name in left:
                left.remove(name)
            else:
                fits = False
        term = Size(((monomial, coefficient),))
        if fits:
            whole = whole + Size(((tuple(left), coefficient // factor),))
        else:
            rest = rest + term
    return whole, rest
