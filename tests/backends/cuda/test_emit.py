"""Generated CUDA C++ on the host's emulation of the device: right against the float64 oracle, free
of races, and what is planted in a kernel is found."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.backends.cuda.running import run_emulated
from tests.passes.stages import single_kernel
from tests.passes.test_tile_attention import allowed, attention
from tests.strategies import AttentionShape, Program, assert_same, attention_programs
from tilewright.backends.cuda.emit import CudaSource, emit_cuda
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import (
    KernelBoundsError,
    KernelFaultError,
    KernelRaceError,
    KernelUninitialisedError,
    UnsupportedError,
)
from tilewright.ir.target import named_target
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
SMALL = BlockSchedule(32, 16, 2, 3)
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
SHARED = KernelRaceError, KernelUninitialisedError  # whichever a drawn schedule meets first


def threads_of(
    program: Program, schedule: BlockSchedule = SMALL, target: str = "cuda-sm80"
) -> Graph:
    graph = single_kernel(program.module)
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    whole = gpu_program(graph, named_target(target), units, schedule)
    return plan_shared(lower_threads(whole), 96 << 10)


def run(
    program: Program, graph: Graph, source: CudaSource, seed: int = 0, apart: bool = False
) -> list[np.ndarray]:
    """The results of a kernel; ``apart``: inputs lie with gaps between rows."""
    sizes = {n: v for n, v in program.sizes.items() if n in source.sizes}
    return run_emulated(graph, source, program.inputs, sizes, seed, 3 if apart else 0)


def check(
    program: Program,
    dtype: str,
    schedule: BlockSchedule = SMALL,
    apart: bool = False,
    target: str = "cuda-sm80",
) -> None:
    graph = threads_of(program, schedule, target)
    source = emit_cuda(graph, "kernel", range(len(graph.params)) if apart else ())
    want = program.run()
    magnitude = max(1.0, *(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in want))
    bound = allowed(program, dtype) + (2.0**-11 if dtype == "f16" else 0)
    assert_same(run(program, graph, source, 3, apart), want, magnitude, bound)


@given(st.data())
@settings(max_examples=8, phases=QUICK, deadline=None)
def test_drawn_programs(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([BF16, F16, F32]))
    program = data.draw(attention_programs(dtype=dtype, most_depth=20))
    try:
        check(program, str(dtype), apart=data.draw(st.booleans()))
    except UnsupportedError as error:
        assert {"flat", "merged"} & program.tags, error  # axes in the middle of a dimension


@pytest.mark.parametrize(("queries", "keys"), [(1, 70), (40, 1)])
def test_lengths(queries: int, keys: int) -> None:
    check(attention(AttentionShape(1, 2, queries, keys, 16, 32), 0, "f16"), "f16")


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_sizes_of_a_real_block(dtype: str) -> None:
    """Blocks as on a GPU, heads that no power of two is."""
    shape = AttentionShape(1, 1, 70, 130, 80, 40)
    check(attention(shape, 0, dtype), dtype, BlockSchedule(64, 64, 4, 2))


@pytest.mark.parametrize(
    ("head", "width", "schedule"),
    [
        (64, 128, BlockSchedule(64, 64, 4, 2)),  # rows of one and of two lines
        (32, 16, BlockSchedule(128, 32, 8, 3)),  # short rows, two groups of warps
        (128, 64, BlockSchedule(128, 16, 4, 2)),  # a group with twice its rows
    ],
)
def test_products_of_warp_groups(head: int, width: int, schedule: BlockSchedule) -> None:
    program = attention(AttentionShape(1, 1, 130, 70, head, width), 0, "f16")
    check(program, "f16", schedule, target="cuda-sm90")
    text = emit_cuda(threads_of(program, schedule, "cuda-sm90"), "kernel").text
    assert "tw::wgmma<tw::f16, " in text and "mma_16816" not in text


def test_a_fence_left_out_is_found() -> None:
    """Threads' copies are not seen by warp groups without it."""
    program = attention(AttentionShape(1, 1, 64, 70, 64, 64), None, "f16")
    graph = threads_of(program, BlockSchedule(64, 64, 4, 2), "cuda-sm90")
    source = emit_cuda(graph, "kernel")
    wrong = planted(source, "tw::fence_async();\n", "\n")
    with pytest.raises(KernelFaultError):
        run(program, graph, wrong)


# ---- planted faults


def kernel() -> tuple[Program, Graph, CudaSource]:
    program = attention(AttentionShape(1, 1, 32, 70, 16, 16), None, "f16")
    graph = threads_of(program)
    return program, graph, emit_cuda(graph, "kernel")


def planted(source: CudaSource, old: str, new: str) -> CudaSource:
    assert old in source.text, old
    return CudaSource(
        source.text.replace(old, new),
        source.symbol,
        source.threads,
        source.shared_bytes,
        source.pointers,
        source.strides,
        source.sizes,
    )


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("tw::wait<1>();\n    tw::barrier();", "tw::wait<1>();", SHARED),
        ("tw::wait<1>();\n", "tw::wait<2>();\n", SHARED),
        (" < left", " <= left", (KernelBoundsError,)),
    ],
    ids=["a barrier left out", "a wait for too few groups", "a tail off by one"],
)
def test_planted_faults_are_found(
    old: str, new: str, found: tuple[type[KernelFaultError], ...]
) -> None:
    """By one of a few schedules of the threads, each drawn from a seed."""
    program, graph, source = kernel()
    wrong = planted(source, old, new)
    with pytest.raises(found):
        for seed in range(8):
            run(program, graph, wrong, seed)


def test_a_wrong_swizzle_gives_wrong_numbers() -> None:
    program, graph, source = kernel()
    line = next(x for x in source.text.splitlines() if "const int piece = " in x)
    wrong = planted(source, line, line.replace(" ^ ", " + 0 * "))
    right, other = (run(program, graph, x)[0] for x in (source, wrong))
    assert not np.array_equal(right, other)


# ---- text


def test_text_is_one_readable_kernel() -> None:
    _, _, source = kernel()
    text = source.text
    assert text.count("TW_KERNEL(") == 1 and text.count("tw::ldmatrix_x4(") == 2
    assert text.count("tw::ldmatrix_x4_trans(") == 2 and "tw::copy_async<16>" in text
    assert "long long M" in text and "q_stride_2" in text and "q_stride_3" not in text


def test_unaligned_memory_is_copied_one_by_one() -> None:
    _, graph, _ = kernel()
    text = emit_cuda(graph, "kernel", range(len(graph.params))).text
    assert "tw::copy_async" not in text and "_vec<" not in text
