"""In captured graphs, products with quantised weights take along what follows, and each other.

- ``silu(linear(x))``, ``linear(x) + y``: the function and the sum become part of the product.
- ``silu(linear(x, gate)) * linear(x, up)``: one kernel reads both weights.
- ``linear(x, q)``, ``linear(x, k)``, ``linear(x, v)``: one kernel, whose work items share a queue.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node

from tilewright.frontend.quantize.several import GatedCall, LinearsCall, linear_arguments
from tilewright.runtime.lowbit import EPILOGUES

LINEAR = torch.ops.tilewright.linear.default
BIAS, RESIDUAL, ACTIVATION, EPILOGUE = 5, 6, -2, -1
_FUNCTIONS: dict[Any, str] = {
    F.silu: "silu",
    F.relu: "relu",
    torch.relu: "relu",
    torch.nn.functional.gelu: "gelu",
}
GATES = tuple(filter(None, EPILOGUES))  # functions that kernels have
_SUMS = (operator.add, operator.iadd, torch.add, "add")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul")


def fuse_products(gm: GraphModule) -> None:
    """Rewrites ``tilewright::linear`` nodes in place, before they become direct calls."""
    for node in list(gm.graph.nodes):
        if _calls(node, _FUNCTIONS) or (node.op == "call_method" and node.target == "relu"):
            _take_function(node)
    for node in list(gm.graph.nodes):
        if _is_one(node, _PRODUCTS):
            _join_gate(gm.graph, node)
    for node in list(gm.graph.nodes):
        if _is_one(node, _SUMS):
            _take_sum(node)
    _join_alike(gm.graph)
    gm.graph.lint()


def _calls(node: Node, targets: Any) -> bool:
    return node.op == "call_function" and node.target in targets


def _is_one(node: Node, names: Sequence[Any]) -> bool:
    """A sum or product of two tensors, without factors."""
    called = node.op in ("call_function", "call_method") and node.target in names
    return called and len(node.args) == 2 and not node.kwargs


def _linear(value: Any) -> tuple[Node, list[Any]] | None:
    """A linear node that nothing else uses, and its arguments."""
    if not isinstance(value, Node) or value.target is not LINEAR or len(value.users) != 1:
        return None
    return value, linear_arguments(value)


def _dtype(node: Any) -> Any:
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return (value.dtype, value.shape) if isinstance(value, torch.Tensor) else None


def _replace(node: Node, target: Callable[..., Any], arguments: Sequence[Any]) -> Node:
    """Calls ``target`` in the place of ``node``, whose users get its result."""
    with node.graph.inserting_before(node):
        fresh = node.graph.call_function(target, tuple(arguments))
    fresh.meta = dict(node.meta)
    node.replace_all_uses_with(fresh)
    node.graph.erase_node(node)
    return fresh


def _take_function(node: Node) -> None:
    """A function of the product alone becomes its epilogue."""
    found = _linear(node.args[0]) if len(node.args) == 1 else None
    name = _function_of(node)
    if found is None or not name:
        return
    given, arguments = found
    if not arguments[EPILOGUE] and arguments[RESIDUAL] is None:
        arguments[EPILOGUE] = name
        _replace(node, LINEAR, arguments)
        node.graph.erase_node(given)


def _function_of(node: Node) -> str:
    """The epilogue that a node's function is ('': none)."""
    name = _FUNCTIONS.get(node.target, "relu")
    extra = {k: v for k, v in node.kwargs.items() if v not in (False, None)}
    if name == "gelu":
        way = extra.pop("approximate", "none")
        name = {"none": "gelu", "tanh": "gelu_tanh"}.get(str(way), "")
    return "" if extra else name


def _take_sum(node: Node) -> None:
    """What is added to the product becomes its residual, if it has the result's shape."""
    for at in (0, 1):
        found, other = _linear(node.args[at]), node.args[1 - at]
        if found is None or other is found[0] or found[1][RESIDUAL] is not None:
            continue
        given, arguments = found
        if _dtype(given) == _dtype(other) == _dtype(node):
            arguments[RESIDUAL] = other
            _replace(node, LINEAR, arguments)
            node.graph.erase_node(given)
            return


def _join_gate(graph: Graph, node: Node) -> None:
    """``f(x @ gate.T) * (x @ up.T)`` as one call."""
    for at in (0, 1):
        gate, up = _linear(node.args[at]), _linear(node.args[1 - at])
        if gate is None or up is None or gate[1][0] is not up[1][0]:
            continue
        mine, theirs = gate[1], up[1]
        plain = mine[RESIDUAL] is None and theirs[RESIDUAL] is None and not theirs[EPILOGUE]
        alike = mine[ACTIVATION] == theirs[ACTIVATION] and mine[EPILOGUE] in GATES
        if plain and alike and _dtype(gate[0]) == _dtype(up[0]) == _dtype(node):
            _replace(node, GatedCall(), (mine[0], tuple(mine[1:]), tuple(theirs[1:])))
            graph.erase_node(gate[0])
            graph.erase_node(up[0])
            return


def _join_alike(graph: Graph) -> None:
    """Products of one x with one kind of activation, in the place of the first."""
    groups: dict[Any, list[tuple[Node, list[Any]]]] = {}
    for node in graph.nodes:
        if node.target is LINEAR:
            arguments = linear_arguments(node)
            if arguments[RESIDUAL] is None and not arguments[EPILOGUE]:
                groups.setdefault((arguments[0], arguments[ACTIVATION]), []).append(
                    (node, arguments)
                )
    for (x, _), found in groups.items():
        order = {n: i for i, n in enumerate(graph.nodes)}
        first = found[0][0]
        # a weight or bias that is computed later cannot be read by the first
        ready = [
            (node, given)
            for node, given in found
            if all(not isinstance(a, Node) or order[a] < order[first] for a in given)
        ]
        if len(ready) > 1:
            _join(graph, first, x, ready)


def _join(graph: Graph, first: Node, x: Node, found: list[tuple[Node, list[Any]]]) -> None:
    with graph.inserting_before(first):
        each = tuple(tuple(given[1:]) for _, given in found)
        all_ = graph.call_function(LinearsCall(), (x, each))
        all_.meta = {k: v for k, v in first.meta.items() if k in ("stack_trace", "nn_module_stack")}
        all_.meta["example_value"] = tuple(node.meta.get("example_value") for node, _ in found)
        parts = [graph.call_function(operator.getitem, (all_, at)) for at in range(len(found))]
    for (node, _), part in zip(found, parts, strict=True):
        part.meta = dict(node.meta)
        node.replace_all_uses_with(part)
        graph.erase_node(node)
