"""Which rows go to which expert, made on a GPU: nothing waits for what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from tilewright.ir.dtypes import I32, I64
from tilewright.ir.target import Target
from tilewright.passes.to_tile.whole_blocks.experts.choices import PlanForm
from tilewright.passes.to_tile.whole_blocks.experts.plan import FEW, count_program, plan_program
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.experts.form import ExpertsForm
from tilewright.runtime.experts.rerouting import Rerouting
from tilewright.runtime.family import Call
from tilewright.runtime.gpu_backend import gpu_call
from tilewright.runtime.gpu_targets import pretended
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.once import Once

_IDS = {torch.int32: I32, torch.int64: I64}


@dataclass(frozen=True)
class BlockPlan:
    """The choices of a call, sorted by expert, in blocks of at most ``rows`` rows of one expert.

    ``blocks`` int32 [R, 3]: expert, first row and the one past the last of each, in order; 0, 0, 0
    where there are fewer than R, which is as many as there may be. ``tokens`` int32 [T * k]: the
    row of x of each sorted row; ``places`` int32 [T, k]: the sorted row of each choice, T * k if it
    is of no expert, -1 if its id is wrong; ``scales`` f32 [T * k]: weights as the rows lie.
    """

    rows: int
    blocks: torch.Tensor
    tokens: torch.Tensor
    places: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Planner:
    """Makes the plans of calls that are alike, in blocks of ``rows`` rows."""

    experts: int
    rows: int
    sort: Call
    tally: Call | None

    def __call__(
        self, ids: torch.Tensor, weights: torch.Tensor, rerouting: Rerouting | None = None
    ) -> BlockPlan:
        """The plan for ids [T, k] and weights [T, k], of the dtypes and about as many as those that
        it was made for.

        Ids that name no expert are not refused, since that would have to wait for the device: the
        plan marks them, and their tokens' results become NaN.
        """
        ids, weights = _readable(ids, weights)
        adapters = () if rerouting is None else (rerouting.adapters, rerouting.map)
        room = _room(most_blocks(ids.numel(), self.experts, self.rows), ids.device)
        flat = ids.reshape(-1)
        counts = () if self.tally is None else self.tally(flat, *adapters)
        made = self.sort(flat, weights.reshape(-1), *adapters, room, *counts)
        return BlockPlan(self.rows, *made)


@dataclass(frozen=True)
class Step:
    """A product of a layer: ``call`` takes the form of the layer, a plan, and rows; ``fresh`` says
    whether weights lie where they did when it was made."""

    call: Callable[[ExpertsForm, BlockPlan, torch.Tensor], torch.Tensor]
    fresh: Callable[[], bool]


def planner(
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: int,
    rows: int,
    target: Target,
    skip: bool = False,
    rerouting: Rerouting | None = None,
) -> Planner:
    """What makes plans for ids int [T, k] and weights float [T, k] like these, T * k not 0, in
    blocks of ``rows`` rows; with ``skip``, ids from ``experts`` on stand for no expert. With
    ``rerouting`` ids are of its base experts, and the same kernels look up what they mean."""
    ids, weights = _readable(ids, weights)
    base = 0 if rerouting is None else int(rerouting.map.shape[1])
    dtypes = _IDS[ids.dtype], FLOATS[weights.dtype]
    form = PlanForm(experts, int(ids.shape[1]), *dtypes, base, skip, rows)
    sort, tally = _KERNELS[form, is_few(ids), target, pretended.backend]
    return Planner(experts, rows, sort, tally)


def is_few(ids: torch.Tensor) -> bool:
    """Whether one work item sorts so many choices."""
    return ids.numel() <= FEW


def _readable(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids = ids if ids.dtype in _IDS else ids.long()
    return ids, weights if weights.dtype in FLOATS else weights.float()


def most_blocks(count: int, experts: int, rows: int) -> int:
    """Blocks of ``rows`` rows that ``count`` choices of so many experts take at most."""
    return (count + min(experts, count) * (rows - 1)) // rows


@lru_cache(maxsize=256)
def _room(length: int, device: torch.device) -> torch.Tensor:
    """A tensor of that length, by which a kernel knows how many blocks to make."""
    return torch.zeros(1, dtype=torch.bool, device=device).expand(length)


def _kernels(key: tuple[PlanForm, bool, Target, str]) -> tuple[Call, Call | None]:
    form, few, target, backend = key
    refuse_capture("plan_experts")
    sort = gpu_call(plan_program(form, few, target), target, backend)
    return sort, None if few else gpu_call(count_program(form, target), target, backend)


_KERNELS: Once[tuple[PlanForm, bool, Target, str], tuple[Call, Call | None]] = Once(_kernels)
