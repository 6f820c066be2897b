"""Which packing a weight matrix gets: all that apply are enumerated, costed and compared.

Float activations are costed as bf16 where a target multiplies pairs of them; taking single codes
apart for f32 takes as many instructions in one order as in another.

The cost is counted, not tabulated: the unpacking code of a chunk is written as for a kernel, and
its instructions are weighed against the bytes that have to come from memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tilewright.ir.core import Op
from tilewright.ir.dtypes import BF16, I32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.packing import HALF, PAIR, QUAD, STRIP, TILE_WORDS, TILES, Packing
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.byte_codes import byte_codes
from tilewright.passes.to_tile.lowbit.cost import dot_slots, kind, slots
from tilewright.passes.to_tile.lowbit.decode import decoder
from tilewright.passes.to_tile.lowbit.pairs import pair_table
from tilewright.passes.to_tile.lowbit.unpack import emit_moves, quad_moves
from tilewright.passes.to_tile.whole_blocks.lowbit.cost import gpu_instructions, strip_operations
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import (
    LANES,
    StripDecoder,
    product_dtype,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import strips_of

ACTIVATIONS = ("int8", "float")
SHAPES = ("decode", "prefill")
ROWS = {"decode": 1, "prefill": 6}  # rows that share what was unpacked
MOST_PLANES = 3  # as 7 = 4 + 2 + 1 needs; more only cost more
BYTES_PER_CYCLE = 8.0  # that a core gets from memory while the others do, too
GPU_BYTES_PER_CYCLE = 14.5  # the same of a multiprocessor of an H100
GPU_LANES = 64  # integer instructions of lanes that it begins in a cycle
VECTORS_PER_CYCLE = {16: 2.0, 8: 3.0}  # arithmetic instructions by lanes


@dataclass(frozen=True)
class Candidate:
    """A packing and what a chunk of one vector costs: bytes, and instructions by kind."""

    packing: Packing
    bytes: float
    loads: int
    shifts: int
    masks: int
    arithmetic: int
    weights: int
    cycles: float

    @property
    def cycles_per_weight(self) -> float:
        return self.cycles / self.weights


@dataclass(frozen=True)
class LayoutChoice:
    """All candidates, cheapest first."""

    dtype: DType
    activation: str
    shape: str
    target: Target
    candidates: tuple[Candidate, ...]

    @property
    def packing(self) -> Packing:
        return self.candidates[0].packing

    def explain(self) -> str:
        """The table: per 1,000 weights bytes read, instructions, cycles."""
        lanes = self.target.lanes
        whose = "thread" if self.target.gpu else f"vector of {lanes} lanes"
        head = (
            f"{self.dtype} x {self.activation} on {self.target.name}, {self.shape}: "
            f"per 1,000 weights and {whose}"
        )
        columns = f"{'packing':44}{'bytes':>7}{'loads':>7}{'shifts':>8}{'masks':>7}{'arith':>7}"
        lines = [head, f"  {columns}{'cycles':>8}"]
        for number, c in enumerate(self.candidates):
            scale = 1000 / c.weights
            counts = "".join(
                f"{value * scale:{width}.1f}"
                for value, width in (
                    (c.bytes, 7),
                    (c.loads, 7),
                    (c.shifts, 8),
                    (c.masks, 7),
                    (c.arithmetic, 7),
                    (c.cycles, 8),
                )
            )
            mark = "*" if number == 0 else " "
            lines.append(f"{mark} {c.packing!s:44}{counts}")
        return "\n".join(lines)


def choose_layout(
    dtype: DType,
    group: int,
    target: Target,
    *,
    activation: str = "int8",
    shape: str = "decode",
) -> LayoutChoice:
    """The packings of ``dtype`` in groups of ``group`` for a target, cheapest first.

    ``activation`` is ``int8`` or ``float``, ``shape`` is ``decode`` (one row reads the weights) or
    ``prefill`` (many do). Codes whose values are no bytes are costed with float activations.
    Raises UnsupportedError for a group below 1 and for unknown names.
    """
    if activation not in ACTIVATIONS or shape not in SHAPES:
        known = f"activation is one of {', '.join(ACTIVATIONS)}, shape of {', '.join(SHAPES)}"
        raise UnsupportedError(f"{activation!r}, {shape!r}: {known}")
    if group < 1:
        raise UnsupportedError(f"a group has at least one code, not {group}")
    if target.gpu or (activation == "int8" and byte_codes(dtype, target) is None):
        activation = "float"
    return _chosen(dtype, group, target, activation, shape)


@lru_cache(maxsize=1024)
def _chosen(dtype: DType, group: int, target: Target, activation: str, shape: str) -> LayoutChoice:
    if target.gpu:
        found = [_costed_tiles(p, dtype, shape == "decode") for p in tilings(dtype.bits, group)]
    else:
        found = [
            _costed(packing, dtype, target, activation, ROWS[shape])
            for packing in packings(dtype.bits, group, target.lanes)
        ]
    # of equals the one with the fewest planes, which is named first
    ordered = sorted(found, key=lambda c: c.cycles_per_weight)
    return LayoutChoice(dtype, activation, shape, target, tuple(ordered))


def packings(bits: int, group: int, lanes: int) -> Iterator[Packing]:
    """All packings of a width: sums of up to three planes that divide a byte, whole codes in bytes
    or halves of words, and codes back to back."""
    for planes in _sums(bits, (8, 4, 2, 1)):
        if len(planes) > MOST_PLANES:
            continue
        yield Packing("quads", planes, lanes, group)
    if 8 % bits:  # else a plane
        yield Packing.bytes(bits, lanes, group)
    yield Packing.fields(bits, lanes, group)
    yield Packing.halves(bits, lanes, group)


def tilings(bits: int, group: int) -> Iterator[Packing]:
    """All packings of a width that matrix units of GPUs read."""
    for planes in _sums(bits, (8, 4, 2, 1)):
        if len(planes) <= MOST_PLANES:
            yield Packing(TILES, planes, LANES, group)


def _sums(total: int, parts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Sums of parts, largest parts first."""
    if total == 0:
        yield ()
    for at, part in enumerate(parts):
        if part <= total:
            for rest in _sums(total - part, parts[at:]):
                yield (part, *rest)


def _costed(
    packing: Packing, dtype: DType, target: Target, activation: str, rows: int
) -> Candidate:
    unpack, work, dots = _instructions(packing, dtype, target, activation)
    counts = Counter[str]()
    for op in unpack:
        counts[kind(op)] += slots(op, target)
    loads = packing.words
    padding = packing.padded_group / packing.group if packing.group < 1 << 20 else 1.0
    size = 4.0 * packing.words * target.lanes * padding
    total = loads + sum(counts.values()) + rows * dots * work
    busy = total / VECTORS_PER_CYCLE.get(target.lanes, 1.0)
    cycles = max(busy, size / BYTES_PER_CYCLE) + 0.05 * (busy + size / BYTES_PER_CYCLE)
    weights = packing.chunk * target.lanes
    arithmetic = counts["arithmetic"] + dots * work
    return Candidate(
        packing, size, loads, counts["shift"], counts["mask"], arithmetic, weights, cycles
    )


def _instructions(
    packing: Packing, dtype: DType, target: Target, activation: str
) -> tuple[list[Op], int, int]:
    """The operations that unpack a chunk; slots of one multiply-add, and how many a row takes."""
    b, lanes = TileBuilder(), max(target.lanes, 1)
    layout = Layout(2).spatial(1, lanes)
    words = [b.filled(0, I32, layout) for _ in range(packing.words)]
    if activation == "int8":
        coded = byte_codes(dtype, target)
        assert coded is not None
        for quad in range(packing.chunk // QUAD):
            coded.emit(b, emit_moves(b, words, quad_moves(packing, quad)))
        return list(b.top.ops), dot_slots(coded.bits, target), packing.chunk // QUAD
    pairs = pair_table(packing, dtype, 0, PAIR * packing.chunk, target)
    if pairs is not None:
        for pair in range(packing.chunk // PAIR):
            pairs.emit(b, words, pair)
        return list(b.top.ops), 1, packing.chunk // PAIR
    wanted = decoder(packing, dtype, 0, target)
    for code in range(packing.chunk):
        wanted.emit(b, words, code)
    return list(b.top.ops), 1, packing.chunk


def _costed_tiles(packing: Packing, dtype: DType, few: bool) -> Candidate:
    """A chunk of one lane on a multiprocessor of an H100, for activations in bf16: a plane of few
    bits is loaded in several turns of the loop, from memory only once."""
    strips = packing.chunk // STRIP
    way = StripDecoder(packing, dtype, 0, "", product_dtype(dtype, BF16))
    counts = Counter[str]()
    for op in strip_operations(way, strips):
        counts[kind(op)] += gpu_instructions(op)
    turns = strips // strips_of(packing, few)
    tiles = sum(max(1, strips // turns * width // HALF) for width in packing.planes)
    loads = TILE_WORDS * tiles * turns
    size = 4.0 * packing.words
    busy, waiting = (loads + sum(counts.values())) / GPU_LANES, size / GPU_BYTES_PER_CYCLE
    cycles = max(busy, waiting) + 0.05 * (busy + waiting)
    shifts, masks, more = (counts[k] for k in ("shift", "mask", "arithmetic"))
    return Candidate(packing, size, loads, shifts, masks, more, packing.chunk, cycles)
