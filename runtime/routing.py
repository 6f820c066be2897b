"""Kernels that route tokens: how many of them a call takes depends on its number of tokens."""

from __future__ import annotations

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.ir.types import TensorType
from tilewright.passes.fuse_reroute import PARTS, SharedCounts, share_counts
from tilewright.passes.to_tile.whole_blocks.routing.program import PARTS as PARTS_ON_GPUS
from tilewright.runtime.family import Call, Maker, Variant
from tilewright.runtime.report import VariantReport


def with_shared_counts(make: Maker) -> Maker:
    """A maker that makes kernels which count any number of tokens two: what parts of the tokens
    counted is added up by the second."""

    def made(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
        parts = PARTS_ON_GPUS if target.gpu else PARTS
        shared = None if variant.rows else share_counts(variant.graph, parts)
        if shared is None:
            return make(variant, target)
        loop, report = make(_variant(variant, shared.loop, variant.units), target)
        units = _units(variant, shared)
        after, _ = make(_variant(variant, shared.after, units), target)
        return _joined(shared, loop, after), report

    return made


def with_few_tokens(make: Maker, many: Call) -> Maker:
    """A maker of one kernel for few tokens, where ``many`` calls several for any number."""

    def made(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
        if variant.rows:
            try:
                return make(variant, target)
            except UnsupportedError:
                pass
        kind = "several kernels"
        return many, VariantReport(
            "any number of rows",
            target.name,
            kind,
            variant.units,
            variant.static_sizes,
            0,
            True,
            0.0,
        )

    return made


def _variant(variant: Variant, graph: Graph, units: tuple[int, ...]) -> Variant:
    return Variant(graph, variant.rows, units, variant.static_sizes)


def _units(variant: Variant, shared: SharedCounts) -> tuple[int, ...]:
    """Unit strides of the second kernel's inputs: the counts are as the first wrote them."""
    counts = shared.after.params[: len(shared.after.params) - len(shared.after_inputs)]
    ranks = [len(p.type.shape) - 1 for p in counts if isinstance(p.type, TensorType)]
    return (*ranks, *(variant.units[i] for i in shared.after_inputs))


def _joined(shared: SharedCounts, loop: Call, after: Call) -> Call:
    first, second = len(shared.loop_results), shared.after_results
    places = sorted([*shared.loop_results, *second])
    order = [[*shared.loop_results, *second].index(at) for at in places]

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = loop(*tensors)
        late = after(*found[first:], *(tensors[i] for i in shared.after_inputs))
        both = (*found[:first], *late)
        return tuple(both[i] for i in order)

    return call
