"""Products with quantised weights through Triton: in its interpreter (a process of their own),
compiled ahead of time for GPUs that need not be there, and on a GPU where there is one."""

from __future__ import annotations

import re

import pytest
import torch

import tilewright
from tests.backends.interpreted import run_interpreted
from tests.gpu_lowbit_programs import programs
from tests.lowbit_programs import Form, Weight
from tilewright.backends.triton.build import Resources, compile_ahead
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.target import named_target

pytest.importorskip("triton")
TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942")


def test_in_tritons_interpreter() -> None:
    run_interpreted("triton_interpreted_lowbit.py")


def form(dtype: str, x: str = "bf16") -> Form:
    return Form((Weight(dtype, 128, "tiles", 1),), 8192, x=x)


def resources(dtype: str, rows: int, target: str, x: str = "bf16") -> Resources:
    main = programs(form(dtype, x), rows, target=target).main
    source = emit_source(main, "kernel")
    warps, stages = int(main.attrs["warps"]), int(main.attrs["stages"])
    return compile_ahead(source, main, named_target(target), warps, stages)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("dtype", "rows"), [("u4", 1), ("u8", 16), ("u4", 0)])
def test_default_schedules_spill_nothing(dtype: str, rows: int, target: str) -> None:
    found = resources(dtype, rows, target)
    assert found.spills == 0
    matrix = "v_mfma" if target.startswith("hip") else "mma"
    assert matrix in found.assembly
    assert found.shared_bytes <= (64 << 10 if target.startswith("hip") else 110 << 10)


@pytest.mark.parametrize(("dtype", "x"), [("f4e2m1", "f16"), ("nf4", "bf16"), ("u4", "f32")])
def test_other_codes_and_activations_spill_nothing(dtype: str, x: str) -> None:
    assert resources(dtype, 1, "cuda-sm90", x).spills == 0


def test_codes_go_straight_from_shared_memory_to_matrix_units() -> None:
    """Words come by asynchronous copies of 16 bytes and leave shared memory in the layout that
    matrix units read, even where a code lies in several planes: nothing is written back to shared
    memory but the scales of a turn, to get them to the rows that they belong to."""
    found = resources("u3", 1, "cuda-sm90")
    text = found.assembly
    assert found.spills == 0
    assert "mma.sync.aligned.m16n8k16" in text and "wgmma" not in text
    assert re.search(r"cp\.async\.cg\.shared\.global \[.*\], 0x10", text)
    assert text.count("ldmatrix") >= 16 and text.count("st.shared") <= 24


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("dtype", "rows", "parts"), [("u4", 1, 4), ("u3", 1, 16), ("u8", 16, 4)])
def test_the_last_work_item_adds_up(dtype: str, rows: int, parts: int, target: str) -> None:
    """What all threads wrote is there before the count goes up, which nothing moves across."""
    made = programs(form(dtype), rows, parts=parts, target=target, counting=True)
    assert made.finish is None
    source = emit_source(made.main, "kernel")
    warps, stages = int(made.main.attrs["warps"]), int(made.main.attrs["stages"])
    found = compile_ahead(source, made.main, named_target(target), warps, stages)
    assert found.spills == 0
    if target.startswith("cuda"):
        lines = [line.strip() for line in found.assembly.splitlines()]
        (count,) = (i for i, line in enumerate(lines) if "atom.global.gpu.acq_rel.add" in line)
        before, after = lines[:count], lines[count + 1 :]
        stored = max(i for i, line in enumerate(before) if "st.global" in line)
        assert any("bar.sync" in line for line in before[stored:])
        read = next(i for i, line in enumerate(after) if "ld.global" in line)
        assert any("bar.sync" in line for line in after[:read])


def test_source_is_one_readable_kernel() -> None:
    text = emit_source(programs(form("u4"), 1).main, "kernel").text
    assert text.count("@triton.jit") == 1 and text.count("tl.dot") == 4
    assert "words & 983055" in text  # 0x000F000F: both halves at once
    assert 'do_not_specialize=["M", "N"]' in text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["u1", "u3", "u4", "u7", "u8", "f4e2m1", "f6e3m2", "nf4"])
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 200, 600])
def test_on_a_gpu(dtype: str, rows: int) -> None:
    weight = tilewright.QuantizedTensor.from_float(torch.randn(200, 1000), dtype, 64).to("cuda")
    assert weight.layout.order == "tiles"
    x = torch.randn(rows, 1000, device="cuda", dtype=torch.bfloat16)
    got = tilewright.linear(x, weight).double()
    want = x.double() @ weight.dequantize().double().T
    assert float((got - want).norm() / want.norm()) < 6e-3
