"""Kernels of few rows on CPUs: work items take parts of the positions, a second kernel joins them.

In the tile and stream interpreters, which refuse to read outside of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention_programs import Attention
from tests.strategies import assert_same, attention_programs
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.in_parts import PARTS, merging_graph
from tilewright.passes.to_tile.lower import first_of_parts, kernel_to_share
from tilewright.passes.to_tile.tables import tables_of, with_tables
from tilewright.runtime.tables import block_extremes

TARGETS = ("x86-64-v3", "x86-64-v4", "scalar")


def units(graph: Graph) -> dict[str, int]:
    return {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}


def run_in_parts(
    module: Module,
    inputs: Sequence[Any],
    sizes: dict[str, int],
    parts: int,
    target: str = "x86-64-v3",
    rows: int = 0,
) -> list[Any]:
    """The results of a module's only kernel, computed as two."""
    (plain,) = run_passes(module, TO_KERNELS).graphs
    graph = with_tables(plain)
    info = kernel_to_share(graph)
    assert info is not None
    first = first_of_parts(graph, named_target(target), rows, units(graph))
    merging = merging_graph(info)
    for made in (first, merging):
        assert parse(str(Module((made,)))) == Module((made,))
    given = list(inputs)
    for source, _, _ in tables_of(graph):
        given += [x.numpy() for x in block_extremes(torch.from_numpy(np.asarray(given[source])))]
    values = {**sizes, PARTS: parts}
    count = len(first.params) - len(given)  # the memory between both is what the first one makes
    first = replace(first, attrs={**first.attrs, "outputs": count})
    known = {n: v for n, v in values.items() if n in first.sizes}
    partial = evaluate_graph(first, *given, precision="f64", sizes=known)
    named = dict(zip((p.hint for p in graph.params), given, strict=True))
    read = [named[p.hint] for p in merging.params[count:]]
    program = kernel_to_tile(merging, named_target(target), 1, units(merging))
    known = {n: v for n, v in values.items() if n in merging.sizes}
    found = [
        list(evaluate_graph(x, *partial, *read, precision="f64", sizes=known))
        for x in (merging, program)
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7, atol=2e-7)  # exp written out
    return found[1]


@given(st.data(), st.sampled_from([0, 1, 4]), st.integers(1, 5), st.sampled_from(TARGETS))
@settings(max_examples=12)
def test_drawn_attention_in_parts(data: st.DataObject, rows: int, parts: int, target: str) -> None:
    program = data.draw(attention_programs(most_depth=6))
    try:
        got = run_in_parts(program.module, program.inputs, program.sizes, parts, target, rows)
    except UnsupportedError as error:
        assert {"flat", "merged"} & program.tags, error  # axes in the middle of a dimension
        return
    assert_same(got, program.run(), program.scale, 2e-8)


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("mask", ["causal", "bool", "add"])
def test_parts_of_what_masks_leave(mask: str, parts: int) -> None:
    """Parts without a visible key, and more parts than blocks, too."""
    b, k, g, n, m = 1, 1, 2, 3, 700  # more than a block of every schedule
    form = Attention(5, 20, causal=mask == "causal", mask=mask.replace("causal", "none"))
    rng = torch.Generator().manual_seed(parts)
    shapes = (b, k * g, n, 5), (b, k, m, 5), (b, k, m, 20)
    q, keys, v = (torch.randn(x, generator=rng, dtype=torch.float64) for x in shapes)
    extra = torch.randn(b, 1, 1, n, m, generator=rng, dtype=torch.float64)
    more = {"bool": [extra > 1.5], "add": [extra]}.get(mask, [])
    values = {"B": b, "K": k, "G": g, "N": n, "M": m}
    given = [x.numpy() for x in (q, keys, v, *more)]
    want = form.reference(q, keys, v, more[0] if more else None)
    for target, rows in (("x86-64-v3", 0), ("x86-64-v4", 4)):
        got = run_in_parts(parse(form.text()), given, values, parts, target, rows)
        assert_same(got, [want.numpy()], 1.0, 2e-8)


def test_the_second_kernel_is_derived_from_the_first() -> None:
    """The same scan over parts; their sums rescaled from their own extremes; nothing else read."""
    text = Attention(16, 16).text()
    (graph,) = run_passes(parse(text), TO_KERNELS).graphs
    info = kernel_to_share(graph)
    assert info is not None
    merging = merging_graph(info)
    names = [op.name for op in merging.body.ops]
    assert names.count("stream.scan") == 1 and names.count("stream.reduce") == 2
    assert [p.hint for p in merging.params] == ["part0", "part1", "part2"]
    assert "stream.contract" not in names


def test_what_cannot_be_shared_out() -> None:
    scores = "graph f<N, M>(%q: tensor<N x 4 x f32>, %k: tensor<M x 4 x f32>) {\n"
    scores += '%s = tensor.contract %q, %k {equation = "nd,md->nm"}\n'
    norm = "graph f<N>(%x: tensor<N x 40 x f32>) {\n%y = math.mul %x, %x\n"
    norm += '%r = tensor.reduce %y {kind = "sum", axis = 1, keep = true}\n%z = math.div %x, %r\n'
    for text in (scores + "return %s }", norm + "return %z }"):
        (graph,) = run_passes(parse(text), TO_KERNELS).graphs
        assert kernel_to_share(graph) is None
        with pytest.raises(UnsupportedError, match="no parts"):
            first_of_parts(graph, named_target("x86-64-v3"), 0, units(graph))
