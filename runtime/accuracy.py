"""How far a result may be from float64, and how far it is."""

from __future__ import annotations

import torch

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
