"""The registry of the op map: which torch functions and methods one handler stands for.

A handler gets an emitter and the call's arguments (values for tensors) and returns the value of the
result. All spellings of one operation (function, operator, method) lead to one handler.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import torch
from torch.fx import Node


class Kind(Enum):
    """What an operation does to the iteration space; regions are formed by it."""

    CONTRACTION = "contraction"
    ATTENTION = "attention"
    SOFTMAX = "softmax"
    REDUCTION = "reduction"
    POINTWISE = "pointwise"
    SHAPE = "shape"
    GENERATOR = "generator"
    ROUTING = "routing"  # choices, look-ups, counts: in no region of the other kinds


Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
Settle = Callable[[Node], None]
Axes = Callable[[Node], frozenset[int]]


@dataclass(frozen=True)
class Entry:
    """One operation of the map. ``settle`` adds the guards on sizes that its handler relies on.
    ``axes``: the dimensions that it reduces, counted from the last (-1), where no ``dim`` in the
    second place names them."""

    name: str
    kind: Kind
    handler: Handler
    settle: Settle | None = None
    axes: Axes | None = None


def axes_named(place: int, otherwise: int | None) -> Axes:
    """The dimensions that a call's ``dim`` names, which stands at ``place`` among its arguments and
    is ``otherwise`` if nothing is said (None: all dimensions)."""

    def axes(node: Node) -> frozenset[int]:
        given = node.args[place] if len(node.args) > place else otherwise
        dim = node.kwargs.get("dim", given)
        rank = len(node.all_input_nodes[0].meta["example_value"].shape)
        dims = dim if isinstance(dim, tuple | list) else (range(rank) if dim is None else (dim,))
        return frozenset(d if d < 0 else d - rank for d in dims if isinstance(d, int))

    return axes


INDEX = "x[tensor]"  # stands for operator.getitem with tensors among the indices
POSITIONS = " with positions"  # behind max and min: their second result is used
ENTRY = "tilewright_entry"  # in a node's meta: its entry, whatever the op map says
_FUNCTIONS: dict[Any, Entry] = {}
_METHODS: dict[str, Entry] = {}


def handles(
    name: str,
    kind: Kind,
    functions: Sequence[Any] = (),
    methods: Sequence[str] = (),
    settle: Settle | None = None,
    axes: Axes | None = None,
) -> Callable[[H], H]:
    """Registers a handler for torch functions and tensor methods (``".mT"`` is an attribute)."""

    def register(handler: H) -> H:
        entry = Entry(name, kind, handler, settle, axes)
        for function in functions:
            assert function not in _FUNCTIONS, f"{function} is mapped twice"
            _FUNCTIONS[function] = entry
        for method in methods:
            assert method not in _METHODS, f"method {method} is mapped twice"
            _METHODS[method] = entry
        return handler

    return register


def lookup(node: Node) -> Entry | None:
    """The entry for an FX node, or None if the op map does not know its operation."""
    own: Entry | None = node.meta.get(ENTRY)
    if own is not None:
        return own
    if _wants_positions(node):
        return _FUNCTIONS.get(f"{getattr(node.target, '__name__', node.target)}{POSITIONS}")
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    if node.target is builtins.getattr:
        return _METHODS.get(f".{node.args[1]}")
    if node.target is operator.getitem and _by_tensors(node.args[1]):
        return _FUNCTIONS.get(INDEX)
    return _FUNCTIONS.get(node.target)


def _wants_positions(node: Node) -> bool:
    """Whether of ``max(dim)`` or ``min(dim)`` more is used than the values."""
    if node.target not in (torch.max, torch.min, "max", "min"):
        return False
    several = isinstance(node.meta.get("example_value"), tuple)
    return several and any(u.target is operator.getitem and u.args[1] == 1 for u in node.users)


def _by_tensors(index: object) -> bool:
    entries = index if isinstance(index, tuple | list) else (index,)
    fakes = [e.meta.get("example_value") for e in entries if isinstance(e, Node)]
    return any(isinstance(fake, torch.Tensor) for fake in fakes)


def method_entry(name: str) -> Entry | None:
    """The entry for a tensor method's name."""
    return _METHODS.get(name)


def function_entry(function: object) -> Entry | None:
    """The entry for a torch function or operator."""
    try:
        return _FUNCTIONS.get(function)
    except TypeError:  # not hashable
        return None


def entries() -> list[Entry]:
    """Every entry once, for tests and documentation."""
    return list(dict.fromkeys([*_FUNCTIONS.values(), *_METHODS.values()]))


def spellings(entry: Entry) -> tuple[list[Any], list[str]]:
    """The functions and operators, and the methods, that lead to an entry."""
    functions = [function for function, found in _FUNCTIONS.items() if found is entry]
    return functions, [method for method, found in _METHODS.items() if found is entry]
