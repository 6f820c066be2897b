"""What is between the two products of experts: by a kernel that has the function, or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.runtime.experts.form import ExpertsForm, Gate, merge_columns


@lru_cache(maxsize=64)
def gate_function(gate: Gate) -> GateFunction | None:
    """The function as kernels have it; None if they have not."""
    if gate.call is not None:
        return None
    try:
        return GateFunction(gate.function, gate.alpha, gate.limit, gate.shift)
    except UnsupportedError:
        return None


def gated(form: ExpertsForm, sides: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """A function that no kernel has: of gate and up f32 [P, I], or of one product, -> [P, I]. A
    module's own function gets them in ``dtype``."""
    if form.gate.call is None:
        if len(sides) > 1:
            return form.gate.apply(sides[0], sides[1])
        return form.gate.between(sides[0], form.columns)
    whole = sides[0] if len(sides) == 1 else merge_columns(sides[0], sides[1], form.columns)
    return form.gate.between(whole.to(dtype), form.columns)
