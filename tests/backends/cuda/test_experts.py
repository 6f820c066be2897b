"""Products of experts, and their plan, as programs of threads: lane by lane, and as CUDA C++ in the
host's emulation, against the float64 formula and the program on whole blocks."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.backends.cuda.running import run_emulated
from tests.expert_lowbit_cases import CASES, EXPERTS, choices, exact_layer
from tests.test_grouped_products import COUNTS, dtype, forms, oracle
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.target import named_target
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_tile.experts.grouped_form import FloatForm
from tilewright.passes.to_tile.whole_blocks.experts.blocks import ProductBlocks
from tilewright.passes.to_tile.whole_blocks.experts.choices import PlanForm
from tilewright.passes.to_tile.whole_blocks.experts.plan import plan_program
from tilewright.passes.to_tile.whole_blocks.experts.products import product_program
from tilewright.runtime.experts import experts_forward
from tilewright.runtime.experts.gpu_grouped import why_not
from tilewright.runtime.gpu_targets import using_backend, using_schedule

SM80 = named_target("cuda-sm80")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def emulated(threads: Graph, arrays: list[Any], sizes: dict[str, int]) -> list[np.ndarray]:
    source = emit_cuda(threads, "kernel", range(len(threads.params)))
    return run_emulated(threads, source, arrays, {n: sizes[n] for n in source.sizes})


@needs_compiler
@settings(max_examples=4, deadline=None, phases=QUICK)
@given(forms(), st.booleans(), st.integers(0, 99))
def test_products(form: FloatForm, lanes: bool, seed: int) -> None:
    """Rows of tokens in any order are copied as lines, ahead of their turn."""
    if form.turned:
        return  # the same program, other strides
    random = torch.Generator().manual_seed(seed)
    rows, tokens = sum(COUNTS), torch.randperm(20, generator=random)[: sum(COUNTS)]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    experts = len(COUNTS)
    x = draw(20 if form.chosen else rows, form.length).to(dtype(form.x))
    shape = experts, form.columns, form.length
    matrices = [draw(*shape).to(dtype(form.weight)) for _ in range(form.weights)]
    count = form.weights if form.bias is not None else 0
    biases = [draw(experts, form.columns).to(dtype(form.bias)) for _ in range(count)]
    scale = torch.rand(rows, generator=random)
    blocks = torch.tensor([[0, 0, 3], [2, 3, 4], [3, 4, 13], [0, 0, 0]], dtype=torch.int32)
    program = product_program(form, ProductBlocks(16, 16, 16, 4, 2), SM80)
    threads = threads_program(program, SM80)
    before = (tokens.int(),) if form.chosen else ()
    after = (scale,) if form.scaled else ()
    given_ = (blocks, *before, x, *matrices, *biases, *after)
    arrays = [t_.float().numpy() if t_.is_floating_point() else t_.numpy() for t_ in given_]
    if lanes:
        (got,) = evaluate_graph(threads, *arrays, lanes=True)
    else:
        sizes = {"R": 4, "P": rows, "T": len(x), "E": experts}
        (got,) = emulated(threads, arrays, sizes)
    want = oracle(form, x[tokens] if form.chosen else x, matrices, biases, scale)
    bound = (2e-5 if form.out == F32 else 2**-7) * float(want.abs().max() + 1)
    torch.testing.assert_close(torch.tensor(got).double(), want, rtol=0, atol=bound)


@needs_compiler
@pytest.mark.parametrize("lanes", [True, False])
@pytest.mark.parametrize("experts", [9, 70])
def test_plans(experts: int, lanes: bool) -> None:
    """A stable sort by expert: running sums across lanes."""
    random = np.random.default_rng(experts)
    tokens, chosen = 13, 3
    form = PlanForm(experts, chosen, I64, F32, 0, False, 16)
    program = plan_program(form, True, SM80)
    assert any(isinstance(op, t.Scan) for op in program.body.walk())
    ids = np.stack([random.permutation(experts)[:chosen] for _ in range(tokens)]).reshape(-1)
    rows = tokens * chosen // 16 + min(experts, tokens * chosen) + 1
    given_ = [ids, random.random(tokens * chosen, np.float32), np.zeros(rows, bool)]
    sizes = {"T": tokens, "R": rows}
    want = evaluate_graph(program, *given_, sizes=sizes)
    threads = threads_program(program, SM80)
    if lanes:
        got = list(evaluate_graph(threads, *given_, sizes=sizes, lanes=True))
    else:
        got = emulated(threads, given_, sizes)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_compiler
@pytest.mark.parametrize("at", [1, 5])
def test_layers_in_few_bits(at: int) -> None:
    """A whole layer by CUDA C++ in the emulation: codes of u4 with biases; two kinds of weights."""
    case = CASES[at]
    form, ids = case.form(), choices(9, 2, EXPERTS, 1)
    x, weights = torch.randn(9, case.hidden), torch.rand(9, 2)
    with using_backend("cuda-host"), using_schedule(16, 32, 4, 2):
        assert why_not(form, x) == ""
        got = experts_forward(form, x, ids, weights)
    want = exact_layer(form, x, ids, weights)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * float(want.abs().max() + 1))
