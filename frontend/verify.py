"""``verify=True``: a kernel's results against the same torch operations in float64.

Which calls are checked: runtime/verification/first_calls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from tilewright.ir.errors import EvaluationError, Location
from tilewright.runtime.accuracy import bound_of, relative_error

_FLOATS = {torch.float16, torch.bfloat16, torch.float32}
_CASTS = {"float", "half", "bfloat16"}


def check_against(
    fallback: GraphModule, args: Sequence[Any], results: Sequence[torch.Tensor], where: Location
) -> None:
    """Raises EvaluationError if a result is farther from float64 torch than its dtypes' bound."""
    with torch.no_grad():
        references = in_double(fallback)(*map(_widened, args))
    bound = bound_of(*args, *results)  # the coarsest rounding on the way
    for at, (result, reference) in enumerate(zip(results, references, strict=True)):
        error = relative_error(result, reference)
        if not error <= bound:
            message = f"result {at} is {error:.2e} away from torch in float64 (bound {bound:.0e})"
            raise EvaluationError(f"verify=True: {message}; please report this", where)


def in_double(fallback: GraphModule) -> GraphModule:
    """The same operations with every narrower float dtype that is named replaced by float64."""
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in fallback.graph.nodes:
        copy = graph.node_copy(node, copies.__getitem__)
        copy.args = map_aggregate(copy.args, _double)
        copy.kwargs = map_aggregate(copy.kwargs, _double)
        if node.op == "call_method" and node.target in _CASTS:
            copy.target = "double"
        copies[node] = copy
    return GraphModule(fallback, graph)


def _double(argument: Any) -> Any:
    narrow = isinstance(argument, torch.dtype) and argument in _FLOATS
    return torch.float64 if narrow else argument


def _widened(argument: Any) -> Any:
    floating = isinstance(argument, torch.Tensor) and argument.dtype in _FLOATS
    return argument.double() if floating else argument
