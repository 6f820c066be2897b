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
