"""Kernels on whole blocks run in the tile interpreter: whole, or in two where positions are shared
out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tilewright.ir.core import Graph, Module
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.in_parts import PARTS
from tilewright.passes.to_tile.lower import gpu_program, gpu_programs_in_parts
from tilewright.passes.to_tile.tables import tables_of, with_tables
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.tables import block_extremes

SMALL = BlockSchedule(16, 16, 4, 2)


def programs(
    module: Module, rows: int, parts: int, schedule: BlockSchedule = SMALL
) -> tuple[Graph, tuple[Graph, ...]]:
    """The stream graph of a module's only kernel, and its program (``parts`` 0) or both programs.
    ``rows`` is the class of the rows (0: any number)."""
    (plain,) = run_passes(module, TO_KERNELS).graphs
    graph = with_tables(plain)
    units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
    given = graph, named_target("cuda-sm90"), units, schedule, rows
    return graph, gpu_programs_in_parts(*given) if parts else (gpu_program(*given),)


def run(
    module: Module,
    inputs: Sequence[Any],
    sizes: dict[str, int],
    rows: int = 0,
    parts: int = 0,
    schedule: BlockSchedule = SMALL,
    precision: str | None = "f64",
) -> list[Any]:
    """Results for inputs and the values of all sizes of the module."""
    graph, made = programs(module, rows, parts, schedule)
    for program in made:
        assert parse(str(Module((program,)))) == Module((program,))
    given = list(inputs)
    for source, _, _ in tables_of(graph):
        given += [x.numpy() for x in block_extremes(torch.from_numpy(np.asarray(given[source])))]
    values = {n: v for n, v in {**sizes, PARTS: parts}.items() if n in made[0].sizes}
    if not parts:
        return list(evaluate_graph(made[0], *given, precision=precision, sizes=values))
    first, second = made
    count = len(first.params) - len(given)  # the memory between both is what the first one makes
    first = replace(first, attrs={**first.attrs, "outputs": count})
    partial = evaluate_graph(first, *given, precision=precision, sizes=values)
    return list(evaluate_graph(second, *given, *partial, precision=precision, sizes=values))
