"""Faults to plant: a seeded random sample of what cosmic-ray's operators can do to some files."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("passes/**/*.py", "ir/layout*.py", "ir/packing.py")

_ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**", ">>", "<<", "|", "&", "^"}
_LOOKED_AT = {
    *("comparison", "factor", "not_test", "keyword", "if_stmt", "while_stmt", "test"),
    *("for_stmt", "except_clause", "number", "decorator", "assert_stmt"),
}
# no behaviour: annotations are not evaluated, asserts state what cannot happen, zip's strict and
# what @dataclass and caches are told change only what a mistake elsewhere would lead to
_STRICT = {"strict=True", "strict=False"}
_NO_BEHAVIOUR = {"annassign", "assert_stmt", "tfpdef"}
_DECORATORS = ("@dataclass", "@cache", "@cached_property", "@property", "@staticmethod")
# kinds of operators, of which there are many, and the nodes that each looks at
_KINDS = {
    "ReplaceBinaryOperator": "binary",
    "ReplaceComparisonOperator": "comparison",
    "ReplaceUnaryOperator": "unary",
}
_KIND_OF = {
    "operator": "binary",
    "comparison": "comparison",
    "factor": "unary",
    "not_test": "unary",
}


@dataclass(frozen=True)
class Mutant:
    """One fault: a place, what is done there, and the file's text with it."""

    file: str
    line: int
    column: int
    operator: str
    before: str  # the line
    after: str
    source: str  # the whole file

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.operator}"


@dataclass(frozen=True)
class _Way:
    operator: str
    occurrence: int


Place = tuple[int, int, str]  # line, column, kind of operator


def sample(count: int, seed: int, files: Sequence[str] = FILES) -> list[Mutant]:
    """So many mutants: places are drawn alike over all files, then one way to change each. Those
    that do not compile are drawn again."""
    draw = random.Random(seed)
    paths = sorted({path for pattern in files for path in ROOT.glob(pattern)})
    places = [
        (path, place, ways) for path in paths for place, ways in sorted(_places(path).items())
    ]
    draw.shuffle(places)
    found: list[Mutant] = []
    for path, place, ways in places:
        if len(found) == count:
            break
        mutant = _mutant(path, place, draw.choice(ways))
        if mutant is not None:
            found.append(mutant)
    return found


def _mutant(path: Path, place: Place, way: _Way) -> Mutant | None:
    """The fault; None where Python would not take it, or where it is none."""
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.operators.provider import OperatorProvider

    text = path.read_text(encoding="utf-8")
    operator = OperatorProvider()[way.operator]()
    changed = MutationVisitor.mutate_code(text, operator, way.occurrence)
    if changed is None or changed == text:
        return None
    try:
        if compile(changed, str(path), "exec") == compile(text, str(path), "exec"):
            return None
    except SyntaxError:
        return None
    line, column, _ = place
    before, after = text.splitlines()[line - 1], changed.splitlines()[line - 1]
    assert before != after, f"{path}:{line}: {way} is elsewhere"
    name = path.relative_to(ROOT).as_posix()
    return Mutant(name, line, column, way.operator, before.strip(), after.strip(), changed)


def _places(path: Path) -> dict[Place, list[_Way]]:
    """Where a file can be changed, and how. Ways of one kind at one place are one place: of ``a +
    b`` there are eleven, and it is drawn no more often than a comparison."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.operators.provider import OperatorProvider

    known = OperatorProvider()
    names = [name for name in known if not name.startswith("Variable")]
    operators: dict[str, list[tuple[str, Any]]] = {}
    for name in names:
        operators.setdefault(_KINDS.get(name.split("_", 1)[0], ""), []).append(
            (name, known[name]())
        )
    counts = dict.fromkeys(names, 0)
    found: dict[Place, list[_Way]] = {}
    for node in _walked(ast_nodes(get_ast(path.read_text(encoding="utf-8")))):
        skipped = _is_no_behaviour(node)
        for name, operator in operators[_KIND_OF.get(node.type, "")]:
            for (line, column), _ in operator.mutation_positions(node):
                way = _Way(name, counts[name])
                counts[name] += 1
                if not skipped:
                    kind = name.split("_", 1)[0]
                    found.setdefault((line, column, kind), []).append(way)
    return found


def _walked(nodes: Iterator[Any]) -> Iterator[Any]:
    """The nodes that any operator looks at."""
    for node in nodes:
        if node.type in _LOOKED_AT or (node.type == "operator" and node.value in _ARITHMETIC):
            yield node


def _is_no_behaviour(node: Any) -> bool:
    if node.type == "decorator":
        return bool(node.get_code().strip().startswith(_DECORATORS))
    while node is not None:
        above = node.parent
        if node.type in _NO_BEHAVIOUR or (node.type == "decorator"):
            return True
        if above is not None and above.type == "argument" and above.get_code().strip() in _STRICT:
            return True
        if above is not None and above.type in ("param", "funcdef") and _is_annotation(node, above):
            return True
        node = above
    return False


def _is_annotation(node: Any, above: Any) -> bool:
    """Whether a child of a parameter or function is its annotation."""
    return node is getattr(above, "annotation", None)
