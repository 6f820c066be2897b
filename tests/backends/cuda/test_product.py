"""Two whole kernels by hand: product.cu (sm_80: ldmatrix, mma, copies in three stages, swizzled
tiles) and product_sm90.cu (tiles by the accelerator, mbarriers, wgmma). On the host against NumPy,
compiled for GPUs, and with faults planted, each of which must be found with every seed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.backends.cuda.compile import ARCHITECTURES, compile_kernel, compiler_missing
from tilewright.backends.cuda.host import Argument, TensorMap, run_on_host
from tilewright.backends.gpu.machine_code import disassembler_missing, resources
from tilewright.ir.errors import (
    KernelBoundsError,
    KernelCompileError,
    KernelDeadlockError,
    KernelFaultError,
    KernelRaceError,
)

FOLDER = Path(__file__).parent
on_the_host = pytest.mark.skipif(not shutil.which("g++"), reason="the emulation needs g++")
missing = compiler_missing() or disassembler_missing()
compiled = pytest.mark.skipif(missing is not None, reason=str(missing))


@dataclass(frozen=True)
class Kernel:
    """A kernel's text and how it is launched: outputs of a block are ``tile`` by ``tile``."""

    source: str
    symbol: str
    tile: int
    threads: int
    shared: int
    boxes: tuple[tuple[int, int], ...] = ()

    def worst(self, rows: int, columns: int, depth: int, seed: int, source: str = "") -> float:
        """The largest error over the bound of f32 sums; infinite where a result is NaN."""
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((rows, depth)).astype(ml_dtypes.bfloat16)
        b = rng.standard_normal((depth, columns)).astype(ml_dtypes.bfloat16)
        c = np.full((rows, columns), np.nan, np.float32)
        operands: list[Argument] = [a, b]
        if self.boxes:
            operands = [TensorMap(x, box) for x, box in zip((a, b), self.boxes, strict=True)]
        grid = -(-rows // self.tile) * -(-columns // self.tile)
        arguments = [*operands, c, rows, columns, depth]
        text = source or self.source
        run_on_host(text, self.symbol, grid, arguments, self.threads, self.shared, seed)
        wide = a.astype(np.float64), b.astype(np.float64)
        bound = depth * 2.0**-24 * (np.abs(wide[0]) @ np.abs(wide[1])) + 1e-30
        error = np.abs(c - wide[0] @ wide[1]) / bound
        return float(np.where(np.isnan(error), np.inf, error).max())


SM80 = Kernel(
    (FOLDER / "product.cu").read_text(encoding="utf-8"),
    "product",
    tile=64,
    threads=128,
    shared=3 * (64 * 32 + 32 * 64) * 2,
)
SM90 = Kernel(
    (FOLDER / "product_sm90.cu").read_text(encoding="utf-8"),
    "product90",
    tile=128,
    threads=384,
    shared=4 * (128 * 64 + 64 * 128) * 2 + 1024,
    boxes=((128, 64), (64, 64)),
)


@on_the_host
@pytest.mark.parametrize("kernel", [SM80, SM90], ids=["sm_80", "sm_90a"])
@settings(max_examples=10)
@given(st.integers(1, 140), st.integers(1, 17), st.integers(1, 40), st.integers(0, 2**32))
def test_sizes_that_fill_no_tile(
    kernel: Kernel, rows: int, columns: int, depth: int, seed: int
) -> None:
    assert kernel.worst(rows, 8 * columns, 8 * depth, seed) <= 1


# What stands there, what takes its place, and the error; None: every access is in order, and in the
# wrong place, so that only results show it.
Fault = tuple[str, str, type[Exception] | None]
FAULTS: dict[str, Fault] = {
    "a removed barrier": ("    tw::barrier();\n", "", KernelFaultError),
    "a wrong wait count": ("wait<kStages - 2>", "wait<kStages - 1>", KernelRaceError),
    "a row too many": ("r < rows && k < depth", "r <= rows && k < depth", KernelBoundsError),
    "a column of tiles too many": ("k < depth && c < columns", "k < depth", KernelBoundsError),
    "a row of results too many": ("r < rows && column", "r <= rows && column", KernelFaultError),
    "a stage too few": ("ahead % kStages", "ahead % (kStages - 1)", KernelRaceError),
    "one barrier that a warp passes by": (
        "    tw::barrier();\n",
        "    if (warp != 3 || step + 1 < steps) tw::barrier();\n",
        KernelFaultError,  # the barrier, or what the warp reads without it
    ),
    "a wrong swizzle on one side": (
        "tile + kStageA + place_b(16 * k + lane % 16, ",
        "tile + kStageA + place_b(16 * k + lane % 16, 1 ^ ",
        None,
    ),
}
FULL = "    tw::mbarrier_wait(full + 8 * stage, step / kStages % 2);\n"
EMPTY = "      tw::mbarrier_wait(empty + 8 * stage, step / kStages % 2 ^ 1);\n"
FAULTS_SM90: dict[str, Fault] = {
    "tiles not waited for": (FULL, "", KernelFaultError),
    "tiles overwritten too early": (EMPTY, "", KernelFaultError),
    "the wrong parity": ("% 2 ^ 1", "% 2", KernelDeadlockError),
    "too few bytes expected": ("stage, kStage)", "stage, kStageA)", KernelFaultError),
    "too few arrivals": ("empty + 8 * stage, 8)", "empty + 8 * stage, 9)", KernelDeadlockError),
    "a stage given back while it is read": ("wgmma_wait<0>", "wgmma_wait<1>", KernelRaceError),
    "products not waited for": ("    tw::wgmma_wait<0>();\n", "", KernelFaultError),
    "registers fenced once": ("tw::wgmma_fence", "if (!step) tw::wgmma_fence", KernelRaceError),
    "registers not fenced": ("    tw::wgmma_fence();\n", "", KernelRaceError),
    "another swizzle on one side": ("32 * k, 16, 1024)", "32 * k, 16, 1024, 64)", None),
}
PLANTED = [pytest.param(SM80, fault, id=name) for name, fault in FAULTS.items()]
PLANTED += [pytest.param(SM90, fault, id=name) for name, fault in FAULTS_SM90.items()]


@on_the_host
@pytest.mark.parametrize(("kernel", "fault"), PLANTED)
def test_planted_faults_are_found(kernel: Kernel, fault: Fault) -> None:
    right, wrong, error = fault
    assert right in kernel.source
    source = kernel.source.replace(right, wrong)
    for seed in range(3):
        if error is None:
            assert kernel.worst(100, 72, 520, seed, source) > 1
            continue
        with pytest.raises(error):
            kernel.worst(100, 72, 520, seed, source)


@on_the_host
def test_the_time_at_which_copies_come_changes_no_result() -> None:
    """Every seed gives the same bits: the order of sums does not depend on the schedule."""
    a = np.random.default_rng(0).standard_normal((64, 96)).astype(ml_dtypes.bfloat16)
    results = []
    for seed in range(3):
        c = np.zeros((64, 64), np.float32)
        operands = [a, a.T.copy(), c, 64, 64, 96]
        done = run_on_host(SM80.source, "product", 1, operands, 128, 24576, seed)
        results.append(c)
        assert done.matrices == 3 * 2 * 4 * (8 + 8) and done.bank_conflicts == 0
    assert results[0].any()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@on_the_host
def test_without_its_swizzle_the_kernel_has_bank_conflicts() -> None:
    a = np.ones((64, 32), ml_dtypes.bfloat16)
    source = SM80.source.replace("((chunk ^ (row >> 1 & 3)) << 4)", "(chunk << 4)")
    operands = [a, a.T.copy(), np.zeros((64, 64), np.float32), 64, 64, 32]
    done = run_on_host(source, "product", 1, operands, 128, SM80.shared)
    # Eight rows of 64 bytes fall into two groups of banks: four rounds for each matrix of a.
    assert (done.matrices, done.bank_conflicts) == (128, 64 * 3)


# ---- compiled -----------------------------------------------------------------------------------
@compiled
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_of_the_kernel_for_sm_80(architecture: str) -> None:
    found = resources(compile_kernel(SM80.source, architecture, "product"))
    assert found.stack_bytes == 0 and found.spills == 0
    assert found.registers <= 128
    assert found.count("HMMA") == 16 and found.count("LDSM") == 8
    assert found.count("LDGSTS.E.BYPASS.128") == 12
    assert found.count("STG.E.64") == 16


@compiled
def test_machine_code_of_the_kernel_for_sm_90a() -> None:
    found = resources(compile_kernel(SM90.source, "sm_90a", "product90"))
    assert found.stack_bytes == 0 and found.spills == 0
    assert found.count("HGMMA.64x128x16.F32.BF16") == 4
    assert found.count("UTMALDG.2D") == 3
    assert found.count("WARPGROUP.DEPBAR") == 1  # products are not waited for one by one
    assert found.count("SYNCS.PHASECHK") >= 2 and found.count("USETMAXREG") == 2
    assert found.registers <= 168


@compiled
def test_what_the_compiler_refuses() -> None:
    with pytest.raises(KernelCompileError, match=r"product.*\n.*no member"):
        compile_kernel(SM80.source.replace("tw::commit", "tw::comit"), "sm_80", "product")
    with pytest.raises(KernelCompileError, match="sm_90a"):
        compile_kernel(SM80.source, "hopper", "product")
