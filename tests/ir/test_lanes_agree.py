"""Tile programs lane by lane and a whole tile at a time: the same bits come out.

Attention, masks, sums, products and rows of several targets, in f64 and in their own dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests.integer_expressions import Expression, conditions
from tests.ir.examples import EXAMPLES, Example
from tests.lowbit_programs import Form, Weight
from tests.lowbit_programs import draw as draw_packed
from tests.passes.stages import NARROW_TO_WIDE, TARGETS, kernels, tile_program
from tests.passes.test_tile_kernels import ELEMENTWISE, PRODUCTS, REDUCTIONS, ROW, ROWS, program
from tests.strategies import Program, attention_programs, tensor_programs
from tests.test_masked_kernels import HEAD, TAIL
from tilewright.ir import evaluate_lanes
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import BF16, F16
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.ops_tile import Take
from tilewright.ir.parser import parse
from tilewright.passes.to_tile.schedule import row_classes


def both_ways(graph: Graph, inputs: Any, sizes: dict[str, int]) -> Any:
    """The results of a tile program in its own dtypes, the same from lanes, in f64, too."""
    for precision in ("f64", None):
        whole = evaluate_graph(graph, *inputs, precision=precision, sizes=sizes)
        lanes = evaluate_graph(graph, *inputs, precision=precision, sizes=sizes, lanes=True)
        for x, y in zip(whole, lanes, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    return whole


def check(drawn: Program, target: str, rows: int) -> None:
    """Every kernel of a program, each on what those before it gave."""
    names = [p.hint for p in drawn.module.main.params]
    values: dict[str, Any] = dict(zip(names, drawn.inputs, strict=True))
    for graph in kernels(drawn.module):
        tile = tile_program(graph, target, rows).main
        sizes = {n: v for n, v in drawn.sizes.items() if n in graph.sizes}
        results = both_ways(tile, [values[p.hint] for p in graph.params], sizes)
        values.update(zip([v.hint for v in graph.results], results, strict=True))


def check_drawn(drawn: Program, data: st.DataObject) -> None:
    """For some target and number of rows, if a schedule covers it."""
    target = data.draw(st.sampled_from(NARROW_TO_WIDE))
    rows = data.draw(st.sampled_from(row_classes(TARGETS[target])))
    try:
        check(drawn, target, rows)
    except UnsupportedError:
        assume(False)


TILE_EXAMPLES = [e for e in EXAMPLES if e.op.startswith("tile.") and e.want is not None]


@pytest.mark.parametrize("example", TILE_EXAMPLES, ids=str)
def test_every_tile_operation(example: Example) -> None:
    (got,) = both_ways(example.module.main, example.inputs, {})
    (wanted,) = evaluate(example.module, *example.inputs)
    np.testing.assert_array_equal(got, wanted)


DENSE = "graph f<N, M>(%x: tensor<N x 9 x f32>, %w: tensor<M x 9 x f32>, %k: tensor<9 x f32>) {{"
CORPUS = {
    **REDUCTIONS,
    **{f"{name} of 17": ROW.format(17) + text.format() for name, text in ROWS.items()},
    **{
        name: f"{DENSE.format()} %r = tensor.contract {text} return %r }}"
        for name, text in PRODUCTS.items()
    },
    **ELEMENTWISE,
}


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("target", ["scalar", "x86-64-v3", "znver4"])
def test_kernels(name: str, target: str) -> None:
    for rows in (0, 1):
        used = {s: v for s, v in {"N": 3, "M": 9}.items() if s in CORPUS[name].split("(")[0]}
        try:
            check(program(CORPUS[name], **used), target, rows)
        except UnsupportedError:  # the few forms that no schedule covers, at any size
            assert name in PRODUCTS


@given(attention_programs(most_depth=4, empty=True), st.data())
@settings(max_examples=15)
def test_attention(drawn: Program, data: st.DataObject) -> None:
    check_drawn(drawn, data)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_attention_on_pairs(dtype: Any) -> None:
    """Dot instructions on the halves of a word, rows in registers and on lanes."""

    steps, forms = ("scale", "causal"), ("grouped", "heads", "sequence")
    drawn_programs = attention_programs(dtype=dtype, most_depth=3, score_steps=steps, forms=forms)

    @given(drawn_programs)
    @settings(max_examples=4)
    def run(drawn: Program) -> None:
        for rows in (0, 1):
            check(drawn, "znver4", rows)

    run()


@given(conditions(), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=6)
def test_masks(condition: Expression, n: int, m: int, drawn_seed: int) -> None:
    rng = np.random.default_rng(drawn_seed)
    shapes = (1, n, 8), (1, m, 8), (1, m, 8)
    inputs = *(rng.standard_normal(s) for s in shapes), rng.integers(-20, 20, 5)
    module = parse(HEAD + condition.lines("seen") + TAIL)
    drawn = Program(module, inputs, {"H": 1, "N": n, "M": m, "T": 5}, scale=10)
    try:
        found = kernels(module)
    except UnsupportedError:
        assume(False)
    assume(len(found) == 1)
    tile = tile_program(found[0], "x86-64-v3", 0).main
    tables = [p for p in tile.params if p.hint not in {q.hint for q in found[0].params}]
    assume(len(tables) == len(found[0].results))  # the others take tables that the runtime makes
    check(drawn, "x86-64-v3", 0)


@seed(0)  # as in test_tile_kernels.py: what the compiler cannot take yet is not for this test
@given(tensor_programs(), st.data())
@settings(max_examples=25, database=None, derandomize=False, phases=[Phase.generate])
def test_drawn_programs(drawn: Program, data: st.DataObject) -> None:
    check_drawn(drawn, data)


PACKED = [
    Form((Weight("u4", 8),), 20),
    Form((Weight("u6", 32, zeros="u8"),), 33, end=("bias",)),
    Form((Weight("f4e2m1", 16, scales="f32"),), 32),
    Form((Weight("nf4", 16),), 16, end=("residual",)),
    Form((Weight("i3", 16, "fields", zero=4),), 20),
    Form((Weight("u4", 32), Weight("u2", 32)), 64, 32, end=("silu",)),
    Form((Weight("u8", 16),), 32, 16),
]


@pytest.mark.parametrize("form", PACKED, ids=str)
@pytest.mark.parametrize("target", ["x86-64-v3", "znver4"])
def test_products_of_packed_weights(form: Form, target: str) -> None:
    lanes = TARGETS[target].lanes
    problem = draw_packed(form, lanes, 2, 1, 0)
    (graph,) = kernels(parse(form.text(lanes)))
    (_,) = both_ways(tile_program(graph, target, 0).main, problem.inputs, {})


def test_a_difference_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of this file can fail: moving registers one row too far."""
    example = next(e for e in EXAMPLES if e.op == "tile.take")
    origin = evaluate_lanes.MOVES[Take]
    monkeypatch.setitem(
        evaluate_lanes.MOVES, Take, lambda op, index: origin(op, [index[0] + 1, *index[1:]])
    )
    with pytest.raises(AssertionError):
        both_ways(example.module.main, example.inputs, {})
