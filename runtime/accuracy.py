"""How far a result may be from float64, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.ir.core import Graph, Value
from tilewright.ir.types import StreamType, TensorType

# largest error relative to the largest magnitude of the reference
BOUNDS = {torch.float16: 2e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-10}


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """max |result - reference| / max |reference|; infinite if NaN or infinities are elsewhere."""
    ours, theirs = result.detach().double(), reference.detach().double()
    finite = torch.isfinite(theirs)
    same_kind = torch.equal(torch.isnan(ours), torch.isnan(theirs)) and torch.equal(
        ours[~finite].nan_to_num(), theirs[~finite].nan_to_num()
    )
    if not same_kind:
        return float("inf")
    if not finite.any():
        return 0.0
    largest = theirs[finite].abs().max().item()
    return float((ours - theirs)[finite].abs().max().item() / (largest or 1.0))


def bound_of(*tensors: object) -> float:
    """The bound for a computation on these tensors: that of the coarsest dtype among them."""
    dtypes = {x.dtype for x in tensors if isinstance(x, torch.Tensor)}
    return max(BOUNDS.get(dtype, 0.0) for dtype in dtypes)


ROUNDED_SHARE = 1e-3  # of integers made from floats that may fall to the other side of a half


def errors_over_bounds(
    graph: Graph, results: Sequence[torch.Tensor], references: Sequence[torch.Tensor], bound: float
) -> list[float]:
    """How far each result of a graph is from its reference, over what it may be: at most 1 is
    right. Floats have ``bound``, relative to the largest. Integers and truth values have to be
    equal; where floats went into them, one of 1,000 may be the neighbour (a sum that is another in
    its last bit is rounded to another integer)."""
    found = []
    for value, ours, theirs in zip(graph.results, results, references, strict=True):
        if theirs.is_floating_point() or ours.is_floating_point():
            found.append(relative_error(ours, theirs) / bound)
        else:
            found.append(integer_error(ours, theirs, exact=not _has_floats(graph, value)))
    return found


def integer_error(result: torch.Tensor, reference: torch.Tensor, exact: bool) -> float:
    """0 for equal integers; infinite if any is off, or, unless ``exact``, off by more than one;
    else how many are, over how many may be (at least one)."""
    if result.shape != reference.shape:
        return float("inf")
    apart = (result.long() - reference.long()).abs()
    wrong = int((apart > 0).sum().item())
    if wrong and (exact or bool((apart > 1).any())):
        return float("inf")
    return wrong / max(1.0, ROUNDED_SHARE * apart.numel())


def _has_floats(graph: Graph, value: Value) -> bool:
    """Whether any float is among what a value is computed from."""
    made_by = {result: op for op in graph.body.ops for result in op.results}
    seen, left = {value}, [value]
    while left:
        this = left.pop()
        if isinstance(this.type, TensorType | StreamType) and this.type.dtype.is_float:
            return True
        new = set(made_by[this].operands) - seen if this in made_by else set()
        seen |= new
        left += new
    return False
