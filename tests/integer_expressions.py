"""Random integer expressions over two positions and a table: as text of the IR, and in Python."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import strategies as st

COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


@dataclass(frozen=True)
class Expression:
    """An op of the IR (without "math.") on expressions; ``n``, ``m`` and numbers are leaves."""

    op: str
    parts: tuple[Expression, ...] = ()
    number: int = 0

    def value(self, n: int, m: int, table: list[int]) -> int:
        """Its value at positions n and m; conditions are 0 or 1."""
        x = [p.value(n, m, table) for p in self.parts]
        if self.op in ("n", "m", "const"):
            return {"n": n, "m": m, "const": self.number}[self.op]
        if self.op == "gather":
            return table[min(max(x[0], 0), len(table) - 1)]
        if self.op in COMPARE:
            return int(eval(f"{x[0]} {COMPARE[self.op]} {x[1]}"))
        if self.op == "select":
            return x[1] if x[0] else x[2]
        return {
            "add": lambda: x[0] + x[1],
            "sub": lambda: x[0] - x[1],
            "mul": lambda: x[0] * x[1],
            "div": lambda: x[0] // x[1],
            "mod": lambda: x[0] % x[1],
            "min": lambda: min(x),
            "max": lambda: max(x),
            "neg": lambda: -x[0],
            "abs": lambda: abs(x[0]),
            "and": lambda: min(x),
            "or": lambda: max(x),
            "not": lambda: 1 - x[0],
        }[self.op]()

    def lines(self, name: str) -> str:
        """Text that computes ``%name``; reads ``%n``, ``%m`` and ``%table``."""
        if self.op in ("n", "m"):
            return f"%{name} = math.add %{self.op}, %zero\n"
        if self.op == "const":
            return f"%{name} = math.const {{value = {self.number}, type = tensor<i64>}}\n"
        names = [f"{name}_{i}" for i in range(len(self.parts))]
        before = "".join(p.lines(x) for p, x in zip(self.parts, names, strict=True))
        given = ", ".join(f"%{x}" for x in names)
        if self.op == "gather":
            return before + f"%{name} = tensor.gather %table, {given}\n"
        if self.op in COMPARE:
            return before + f'%{name} = math.compare {given} {{relation = "{self.op}"}}\n'
        return before + f"%{name} = math.{self.op} {given}\n"


LEAVES = st.sampled_from("nm").map(Expression) | st.integers(-9, 40).map(
    lambda x: Expression("const", number=x)
)
DIVISORS = st.integers(1, 9).map(lambda x: Expression("const", number=x))


def integers(depth: int = 3) -> st.SearchStrategy[Expression]:
    """Integer expressions."""
    if depth == 0:
        return LEAVES
    part = integers(depth - 1)
    both = st.tuples(part, part)
    return st.one_of(
        LEAVES,
        st.builds(Expression, st.sampled_from(["add", "sub", "min", "max"]), both),
        st.builds(Expression, st.sampled_from(["div", "mod", "mul"]), st.tuples(part, DIVISORS)),
        st.builds(Expression, st.sampled_from(["neg", "abs"]), st.tuples(part)),
        st.builds(Expression, st.just("gather"), st.tuples(part)),
        st.builds(
            lambda c, a, b: Expression("select", (c, a, b)), conditions(depth - 1), part, part
        ),
    )


def conditions(depth: int = 2) -> st.SearchStrategy[Expression]:
    """Conditions over integer expressions."""
    part = integers(depth)
    simple = st.builds(Expression, st.sampled_from(sorted(COMPARE)), st.tuples(part, part))
    if depth == 0:
        return simple
    below = conditions(depth - 1)
    return st.one_of(
        simple,
        st.builds(Expression, st.sampled_from(["and", "or"]), st.tuples(below, below)),
        st.builds(Expression, st.just("not"), st.tuples(below)),
    )


def values(e: Expression, box: tuple[int, int, int, int], table: list[int]) -> list[int]:
    """All values over n0 <= n <= n1, m0 <= m <= m1."""
    n0, n1, m0, m1 = box
    grid = itertools.product(range(n0, n1 + 1), range(m0, m1 + 1))
    return [e.value(n, m, table) for n, m in grid]
