"""The stages of a program as the tests of passes need them, and running a chain of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tests.strategies import Program
from tilewright.ir.core import Graph, Module
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.target import NAMED, Target, from_features
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.decompose import decompose
from tilewright.passes.partition import partition
from tilewright.passes.reorder import reorder
from tilewright.passes.split_sums import result_names
from tilewright.passes.to_stream import to_stream
from tilewright.passes.to_tile import kernel_to_tile

TARGETS: dict[str, Target] = {**NAMED, "sse": from_features("sse", "nehalem", "+sse4.2")}
NARROW_TO_WIDE = ("scalar", "sse", "x86-64-v3", "x86-64-v4", "znver4")  # 1, 4, 8, 16, 16 with bf16


def streamed(module: Module) -> Module:
    """A tensor program as a canonical stream program. Raises UnsupportedError."""
    return canonicalise(to_stream(canonicalise(decompose(module))))


def run_streams(program: Program, module: Module) -> list[Any]:
    """The results of a program's stream graphs (two where it was split), in float64."""
    return run_chain(program, module.graphs, result_names(module))


def kernels(module: Module) -> tuple[Graph, ...]:
    """The kernels that a tensor program becomes."""
    return partition(reorder(streamed(module))).graphs


def tile_program(graph: Graph, target: Target | str, rows: int = 0) -> Module:
    """One kernel as a tile program, unit strides in the last dimensions."""
    chosen = TARGETS[target] if isinstance(target, str) else target
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    return Module((kernel_to_tile(graph, chosen, rows, units),))


def single_kernel(module: Module) -> Graph:
    """The kernel of a program that is one."""
    found = kernels(module)
    assert len(found) == 1, f"{len(found)} kernels"
    return found[0]


@lru_cache(maxsize=256)
def lowered(module: Module, target: str, rows: int) -> tuple[tuple[Graph, Graph], ...]:
    """The kernels of a tensor program, each with its tile program: made once for all the sizes that
    it is run with. Modules are equal if they print the same."""
    return tuple((graph, tile_program(graph, target, rows).main) for graph in kernels(module))


def run_chain(
    program: Program, graphs: Sequence[Graph], results: Sequence[str], precision: str | None = "f64"
) -> list[Any]:
    """Runs kernels one after another, wired by name; the values called ``results`` at the end."""
    names = [p.hint for p in program.module.main.params]
    values: dict[str, Any] = dict(zip(names, program.inputs, strict=True))
    for graph in graphs:
        inputs = [values[p.hint] for p in graph.params]
        sizes = {n: v for n, v in program.sizes.items() if n in graph.sizes}
        outputs = evaluate_graph(graph, *inputs, precision=precision, sizes=sizes)
        values.update(zip([v.hint for v in graph.results], outputs, strict=True))
    return [values[name] for name in results]
