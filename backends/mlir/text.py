"""A writer of MLIR text: names, constants, integer arithmetic, nothing about tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class MlirText:
    """Lines of a function body. Every method returns the name of the value it wrote."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 2
        self.count = 0
        self.constants: list[dict[str, str]] = [{}]
        self.numbers: dict[str, int] = {}  # of i64 constants, by their names

    def name(self) -> str:
        self.count += 1
        return f"%{self.count}"

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def op(self, text: str) -> str:
        """Writes ``%n = text``."""
        name = self.name()
        self.line(f"{name} = {text}")
        return name

    def constant(self, literal: str, type_: str) -> str:
        """A constant, written once per region."""
        key = f"{literal} : {type_}"
        for scope in self.constants:
            if key in scope:
                return scope[key]
        name = self.op(f"arith.constant {literal if type_ == 'i1' else key}")
        self.constants[-1][key] = name
        if type_ == "i64":
            self.numbers[name] = int(literal)
        return name

    def i64(self, number: int) -> str:
        return self.constant(str(number), "i64")

    def known(self, name: str) -> int | None:
        """The number if ``name`` is an i64 constant."""
        return self.numbers.get(name)

    def add(self, a: str, b: str) -> str:
        x, y = self.known(a), self.known(b)
        if x is not None and y is not None:
            return self.i64(x + y)
        if x == 0:
            return b
        return a if y == 0 else self.op(f"arith.addi {a}, {b} : i64")

    def mul(self, a: str, b: str) -> str:
        x, y = self.known(a), self.known(b)
        if x is not None and y is not None:
            return self.i64(x * y)
        if x == 1:
            return b
        if 0 in (x, y):
            return self.i64(0)
        return a if y == 1 else self.op(f"arith.muli {a}, {b} : i64")

    @contextmanager
    def region(self) -> Iterator[None]:
        """Indents and gives constants a scope of their own."""
        self.depth += 1
        self.constants.append({})
        yield
        self.constants.pop()
        self.depth -= 1

    def address(self, base: str, offset: str, element: str) -> str:
        if self.known(offset) == 0:
            return base
        return self.op(
            f"llvm.getelementptr {base}[{offset}] : (!llvm.ptr, i64) -> !llvm.ptr, {element}"
        )

    def shuffle(self, a: str, b: str, mask: Sequence[int], type_: str) -> str:
        listed = ", ".join(map(str, mask))
        return self.op(f"vector.shuffle {a}, {b} [{listed}] : {type_}, {type_}")
