"""Cycles of counted work on kinds of cores, by hand: what a unit takes of one kind of instruction,
what a loop adds, what memory adds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tilewright.ir.target import named_target
from tilewright.passes.to_tile.cost.counts import Counts, Section
from tilewright.passes.to_tile.cost.machine import (
    AVX2,
    INTEL512,
    NARROW,
    ZEN4,
    Core,
    core_of,
    cycles,
    outer_step,
    spilled,
    work_item,
)

TARGET = named_target("znver4")
MANY = 10000.0
# Cycles of an instruction on a whole register (uops.info; Fog, "Microarchitecture"): Zen 4 splits
# registers of 512 bits, and stores half a register a cycle.
CYCLES: dict[str, tuple[Core, dict[str, float]]] = {
    "zen4": (
        ZEN4,
        {"fma": 1, "dot": 1, "add": 1, "alu": 1 / 2, "shuffle": 1, "load": 1, "store": 2,
         "divide": 10, "broadcast": 1 / 2, "gather": 8},
    ),
    "intel512": (
        INTEL512,
        {"fma": 1 / 2, "dot": 1 / 2, "add": 1 / 2, "alu": 1 / 2, "shuffle": 1, "load": 1 / 2,
         "store": 1, "divide": 10, "broadcast": 1 / 4, "gather": 4},
    ),
    "avx2": (
        AVX2,
        {"fma": 1 / 2, "dot": 1 / 2, "add": 1 / 2, "alu": 1 / 3, "shuffle": 2 / 3, "load": 1 / 2,
         "store": 1, "divide": 5, "broadcast": 1 / 4, "gather": 4},
    ),
    "narrow": (
        NARROW,
        {"fma": 1 / 2, "dot": 1 / 2, "add": 1 / 2, "alu": 1 / 3, "shuffle": 1 / 2, "load": 1 / 2,
         "store": 1, "divide": 4, "broadcast": 1 / 4, "gather": 4},
    ),
}  # fmt: skip


def of(section: Section, core: Core = ZEN4) -> float:
    """Cycles where the busiest unit hides all others."""
    return float(cycles(section, replace(core, sharp=1e6), TARGET))


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in CYCLES.items() for kind in kinds]
)
def test_an_instruction_takes_the_time_of_its_unit(name: str, kind: str) -> None:
    core, kinds = CYCLES[name]
    issue = (MANY + 2) / core.issue
    section = Section("x", Counts(**{kind: MANY}))
    assert of(section, core) == pytest.approx(max(kinds[kind] * MANY, issue), rel=1e-3)


def test_a_lane_that_is_read_or_written_alone_takes_half_a_load_and_half_a_store() -> None:
    assert of(Section("x", Counts(lane=MANY))) == pytest.approx(MANY)  # the store's half
    assert of(Section("x", Counts(prefetch=MANY))) == pytest.approx(MANY / 2)
    assert of(Section("x", Counts(scalar=MANY))) == pytest.approx(MANY / 6, rel=1e-3)


def test_units_work_beside_each_other_up_to_those_of_lanes_together() -> None:
    two = Counts(fma=MANY, add=MANY, alu=MANY)
    assert of(Section("x", two)) == pytest.approx(1.5 * MANY)  # three of two a cycle
    assert of(Section("x", Counts(fma=MANY, load=MANY))) == pytest.approx(MANY)
    both = Section("x", Counts(fma=MANY, load=MANY))
    apart = float(cycles(both, replace(ZEN4, sharp=1.0, issue=1e9, lanes_ops=1e9), TARGET))
    assert apart == pytest.approx(2 * MANY)


def test_turns_entries_and_chains_of_a_loop() -> None:
    work = Section("x", Counts(fma=100.0))
    assert of(replace(work, turns=7.0)) == pytest.approx(700)
    assert of(replace(work, turns=7.0, entries=3.0)) == pytest.approx(700 + 3 * 6)
    assert of(replace(work, turns=7.0, chain=150.0)) == pytest.approx(7 * 150)
    assert work_item([work, work], replace(ZEN4, sharp=1e6), TARGET) == pytest.approx(600 + 200)


def test_a_register_that_waits_is_written_read_and_waited_for() -> None:
    """A store of two cycles, and three until what needs it goes on."""
    section = Section("x", Counts(), spills=10.0)
    assert of(section) == pytest.approx(10 * 2 + 10 * 3)


@pytest.mark.parametrize(
    ("part", "cycles_of_a_load"), [(0.25, 1.0), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (9.0, 2.0)]
)
def test_loads_beyond_half_the_first_cache_come_from_the_second(
    part: float, cycles_of_a_load: float
) -> None:
    section = Section("x", Counts(load=MANY), reach=part * TARGET.l1_bytes)
    assert of(section) == pytest.approx(cycles_of_a_load * MANY)


def test_broadcasts_apart_from_their_instruction_take_another_half_load() -> None:
    section = Section("x", Counts(broadcast=MANY), apart=MANY)
    assert of(section) == pytest.approx(MANY)


@pytest.mark.parametrize(
    ("target", "core"),
    [
        ("znver4", ZEN4), ("x86-64-v4", INTEL512), ("sapphirerapids", INTEL512),
        ("x86-64-v3", AVX2), ("x86-64-v2", NARROW), ("aarch64", NARROW),
    ],
)  # fmt: skip
def test_kinds_of_cores(target: str, core: Core) -> None:
    assert core_of(named_target(target)) is core


def test_a_step_of_an_outer_product_is_counted_by_hand() -> None:
    """Three registers of rows, eight broadcasts: 24 multiply-adds."""
    step = outer_step(3.0, 8.0, TARGET)
    assert step.counts == Counts(fma=24.0, broadcast=8.0, load=3.0) and step.apart == 8
    pairs = outer_step(3.0, 8.0, TARGET, pairs=True)
    assert pairs.counts == Counts(dot=24.0, broadcast=8.0, load=3.0) and pairs.apart == 8
    folded = outer_step(1.0, 8.0, TARGET)  # its broadcasts are operands in memory
    assert folded.apart == (0 if TARGET.folds_broadcast else 8)
    assert outer_step(1.0, 8.0, TARGET, pairs=True).apart == 8


def test_registers_that_wait_are_those_beyond_the_file() -> None:
    """Each more sum beyond what fits is one more that waits."""
    tiles = np.arange(1.0, 40.0)
    found = spilled(2.0, tiles, TARGET)
    steps = np.diff(found)
    assert found[0] == 0 and steps[-1] == 3  # two sums and a broadcast for a position
    assert ((steps >= 0) & (steps <= 3)).all()
