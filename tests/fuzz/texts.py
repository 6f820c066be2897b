"""Texts of programs for the parser: from the operations' declarations, from a kept corpus with
pieces changed, and from plain noise. All of it follows from a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from tests.test_every_op import EXAMPLES
from tilewright.ir.core import REGISTRY, Op
from tilewright.ir.dtypes import TABLE

ROOT = Path(__file__).parent.parent.parent
GUIDED = Path(__file__).parent / "corpus" / "parser" / "guided.json"  # that reached new code
LONGEST = 800  # characters of a graph; longer ones are left out, so that inputs are many
TOKEN = re.compile(r'//[^\n]*|"[^"\n]*"|%\w+|[A-Za-z_][\w.]*|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|\s+|.')
NUMBERS = (
    "0", "1", "-1", "2", "3", "4", "5", "7", "8", "16", "31", "32", "63", "64", "65", "128", "255",
    "256", "1023", "65535", "65536", "2147483647", "2147483648", "4294967296", "1099511627776",
    "1099511627777", "999999999999999999", "1000000000000000000", "99999999999999999999", "-2",
    "-8", "-9223372036854775808", "1e999", "-1e308", "0.5", "1e-320", "inf", "-inf", "nan",
)  # fmt: skip
SMALL = ("0", "1", "2", "3", "4", "8", "16")
SIZES = ("1", "1", "2", "2", "3", "4", "8", "16", "32", "0", "-1", "65536", "999999999999999999")
WORDS = (
    "graph", "stream", "tile", "return", "yield", "with", "tensor", "buffer", "scratch", "shared",
    "reg", "index", "size", "axis", "unit", "swizzle", "local", "spatial", "replicate", "modes",
    "lanes", "registers", "x", "true", "false", "N", "M", "n", "m", "d", "column_local",
)  # fmt: skip
MARKS = ("<", ">", "(", ")", "{", "}", "[", "]", ",", ":", ";", "=", "+", "-", "*", ".", '"', "//")
STRINGS = (
    "sum", "max", "min", "mean", "any", "add", "set", "lt", "le", "eq", "ne", "gt", "ge", "first",
    "last", "random", "n", "m", "d", "k", "row", "channel", "token", "e8m0", "float", "whole",
    "mk,nk->mn", "ij,jk->ik", "bmk,bnk->bmn", "i,i->", "->", ",->", "ii,i->i", "", "a" * 30, "\\\\",
    "linear(4)", "planes", "m16n8k16", "high", "low", "all", "<", "<=", "==", "é\u2028",
)  # fmt: skip
NAMES = ("self", "loc", "hints", "regions", "operands", "cls", "name", "infer", "__init__", "kind")
NOISE = "\0\x01\t\n\r\"'\\%<>(){}[],:;=+-*./x0129azAZ_#@é\u2028\U0001f600\ud800"


@lru_cache(maxsize=1)
def corpus() -> tuple[str, ...]:
    """Graphs to begin with: an example of each operation, and those of all program files, among
    them what coverage and earlier findings left in ``corpus/parser``."""
    found = [example.text for example in EXAMPLES]
    found += json.loads(GUIDED.read_text(encoding="utf-8"))
    for folder in ("examples", "tests"):
        for path in sorted((ROOT / folder).rglob("*.tw")):
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            found += re.split(r"^(?=(?:graph|stream|tile)\s)|^// ----", text, flags=re.MULTILINE)
    return tuple(dict.fromkeys(text for text in found if "{" in text and len(text) <= LONGEST))


@lru_cache(maxsize=1)
def tokens_of_corpus() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(TOKEN.findall(text)) for text in corpus())


class Texts:
    """Draws texts from a random source, each by one of several ways."""

    def __init__(self, source: random.Random) -> None:
        self.source, self.random, self.choice = source, source.random, source.choice
        self._ways: tuple[tuple[float, Callable[[], str]], ...] = (
            (0.45, self.tokens),
            (0.85, self.operations),
            (0.95, self.characters),
            (0.98, self.words),
            (1.00, self.noise),
        )
        self._names = {
            space: [n for n in REGISTRY if n.startswith((f"{space}.", "math."))]
            for space in ("tensor", "stream", "tile")
        }

    def __call__(self) -> str:
        """A text of a program, or of something like one."""
        drawn = self.random()
        return next(way for most, way in self._ways if drawn <= most)()

    def tokens(self) -> str:
        """A text of the corpus with some tokens removed, doubled, exchanged or replaced."""
        known = tokens_of_corpus()
        tokens = list(min((self.choice(known) for _ in range(3)), key=len))
        if self.random() < 0.5:  # one of the same kind in place of another: most of these parse
            for _ in range(self._few()):
                self._exchange(tokens)
            return "".join(tokens)
        for _ in range(self._few()):
            self._change(tokens, known)
        return "".join(tokens)

    def _exchange(self, tokens: list[str]) -> None:
        """Another name, word, number or operation where one is."""
        places = [at for at, token in enumerate(tokens) if token[:1].isalnum() or token[0] in '%"-']
        if not places:
            return
        at = self.choice(places)
        like = tokens[at]
        if like[0] == "%" or (like.isidentifier() and like not in TABLE and self.random() < 0.7):
            tokens[at] = self.choice([t for t in tokens if t[0] == "%" or t.isidentifier()])
        else:
            tokens[at] = self.token(like)

    def _change(self, tokens: list[str], known: Sequence[Sequence[str]]) -> None:
        at, how = int(self.random() * len(tokens)), self.random()
        if not tokens:
            tokens.append(self.token(""))
        elif how < 0.55:
            tokens[at] = self.token(tokens[at])
        elif how < 0.65:
            del tokens[at : at + self._few()]
        elif how < 0.75:
            tokens[at:at] = tokens[at : at + self._few()]
        elif how < 0.85:
            other = int(self.random() * len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif how < 0.95:
            other_tokens = self.choice(known)
            start = int(self.random() * len(other_tokens))
            tokens[at : at + self._few()] = other_tokens[start : start + 2 * self._few()]
        else:
            piece = tokens[at : at + self._few()]
            tokens[at:at] = piece * self.choice((2, 3, 20, 70))

    def token(self, like: str) -> str:
        """A token to put where ``like`` is: mostly of its kind."""
        if self.random() < 0.1:
            return self.choice((self.number(), self.choice(WORDS), self.choice(MARKS)))
        if like[:1] == "%":
            return "%" + self.choice("abcdxyz0123")
        if like[:1] == '"':
            return f'"{self.choice(STRINGS)}"'
        if like in TABLE:
            return self.choice(tuple(TABLE))
        if "." in like and like in REGISTRY:
            return self.choice(self._names.get(like.partition(".")[0], self._names["tensor"]))
        if like[:1].isdigit() or like[:1] == "-":
            return self.number()
        if like[:1].isalpha():
            return self.choice(WORDS)
        return like if like.isspace() or self.random() < 0.6 else self.choice(MARKS)

    def number(self) -> str:
        return self.choice(SMALL) if self.random() < 0.6 else self.choice(NUMBERS)

    def characters(self) -> str:
        """A text of the corpus with some characters changed."""
        text = min((self.choice(corpus()) for _ in range(3)), key=len)
        for _ in range(self._few()):
            at = int(self.random() * (len(text) + 1))
            piece = self.choice((self.choice(NOISE), "", self.choice(NOISE) * self.choice((2, 99))))
            text = text[:at] + piece + text[at + self.choice((0, 0, 1, 1, 2, 50)) :]
        return text

    def words(self) -> str:
        """Words and marks in any order."""
        count = self._few() * 8
        kinds = ('"', "%", "f32", "1", "a", "<")
        return " ".join(self.token(self.choice(kinds)) for _ in range(count))

    def noise(self) -> str:
        """Characters in any order."""
        return "".join(self.source.choices(NOISE, k=int(self.random() * 80)))

    def operations(self) -> str:
        """A graph whose operations take what their declarations say, with any values."""
        level, space = self.choice((("graph", "tensor"), ("stream", "stream"), ("tile", "tile")))
        params = [f"%{name}: {self.type(space)}" for name in "abc"[: self._few()]]
        lines, names = [], ["%" + name for name in "abcd"[: len(params)]]
        for at in range(1 if self.random() < 0.7 else 3):
            operation = REGISTRY[self.choice(self._names[space])]
            one, two = f"%r{at} = ", f"%r{at}, %s{at} = "
            results = self.choice(("", one, one, one, two))
            lines.append(f"  {results}{self.operation(operation, names, space)}")
            names += [f"%r{at}"] if results else []
        sizes = "" if self.random() < 0.2 else "<N, M>"
        extra = " with {grid = [[size(N), 2]], outputs = 1}" if self.random() < 0.2 else ""
        body = "\n".join(lines)
        end = f"  return {names[-1]}\n" if names and self.random() < 0.8 else "  return\n"
        return f"{level} f{sizes}({', '.join(params)}){extra} {{\n{body}\n{end}}}\n"

    def operation(self, operation: type[Op], names: Sequence[str], space: str) -> str:
        """One operation with operands from ``names`` and attributes of the kinds that it has."""
        count = len(operation.operand_names) + (self._few() - 1 if operation.rest_name else 0)
        given = ", ".join(self.choice(names or ["%a"]) for _ in range(count))
        attrs = [f"{self.choice(NAMES)} = {self.number()}"] if self.random() < 0.02 else []
        attrs += [
            f"{name} = {self.attribute(spec.kind, space)}"
            for name, spec in operation.attribute_specs.items()
            if spec.required or self.random() < 0.4
        ]
        text = f"{operation.name} {given}" + (f" {{{', '.join(attrs)}}}" if attrs else "")
        if "regions" in operation.traits:
            text += " (%i: index) { %t = tile.integer %i yield %t }" * self._few()
        return text

    def attribute(self, kind: str, space: str) -> str:
        """A value for an attribute of a kind; sometimes one of another kind."""
        if self.random() < 0.03:
            kind = self.choice(("int", "str", "Type", "Layout", "Dims", "tuple[int, ...]"))
        return self._kinds(kind, space)

    def _kinds(self, kind: str, space: str) -> str:
        if kind.startswith("tuple["):
            return self.listing(kind[6:].rstrip(".]").partition(",")[0], space)
        if kind == "Dims":
            return self.listing("tuple[str, ...]", space)
        if kind == "Bounds":
            pairs = (f'[{self.number()}, "{self.choice(("row", "all", "n"))}"]' for _ in range(2))
            return f"[{', '.join(pairs)}]"
        simple: dict[str, Callable[[], str]] = {
            "int": self.number,
            "float": self.number,
            "bool": lambda: self.choice(("true", "false")),
            "str": lambda: f'"{self.choice(STRINGS)}"',
            "Type": lambda: self.type(space),
            "DType": lambda: self.choice(tuple(TABLE)),
            "Layout": self.layout,
            "Size": lambda: f"size({self.size()})",
            "Axis": lambda: f"axis({self.choice('nmdk')}, {self.size()})",
        }
        return simple[kind]()

    def listing(self, kind: str, space: str) -> str:
        return f"[{', '.join(self._kinds(kind, space) for _ in range(self._few() - 1))}]"

    def size(self) -> str:
        """A size: a number, a name, or a sum of products of both."""
        if self.random() < 0.8:
            return self.choice((self.number().lstrip("-"), "N", "M", *SMALL))
        term = "*".join(self.choice(("N", "M", *SMALL)) for _ in range(self._few()))
        return f"{term} {self.choice('+-')} {self.choice(('N', 'M', *SMALL))}"

    def dims(self) -> str:
        sizes = (self.size() for _ in range(self._few() - 1))
        return " x ".join([*(s if s.isalnum() else f"({s})" for s in sizes), self.dtype()])

    def dtype(self) -> str:
        common = ("f32", "f32", "i32", "i64", "bf16", "u4", "bool")
        return self.choice(common) if self.random() < 0.8 else self.choice(tuple(TABLE))

    def type(self, space: str) -> str:
        """A type of a level: mostly of small sizes."""
        if space == "tensor":
            return f"tensor<{self.dims()}>"
        if space == "stream":
            axes = self.source.sample("nmdk", k=min(self._few(), 4))
            cut = int(self.random() * (len(axes) + 1))
            loops = ", ".join(f"{axis}={self.size()}" for axis in axes[:cut])
            element = " x ".join([*(f"{axis}={self.size()}" for axis in axes[cut:]), self.dtype()])
            stream = f"stream<{loops}; {element}>"
            return stream if self.random() < 0.8 else f"tensor<{self.dims()}>"
        drawn = self.random()
        if drawn < 0.3:
            dims = self.dims()
            return f"buffer<{dims}, unit {int(self.random() * (dims.count(' x ') + 1.1)) - 1}>"
        if drawn < 0.4:
            return self.choice((f"scratch<{self.dims()}>", f"shared<{self.dims()}, swizzle 4>"))
        return "index" if drawn < 0.6 else self.register()

    def register(self) -> str:
        """A register tile whose shape is mostly its layout's."""
        rows, columns = self.choice(SMALL[1:]), self.choice(SMALL[1:])
        layouts = (
            f"local({rows}, 1).spatial(1, {columns})",
            f"spatial({rows}, {columns})",
            f"column_local({rows}, {columns})",
            f"replicate({columns}).local({rows}, {columns})",
            self.layout(),
        )
        return f"reg<{rows} x {columns} x {self.dtype()}, {self.choice(layouts)}>"

    def layout(self) -> str:
        """A product of atoms, or digits in any order."""
        if self.random() < 0.15:
            digits = "(" + ", ".join(self.choice(SMALL) for _ in range(self._few() - 1)) + ")"
            return f"modes({digits}, {digits}, lanes {self._digits()}, registers {self._digits()})"
        rank = self._few()
        kinds = ("local", "spatial", "column_local", "column_spatial", "replicate")
        atoms = []
        for _ in range(self._few()):
            kind = self.choice(kinds)
            sizes = (self.choice(SIZES) for _ in range(1 if kind == "replicate" else rank))
            atoms.append(f"{kind}({', '.join(sizes)})")
        return ".".join(atoms)

    def _digits(self) -> str:
        some = (self.choice(("0", "1", "2", "-2", "-1")) for _ in range(self._few()))
        return f"({', '.join(some)})"

    def _few(self) -> int:
        """1, 2, 3, … each half as often as the one before, 6 at most."""
        drawn = self.random()
        return 1 if drawn < 0.5 else 2 if drawn < 0.75 else 3 if drawn < 0.875 else 4
