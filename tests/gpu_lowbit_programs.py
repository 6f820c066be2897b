"""Products with packed weights as programs on whole blocks, and how wrong their results may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.lowbit_programs import Form, Problem, bound, draw, oracle
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region
from tilewright.ir.dtypes import TABLE
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.packing import STRIP
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES, StripDecoder, product_dtype
from tilewright.passes.to_tile.whole_blocks.lowbit.program import PackedPrograms, packed_programs
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    FEW,
    MANY,
    ProductSchedule,
    row_class,
)

ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}  # of a number, relative


def stream(form: Form) -> Graph:
    """The kernel of a form, with what its codes take in memory filled in."""
    (graph,) = run_passes(parse(form.text(LANES)), TO_KERNELS).graphs
    sizes = {}
    for at, w in enumerate(form.weights):
        packing = w.packing(LANES)
        sizes[f"S{at}"] = packing.chunks(form.length) * packing.words * LANES
        sizes[f"G{at}"] = packing.groups(form.length) * LANES
    return canonicalise_graph(specialise(graph, sizes))


def programs(
    form: Form,
    rows: int = 0,
    schedule: ProductSchedule | None = None,
    parts: int = 1,
    target: str = "cuda-sm90",
    counting: bool = False,
) -> PackedPrograms:
    graph = stream(form)
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    given = analyse(graph), units, named_target(target), rows, schedule, parts
    return packed_programs(*given, counting)


def evaluated(made: PackedPrograms, inputs: list[Any]) -> Any:
    """The result by the interpreter of tile programs."""
    tables = [np.asarray(values, "f4") for values in made.tables]
    out = evaluate_graph(made.main, *inputs, *tables, *between(made, inputs))
    return out[0] if made.finish is None else evaluate_graph(made.finish, *out, *inputs)[0]


def between(made: PackedPrograms, inputs: list[Any]) -> list[Any]:
    """Memory for every part's sums, which no number may be read of before it is written, and
    counters."""
    params, outputs = made.main.params, int(made.main.attrs["outputs"])
    work = params[len(inputs) + len(made.tables) : len(params) - outputs]
    assert len(work) == (made.sums + 1 if made.sums else 0)
    shell = Graph("tile", "", made.main.sizes, Region(params[: len(inputs)], ()))
    sizes = bind_sizes(shell, [x.shape for x in inputs])
    shapes = [tuple(size.evaluate(sizes) for size in x.type.shape) for x in work]  # type: ignore[union-attr]
    sums = [np.full(shape, np.nan, "f4") for shape in shapes[:-1]]
    return [*sums, np.zeros(shapes[-1], "i4")] if work else []


def exact(form: Form, columns: int = 8) -> bool:
    """Whether no weight of a form is rounded: codes (and, with many columns, zeros) are numbers of
    x's dtype, and scales come after sums."""
    given = TABLE[form.x]
    for w in form.weights:
        dtype = TABLE[w.dtype]
        made = product_dtype(dtype, given)
        if made.name == "f32":
            continue
        ragged = w.group % STRIP > 0 and w.group < form.length
        if ragged or (columns > 2 * min(w.group, STRIP) and w.group < form.length):
            return False
        kind = {"": "", "u8": "whole"}.get(w.zeros, "float")
        zero = 0 if w.zeros else w.zero
        packing = w.packing(LANES)
        if StripDecoder(packing, dtype, zero, kind if columns > FEW else "", made).wide:
            return False
    return True


def allowed(form: Form, problem: Problem, want: Any, columns: int) -> Any:
    """The bound of sums in f32, and what rounding weights to x's dtype adds where that happens."""
    error = bound(form, problem, want)
    if exact(form, columns):
        return error
    unit = ROUNDING[form.x]
    first, *others = (unit * size for size in problem.sizes)
    more = 1.1 * first
    for other, product in zip(others, problem.products[1:], strict=True):
        more = more * (np.abs(product) + other) + np.abs(problem.products[0]) * other
    return error + more


def check(
    form: Form,
    rows: int,
    blocks: int,
    schedule: ProductSchedule | None = None,
    parts: int = 1,
    seed: int = 0,
    counting: bool = False,
) -> None:
    """Runs a form on drawn inputs in the interpreter; the result is within what is allowed."""
    problem = draw(form, LANES, rows, blocks, seed)
    made = programs(form, rows, schedule, parts, counting=counting)
    got = evaluated(made, problem.inputs)
    want = oracle(form, LANES, problem.inputs)
    assert got.shape == want.shape == (rows, blocks * LANES)
    columns = schedule.rows if schedule else row_class(rows) or MANY
    wrong = np.abs(got - want) - allowed(form, problem, want, columns)
    assert not (wrong > 0).any(), (str(form), rows, blocks, float(wrong.max()))
