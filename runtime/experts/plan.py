"""Which rows go to which expert, made by one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.dtypes import I32, I64, DType
from tilewright.passes.to_tile.experts.plan import plan_program
from tilewright.runtime.experts.segments import check_ids
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.once import Once
from tilewright.runtime.tile_kernel import own_tile_kernel

_IDS = {torch.int32: I32, torch.int64: I64}


@dataclass(frozen=True)
class Plan:
    """The choices of a call, sorted by expert, in each expert in their order. All int32 but scales.

    ``active`` [A]: experts with rows, ascending, A = min(E, T * k); ``starts`` [A + 1]: where the
    rows of each begin (past the last one: where all end); ``tokens`` [T * k]: the row of x of each
    sorted row; ``places`` [T, k]: the sorted row of each choice; ``scales`` f32 [T * k]: weights as
    the rows lie. Experts without rows at the end of ``active`` are expert 0.
    """

    active: torch.Tensor
    starts: torch.Tensor
    tokens: torch.Tensor
    places: torch.Tensor
    scales: torch.Tensor

    @property
    def rows_each(self) -> int:
        """Rows of an expert that has some, about."""
        return -(-len(self.tokens) // max(len(self.active), 1))


def plan(ids: torch.Tensor, weights: torch.Tensor, experts: int, skip: bool = False) -> Plan:
    """The plan for ids int [T, k] and weights float [T, k], T * k not 0; with ``skip``, ids from
    ``experts`` on stand for no expert and come last.

    Raises BindError for ids that name no expert.
    """
    ids = ids if ids.dtype in _IDS else ids.long()
    weights = weights if weights.dtype in FLOATS else weights.float()
    tokens, chosen = ids.shape
    kernel = _KERNELS[experts, chosen, _IDS[ids.dtype], FLOATS[weights.dtype]]
    active, starts, rows, places, scales, wrong = kernel(ids, weights)
    below, above = wrong.tolist()
    if below or (above and not skip):
        check_ids(ids, experts, skip)
    count = min(experts, tokens * chosen)
    return Plan(active[:count], starts[: count + 1], rows, places, scales)


def _kernel(key: tuple[int, int, DType, DType]) -> Call:
    return own_tile_kernel(lambda target: plan_program(*key, target))


# by experts, choices of a token, dtypes of ids and weights
_KERNELS: Once[tuple[int, int, DType, DType], Call] = Once(_kernel)
