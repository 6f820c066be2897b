"""The schedules that kernels have without a search, and what a search chooses among, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from tests.attention_forms import FORMS, module_of
from tests.attention_programs import Attention
from tests.golden.kernels import F6, U3, U4, U8
from tests.lowbit_programs import Form, Weight
from tilewright.bench.tuning_workloads import texts
from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.parser import parse
from tilewright.ir.target import Target, named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.choices import Space
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, tiling
from tilewright.passes.to_tile.spaces import kernel_space
from tilewright.passes.to_tile.tables import with_tables
from tilewright.passes.to_tile.whole_blocks.experts.blocks import product_blocks, rows_of_block

CPUS = ("scalar", "aarch64", "x86-64-v3", "znver4")
GPUS = ("cuda-sm80", "cuda-sm90", "hip-gfx942")
ROWS = (0, 1, 4, 16)  # 0: any number
WEIGHTS = {"u2": Weight("u2", 32), "u3": U3, "u4": U4, "f6": F6, "u8": U8}


def products(target: Target) -> dict[str, Module]:
    """Products with weights in few bits, of float activations and of bytes."""
    found = {}
    for name, weight in WEIGHTS.items():
        given = {"float": Form((weight,), 384)}
        if weight.dtype.startswith("u") and not target.gpu:
            given["bytes"] = Form((weight,), 384, activation=weight.group)
        for kind, form in given.items():
            found[f"low-bit {name} x {kind}"] = parse(form.text(target.lanes or 64))
    return found


def programs(target: Target) -> dict[str, Module]:
    """Those that have a schedule on a target, by name."""
    given = {name: parse(text) for name, text in texts().items() if "decode" not in name}
    (open_width,) = given["cross entropy"].graphs
    given["cross entropy"] = Module((specialise(open_width, {"D": 256}),))
    if target.gpu:
        given = {name: x for name, x in given.items() if "attention" in name}
        given |= {f"attention f16 D{d}": parse(Attention(d, d, "f16").text()) for d in (32, 256)}
    given |= {f"attention bf16 D128 {name}": module_of(name) for name in FORMS}
    return given | products(target)


def kernel(module: Module) -> Graph:
    (graph,) = run_passes(module, TO_KERNELS).graphs
    return with_tables(graph)


def fields(values: dict[str, int]) -> str:
    return " ".join(f"{name}={int(value)}" for name, value in values.items())


def described(space: Space) -> str:
    """The default, how many schedules there are, and the values that they are made of."""
    values = json.dumps({name: list(map(int, x)) for name, x in space.values.items()})
    return f"{fields(space.default)}, of {sum(1 for _ in space)}: {values}"


def experts(target: Target) -> Iterator[str]:
    """Blocks of grouped products, by rows of an expert."""
    forms: dict[str, tuple[DType, int, bool]] = {
        "bf16, gate and up": (BF16, 2, False),
        "bf16, down": (BF16, 1, False),
        "f32": (F32, 1, False),
        "f32, turned": (F32, 1, True),
    }
    for name, (kind, count, turned) in forms.items():
        form = FloatForm(2816, 704, kind, kind, count, GateFunction("silu"), turned=turned)
        for rows in (1, 2, 4, 16, 64, 256):
            if not target.gpu:
                found = tiling(form, target, rows)
                yield f"experts {name}, {rows} rows: {found.way.name} {found.rows}x{found.vectors}"
            elif not turned:
                high = rows_of_block(rows, kind == F32)
                blocks = asdict(product_blocks(form, target, high))
                yield f"experts {name}, {rows} rows: {fields(blocks)}"


def table(name: str) -> str:
    """The table of a target."""
    target = named_target(name)
    lines = []
    for kind, module in programs(target).items():
        graph, last = kernel(module), ""
        for rows in ROWS:
            text = described(kernel_space(graph, target, rows))
            if text != last:
                lines.append(f"{kind}, {rows or 'many'} rows: {text}")
            last = text
    return "\n".join([*lines, *experts(target)]) + "\n"
