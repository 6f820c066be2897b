"""docs/reference/ir.md: every operation of the registry, with an example from the tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tests.docs.pages.markdown import WRITTEN, anchor, fenced, prose, sentence, table
from tests.ir.examples import Example
from tests.test_every_op import EXAMPLES
from tilewright.ir.core import KINDS, REGISTRY, Op
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.formats import NF4
from tilewright.ir.ops_math import Pointwise
from tilewright.ir.printer import print_attr
from tilewright.ir.types import (
    Axis,
    BufferType,
    IndexType,
    RegisterType,
    ScratchType,
    SharedType,
    StreamType,
    TensorType,
)

LEVELS = {
    "math": "at every level: on whole tensors, on streams (a map node), on register tiles and on "
    "run-time integers",
    "tensor": "on whole tensors, in a `graph`",
    "stream": "on channels, in a `stream`",
    "tile": "on register tiles and memory, in a `tile` program",
}
HEAD = """\
# The operations of the IR

{written} Every operation is one class in `ir/ops_*.py`: its operands and attributes, the rule
that gives its result's type (`infer`) and its meaning in NumPy (`reference`). This page is made
from these classes; the examples are programs of `tests/test_every_op.py`, as the printer prints
the operation. How programs are written as text is in [ir/grammar.lark](../../ir/grammar.lark);
what each level is for, in [the design](../design.md#levels).

A broken rule raises [`VerifyError` (TW002)](errors.md#tw002) with the operation, its operands'
types and the rule as it stands here; `…` is where the message has names and sizes.

## Types

{types}
Sizes are polynomials over names (`2*N - 1`); numbers are polynomials, too.

## Dtypes

{dtypes}
A dtype of your own: [add a dtype](../howto/add_a_dtype.md).

## Attributes

An attribute has one of these kinds:

{kinds}
## Traits

{traits}
## Rules of pointwise operations

{pointwise}
"""
TRAITS = {
    "pure": "no effect but its results: may be removed, merged or moved",
    "commutative": "operands may change places",
    "linear": "linear in each operand: factors may be moved through it",
    "pointwise": "element by element; operands broadcast (on streams by the names of axes)",
    "reads": "reads memory",
    "writes": "writes memory, or has another effect that keeps its place",
    "regions": "has operations inside",
    "routing": "a node of its own on streams, with state (see [routing](../routing.md))",
}
DTYPE_KINDS = {
    "float": "a float; `f6e3m2`: a sign, 3 bits of exponent, 2 of mantissa; `e8m0`: powers of two",
    "int": "a signed integer",
    "uint": "an unsigned integer",
    "bool": "true or false",
    "table": "the number that a table has for the code",
}
TYPES = (
    (TensorType, "tensor<N x 64 x f32>"),
    (StreamType, "stream<n=N, m=M; d=64 x f32>"),
    (BufferType, "buffer<N x 64 x f32, unit 1>"),
    (ScratchType, "scratch<4 x 24 x f32>"),
    (SharedType, "shared<64 x 64 x bf16, swizzle 8>"),
    (RegisterType, "reg<4 x 24 x f32, local(4, 3).spatial(1, 8)>"),
    (IndexType, "index"),
)


def page() -> str:
    """The whole page."""
    examples = {example.op: example for example in EXAMPLES}
    kinds = [(f"`{name}`", what) for name, (_, what) in KINDS.items()]
    used = {trait for cls in REGISTRY.values() for trait in cls.traits}
    assert used == set(TRAITS), f"traits without a word about them: {used ^ set(TRAITS)}"
    rules = dict.fromkeys(found(Pointwise.infer))
    head = HEAD.format(
        dtypes=dtypes(),
        pointwise="\n".join(f"- {rule}" for rule in rules),
        written=WRITTEN.format(source="the registry of operations"),
        types=table(("type", "is"), ((f"`{text}`", prose(t.__doc__)) for t, text in TYPES)),
        kinds=table(("kind", "is"), kinds),
        traits=table(("trait", "means"), ((f"`{k}`", v) for k, v in TRAITS.items())),
    )
    parts = [head]
    for level, where in LEVELS.items():
        # by name: the registry's own order is that of imports, which tests before may have changed
        names = sorted(name for name in REGISTRY if name.split(".")[0] == level)
        rows = ((f"[`{n}`](#{anchor(n)})", sentence(REGISTRY[n].__doc__)) for n in names)
        parts += [f"## `{level}.*`: {where}\n", table(("operation", "is"), rows)]
        parts += [section(REGISTRY[name], examples[name]) for name in names]
    assert len(parts) == 1 + 2 * len(LEVELS) + len(REGISTRY), "an operation of no level"
    return "\n".join(parts)


def dtypes() -> str:
    """All element types, by what they are."""
    rows = []
    own = [row for row in TABLE.values() if row.kind != "table" or row.table == NF4]  # built in
    for kind, what in DTYPE_KINDS.items():
        found = [row for row in own if row.kind == kind]
        for memory in (True, False):
            names = ", ".join(f"`{row.name}`" for row in found if row.addressable == memory)
            if names:
                rows.append((what, "one by one" if memory else "packed in words", names))
    return table(("is", "lies in memory", "names"), rows)


def section(cls: type[Op], example: Example) -> str:
    """One operation."""
    lines = [f"### {cls.name}\n", prose(cls.__doc__) + "\n", fenced("text", shown(example))]
    facts = [
        f"- operands: {', '.join(f'`{n}`' for n in operands(cls)) or 'none'}",
        *(f"- `{name}`: {attribute(cls, name)}" for name in cls.attribute_specs),
        f"- traits: {', '.join(f'`{t}`' for t in sorted(cls.traits)) or 'none'}",
    ]
    if issubclass(cls, Pointwise):
        facts.append(f"- takes {' or '.join(cls.kinds)}; [rules](#rules-of-pointwise-operations)")
    common = set(found(Pointwise.infer)) if issubclass(cls, Pointwise) else set()
    rules = [rule for rule in dict.fromkeys(found(cls.infer)) if rule not in common]
    facts += [f"- rule: {rule}" for rule in rules]
    module = importlib.import_module(cls.__module__)
    path = module.__name__.removeprefix("tilewright.").replace(".", "/") + ".py"
    return "\n".join([*lines, *facts, f"- class: `{cls.__name__}` in `{path}`", ""])


def operands(cls: type[Op]) -> list[str]:
    rest = [f"{cls.rest_name} …"] if cls.rest_name else []
    return [*cls.operand_names, *rest]


def attribute(cls: type[Op], name: str) -> str:
    """Kind and default."""
    spec = cls.attribute_specs[name]
    default = "" if spec.required else f", {printed(spec.default)} if not given"
    return f"{KINDS[spec.kind][1]}{default}"


def printed(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float | str | tuple | DType | Axis):
        return f"`{print_attr(value)}`"
    return f"`{value}`"


def shown(example: Example) -> str:
    """The operation as the printer prints it inside its example, with its regions."""
    lines = str(example.module).splitlines()
    at = next(i for i, line in enumerate(lines) if example.op in line.replace("= ", "").split())
    end = at
    depth = lines[at].count("{") - lines[at].count("}")
    while depth > 0:
        end += 1
        depth += lines[end].count("{") - lines[end].count("}")
    return textwrap.dedent("\n".join(lines[at : end + 1]))


def found(function: Callable[..., Any]) -> Iterator[str]:
    """The rules that a function checks: what it gives to ``require`` and ``error``, and what the
    functions of this project that it calls with the operation (or on it) check."""
    yield from _rules(inspect.unwrap(function))


@cache
def _rules(function: Callable[..., Any]) -> tuple[str, ...]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    out: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in ("require", "error") and node.args:
            out += _text(node.args[-1])
        elif isinstance(called, ast.Name) and _is_self(node):
            below = function.__globals__.get(called.id)
            if inspect.isfunction(below) and below.__module__.startswith("tilewright.ir"):
                out += _rules(below)
    return tuple(out)


def _is_self(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Name) and first.id in ("self", "op")


def _text(node: ast.expr) -> list[str]:
    """The words of a message; a name that stands for one says nothing here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
        return ["".join(parts)]
    return []
