"""Generated CUDA C++ with a warp that copies in bulk, on the host's emulation of the device: right
against the float64 oracle, and what is planted in a kernel is found."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests.attention_programs import Attention
from tests.backends.cuda.running import run_emulated
from tests.gpu_lowbit_programs import LANES, allowed, programs, stream
from tests.lowbit_programs import Form, Weight, draw, oracle
from tests.passes.roles_programs import TARGET, Case, call_of
from tilewright.backends.cuda.compile import compile_kernel, compiler_missing
from tilewright.backends.cuda.emit import CudaSource, emit_cuda
from tilewright.backends.gpu.machine_code import assembly, disassembler_missing, resources
from tilewright.ir.bind import bind_sizes
from tilewright.ir.errors import (
    KernelDeadlockError,
    KernelFaultError,
    KernelRaceError,
)
from tilewright.ir.evaluate import evaluate_graph
from tilewright.passes.to_threads.roles import roles_program
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

MISSING = compiler_missing() or disassembler_missing()
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
BOUNDS = {"bf16": 1e-2, "f16": 1.5e-3}  # of outputs of random inputs (tests/bounds.py has why)


@pytest.mark.parametrize(
    ("form", "schedule", "lengths"),
    [
        # rows of two lines of 128 bytes, and of half a line
        (Attention(128, 32, "bf16", causal=True), BlockSchedule(64, 32, 4, 3), (100, 150)),
        # two groups that multiply, the group that copies gives its registers away
        (Attention(64, 64, "f16", mask="add"), BlockSchedule(128, 32, 8, 2), (130, 90)),
        # a group with twice its rows, heads that no power of two is
        (Attention(80, 24, "bf16", mask="bool"), BlockSchedule(128, 16, 4, 2), (70, 90)),
        # queries in shared memory, both sides of a product read there by two groups
        (Attention(128, 128, "bf16", causal=True), BlockSchedule(128, 128, 8, 2), (200, 140)),
        (Attention(80, 128, "f16"), BlockSchedule(128, 128, 8, 2), (130, 300)),
    ],
    ids=["lines", "groups", "padded", "parked", "parked, padded"],
)
def test_attention(form: Attention, schedule: BlockSchedule, lengths: tuple[int, int]) -> None:
    case = Case(form, schedule)
    source = emit_cuda(case.threads, "kernel")
    assert "tw::tma_load(" in source.text and "tw::copy_async" not in source.text
    for seed, (queries, keys) in enumerate([lengths, lengths[::-1], (1, 1)]):
        call = call_of(form, queries, keys, heads=2, group=1 + seed % 2)
        (got,) = run_emulated(case.threads, source, call.arrays, call.sizes, seed)
        assert float(np.abs(got - call.want).max()) < BOUNDS[form.dtype]


@pytest.mark.parametrize(
    ("dtype", "length", "rows"), [("u4", 160, 3), ("u3", 512, 20), ("f8e4m3", 96, 1)]
)
def test_products_with_packed_weights(dtype: str, length: int, rows: int) -> None:
    """Blocks of x, which every warp reads, come in bulk, several of them a turn."""
    form = Form((Weight(dtype, 32, "tiles", 0),), length, x="bf16")
    made = programs(form, rows, ProductSchedule(8, 1, 4, 4, 2), target="cuda-sm90")
    graph = roles_program(made.main, TARGET)
    source = emit_cuda(graph, "product")
    assert "tw::tma_load(" in source.text and "tw::copy_async" not in source.text
    problem = draw(form, LANES, rows, 2, 1)
    inputs = [*problem.inputs, *(np.asarray(values, "f4") for values in made.tables)]
    sizes = bind_sizes(stream(form), [np.shape(x) for x in problem.inputs], None)
    (got,) = run_emulated(graph, source, inputs, sizes, seed=rows)
    want = oracle(form, LANES, problem.inputs)
    assert not (np.abs(got - want) > allowed(form, problem, want, 8)).any()
    known = {n: v for n, v in sizes.items() if n in graph.sizes}
    (lanes,) = evaluate_graph(graph, *inputs, sizes=known, lanes=True)
    assert not (np.abs(lanes - want) > allowed(form, problem, want, 8)).any()


# ---- planted faults


@cache
def kernel() -> tuple[Case, CudaSource]:
    case = Case(Attention(16, 16, "bf16"), BlockSchedule(64, 16, 4, 2))
    return case, emit_cuda(case.threads, "kernel")


FULL = r"tw::mbarrier_wait\(full \+ [^;]*;"
EMPTY = r"tw::mbarrier_wait\(empty \+ [^;]*;"
ARRIVE = r"tw::warp_barrier\(\);\s*if \(lane == 0\) tw::mbarrier_arrive\(empty[^;]*;"
WAIT = r"tw::wgmma_wait<0>\(\);"
# pattern, replacement, which of its places, what is raised by some drawn schedule of the threads
FAULTS: dict[str, tuple[str, str, int, tuple[type[KernelFaultError], ...]]] = {
    "no wait for a full slot": (FULL, "", 1, (KernelFaultError,)),
    "no wait for an empty slot": (EMPTY, "", 0, (KernelFaultError,)),
    "a wait for the other phase": (EMPTY, "PHASE", 0, (KernelFaultError,)),
    "no arrival": (ARRIVE, "", 1, (KernelDeadlockError,)),
    "an arrival of every lane": (ARRIVE, "LANES", 1, (KernelFaultError,)),
    "more bytes than copied": (
        r"mbarrier_arrive_expect\(([^;]*), 512\)",
        r"mbarrier_arrive_expect(\1, 528)",
        0,
        (KernelDeadlockError,),
    ),
    "fewer bytes than copied": (
        r"mbarrier_arrive_expect\(([^;]*), 512\)",
        r"mbarrier_arrive_expect(\1, 496)",
        0,
        (KernelFaultError,),
    ),
    "an arrival before the product has ended": (WAIT, "EARLY", 1, (KernelRaceError,)),
    "the wrong warps": (r"if \(thread < 128\) \{", "if (thread < 96) {", 0, (KernelFaultError,)),
}


def planted(text: str, pattern: str, new: str, number: int) -> str:
    """The text with one of the places of a pattern replaced."""
    found = list(re.finditer(pattern, text))[number]
    old = found.group(0)
    made = {
        "PHASE": lambda: old.replace("static_cast<int>(", "1 - static_cast<int>("),
        "LANES": lambda: old.replace("if (lane == 0) ", ""),
        "EARLY": lambda: arrival(text, found.end()).group(0) + old,
    }
    fresh = made[new]() if new in made else found.expand(new)
    assert fresh != old
    rest = text[found.end() :]
    if new == "EARLY":
        late = arrival(text, found.end())
        rest = text[found.end() : late.start()] + text[late.end() :]
    return text[: found.start()] + fresh + rest


def arrival(text: str, start: int) -> re.Match[str]:
    found = re.compile(ARRIVE).search(text, start)
    assert found is not None
    return found


@cache
def wrong_kernels() -> str:
    """All planted faults in one text, which is compiled once."""
    text = kernel()[1].text
    include, body = text.split("\n", 1)
    texts = [
        planted(body, *fault[:3]).replace("(kernel,", f"(kernel{i},")
        for i, fault in enumerate(FAULTS.values())
    ]
    return "\n".join([include, *texts])


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str) -> None:
    case, source = kernel()
    wrong = replace(source, text=wrong_kernels(), symbol=f"kernel{list(FAULTS).index(name)}")
    call = call_of(case.form, 64, 170)
    with pytest.raises(FAULTS[name][3]):
        for seed in range(12):
            run_emulated(case.threads, wrong, call.arrays, call.sizes, seed)


def test_every_schedule_of_the_threads_is_right() -> None:
    case, source = kernel()
    call = call_of(case.form, 70, 170)
    results = [
        run_emulated(case.threads, source, call.arrays, call.sizes, seed)[0] for seed in range(20)
    ]
    assert all(np.array_equal(x, results[0]) for x in results)
    assert float(np.abs(results[0] - call.want).max()) < BOUNDS["bf16"]


def test_what_lies_outside_a_tensor_is_zero() -> None:
    """Rows of memory past a tensor's end hold what must not be read."""
    case, source = kernel()
    call = call_of(case.form, 64, 37)
    wide = [np.pad(x, [(0, 0)] * 3 + [(0, 8)], constant_values=np.nan) for x in call.arrays]
    (got,) = run_emulated(case.threads, source, wide, call.sizes)
    assert float(np.abs(got - call.want).max()) < BOUNDS["bf16"]


def test_text_says_who_does_what() -> None:
    text = kernel()[1].text
    assert text.count("TW_TENSOR_MAP k_map") == text.count("TW_TENSOR_MAP v_map") == 1
    assert "TW_KERNEL(kernel, 256, 2)(" in text
    assert "tw::registers_up<216>();" in text and "tw::registers_down<40>();" in text
    assert text.index("tw::wgmma_wait<1>") < text.index("tw::tma_load(")


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_machine_code() -> None:
    """Products are in flight over the exponentials, no compiler waits for them before; the group
    that copies gives registers away; nothing is spilled."""
    case = Case(Attention(64, 64, "bf16"), BlockSchedule(64, 64, 4, 3))
    code = compile_kernel(emit_cuda(case.threads, "kernel").text, "sm_90a", "kernel")
    found = resources(code)
    assert found.spills == 0 and found.count("USETMAXREG") == 2
    assert found.count("UTMALDG") == 4 and found.count("LDGSTS") == 0
    text = assembly(code)
    late = text.index("WARPGROUP.DEPBAR.LE gsb0, 0x1")
    between = text[late : text.index("WARPGROUP.DEPBAR.LE gsb0, 0x0", late)]
    assert between.count("MUFU.EX2") >= 32
    assert text.count("WARPGROUP.DEPBAR") == 2 * 4  # two loops: the first turn, two of others, last
