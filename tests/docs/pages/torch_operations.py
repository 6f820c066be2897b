"""docs/reference/torch.md: which operations of torch become parts of kernels, from the op map."""

from __future__ import annotations

import operator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from tests.docs.pages.markdown import WRITTEN, prose, table
from tilewright.frontend.op_map import FILLED
from tilewright.frontend.op_map.kept import BOOKKEEPING, KEPT
from tilewright.frontend.op_map.registry import Entry, Kind, entries, spellings

assert FILLED

HEAD = """\
# Operations of PyTorch

{written}
What `tilewright.compile` takes into kernels. Functions, operators and methods that mean the same
are one row; what a row says is what the kernel computes, of 16-bit floats in f32, as torch does. An
operation that is not here, or has other arguments than a row says, stays with torch between the
kernels; `explain()` names it, its line and the reason. So do parts that are not worth a kernel:
pointwise work on small tensors, products with weights in 16 bits.
"""

# kind -> heading, and what it does to regions
KINDS = {
    Kind.CONTRACTION: (
        "Products",
        "A product of two activations opens a stream of scores, and the next one closes it.",
    ),
    Kind.ATTENTION: ("Attention", ""),
    Kind.SOFTMAX: ("Softmax", ""),
    Kind.REDUCTION: (
        "Reductions, norms and losses",
        "Along the last dimension they take the pointwise work around them along.",
    ),
    Kind.POINTWISE: ("Pointwise", ""),
    Kind.SHAPE: ("Shapes", "They move nothing: kernels read tensors as they lie."),
    Kind.GENERATOR: ("Tensors made of numbers and positions", "They are never stored."),
    Kind.ROUTING: (
        "Choices, look-ups and counts",
        "More about them: [routing](../routing.md). On CPUs, positions out of range raise what "
        "torch raises.",
    ),
}
PLACES: tuple[tuple[str, ModuleType], ...] = (
    ("torch", torch),
    ("F", F),
    ("torch.special", torch.special),
    ("torch.linalg", torch.linalg),
    ("operator", operator),
)


def name_of(function: Any) -> str:
    """How a program writes it; names that only the op map knows as they are."""
    if isinstance(function, str):
        return function
    for place, module in PLACES:
        for name, value in vars(module).items():
            if value is function and not name.startswith("_"):
                return f"{place}.{name}"
    return str(getattr(function, "__name__", function))


def row(entry: Entry) -> tuple[str, str, str]:
    functions, methods = spellings(entry)
    plain = [m.strip(".") for m in methods if not m.startswith("__")]
    names = dict.fromkeys(name_of(f) for f in functions)
    spelt = ", ".join(f"`{name}`" for name in names)
    return spelt, ", ".join(f"`.{m}`" for m in plain), prose(entry.handler.__doc__)


def page() -> str:
    parts = [HEAD.format(written=WRITTEN.format(source="frontend/op_map/"))]
    known = entries()
    assert set(KINDS) == set(Kind)
    for kind, (heading, about) in KINDS.items():
        rows = sorted(row(entry) for entry in known if entry.kind is kind)
        lines = [f"## {heading}\n", *([f"{about}\n"] if about else [])]
        parts.append("\n".join([*lines, table(("function", "method", "what is computed"), rows)]))
    parts.append("## What stays with torch by design\n")
    reasons = [(reason, names) for reason, names in KEPT.items() if reason != BOOKKEEPING]
    rows = [(r, ", ".join(f"`{n}`" for n in sorted(names.split()))) for r, names in reasons]
    parts.append(table(("why", "operations, or those of their forms that are not above"), rows))
    return "\n".join(parts)
