"""What must not be moved past what: writes to memory in place, and changes of torch's mode.

Moving a computation later is right only if nothing in between writes what it reads. Which tensors
share memory is known from the storages of Dynamo's fake tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import cache
from inspect import signature
from types import FunctionType

import torch
from torch._C import _functorch
from torch.fx import Node

from tilewright.frontend.op_map.kept import operation_name
from tilewright.frontend.translate import fake_of

IN_PLACE = {
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.itruediv: "div",
}
_WRITING_OPERATORS = {
    *IN_PLACE,
    operator.setitem,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
}
_MODES = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode"}


def storage_of(node: Node) -> int | None:
    """An identity of the memory that holds a node's tensor."""
    fake = fake_of(node)
    while isinstance(fake, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(fake):
        fake = _functorch.get_unwrapped(fake)  # under vmap: a tensor of all entries stands for one
    if not isinstance(fake, torch.Tensor) or fake.layout is not torch.strided:
        return None
    return int(fake.untyped_storage()._cdata)


def writes_in_place(node: Node) -> bool:
    """Whether an operation writes one of its operands."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = operation_name(node)
    if node.op == "call_function" and node.target in _WRITING_OPERATORS:
        return any(isinstance(fake_of(n), torch.Tensor) for n in node.all_input_nodes[:1])
    named = name.endswith("_") and not name.endswith("__")
    asked = _asks_for_it(node) or node.kwargs.get("out") is not None
    schema = getattr(node.target, "_schema", None)
    return named or asked or bool(getattr(schema, "is_mutable", False))


def _asks_for_it(node: Node) -> bool:
    """Whether a function is called with ``inplace=True``, by name or by position."""
    if node.op != "call_function" or "inplace" in node.kwargs:
        return bool(node.kwargs.get("inplace"))
    at = _place_of_inplace(node.target)
    return at is not None and len(node.args) > at and bool(node.args[at])


@cache
def _place_of_inplace(function: Callable[..., object]) -> int | None:
    """Which argument of a function says so; builtins have none."""
    if not isinstance(function, FunctionType):
        return None
    names = list(signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


class Hazards:
    """The writes and mode changes of a graph, by position."""

    def __init__(self, nodes: list[Node]) -> None:
        self.writes: list[tuple[int, frozenset[int]]] = []
        self.modes: list[int] = []
        for at, node in enumerate(nodes):
            if writes_in_place(node):
                self.writes.append((at, _storages(node.all_input_nodes)))
            elif operation_name(node) in _MODES:
                self.modes.append(at)

    def any_between(self, first: int, last: int) -> bool:
        """Whether anything is written or switched between two positions."""
        return any(first < at < last for at, _ in self.writes) or self._mode(first, last)

    def block(self, node: Node, first: int, last: int) -> bool:
        """Whether ``node``, now at ``first``, would compute something else at ``last``."""
        if self._mode(first, last):
            return True
        touched = _storages([node, *node.all_input_nodes])
        return any(first < at < last and touched & written for at, written in self.writes)

    def _mode(self, first: int, last: int) -> bool:
        return any(first < at < last for at in self.modes)


def _storages(nodes: Iterable[Node]) -> frozenset[int]:
    found = (storage_of(n) for n in nodes)
    return frozenset(s for s in found if s is not None)
