"""Keys kept as [terms, positions], neighbours in memory being positions: read as they lie, whatever
their dtype and however many rows there are; the same numbers as from keys kept as rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.attention_programs import Attention
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.ir.types import BufferType, RegisterType
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import kernel_to_tile

TARGETS = ("x86-64-v2", "x86-64-v3", "znver4")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def lowered(form: Attention, target: str, rows: int, unit_of_keys: int) -> Graph:
    (graph,) = run_passes(parse(form.text()), TO_KERNELS).graphs
    units = {p.hint: 3 for p in graph.params} | {"k": unit_of_keys}
    return kernel_to_tile(graph, named_target(target), rows, units)


def every_op(ops: tuple[Op, ...]) -> Iterator[Op]:
    for op in ops:
        yield op
        for region in op.regions:
            yield from every_op(region.ops)


def loads_of(program: Graph, name: str) -> list[tuple[t.Load, Value]]:
    (memory,) = (p for p in program.params if p.hint == name)
    ops = every_op(program.body.ops)
    return [(op, memory) for op in ops if isinstance(op, t.Load) and op.source is memory]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 0])
def test_no_lane_is_filled_by_itself(target: str, dtype: str, rows: int) -> None:
    program = lowered(Attention(40, 24, dtype, causal=True), target, rows, 2)
    found = loads_of(program, "k")
    assert found
    for load, memory in found:
        kind, type_ = memory.type, load.result.type
        assert isinstance(kind, BufferType) and isinstance(type_, RegisterType)
        along = load.dims[kind.unit]
        lanes = {dim for what, dim, size in type_.layout.steps if what == "spatial" and size > 1}
        assert lanes <= {along}, load


@pytest.mark.parametrize("target", ["x86-64-v3", "znver4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "queries"), [(1, 1), (4, 3), (0, 21)])
@pytest.mark.parametrize("keys", [31, 70])
def test_numbers_are_those_of_keys_by_rows(
    target: str, dtype: str, rows: int, queries: int, keys: int
) -> None:
    """In the tile interpreter, which refuses what lies outside of a buffer."""
    form = Attention(6, 5, dtype, causal=True)
    rng = np.random.default_rng(keys)
    shapes = (1, 2, queries, 6), (1, 2, keys, 6), (1, 2, keys, 5)
    q, k, v = (torch.from_numpy(rng.standard_normal(s, "f4")).to(DTYPES[dtype]) for s in shapes)
    given = [x.float().numpy() for x in (q, k, v)]
    (got,) = evaluate_graph(lowered(form, target, rows, 2), *given)
    want = form.reference(q, k, v, None)
    bound = {"f32": 1e-5, "bf16": 2e-2, "f16": 2e-3}[dtype]
    np.testing.assert_allclose(got, want.numpy(), rtol=bound, atol=bound)
