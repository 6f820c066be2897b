"""Symbolic sizes: polynomials with integer coefficients over size names, compared and evaluated.

A size is never negative, so ``N + 2 >= 2`` and ``N*M >= 0`` hold for all values of the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Union

from tilewright.ir.errors import VerifyError

MAX_TERMS = 1024
Monomial = tuple[str, ...]
SizeLike = Union["Size", int, str]


@dataclass(frozen=True)
class Size:
    """A polynomial over size names: ``terms`` maps a sorted tuple of names to its coefficient."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(value: SizeLike) -> Size:
        """A size from an integer, a name, or a size itself."""
        if isinstance(value, Size):
            return value
        if isinstance(value, int):
            return Size((((), value),)) if value else Size()
        return Size((((value,), 1),))

    @staticmethod
    def _make(terms: Mapping[Monomial, int]) -> Size:
        return Size(tuple(sorted((m, c) for m, c in terms.items() if c)))

    def __add__(self, other: SizeLike) -> Size:
        return self._plus(Size.of(other), 1)

    def __sub__(self, other: SizeLike) -> Size:
        return self._plus(Size.of(other), -1)

    def _plus(self, other: Size, sign: int) -> Size:
        """self + sign * other; numbers and nothing are frequent."""
        if not other.terms:
            return self
        a, b = self.constant, other.constant
        if a is not None and b is not None:
            return Size.of(a + sign * b)
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms.get(monomial, 0) + sign * coefficient
        return Size._make(terms)

    def __mul__(self, other: SizeLike) -> Size:
        factor = Size.of(other)
        a, b = self.constant, factor.constant
        if a is not None and b is not None:
            return Size.of(a * b)
        if len(self.terms) * len(factor.terms) > MAX_TERMS:
            raise VerifyError(f"a size has more than {MAX_TERMS} terms when multiplied out")
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in factor.terms:
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return Size._make(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def constant(self) -> int | None:
        """The value if no name occurs in it, else None."""
        if not self.terms:
            return 0
        return self.terms[0][1] if self.terms[0][0] == () and len(self.terms) == 1 else None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The value for given values of all names; KeyError names a missing one."""
        total = 0
        for monomial, coefficient in self.terms:
            term = coefficient
            for name in monomial:
                term *= values[name]
            total += term
        return total

    def substitute(self, values: Mapping[str, SizeLike]) -> Size:
        """Replace names by sizes; names not in ``values`` stay."""
        total = Size()
        for monomial, coefficient in self.terms:
            term = Size.of(coefficient)
            for name in monomial:
                term = term * Size.of(values.get(name, name))
            total = total + term
        return total

    def at_least(self, other: SizeLike) -> bool:
        """True if self >= other is certain for all non-negative values of the names."""
        return all(c >= 0 for _, c in (self - other).terms)

    def split(self, name: str) -> tuple[Size, Size]:
        """``factor, rest`` with self = factor * name + rest, and no ``name`` in the rest."""
        factor: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for monomial, coefficient in self.terms:
            if name in monomial:
                at = monomial.index(name)
                factor[monomial[:at] + monomial[at + 1 :]] = coefficient
            else:
                rest[monomial] = coefficient
        return Size._make(factor), Size._make(rest)

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        order = sorted(self.terms, key=lambda t: (-len(t[0]), t[0]))
        text = ""
        for monomial, coefficient in order:
            sign = "-" if coefficient < 0 else "+"
            size = abs(coefficient)
            parts = [str(size)] if size != 1 or not monomial else []
            piece = "*".join(parts + list(monomial))
            text += f" {sign} {piece}" if text else (f"-{piece}" if coefficient < 0 else piece)
        return text

    def __repr__(self) -> str:
        return f"Size({self})"


_FACTOR = r"(?:[0-9]+|[A-Za-z_][A-Za-z0-9_]*)"
_TERM = rf"-?{_FACTOR}(?:\*{_FACTOR})*"
_SUM = re.compile(rf"{_TERM}(?:[+-]{_TERM})*")
_SIGNED_TERM = re.compile(rf"([+-]?)({_TERM})")


def parse_size(text: str) -> Size:
    """The inverse of ``str(size)``: sums of products of integers and names."""
    squeezed = text.replace(" ", "")
    if not _SUM.fullmatch(squeezed):
        raise ValueError(f"not a size: {text!r}")
    total = Size()
    for sign, term in _SIGNED_TERM.findall(squeezed):
        factors = term.removeprefix("-").split("*")
        value = product(int(f) if f.isdigit() else f for f in factors)
        total = total + value * (-1 if (sign + term).count("-") == 1 else 1)
    return total


def product(sizes: Iterable[SizeLike]) -> Size:
    """The product of sizes; 1 for none."""
    total = Size.of(1)
    for size in sizes:
        total = total * size
    return total


def largest(sizes: Iterable[Size]) -> Size:
    """An upper bound of the sizes: the largest where it is certain, else the sum of the rivals."""
    best = Size()
    for size in sizes:
        if size.at_least(best):
            best = size
        elif not best.at_least(size):
            best = best + size
    return best
