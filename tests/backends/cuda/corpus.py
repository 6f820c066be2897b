"""The corpus of GPU kernels as CUDA C++: what NVRTC (or nvcc) makes of it, without a GPU.

``python -m tests.backends.cuda.corpus [NAME …]`` compiles the rows of
``tests/backends/gpu_corpus.py`` (or those with NAME in their name) for every CUDA target and writes
``corpus.json`` beside this file: registers, spills, shared memory, and how often the instructions
that matter occur; for what the back end does not cover, why. Rows that end in "wide" or "one warp"
are the forms that are preferred to Triton's kernel. ``test_corpus.py`` holds it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.attention_forms import cached, module_of_form
from tests.attention_programs import Attention
from tests.backends.gpu_corpus import BOTH as ROWS
from tests.backends.gpu_corpus import called_module
from tilewright.backends.cuda.compile import architecture_of, compile_kernel
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.backends.gpu.machine_code import resources
from tilewright.frontend.attention.form import Form
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.target import Target, named_target
from tilewright.passes.pipeline import TO_KERNELS, kernel_passes, run_passes
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_threads.roles import roles_program
from tilewright.passes.to_tile.lower import gpu_program, gpu_programs_in_parts
from tilewright.passes.to_tile.tables import with_tables
from tilewright.runtime.cuda_kernel import own_blocks
from tilewright.runtime.family import Variant
from tilewright.runtime.gpu_choice import wide_program

TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100")
ARCHITECTURES = {name: architecture_of(named_target(name).cpu) for name in TARGETS}
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "LDG.E.64", "LDG.E.128", "STL", "LDL")
COUNTED += ("UTMALDG", "SYNCS")  # bulk copies, barriers in shared memory
COUNTED += ("MOVM", "BAR", "LDS", "STS")
TABLE = Path(__file__).with_suffix(".json")
# kernels that only Triton makes, and what of them the back end lacks: none of these rows
REFUSED: dict[str, str] = {}
# few rows with keys and values in few bits: codes on their way take registers (docs/cuda.md)
SPILLING = ("D128 cache u8, u4, 16 rows", "D128 cache u3, u5")


WIDE_FORMS = {
    f"attention {dtype} D{head}{' causal' if causal else ''}": Attention(
        head, head, dtype, causal=causal
    )
    for dtype, head, causal in (
        *(("bf16", head, causal) for head in (80, 128) for causal in (False, True)),
        ("f16", 128, True),
    )
}
WIDE = [*(f"{x}, wide" for x in (*WIDE_FORMS, *(f"attention {x}" for x in ("alibi", "soft cap"))))]


def wide_row(name: str) -> dict[str, Any]:
    """A kernel in the form that ``tilewright.runtime.gpu_choice`` prefers to Triton's."""
    plain = name.removesuffix(", wide")
    form = WIDE_FORMS.get(plain)
    text = None if form is None else parse(form.text())
    module = text or called_module(plain.removeprefix("attention "))
    (graph,) = map(with_tables, run_passes(module, TO_KERNELS).graphs)
    units = tuple(len(getattr(p.type, "shape", ())) - 1 for p in graph.params)
    target = named_target("cuda-sm90")
    program = wide_program(Variant(graph, 0, units, {}), target)
    assert program is not None, f"{name} is left to Triton"
    return _row((program,), "cuda-sm90", roles_program)


# few rows over caches in few bits, a warp alone: bits of keys and values, rows, and what is special
ONE_WARP_FORMS: dict[str, tuple[Form, int]] = {
    f"cache u{k}, u{v}, {rows} rows, one warp": (cached((k, v)), rows)
    for k, v, rows in (
        *((k, v, rows) for k, v in ((8, 4), (4, 4)) for rows in (8, 16)),
        *((k, v, 8) for k, v in ((8, 8), (4, 8), (8, 2), (2, 2), (6, 6), (3, 3), (1, 1))),
    )
} | {
    "cache u4 by channel, u2, one warp": (cached((4, 2), "channel"), 8),
    "cache u8 by channel, u4, one warp": (cached((8, 4), "channel"), 8),
    "cache f16 u8, u4, one warp": (cached((8, 4), dtype=torch.float16), 8),
    "cache f16 u4, u4, causal, one warp": (cached((4, 4), dtype=torch.float16, causal=True), 8),
    "cache u8, u4, D64, one warp": (cached((8, 4), width=64), 8),
    "cache u8, u4, D96, causal, one warp": (cached((8, 4), width=96, causal=True), 8),
    "cache u8, u4, D256, one warp": (cached((8, 4), width=256), 8),
}
ONE_WARP = [*ONE_WARP_FORMS, "cache u8, u4, window, one warp"]


def window(b: object, h: object, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Blocks on both sides of those that are seen whole."""
    return (j >= i + 100) & (j <= i + 900)


def one_warp_row(name: str, target: str) -> dict[str, Any]:
    """A kernel whose threads unpack words of their own, as ``tilewright.runtime.gpu_choice``
    prefers it: whole, and in parts."""
    form, rows = ONE_WARP_FORMS.get(name, (cached((8, 4)), 8))
    where = named_target(target)
    module = module_of_form(form, window if "window" in name else None)
    (graph,) = map(with_tables, run_passes(module, kernel_passes(where)).graphs)
    units = tuple(len(getattr(p.type, "shape", ())) - 1 for p in graph.params)
    variant = Variant(graph, rows, units, {})
    blocks = own_blocks(variant, where)
    assert blocks is not None, f"{name} is left to Triton"
    given = graph, where, variant.unit_dims, blocks, rows
    return _row((gpu_program(*given), gpu_programs_in_parts(*given)[0]), target, threads_program)


def refusal(name: str) -> str | None:
    """What the error says for kernels that are not covered."""
    return next((text for word, text in REFUSED.items() if word in name), None)


def measured(name: str, target: str) -> dict[str, Any]:
    """A row for a target: the most that one of its kernels takes, and instructions of all; on
    sm_90, beside the form for any memory, ``bulk``: that with a warp that copies in bulk."""
    if name in ONE_WARP:
        return one_warp_row(name, target)
    row = _measured(name, target, threads_program)
    if target == "cuda-sm90" and "refused" not in row:
        row["bulk"] = _measured(name, target, roles_program)
    return row


def _measured(name: str, target: str, lower: Callable[[Graph, Target], Graph]) -> dict[str, Any]:
    first, *others = ROWS[name].programs(named_target(target))
    return _row((first, *(() if lower is roles_program else others)), target, lower)


def _row(
    programs: Sequence[Graph], target: str, lower: Callable[[Graph, Target], Graph]
) -> dict[str, Any]:
    where = named_target(target)
    found: dict[str, Any] = {"registers": 0, "spills": 0, "shared_bytes": 0}
    counts = dict.fromkeys(COUNTED, 0)
    try:
        for program in programs:
            source = emit_cuda(lower(program, where), "kernel")
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
    every = [*ROWS, *WIDE, *ONE_WARP]
    for name in every:
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        if name in WIDE:
            row = {"cuda-sm90": wide_row(name)}
        else:
            row = {target: measured(name, target) for target in ARCHITECTURES}
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}  # others write it, too
        table[name] = row
        sys.stdout.write(f"{name}: {table[name]['cuda-sm90']}\n")
        sys.stdout.flush()
        kept = {n: table[n] for n in every if n in table}
        TABLE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
