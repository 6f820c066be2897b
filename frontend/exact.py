"""What torch may do in a graph that keeps a level of determinism.

Where torch shares work out among threads, and which elements its vector loops leave to its scalar
ones, depends on counts of threads and elements: sums come in another order, and functions (``exp``,
``gelu``) in another implementation. What only moves numbers, or rounds each once (IEEE 754), cannot
show it, nor can integers; functions of single numbers are computed so that they do not
(``full_vectors.py``), and ``layer_norm`` computes each row by itself. Everything else has to run in
a kernel from the level ``threads`` on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from tilewright.frontend.full_vectors import is_function_of_one_number, take_full_vectors
from tilewright.frontend.op_map.kept import BOOKKEEPING, kept_reason, operation_name
from tilewright.frontend.op_map.registry import Kind, lookup
from tilewright.frontend.provenance import location_of
from tilewright.frontend.strictness import is_bookkeeping
from tilewright.frontend.translate import fake_of, operand_nodes
from tilewright.ir.errors import DeterminismError
from tilewright.runtime.determinism import Level

_CALLS = ("call_function", "call_method", "call_module")
_MOVING = """
    cat concat concatenate stack hstack vstack split chunk unbind tensor_split narrow select roll
    pad repeat tile copy_ fill_ zero_ setitem flip rot90 unfold empty empty_like new_empty
    new_tensor movedim moveaxis as_strided diagonal meshgrid requires_grad_ embedding index
    index_select gather take_along_dim getitem clone contiguous detach to float bfloat16 half type
    type_as long int bool cpu copy zeros ones full arange zeros_like ones_like full_like view_as
    expand_as tril triu one_hot repeat_interleave masked_select
"""
_ROUNDED_ONCE = """
    add sub mul truediv div neg abs relu sqrt where eq ne lt le gt ge logical_and logical_or
    logical_not logical_xor and_ or_ xor invert bitwise_and bitwise_or bitwise_not maximum minimum
    clamp clamp_min clamp_max masked_fill masked_fill_ iadd isub imul itruediv add_ sub_ mul_ div_
    relu_ clamp_ floor ceil round trunc sign isinf isnan isfinite square radd rsub rmul
"""
_ON_INTEGERS = "diff cumsum cumprod sum prod any all amax amin max min count_nonzero remainder mod"
_ONCE = frozenset(_ROUNDED_ONCE.split())
_EXACT = frozenset(_MOVING.split()) | _ONCE
_OF_INTEGERS = frozenset(_ON_INTEGERS.split())
_BY_ROWS = frozenset({"layer_norm"})  # a thread computes a row, as its length asks


def keep_level(level: Level, nodes: Iterable[Node]) -> None:
    """Has torch compute what a graph leaves with it so that a level of determinism holds: functions
    of single numbers are rewritten. DeterminismError naming every other operation that does not
    keep the level, with its source line; then nothing is rewritten."""
    if not level.promises("threads"):
        return
    anywhere = level.promises("reproducible")  # torch's functions are not the same everywhere
    found, functions = [], []
    for node in nodes:
        if node.op not in _CALLS or is_bookkeeping(node) or _is_exact(node):
            continue
        if not anywhere and is_function_of_one_number(node):
            functions.append(node)
        elif anywhere or operation_name(node) not in _BY_ROWS:
            found.append(node)
    for node in functions if not found else ():
        take_full_vectors(node)
    if not found:
        return
    lines = [f"  {operation_name(n)} at {location_of(n)}" for n in found]
    raise DeterminismError(
        f"deterministic={level.name!r}, but these operations would stay with torch, whose bits "
        "depend on threads and sizes:\n" + "\n".join(lines) + "\nKernels have "
        "what lies beside a product (attention, norms, f32 products with parameters) where no "
        "input requires gradients: .explain() without the level says what they leave. A "
        "tilewright.Program has any of it; deterministic='run' asks less.",
        location_of(found[0]),
    )


def _is_exact(node: Node) -> bool:
    name = operation_name(node)
    if node.kwargs.get("alpha", 1) != 1:
        return False  # fused in vectors only
    if name in _ONCE and _is_complex(node):
        return False  # products of parts, fused in vectors only
    entry = lookup(node)
    if entry is not None and entry.kind in (Kind.SHAPE, Kind.GENERATOR):
        return True
    ours = str(getattr(node.target, "namespace", "")) == "tilewright"  # checks the level itself
    if ours or kept_reason(node) == BOOKKEEPING or _drops_nothing(node):
        return True
    return name in _EXACT or (name in _OF_INTEGERS and _is_of_integers(node))


def _drops_nothing(node: Node) -> bool:
    """Whether a node is a dropout of a model that is not being trained."""
    if operation_name(node) != "dropout" or node.op != "call_function":
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False


def _dtypes(node: Node) -> set[torch.dtype]:
    """Of the tensors that go in and come out."""
    made = node.meta.get("example_value")
    tensors = [*map(fake_of, operand_nodes(node)), *(made if isinstance(made, tuple) else (made,))]
    return {x.dtype for x in tensors if isinstance(x, torch.Tensor)}


def _is_complex(node: Node) -> bool:
    return any(dtype.is_complex for dtype in _dtypes(node))


def _is_of_integers(node: Node) -> bool:
    """Whether tensors that go in and come out are of integers or booleans."""
    dtypes = _dtypes(node)
    return bool(dtypes) and not any(d.is_floating_point or d.is_complex for d in dtypes)
