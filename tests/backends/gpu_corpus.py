"""The corpus of GPU kernels and the table of what compilers make of them, without a GPU.

``python -m tests.backends.gpu_corpus [NAME …]`` compiles every row (or those with NAME in their
name) for every target and writes ``gpu_corpus.json`` beside this file: registers, spilled bytes,
shared memory, and how often the instructions that matter occur. ``test_gpu_corpus.py`` holds it.
Add a row to ``ROWS`` for every kind of kernel, then run this for it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tilewright
from tests.attention_forms import FORMS, module_of
from tests.attention_programs import Attention
from tilewright.backends.gpu.machine_code import assembly
from tilewright.backends.triton.build import compile_ahead, triton_module
from tilewright.backends.triton.emit import emit_source
from tilewright.bench.gpu_attention_cases import MASKS
from tilewright.frontend.attention import plans
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import BF16, F16, F32, I64
from tilewright.ir.dtypes import TABLE as TABLE_OF_DTYPES
from tilewright.ir.parser import parse
from tilewright.ir.target import Target, named_target
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.pipeline import kernel_passes, run_passes
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import PLAIN, FloatForm
from tilewright.passes.to_tile.experts.packed_form import PackedForm, Stack
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.lowbit.info import WeightForm
from tilewright.passes.to_tile.lower import (
    gpu_program,
    gpu_programs_in_parts,
    gpu_programs_with_spans,
    prepared,
)
from tilewright.passes.to_tile.tables import with_tables
from tilewright.passes.to_tile.whole_blocks.experts.blocks import product_blocks
from tilewright.passes.to_tile.whole_blocks.experts.choices import PlanForm
from tilewright.passes.to_tile.whole_blocks.experts.packed import (
    packed_blocks,
    packed_product_program,
)
from tilewright.passes.to_tile.whole_blocks.experts.plan import plan_program
from tilewright.passes.to_tile.whole_blocks.experts.products import product_program
from tilewright.passes.to_tile.whole_blocks.schedule import blocks_of_planes
from tilewright.runtime.kv_cache.coder import quantising
from tilewright.runtime.lowbit.form import LinearForm
from tilewright.runtime.lowbit.gpu_programs import GpuForm, tile_programs

TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942")
TABLE = Path(__file__).with_suffix(".json")
# SASS, and AMD's: matrix products, copies to shared memory, and what is read 16 bytes at a time
COUNTED = {
    "cuda": ("HMMA", "HGMMA", "UTCHMMA", "LDGSTS", "UTMALDG", r"LDG\S*\.128", r"STG\S*\.128"),
    "hip": ("v_mfma", "global_load_dwordx4", "buffer_load_dwordx4"),
}
MATRIX = {
    "cuda-sm80": "HMMA",
    "cuda-sm90": "HGMMA",
    "cuda-sm100": "UTCHMMA",
    "hip-gfx942": "v_mfma",
}


@dataclass(frozen=True)
class Row:
    """Kernels of one kind: their programs for a target, and which instructions they must have
    (``expects``: by target)."""

    programs: Callable[[Target], tuple[Graph, ...]]
    expects: Callable[[str], tuple[str, ...]]


def nothing(target: str) -> tuple[str, ...]:
    """For kernels of ordinary arithmetic."""
    return ()


def matrix_units(target: str) -> tuple[str, ...]:
    """Products in matrix units, operands by asynchronous copies."""
    copies = {"cuda-sm80": ("LDGSTS",), "hip-gfx942": ()}.get(target, ("UTMALDG",))
    return MATRIX[target], *copies


def few_rows(target: str) -> tuple[str, ...]:
    """Blocks of 16 rows, which only warps' own matrix instructions take."""
    return ("v_mfma",) if target.startswith("hip") else ("HMMA",)


def products(target: str) -> tuple[str, ...]:
    """Products in matrix units, whatever brings their operands."""
    return (MATRIX[target],)


# ---- programs


def kernels(
    module: Module, target: Target, rows: int, parts: bool = False, planes: bool = False
) -> tuple[Graph, ...]:
    """The whole-block programs of a module's kernels; ``parts``: the pair that shares out keys;
    ``planes``: with the blocks that Triton has for caches in few bits."""
    found: list[Graph] = []
    for graph in map(with_tables, run_passes(module, kernel_passes(target)).graphs):
        units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
        blocks = blocks_of_planes(analyse(prepared(graph)), target, rows) if planes else None
        given = graph, target, units, blocks, rows
        found += gpu_programs_in_parts(*given) if parts else (gpu_program(*given),)
    return tuple(found)


def written(form: Attention, rows: int, parts: bool, target: Target) -> tuple[Graph, ...]:
    return kernels(parse(form.text()), target, rows, parts)


def called(name: str, target: Target) -> tuple[Graph, ...]:
    """``tilewright.attention`` with one of the masks and scores that are measured."""
    return kernels(called_module(name), target, 0)


def found_before(name: str, target: Target) -> tuple[Graph, ...]:
    """The same as two kernels: that which walks blocks, and that which finds them before."""
    (graph,) = map(with_tables, run_passes(called_module(name), kernel_passes(target)).graphs)
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    return gpu_programs_with_spans(graph, target, units)[::-1]


def called_module(name: str) -> Module:
    """The program of such a call."""
    plans.forget_plans()
    q, k, v = (torch.randn(1, 2, 32, 128).bfloat16() for _ in range(3))
    with torch.no_grad():
        tilewright.attention(q, k, v, **MASKS[name](2, 32, q.device))
    ((plan,),) = plans._plans.values()
    return plan.traced.module


def attention(
    head: int, dtype: str = "bf16", rows: int = 0, parts: bool = False, **options: Any
) -> Callable[[Target], tuple[Graph, ...]]:
    form = Attention(head, head, dtype, **options)
    return partial(written, form, rows, parts)


def attention_form(name: str, rows: int, target: Target) -> tuple[Graph, ...]:
    """``tilewright.attention`` of another form, whole and in parts."""
    module = module_of(name)
    return *kernels(module, target, rows), *kernels(module, target, rows, True)


def in_few_bits(dtype: str, target: Target) -> WeightForm:
    """A weight in groups of 128."""
    kind = TABLE_OF_DTYPES[dtype]
    packing = str(choose_layout(kind, 128, target, activation="float").packing)
    return WeightForm(packing, kind, 0, None, F16, F32, None)


def low_bit(dtype: str, rows: int, parts: int, target: Target) -> tuple[Graph, ...]:
    """bf16 times a weight in groups of 128, 8,192 long."""
    form = LinearForm((in_few_bits(dtype, target),), 8192, False, BF16, None, "", narrow=True)
    made = tile_programs(GpuForm(form, target.name, rows, parts, counting=parts > 1))
    return tuple(x for x in (made.main, made.finish) if x is not None)


def new_tokens(bits: int, by: str, target: Target) -> tuple[Graph, ...]:
    """What a cache makes of new keys in bf16."""
    form = CacheForm("lanes", bits, 128, by, 128)
    limits = 1 + 2**-10, 2**-14, 65504.0, 65504.0
    return kernels(Module((quantising(form, False, BF16, F16, limits),)), target, 0)


def expert_products(rows: int, target: Target) -> tuple[Graph, ...]:
    gated = FloatForm(2816, 704, BF16, BF16, 2, GateFunction("silu"), chosen=True, out=BF16)
    down = FloatForm(704, 2816, BF16, BF16, scaled=True, out=BF16)
    return tuple(
        product_program(form, product_blocks(form, target, rows), target) for form in (gated, down)
    )


def packed_experts(dtype: str, rows: int, target: Target) -> tuple[Graph, ...]:
    weight, silu = in_few_bits(dtype, target), GateFunction("silu")
    both, one = ((Stack(weight, False, 2, (0, 1)),),), ((Stack(weight, False),),)
    forms = (
        PackedForm(2816, 704, both, BF16, silu, None, False, BF16, True),
        PackedForm(704, 2816, one, BF16, PLAIN, None, True, BF16, False),
    )
    return tuple(
        packed_product_program(form, packed_blocks(form, target, rows), target).program
        for form in forms
    )


def expert_plan(target: Target) -> tuple[Graph, ...]:
    form = PlanForm(128, 8, I64, F32, 0, False, 64)
    return tuple(plan_program(form, few, target) for few in (True, False))


def planes(name: str, target: Target) -> tuple[Graph, ...]:
    """Few rows over a cache in few bits, as Triton's kernels take them."""
    module = module_of(name)
    return *kernels(module, target, 16, False, True), *kernels(module, target, 16, True, True)


BOTH: dict[str, Row] = {  # that CUDA C++ has, too
    **{f"attention bf16 D{d}": Row(attention(d), matrix_units) for d in (64, 80, 128)},
    **{
        f"attention bf16 D{d} causal": Row(attention(d, causal=True), matrix_units)
        for d in (64, 128, 256)
    },
    "attention f16 D128 causal": Row(attention(128, "f16", causal=True), matrix_units),
    "attention f32 D64": Row(attention(64, "f32"), nothing),
    "attention bf16 D128 bool mask": Row(attention(128, mask="bool"), matrix_units),
    "attention bf16 D128 added mask": Row(attention(128, mask="add"), matrix_units),
    "attention bf16 D128 16 rows": Row(attention(128, rows=16), few_rows),
    "attention bf16 D128 16 rows, in parts": Row(attention(128, rows=16, parts=True), few_rows),
    **{f"attention bf16 D128 {name}": Row(partial(called, name), products) for name in MASKS},
    "attention bf16 D128 documents, in two": Row(partial(found_before, "documents"), products),
    **{
        f"attention bf16 D128 {name}, {rows or 'many'} rows": Row(
            partial(attention_form, name, rows), few_rows if rows == 16 else products
        )
        for name in FORMS
        for rows in (16, 64, 0)
        if rows or name != "decode"
    },
    **{
        f"low-bit {dtype} {rows or 'many'} rows": Row(partial(low_bit, dtype, rows, 1), nothing)
        for dtype in ("u4", "u8", "u3", "f6e3m2")
        for rows in (16, 0)
    },
    "new tokens of a cache, u8": Row(partial(new_tokens, 8, "token"), nothing),
    "new tokens of a cache, u4 by channel": Row(partial(new_tokens, 4, "channel"), nothing),
    "experts 16 rows": Row(partial(expert_products, 16), few_rows),
    "experts 128 rows": Row(partial(expert_products, 128), products),
    **{
        f"experts {dtype} {rows} rows": Row(
            partial(packed_experts, dtype, rows), few_rows if rows == 16 else products
        )
        for dtype in ("u4", "u8", "u3", "f4e2m1")
        for rows in (16, 64)
    },
    **{
        f"low-bit {dtype} 32 rows": Row(partial(low_bit, dtype, 32, 1), few_rows)
        for dtype in ("u1", "u2", "u3", "u7")
    },
    "experts, order of tokens": Row(expert_plan, nothing),
}
ROWS = {
    **BOTH,
    "attention bf16 D128 planes of u8, u4": Row(partial(planes, "cache u8, u4"), few_rows),
    **{
        f"low-bit {dtype} {rows} rows, in {parts} parts": Row(
            partial(low_bit, dtype, rows, parts), nothing
        )
        for dtype, rows, parts in (("u4", 8, 4), ("u8", 16, 4), ("u3", 8, 16), ("u4", 32, 2))
    },
}


# ---- the table


def measured(name: str, target: str) -> dict[str, Any]:
    """A row of the table: what the row's kernels take together, or the most that one takes."""
    found: dict[str, Any] = {"registers": 0, "spills": 0, "shared_bytes": 0, "instructions": {}}
    where = named_target(target)
    for program in ROWS[name].programs(where):
        source = emit_source(program, "kernel", bulk=bool(program.attrs.get("bulk")))
        warps, stages = int(program.attrs["warps"]), int(program.attrs["stages"])
        made = compile_ahead(source, program, where, warps, stages)
        found["registers"] = max(found["registers"], made.registers)
        found["spills"] += made.spills
        found["shared_bytes"] = max(found["shared_bytes"], made.shared_bytes)
        code = assembly(made.machine_code) if where.gpu == "cuda" else made.assembly
        for pattern in COUNTED[where.gpu]:
            count = len(re.findall(rf"\b{pattern}", code))
            label = pattern.replace(r"\S*\.", ".")
            if count:
                counts = found["instructions"]
                counts[label] = counts.get(label, 0) + count
    return found


def read() -> dict[str, Any]:
    """The table: Triton's version, and rows by name and target."""
    if not TABLE.exists():
        return {"triton": "", "rows": {}}
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def main(wanted: list[str]) -> None:
    """Compiles and writes the rows whose names have one of ``wanted`` in them, or all."""
    for name in ROWS:
        if wanted and not any(part in name for part in wanted):
            continue
        began = time.perf_counter()
        row = {target: measured(name, target) for target in TARGETS}
        spills = sum(x["spills"] for x in row.values())
        print(f"{name}: {spills} bytes spilled, {time.perf_counter() - began:.1f} s", flush=True)
        rows = read()["rows"] | {name: row}  # others may have written meanwhile
        table = {
            "triton": triton_module().__version__,
            "rows": {n: rows[n] for n in ROWS if n in rows},
        }
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
