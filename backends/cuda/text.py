"""A writer of C++ text and of the integer expressions that layouts come to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tilewright.ir.layout import Digit, Layout

_WORDS = """
    alignas alignof and asm auto bool break case catch char class const continue default delete do
    double else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new not operator or private protected public register return short signed sizeof
    static struct switch template this throw true try typedef typename union unsigned using virtual
    void volatile while xor tw threadIdx blockIdx lane thread i w f g
"""
KEYWORDS = frozenset(_WORDS.split())
_ATOM = re.compile(r"[\w.]+(\[[^\[\]]*\])?")
_SCALED = re.compile(r"(\w+) \* (\d+)")


class CText:
    """Lines of a function's body and the names in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.taken: set[str] = set(KEYWORDS)

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text if text else "")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head {``, an indented body, ``}``."""
        self.line(f"{head} {{")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    @contextmanager
    def each(self, variable: str, count: int, most: int = 0) -> Iterator[str]:
        """An unrolled loop; the text of its counter ("0" for a single turn, without a loop).
        ``most``: turns that are unrolled at most, where no register is counted by the loop."""
        if count == 1:
            yield "0"
            return
        self.line(f"#pragma unroll {most}" if 0 < most < count else "#pragma unroll")
        with self.block(f"for (int {variable} = 0; {variable} < {count}; ++{variable})"):
            yield variable

    def name(self, hint: str) -> str:
        """A new name like ``hint``."""
        base = re.sub(r"\W", "_", hint) or "v"
        base = f"v{base}" if base[0].isdigit() else base
        found, number = base, 0
        while found in self.taken:
            number += 1
            found = f"{base}{number}"
        self.taken.add(found)
        return found


def atom(text: str) -> str:
    """Text that binds tighter than any operator."""
    return text if _ATOM.fullmatch(text) else f"({text})"


def added(terms: Iterable[str]) -> str:
    """The sum of terms, without zeros."""
    kept = [x for x in terms if x != "0"]
    return " + ".join(kept) if kept else "0"


def times(a: str, b: str) -> str:
    """The product of two terms."""
    if "0" in (a, b):
        return "0"
    if "1" in (a, b):
        return b if a == "1" else a
    return f"{atom(a)} * {atom(b)}"


def digit(number: str, inner: int, size: int, whole: int) -> str:
    """``number / inner % size`` for a number below ``whole``."""
    if number == "0" or size == 1:
        return "0"
    if number.isdigit():
        return str(int(number) // inner % size)
    scaled = _SCALED.fullmatch(number)
    if scaled and int(scaled[2]) % inner == 0:  # a multiple: its lower digits are zero
        factor = int(scaled[2]) // inner
        if factor % size == 0:
            return "0"
        whole = whole // inner
        return _within(times(scaled[1], str(factor)), size, whole)
    if scaled and inner % int(scaled[2]) == 0:
        factor = int(scaled[2])
        return digit(scaled[1], inner // factor, size, -(-whole // factor))
    text = number if inner == 1 else f"{atom(number)} / {inner}"
    return _within(text, size, -(-whole // inner))


def _within(text: str, size: int, whole: int) -> str:
    """``text % size`` for text below ``whole``."""
    if size >= whole:
        return text
    return f"{text if '/' in text and ' + ' not in text else atom(text)} % {size}"


def counted(number: str, digits: Sequence[tuple[int, int]], whole: int | None = None) -> str:
    """The sum of a number's digits times their weights: ``digits`` as (size, weight), innermost
    first. ``whole``: what the number stays below."""
    total = 1
    for size, _ in digits:
        total *= size
    whole = whole or total
    terms, inner = [], 1
    for size, weight in digits:
        if weight:
            terms.append(times(digit(number, inner, size, whole), str(weight)))
        inner *= size
    return added(terms)


def along(digits: Sequence[Digit], dim: int) -> list[tuple[int, int]]:
    """The (size, weight) of digits where they count along a dimension."""
    return [(size, stride if d == dim and stride else 0) for d, stride, size in digits]


def register_part(layout: Layout, dim: int, register: str) -> str:
    """What a register's number adds to an element's position along a dimension."""
    return counted(register, along(layout.digits()[0], dim))


def thread_part(layout: Layout, dim: int, thread: str = "thread") -> str:
    """What a thread's number adds to an element's position along a dimension."""
    return counted(thread, along(layout.digits()[1], dim))


def register_of(part: Layout, whole: Layout, register: str) -> str:
    """The register of ``part``, which broadcasts to ``whole``, for a register of ``whole``."""
    if part.registers == whole.registers:
        return register
    return counted(register, joined(register_bits(part, whole)))


def register_bits(part: Layout, whole: Layout) -> list[tuple[int, int]]:
    """What each bit of a register's number of ``whole`` adds to that of ``part``, as (2, weight),
    lowest bit first."""
    weights, place = {}, 1
    for dim, stride, size in part.digits()[0]:
        for bit in range(size.bit_length() - 1):
            weights[dim, stride << bit] = place << bit
        place *= size
    digits = []
    for dim, stride, size in whole.digits()[0]:
        for bit in range(size.bit_length() - 1):
            digits.append((2, weights.get((dim, stride << bit), 0)))
    return digits


def joined(digits: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Digits with those that count on put together."""
    out: list[tuple[int, int]] = []
    for size, weight in digits:
        if out and (out[-1][0] * out[-1][1] == weight or out[-1][1] == weight == 0):
            out[-1] = (out[-1][0] * size, out[-1][1])
        else:
            out.append((size, weight))
    return out
