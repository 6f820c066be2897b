"""The corpus of GPU kernels as CUDA C++: what NVRTC (or nvcc) makes of it, without a GPU.

``python -m tests.backends.cuda.corpus [NAME …]`` compiles the rows of
``tests/backends/gpu_corpus.py`` (or those with NAME in their name) for every CUDA target and writes
``corpus.json`` beside this file: registers, spills, shared memory, and how often the instructions
that matter occur; for what the back end does not cover, why. ``test_corpus.py`` holds it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.backends.gpu_corpus import ROWS
from tilewright.backends.cuda.compile import compile_kernel
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.backends.gpu.machine_code import resources
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import named_target
from tilewright.passes.to_threads.lower import threads_program

ARCHITECTURES = {"cuda-sm80": "sm_80", "cuda-sm90": "sm_90a", "cuda-sm100": "sm_100a"}
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "LDG.E.64", "LDG.E.128", "STL", "LDL")
TABLE = Path(__file__).with_suffix(".json")
# kernels that only Triton makes so far, and what of them the back end lacks
REFUSED = {"cache": "in a program of threads", "experts": "no form for threads"}


# kernels whose loops are not walked block after block of memory (their positions and pages take
# registers), and two on sm_80 with Triton's schedules: some registers are spilled (docs/cuda.md)
SPILLING = ("documents", "window", "ragged", "pages", "D256", "bool mask")


def refusal(name: str) -> str | None:
    """What the error says for kernels that are not covered."""
    return next((text for word, text in REFUSED.items() if word in name), None)


def measured(name: str, target: str) -> dict[str, Any]:
    """A row for a target: the most that one of its kernels takes, and instructions of all."""
    where = named_target(target)
    found: dict[str, Any] = {"registers": 0, "spills": 0, "shared_bytes": 0}
    counts = dict.fromkeys(COUNTED, 0)
    try:
        for program in ROWS[name].programs(where):
            source = emit_cuda(threads_program(program, where), "kernel")
            made = resources(compile_kernel(source.text, ARCHITECTURES[target], "kernel"))
            found["registers"] = max(found["registers"], made.registers)
            found["shared_bytes"] = max(found["shared_bytes"], source.shared_bytes)
            found["spills"] += made.spills
            for kind in COUNTED:
                counts[kind] += made.count(kind)
    except UnsupportedError as error:
        return {"refused": error.message}
    return found | {"instructions": {kind: n for kind, n in counts.items() if n}}


def main() -> None:
    """Writes the table, row by row."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for name in ROWS:
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        table[name] = {target: measured(name, target) for target in ARCHITECTURES}
        sys.stdout.write(f"{name}: {table[name]['cuda-sm90']}\n")
        sys.stdout.flush()
        kept = {n: table[n] for n in ROWS if n in table}
        TABLE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
