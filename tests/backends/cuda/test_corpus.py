"""The table of what the corpus becomes as CUDA C++: the intended instructions, spills and refusals
only where they are known; and a sample of it compiled again."""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import pytest

from tests.backends.cuda.corpus import (
    ARCHITECTURES,
    ONE_WARP,
    SPILLING,
    TABLE,
    WIDE,
    measured,
    refusal,
    wide_row,
)
from tests.backends.gpu_corpus import BOTH as ROWS
from tilewright.backends.cuda.compile import compiler_missing
from tilewright.backends.gpu.machine_code import disassembler_missing

MISSING = compiler_missing() or disassembler_missing()
SECONDS = 10.0


def problems(name: str, target: str, row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of the table."""
    known = refusal(name)
    if known is not None:
        return [] if known in row.get("refused", "") else [f"{name}, {target}: covered by now?"]
    if "refused" in row:
        return [f"{name}, {target}: {row['refused']}"]
    units = row["instructions"].get("HMMA", 0) + row["instructions"].get("HGMMA", 0)
    spilled = row["spills"] and not any(word in name for word in SPILLING)
    found = [f"{name}, {target}: {row['spills']} spills"] if spilled else []
    found += bulk_problems(name, row.get("bulk", {}))
    if name in ONE_WARP:  # threads wait for nobody; words and codes go through no shared memory
        found += [f"{name}, {target}: {x}" for x in ("BAR", "LDS") if x in row["instructions"]]
        wanted = ("MOVM", "LDG.E.128")
        found += [f"{name}: no {x}" for x in wanted if x not in row["instructions"]]
    plain = "tokens" in name  # sorts, and codes of a cache: nothing to multiply
    return found if units or plain else [*found, f"{name}, {target}: no matrix unit"]


def bulk_problems(name: str, row: dict[str, Any]) -> list[str]:
    """What is wrong with the form that copies in bulk, where there is one."""
    if not row or "refused" in row:
        return (
            [] if "no bulk copies" in row.get("refused", "no bulk copies") else [f"{name}: {row}"]
        )
    unit = "HMMA" if "low-bit" in name else "HGMMA"
    missing = [kind for kind in (unit, "UTMALDG", "SYNCS") if kind not in row["instructions"]]
    found = [f"{name}: no {kind} beside bulk copies" for kind in missing]
    return [*found, f"{name}: {row['spills']} spills"] if row["spills"] else found


def test_the_table_is_whole_and_good() -> None:
    table = json.loads(TABLE.read_text())
    missing = {*ROWS, *WIDE, *ONE_WARP} ^ set(table)
    assert not missing, f"run python -m tests.backends.cuda.corpus for {sorted(missing)}"
    every = [(n, t) for n in table for t in table[n]]
    assert not [p for n, t in every for p in problems(n, t, table[n][t])]
    assert not [p for n in WIDE for p in bulk_problems(n, table[n]["cuda-sm90"])]
    copied = [n for n in table if "instructions" in table[n]["cuda-sm90"].get("bulk", {})]
    assert {f"attention bf16 D128{x}" for x in ("", " causal", " window", " documents")} <= {
        *copied
    }
    causal = table["attention bf16 D128 causal"]
    assert causal["cuda-sm90"]["instructions"]["HGMMA"]
    assert causal["cuda-sm80"]["instructions"]["LDSM"]


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_sample_compiles_without_problems() -> None:
    seed = int(os.environ.get("TILEWRIGHT_CORPUS_SEED", time.strftime("%j")))  # another each day
    every = [(n, t) for n in (*ROWS, *ONE_WARP) for t in ARCHITECTURES]
    end = time.perf_counter() + SECONDS
    for name, target in random.Random(seed).sample(every, len(every)):
        assert not problems(name, target, measured(name, target)), f"seed {seed}"
        if time.perf_counter() > end:
            break


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("name", WIDE)
def test_wide_forms_do_not_spill(name: str) -> None:
    assert not bulk_problems(name, wide_row(name))
