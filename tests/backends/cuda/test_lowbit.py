"""Products with packed weights as CUDA C++: every width through matrix units, on the host's
emulation against the float64 oracle, and as machine code."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.backends.cuda.running import run_emulated
from tests.gpu_lowbit_programs import LANES, allowed, programs, stream
from tests.lowbit_programs import Form, Weight, draw, oracle
from tilewright.backends.cuda.compile import compile_kernel, compiler_missing
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.backends.gpu.machine_code import disassembler_missing, resources
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
SMALL = ProductSchedule(8, 1, 4, 4, 2)
MISSING = compiler_missing() or disassembler_missing()


def threads_of(form: Form, rows: int, schedule: ProductSchedule, target: str) -> Graph:
    whole = programs(form, rows, schedule, target=target).main
    return plan_shared(lower_threads(whole), 160 << 10)


def check(
    form: Form, rows: int, blocks: int, schedule: ProductSchedule = SMALL, target: str = "cuda-sm80"
) -> None:
    problem = draw(form, LANES, rows, blocks, 1)
    graph = threads_of(form, rows, schedule, target)
    width = {"f32": 4}.get(form.x, 2)
    source = emit_cuda(
        graph, "product", range(len(graph.params)) if form.length * width % 16 else ()
    )
    made = programs(form, rows, schedule, target=target)
    inputs = [*problem.inputs, *(np.asarray(values, "f4") for values in made.tables)]
    sizes = bind_sizes(stream(form), [np.shape(x) for x in problem.inputs], None)
    (got,) = run_emulated(graph, source, inputs, sizes, seed=2)
    want = oracle(form, LANES, problem.inputs)
    wrong = np.abs(got - want) - allowed(form, problem, want, schedule.rows)
    assert not (wrong > 0).any(), (str(form), float(wrong.max()))


@pytest.mark.parametrize("dtype", ["u1", "u4", "i5", "u8", "f4e2m1", "f8e4m3", "nf4"])
def test_dtypes(dtype: str) -> None:
    zero = 1 << int(dtype[1:]) - 1 if dtype.startswith("i") else 0
    for length in (150, 160):  # rows of x that lie anywhere, and at multiples of 16 bytes
        check(Form((Weight(dtype, 32, "tiles", zero),), length, x="bf16"), 3, 2)


@settings(max_examples=6, phases=QUICK, deadline=None)
@given(
    bits=st.integers(1, 8),
    group=st.sampled_from([16, 32, 128, 4096]),
    length=st.integers(17, 400),
    x=st.sampled_from(["bf16", "f16", "f32"]),
    rows=st.integers(1, 20),
    target=st.sampled_from(["cuda-sm80", "cuda-sm90"]),
)
def test_any_shape(bits: int, group: int, length: int, x: str, rows: int, target: str) -> None:
    weight = Weight(f"u{bits}", group, "tiles", 1 << bits - 1)
    check(Form((weight,), length, 0, ("bias",), x), rows, 1, target=target)


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("dtype", ["u2", "u3", "u4", "u8", "f6e3m2"])
@pytest.mark.parametrize("columns", [8, 64])
def test_machine_code(dtype: str, columns: int) -> None:
    """Words are read in pairs, codes become floats by logic and packed arithmetic, sums come from
    matrix units, and nothing is spilled."""
    form = Form((Weight(dtype, 128, "tiles", 0),), 1024, x="bf16")
    schedule = ProductSchedule(columns, 1, 8, 4, 2)
    text = emit_cuda(threads_of(form, columns, schedule, "cuda-sm80"), "product").text
    found = resources(compile_kernel(text, "sm_80", "product"))
    assert found.spills == 0
    for wanted in ("HMMA", "LOP3", "LDG.E.64", "LDGSTS"):
        assert found.count(wanted), wanted
