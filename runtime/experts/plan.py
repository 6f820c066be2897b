"""Which rows go to which expert, made by one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.dtypes import I32, I64, DType
from tilewright.passes.to_tile.experts.plan import plan_program
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.experts.segments import check_ids
from tilewright.runtime.family import Call
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.once import Once
from tilewright.runtime.tile_kernel import own_tile_kernel

Key = tuple[int, int, DType, DType, int]  # experts, choices, dtypes of ids and weights, base
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


def plan(
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: int,
    skip: bool = False,
    rerouting: Rerouting | None = None,
) -> Plan:
    """The plan for ids int [T, k] and weights float [T, k], T * k not 0; with ``skip``, ids from
    ``experts`` on stand for no expert and come last. With ``rerouting``, ids are of its base
    experts, and the same kernel looks up what they mean.

    Raises BindError for ids that name no expert, ExpertError for those that no base expert has.
    """
    ids = ids if ids.dtype in _IDS else ids.long()
    weights = weights if weights.dtype in FLOATS else weights.float()
    tokens, chosen = ids.shape
    base, adapters = 0, tuple[torch.Tensor, ...]()
    if rerouting is not None:
        base, adapters = rerouting.map.shape[1], (rerouting.adapters, rerouting.map)
    kernel = _KERNELS[experts, chosen, _IDS[ids.dtype], FLOATS[weights.dtype], base]
    active, starts, rows, places, scales, wrong = kernel(ids, weights, *adapters)
    below, above = wrong.tolist()
    if below or (above and not skip):
        if rerouting is not None:
            rerouting.check(ids)
        check_ids(ids, experts, skip)
    count = min(experts, tokens * chosen)
    return Plan(active[:count], starts[: count + 1], rows, places, scales)


def _kernel(key: Key) -> Call:
    return own_tile_kernel(lambda target: plan_program(*key, target))


_KERNELS: Once[Key, Call] = Once(_kernel)
