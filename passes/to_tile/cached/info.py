"""Which operands of a kernel lie in a low-bit cache, where, and the schedule that suits them.

Two forms. With few rows (decoding) nothing is dequantised: rows become bytes (fixed_point.py) and
both products are 8-bit dot products on the codes (scores.py, sums.py). With many rows a block is
unpacked to f32 in scratch once for all of them (unpacked.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.cache_form import BLOCK
from tilewright.ir.core import Graph, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_remake import RemakeStream
from tilewright.ir.target import Target
from tilewright.passes.to_tile.kernel_info import KernelInfo, strip_casts
from tilewright.passes.to_tile.made import remakes, sides
from tilewright.passes.to_tile.schedule import Schedule, choose_schedule, positions_on_lanes
from tilewright.passes.to_tile.state import LoweringState, round_up

TOKENS = 128  # of a block
MOST_GROUPS = 16


def cached_of(info: KernelInfo, value: Value) -> CachedStream | None:
    """The cache that a value is read from, None for others."""
    below, _ = strip_casts(info, value)
    op = info.made.get(below)
    return op if isinstance(op, CachedStream) else None


def cached_ops(graph: Graph) -> list[CachedStream]:
    return [op for op in graph.body.ops if isinstance(op, CachedStream)]


def cached_schedule(info: KernelInfo, target: Target, rows: int) -> Schedule:
    """The schedule for up to ``rows`` rows (0: many) of a kernel that reads a cache."""
    found = cached_ops(info.graph)
    plain = choose_schedule(target, rows)
    made = remakes(info.graph)
    if made:
        return _remade_schedule(info, plain, made, target)
    if not found:
        return plain
    for op in found:
        if info.splits or op.dims[2] != (info.inner.name,):
            raise UnsupportedError("a cache whose tokens are not what is summed along", op.loc)
    keys = [_inner_side(info, op) for op in info.graph.body.ops if isinstance(op, s.Contract)]
    on_lanes = any(cached_of(info, v) is not None for v in keys)
    mixed = on_lanes and any(cached_of(info, v) is None for v in keys)
    crossed = any(_summed(info, op) == op.form.keys for op in found)
    if mixed or crossed or any(_many_groups(op) for op in found):
        plain = choose_schedule(target, 0)  # blocks in f32 serve every product
    align = math.gcd(TOKENS, *(op.group for op in found if op.by == "channel"))
    block = align
    if align == TOKENS and not any(op.by == "channel" for op in found):
        align, block = BLOCK, round_up(min(plain.inner_block, TOKENS), BLOCK)
    plain = replace(plain, signed_bytes=target.signed_bytes)
    if plain.rows_on_lanes:
        tile = 1 << (plain.inner_tile.bit_length() - 1)  # whole tiles make whole blocks
        return replace(plain, align=align, inner_block=block, inner_tile=tile)
    changed = replace(plain, align=align, inner_block=block, kept_by_row=True)
    return positions_on_lanes(changed) if on_lanes else changed


def _remade_schedule(
    info: KernelInfo, plain: Schedule, made: list[RemakeStream], target: Target
) -> Schedule:
    """Blocks whose input, in f32, takes a quarter of the second-level cache, but for the least."""
    align = BLOCK if cached_ops(info.graph) else 1
    width = max(info.element(sides(info, op)[0])[0].size.constant or 0 for op in made)
    tile = 1 << (plain.inner_tile.bit_length() - 1)  # whole tiles make whole blocks
    least = math.lcm(align, tile, plain.lanes)
    most = min(max(plain.inner_block, least), TOKENS)
    block = min(most, target.l2_bytes // 4 // (4 * max(width, 1))) // least * least
    return replace(plain, align=align, inner_tile=tile, inner_block=max(block, least))


def _many_groups(op: CachedStream) -> bool:
    """Whether scales come so often that a sum of bytes is short, and its code long."""
    return op.by == "token" and op.form.channel_groups > MOST_GROUPS


def _summed(info: KernelInfo, cache: CachedStream) -> bool:
    """Whether tokens are weighed and added up, as values are."""
    ops = info.graph.body.ops
    used = [op for op in ops if any(cached_of(info, v) is cache for v in op.operands)]
    return any(not isinstance(op, s.Contract | m.Cast | s.Repeat) for op in used)


def _inner_side(info: KernelInfo, op: s.Contract) -> Value:
    """The side of a product that changes along the inner axis."""
    return op.rhs if info.varies(op.rhs) else op.lhs


class CacheReader:
    """Loads from the memory of one cache at the positions of a work item."""

    def __init__(self, state: LoweringState, op: CachedStream) -> None:
        self.state, self.b, self.op, self.form = state, state.build, op, op.form
        self.words, self.scales = state.buffers[op.words], state.buffers[op.scales]
        self.zeros = state.buffers[op.more[0]] if op.zeros else None

    def lead(self) -> list[Value]:
        """Indices of batch and head."""
        return self.state.source_index(self.op, self.state.grid_at)[0][:2]

    def beside(
        self,
        memory: Value,
        group: Value,
        at: Value,
        layout: Layout,
        along: int,
        limit: Value | None,
    ) -> Value:
        """Scales or zeros of a group in f32: numbers from ``at`` along tile dimension ``along``
        (-1: one number), those at or past ``limit`` as 0."""
        bounds = [(along, "zero", limit)] if limit is not None and along >= 0 else []
        dims = [-1, -1, -1, along]
        x = self.b.load(memory, [*self.lead(), group, at], dims, layout, bounds, hint="beside")
        wide = getattr(x.type, "dtype", F32) == F32
        return x if wide else self.b(m.Cast, x, dtype=F32, hint="beside")
