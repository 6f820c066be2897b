"""The table of what GPU kernels compile to: no spills, the intended instructions, still true."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from tests.backends.gpu_corpus import ROWS, TARGETS, measured, read
from tilewright.backends.triton.build import triton_module

pytest.importorskip("triton")
SECONDS = 12.0


def problems(name: str, target: str, row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of the table."""
    found = [f"{name}, {target}: {row['spills']} bytes spilled"] if row["spills"] else []
    missing = [x for x in ROWS[name].expects(target) if not row["instructions"].get(x)]
    return found + [f"{name}, {target}: no {x}" for x in missing]


def test_the_table_is_whole_and_good() -> None:
    table = read()["rows"]
    missing = set(ROWS) ^ set(table)
    assert not missing, f"run python -m tests.backends.gpu_corpus for {sorted(missing)}"
    every = [(n, t) for n in table for t in TARGETS]
    assert not [p for n, t in every for p in problems(n, t, table[n][t])]


def at_once(row: dict[str, Any], warps: int) -> int:
    """Work items that one multiprocessor of an H100 runs at a time (CUDA's occupancy tables: 228
    KiB of shared memory, of which each block takes 1 KiB more than it asks for, in steps of 128
    bytes; 65,536 registers in steps of 8 for each thread)."""
    shared = -(-row["shared_bytes"] // 128) * 128 + 1024
    registers = -(-row["registers"] // 8) * 8 * 32 * warps
    return min((228 << 10) // shared, 65536 // registers)


@pytest.mark.parametrize("name", [n for n in ROWS if n.startswith("attention bf16 D128")])
def test_two_work_items_run_at_a_time_on_an_h100(name: str) -> None:
    """Which is what schedules of 64 rows are chosen for: one multiplies while the other takes
    exponentials. Masks in memory take the room of the second."""
    if name.endswith("mask"):
        pytest.skip("a block of the mask for every block of keys")
    assert at_once(read()["rows"][name]["cuda-sm90"], warps=4) > 1


def test_a_sample_compiles_to_what_the_table_says() -> None:
    table, same = read(), triton_module().__version__ == read()["triton"]
    seed = int(os.environ.get("TILEWRIGHT_CORPUS_SEED", time.strftime("%j")))  # another each day
    every = [(n, t) for n in ROWS for t in TARGETS]
    chosen = random.Random(seed).sample(every, len(every))
    end = time.perf_counter() + SECONDS
    for name, target in chosen:
        found = measured(name, target)
        assert not problems(name, target, found), f"seed {seed}"
        if same:  # else registers and schedules are another compiler's
            assert found == table["rows"][name][target], f"{name}, {target}, seed {seed}"
        if time.perf_counter() > end:
            break


def test_what_is_wrong_with_a_row_is_found() -> None:
    good = read()["rows"]["attention bf16 D128"]["cuda-sm90"]
    bad = good | {"spills": 8, "instructions": {"HMMA": 64}}
    name = "attention bf16 D128, cuda-sm90"
    assert problems("attention bf16 D128", "cuda-sm90", good) == []
    assert problems("attention bf16 D128", "cuda-sm90", bad) == [
        f"{name}: 8 bytes spilled",
        f"{name}: no HGMMA",
        f"{name}: no UTMALDG",
    ]
