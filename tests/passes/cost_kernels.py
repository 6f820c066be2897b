"""Kernels whose instructions are counted in closed form, for tests of the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from tilewright.bench.programs import attention_text, cross_entropy_text
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.choices import Space
from tilewright.passes.to_tile.cost.blocks import BlockModel
from tilewright.passes.to_tile.cost.counts import Counts, Section, total
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.passes.to_tile.cost.few_rows import FewRowsModel
from tilewright.passes.to_tile.lower import default_schedule
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.spaces import kernel_info, kernel_space

TEXTS = {
    "attention": attention_text(64),
    "attention, 80 elements": attention_text(80),
    "attention, many elements": attention_text(200),
    "causal": attention_text(64, causal=True),
    "bf16": attention_text(64, dtype="bf16"),
    "bf16 causal": attention_text(48, causal=True, dtype="bf16"),
    "cross entropy": cross_entropy_text(),
}
SCORES = """graph scores<N, M>(%x: tensor<N x 64 x f32>, %y: tensor<M x 64 x f32>) {
  %s = tensor.contract %x, %y {equation = "nd,md->nm"}
  return %s
}"""


def with_input(type_: str, step: str) -> str:
    """Attention whose scores go through ``step`` with another input."""
    last = "%v: tensor<B x K x M x 64 x f32>"
    const = "%ninf = math.const {value = -inf, type = tensor<f32>}"
    text = attention_text(64).replace(f"{last}) {{", f"{last}, %t: tensor<{type_}>) {{\n  {const}")
    return text.replace("%p = tensor.softmax %scaled", f"{step}\n  %p = tensor.softmax %s")


WITH_INPUTS = {
    "scores": SCORES,
    "a mask in memory": with_input("N x M x bool", "%s = math.select %t, %scaled, %ninf"),
    "an added bias": with_input("N x M x f32", "%s = math.add %scaled, %t"),
    "an added bias in bf16": with_input(
        "N x M x bf16", "%wide = math.cast %t {dtype = f32}\n  %s = math.add %scaled, %wide"
    ),
    "a bias of a position": with_input("1 x M x f32", "%s = math.add %scaled, %t"),
    "a factor of a row": with_input("N x 1 x f32", "%s = math.mul %scaled, %t"),
}


@cache
def kernel(name: str) -> Graph:
    (graph,) = run_passes(parse({**TEXTS, **WITH_INPUTS}[name]), TO_KERNELS).graphs
    return specialise(graph, {"D": 64}) if "D" in graph.sizes else graph


@cache
def space(name: str, target: str, rows: int) -> Space:
    return kernel_space(kernel(name), named_target(target), rows)


def sizes_of(graph: Graph, rows: int, length: int) -> dict[str, int]:
    found = {name: 1 for name in graph.sizes}
    return {**found, "N": rows, "M" if "M" in graph.sizes else "V": length}


@cache
def model(name: str, target: str, rows: int) -> BlockModel:
    """The closed form of a kernel for up to ``rows`` rows (0: many)."""
    graph, machine = kernel(name), named_target(target)
    info = kernel_info(graph)
    schedule = default_schedule(info, machine, rows)
    assert isinstance(schedule, Schedule)
    kind = BlockModel if schedule.rows_on_lanes else FewRowsModel
    return kind(info, schedule, last_units(graph), machine)


def sections_of(
    name: str, target: str, rows: int, choice: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[list[Section], float]:
    """What an average work item does with one choice, and how many there are."""
    fields = {field: np.array([float(value)]) for field, value in choice.items()}
    sections, items = model(name, target, rows).sections(fields, sizes)
    return sections, float(np.ravel(items)[0])


def closed_form(
    name: str, target: str, rows: int, choice: Mapping[str, int], sizes: Mapping[str, int]
) -> Counts:
    sections, items = sections_of(name, target, rows, choice, sizes)
    return total(sections) * items
