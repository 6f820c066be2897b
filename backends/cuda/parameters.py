"""What a kernel is called with: a pointer for every buffer, the strides that are not known to be
one, and the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tilewright.backends.cuda.pointwise import c_type
from tilewright.backends.cuda.text import CText
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Value
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType


@dataclass
class Parameters:
    """Names in the kernel's text. ``strides`` as (buffer, dimension), ``steps`` all strides of a
    buffer; ``declared``: pointers and numbers as the kernel declares them."""

    pointers: list[str] = field(default_factory=list)
    strides: list[tuple[int, int]] = field(default_factory=list)
    sizes: dict[str, str] = field(default_factory=dict)
    steps: dict[Value, tuple[str, ...]] = field(default_factory=dict)
    declared: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


def parameters(graph: Graph, text: CText) -> Parameters:
    """Those of a program, whose names are new to the text."""
    made = Parameters()
    walked = graph.body.walk()
    written = {op.target for op in walked if isinstance(op, t.Store | t.Scatter | t.StoreLines)}
    pointers, numbers = made.declared
    for number, param in enumerate(graph.params):
        type_ = param.type
        assert isinstance(type_, BufferType)
        pointer = text.name(param.hint or "x")
        made.pointers.append(pointer)
        constant = "" if param in written else "const "
        pointers.append(f"{constant}{c_type(type_.dtype)}* {pointer}")
        steps = []
        for dim in range(len(type_.shape)):
            if dim == type_.unit:
                steps.append("1")
                continue
            steps.append(text.name(f"{pointer}_stride_{dim}"))
            numbers.append(f"long long {steps[-1]}")
            made.strides.append((number, dim))
        made.steps[param] = tuple(steps)
    grid = (Size.of(size) for size, _ in graph.attrs["grid"])
    for name in (*graph.sizes, *(n for size in grid for n in size.names)):
        if name not in made.sizes:
            made.sizes[name] = text.name(name)
    numbers += (f"long long {name}" for name in made.sizes.values())
    return made


def size_text(size: Size, names: Mapping[str, str]) -> str:
    """The number of a size, of the names that its own have in the text."""
    terms = []
    for monomial, coefficient in size.terms:
        factors = [names[name] for name in monomial]
        if coefficient != 1 or not factors:
            factors.append(str(coefficient))
        terms.append(" * ".join(factors))
    return " + ".join(terms) if terms else "0"
