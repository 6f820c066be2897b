"""``verify=True``: a kernel's results against the same torch operations in float64.

Which calls are checked: runtime/verification/first_calls.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from tilewright.ir.errors import EvaluationError, Location
from tilewright.runtime.accuracy import bound_of, relative_error

_FLOATS = {torch.float16, torch.bfloat16, torch.float32}
_CASTS = {"float", "half", "bfloat16"}
# what one rounding may cost where a compiler moves factors and splits exponentials (docs/verify.md)
_MOVED = 4


def check_against(
    fallback: GraphModule, args: Sequence[Any], results: Sequence[torch.Tensor], where: Location
) -> None:
    """Raises EvaluationError if a result is farther from float64 torch than its dtypes' bound, and
    than torch itself is in these dtypes (which overflow, and in which differences cancel)."""
    with torch.no_grad():
        references = in_double(fallback)(*map(_widened, args))
    bound = bound_of(*args, *results)  # the coarsest rounding on the way
    torchs: Sequence[torch.Tensor] | None = None
    for at, (result, reference) in enumerate(zip(results, references, strict=True)):
        kept = _within(result.dtype, bound)
        ours, exact = kept(result), kept(reference)
        error = relative_error(ours, exact)
        if error <= bound:
            continue
        if torchs is None:
            with torch.no_grad():
                torchs = fallback(*args)
        left, its = _beside_torch(ours, kept(torchs[at]), exact)
        limit = max(bound, _MOVED * its) if result.is_floating_point() else bound
        if not left <= limit:
            message = f"result {at} is {error:.2e} away from torch in float64 (bound {bound:.0e}"
            message += f", torch in {result.dtype}: {its:.0e})"
            raise EvaluationError(f"verify=True: {message}; please report this", where)


def _within(dtype: torch.dtype, bound: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Tensors in float64, infinite where they leave the range of a dtype, or nearly do: rounding
    decides which."""
    most = torch.finfo(dtype).max * (1 - bound) if dtype.is_floating_point else torch.inf

    def kept(x: torch.Tensor) -> torch.Tensor:
        wide = x.detach().double()
        return torch.where(wide.abs() >= most, wide.sign() * torch.inf, wide)

    return kept


def _beside_torch(
    ours: torch.Tensor, own: torch.Tensor, exact: torch.Tensor
) -> tuple[float, float]:
    """The errors of a result and of torch's own in the same dtypes. Numbers that are torch's are
    none of ours, nor are infinities and NaN where torch has one that float64 has not."""
    same = (own == exact) | (own.isnan() & exact.isnan())
    broken = ~(own.isfinite() & exact.isfinite()) & ~same
    settled = (ours == own) | (broken & ~ours.isfinite())
    left = relative_error(torch.where(settled, exact, ours), exact)
    return left, relative_error(torch.where(broken, exact, own), exact)


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
