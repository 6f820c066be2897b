"""Modules as text; ``parse(print(m)) == m`` for every module."""

from __future__ import annotations

import re
from typing import Any

from tilewright.ir.core import Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    Axis,
    BufferType,
    IndexType,
    RegisterType,
    ScratchType,
    StreamType,
    TensorType,
)

_TYPES = (TensorType, StreamType, BufferType, ScratchType, RegisterType, IndexType, DType, Layout)


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")


class _Names:
    """Unique printable names: the hint, with a number when it is taken.

    A stem ends neither in a digit nor in ``_``, so that names read back as hints give themselves.
    """

    def __init__(self) -> None:
        self.by_value: dict[Value, str] = {}
        self.count: dict[str, int] = {}

    def __call__(self, value: Value) -> str:
        if value not in self.by_value:
            stem = _NOT_IN_NAMES.sub("_", value.hint).rstrip("0123456789_") or "v"
            at = self.count.get(stem, 0)
            self.count[stem] = at + 1
            self.by_value[value] = f"%{stem}{at}" if at else f"%{stem}"
        return self.by_value[value]


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def print_module(module: Module) -> str:
    """The module's text."""
    return "\n\n".join(print_graph(g) for g in module.graphs) + "\n"


def print_graph(graph: Graph) -> str:
    """One graph's text."""
    names = _Names()
    sizes = f"<{', '.join(graph.sizes)}>" if graph.sizes else ""
    params = ", ".join(f"{names(p)}: {p.type}" for p in graph.params)
    attrs = f" with {print_attrs(graph.attrs)}" if graph.attrs else ""
    name = _NOT_IN_NAMES.sub("_", graph.name)
    name = f"_{name}" if not name or name[0].isdigit() else name
    lines = [f"{graph.level} {name}{sizes}({params}){attrs} {{"]
    _print_body(graph.body, names, lines, "  ", "return")
    return "\n".join([*lines, "}"])


def _print_body(region: Region, names: _Names, lines: list[str], pad: str, end: str) -> None:
    for op in region.ops:
        _print_op(op, names, lines, pad)
    values = ", ".join(names(v) for v in region.yields)
    lines.append(f"{pad}{end} {values}".rstrip())


def _print_op(op: Op, names: _Names, lines: list[str], pad: str) -> None:
    results = ", ".join(names(r) for r in op.results)
    text = pad + (f"{results} = " if results else "") + op.name
    if op.operands:
        text += " " + ", ".join(names(v) for v in op.operands)
    attrs = op.explicit_attrs()
    if attrs:
        text += " " + print_attrs(attrs)
    elif not op.operands and not op.results and not op.regions:
        text += " {}"  # or the next line's result would read as an operand
    for region in op.regions:
        params = ", ".join(f"{names(p)}: {p.type}" for p in region.params)
        lines.append(f"{text} ({params}) {{")
        _print_body(region, names, lines, pad + "  ", "yield")
        text = pad + "}"
    shown = "" if "type" in attrs or not op.results else ", ".join(str(r.type) for r in op.results)
    lines.append(text + (f" : {shown}" if shown else ""))


def print_attrs(attrs: dict[str, Any]) -> str:
    """``{name = value, …}`` in the order given."""
    return "{" + ", ".join(f"{k} = {print_attr(v)}" for k, v in attrs.items()) + "}"


def print_attr(value: Any) -> str:
    """One attribute value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.translate(_ESCAPES) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(print_attr(v) for v in value) + "]"
    if isinstance(value, Size):
        return f"size({value})"
    if isinstance(value, Axis):
        return f"axis({value.name}, {value.size})"
    if isinstance(value, _TYPES):
        return str(value)
    assert isinstance(value, int | float), f"attribute of unknown type: {value!r}"
    return str(int(value)) if isinstance(value, int) else repr(float(value))
