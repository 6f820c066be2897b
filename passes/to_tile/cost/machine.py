"""Seconds of counted work on a core: ports, latencies, caches. The numbers describe kinds of cores.

A port model as in uops.info and in Fog's "Microarchitecture" manual: work on each kind of unit
takes its own time, the longest of them is the least that a turn of a loop can take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.ir.target import Target
from tilewright.passes.to_tile.cost.counts import Counts, Number, Section

LATENCY = 4.0  # cycles of a multiply-add, of an addition


@dataclass(frozen=True)
class Core:
    """Whole registers that units take in a cycle, and bytes from caches. ``sharp``: how far the
    longest hides the others (the exponent of a norm; infinite: wholly), ``overlap``: the part of
    the shorter of arithmetic and memory that does not hide behind the other; ``entry``: cycles
    until a loop that begins is under way; ``near``: cycles that a register from the second cache
    takes beyond one from the first."""

    fma: float
    add: float
    lanes_ops: float  # of all units that work on lanes together
    shuffle: float
    load: float
    store: float
    divide: float
    issue: float = 6.0
    sharp: float = 5.0
    overlap: float = 0.06
    entry: float = 6.0
    spill: float = 3.0  # cycles that a spilled register holds up what needs it
    near: float = 2.0
    hertz: float = 3.0e9
    far_bytes: float = 12.0  # a cycle from the cache that cores share
    memory_bytes: float = 5.0  # a cycle and core from memory
    far_cache: int = 16 << 20
    item: float = 600.0  # cycles to take a work item


ZEN4 = Core(1.0, 1.0, 2.0, 1.0, 1.0, 0.5, 0.1)  # pipes of 256 bits, two for a register of 512
INTEL512 = Core(2.0, 2.0, 2.0, 1.0, 2.0, 1.0, 0.1, issue=5.0)
AVX2 = Core(2.0, 2.0, 3.0, 1.5, 2.0, 1.0, 0.2)
NARROW = Core(2.0, 2.0, 3.0, 2.0, 2.0, 1.0, 0.25)


def core_of(target: Target) -> Core:
    """The kind of core that a target's code runs on."""
    if target.lanes == 16:
        half = target.cpu.startswith("znver4")
        return ZEN4 if half else INTEL512
    return AVX2 if target.lanes == 8 else NARROW


def cycles(section: Section, core: Core, target: Target) -> Number:
    """Of all turns of a section in a work item."""
    c = section.counts
    waiting = np.asarray(section.spills, float)
    beyond = np.asarray(section.reach) / target.l1_bytes - 0.5  # rows and streams take the rest
    far = 1.0 + np.clip(beyond, 0.0, 1.0) * (core.near - 1.0)
    read = c.load * far + 0.5 * (c.broadcast + section.apart)
    read = read + 0.5 * (c.lane + c.prefetch) + target.lanes * 0.5 * c.gather + waiting
    others = c.alu + c.shuffle + 2.0 * c.gather
    bounds = [
        (c.fma + c.dot) / core.fma,
        c.add / core.add,
        (c.fma + c.dot + c.add + others) / core.lanes_ops,
        c.shuffle / core.shuffle,
        c.divide / core.divide,
        read / core.load,
        (c.store * far + waiting + 0.5 * c.lane) / core.store,
        (c.vector + c.scalar + 2.0 * waiting + 2.0) / core.issue,
        np.asarray(section.chain, float),
    ]
    used = np.stack(np.broadcast_arrays(*bounds))
    longest = np.maximum(used.max(axis=0), 1e-9)
    together = ((used / longest) ** core.sharp).sum(axis=0) ** (1.0 / core.sharp)
    turn = longest * together + core.spill * waiting
    return turn * section.turns + core.entry * section.entries


def work_item(sections: list[Section], core: Core, target: Target) -> Number:
    """Cycles of an average work item."""
    return sum((cycles(x, core, target) for x in sections), core.item)


SLACK = 9  # registers beyond their number that the code generator's order of work makes room for
POINTERS = 10  # rows of memory whose addresses stay in registers


def spilled(vectors: Number, tile: Number, target: Target) -> Number:
    """Registers that wait in memory in a step of an outer product: sums, broadcasts that are not
    operands in memory, and the rows' registers of this step and the next ones. The weights are
    those with which the assembly of all shapes agrees, for 16 and for 32 registers."""
    folded = (np.asarray(vectors) <= 1) & target.folds_broadcast
    live = vectors * tile + 3 * vectors + np.where(folded, 0, tile)
    return np.maximum(live - target.registers - SLACK, 0.0)


def far_rows(tile: Number) -> Number:
    """Addresses of rows that are read again from memory in a step."""
    return np.maximum(np.asarray(tile, float) - POINTERS, 0.0)


def outer_step(vectors: Number, tile: Number, target: Target, pairs: bool = False) -> Section:
    """One step of an outer product: ``tile`` broadcasts with ``vectors`` registers."""
    kind = Counts(dot=1.0) if pairs else Counts(fma=1.0)
    counts = kind * (vectors * tile) + Counts(broadcast=1.0) * tile + Counts(load=1.0) * vectors
    folds = target.folds_broadcast and not pairs
    apart = tile * np.where((np.asarray(vectors) <= 1) & folds, 0.0, 1.0)
    return Section(
        "step", counts, chain=LATENCY, spills=spilled(vectors, tile, target), apart=apart
    )


@lru_cache(maxsize=4096)
def step_cycles(vectors: int, tile: int, target: Target) -> float:
    """Cycles of a step per multiply-add of a register."""
    found = cycles(outer_step(float(vectors), float(tile), target), core_of(target), target)
    return float(found) / (vectors * tile)


@lru_cache(maxsize=4096)
def unpacked_step_cycles(rows: int, vectors: int, unpack: float, target: Target) -> float:
    """Cycles per multiply-add of a step that takes ``unpack`` instructions to make a register of
    weights, which all rows share, as each row's number is by all vectors."""
    apart = rows * float(vectors > 1 or not target.folds_broadcast)
    counts = Counts(fma=rows * vectors, alu=unpack * vectors, broadcast=rows, load=vectors / 8)
    step = Section("step", counts, chain=LATENCY, apart=apart)
    return float(cycles(step, core_of(target), target)) / (rows * vectors)
