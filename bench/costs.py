"""The figures of which less is better: memory, compiling, first calls, call overhead, forms."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from typing import Any

import torch

import tilewright
from tilewright.bench.method.memory import growth
from tilewright.bench.programs import attention_text
from tilewright.bench.records import Goal, Quantity
from tilewright.bench.timing import timed

MIB = 1 << 20


def scratch_memory(length: int = 32768, head: int = 64) -> Quantity:
    """MB that one head over ``length`` keys takes beyond its inputs and its output.

    The larger of what the kernel declares and of how far the process grew; the latter is known on
    Linux only.
    """
    program = _program(head)
    small = torch.randn(1, 1, 256, head)
    q, k, v = (torch.randn(1, 1, length, head) for _ in range(3))
    with torch.inference_mode():
        program(small, small, small)  # compiled and loaded before the measurement
        grown = growth(lambda: program(q, k, v))
    declared = torch.get_num_threads() * max(v.scratch_bytes for v in _variants(program))
    beyond = None if grown is None else max(0, grown.peak - q.nbytes)
    value = max(declared, beyond or 0) / 1e6
    details = {"declared_bytes": declared, "growth_bytes": beyond, "length": length}
    return Quantity(f"scratch memory, L{length} D{head}", value, "MB", Goal(16.0), details)


def first_calls(runs: int = 3) -> list[Quantity]:
    """A new process's first call with an empty and a filled kernel cache: the fastest of ``runs``.

    The first call makes or loads the kernel; ``Program(module)`` is apart, in the details. Totals
    begin when torch is imported, and hold the imports of Lark, llvmlite and (compiling) MLIR.
    """
    empty, filled = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
            empty.append(new_process(folder))
            filled.append(new_process(folder))
    compiled = min(empty, key=lambda run: float(run["first_call"]))
    loaded = min(filled, key=lambda run: float(run["first_call"]))
    assert not compiled["from_cache"], "an empty folder had a kernel in it"
    assert loaded["from_cache"], "the second process did not find the kernel of the first"
    total = "import, parse, passes and first call, {} cache"
    return [
        Quantity("first call, compiling", compiled["first_call"], "s", Goal(1.0, 0.2), compiled),
        Quantity(
            "first call, kernel from the disk cache",
            loaded["first_call"] * 1e3,
            "ms",
            Goal(50.0, 10.0),
            loaded,
        ),
        Quantity(total.format("empty"), compiled["from_torch_imported"], "s", Goal(), compiled),
        Quantity(total.format("filled"), loaded["from_torch_imported"], "s", Goal(), loaded),
    ]


def new_process(cache: str) -> dict[str, Any]:
    """What ``first_call`` prints, and how long its process took in all, torch's import included."""
    command = [sys.executable, "-m", "tilewright.bench.first_call"]
    environment = {**os.environ, "TILEWRIGHT_CACHE_DIR": cache}
    outputs: list[str] = []

    def run() -> None:
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        outputs.append(done.stdout)

    seconds = timed(run)
    parts: dict[str, Any] = json.loads(outputs[0])
    return {**parts, "whole_process": seconds}


def call_overhead(calls: int = 2000, rounds: int = 7) -> Quantity:
    """µs of a whole call with one query and one key: the kernel itself does next to nothing."""
    program = _program(64)
    x = torch.randn(1, 1, 1, 64)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        program(x, x, x)
        sdpa(x, x, x)
        ours = min(timed(lambda: program(x, x, x), calls) for _ in range(rounds))
        theirs = min(timed(lambda: sdpa(x, x, x), calls) for _ in range(rounds))
    details = {"torch_sdpa": theirs * 1e6}
    return Quantity("a whole call at L1 D64", ours * 1e6, "µs", Goal(30.0, 5.0), details)


def compiled_forms(problems: int = 100, longest: int = 300) -> Quantity:
    """Forms compiled for so many different (batch, queries, keys), for each layout class used."""
    program = _program(64)
    chosen = random.Random(0)
    sizes: set[tuple[int, int, int]] = set()
    while len(sizes) < problems:
        queries = chosen.choice([1, 2, 8, chosen.randint(1, longest)])
        sizes.add((chosen.randint(1, 4), queries, chosen.randint(1, longest)))
    with torch.inference_mode():
        for batch, queries, keys in sorted(sizes):
            kv = torch.randn(batch, 2, keys, 64)
            program(torch.randn(batch, 4, queries, 64), kv, kv)
    forms = [variant.layout_class for variant in _variants(program)]
    classes = sorted(set(forms))
    details = {"forms": len(forms), "layout_classes": classes, "problems": problems}
    name = f"forms per layout class, {problems} (batch, Lq, Lk)"
    return Quantity(name, len(forms) / len(classes), "", Goal(1.0), details)


def _program(head: int) -> Any:
    return tilewright.Program(tilewright.parse(attention_text(head)))


def _variants(program: Any) -> list[Any]:
    return [variant for kernel in program.explain().kernels for variant in kernel.variants]
