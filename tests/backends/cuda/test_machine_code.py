"""Generated CUDA kernels as machine code, without a GPU: the instructions that are meant, and
registers that suffice."""

from __future__ import annotations

import pytest

from tests.attention_programs import Attention
from tilewright.backends.cuda.compile import architecture_of, compile_kernel, compiler_missing
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.backends.gpu.machine_code import Resources, disassembler_missing, resources
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_threads.plan import plan_shared
from tilewright.passes.to_tile.lower import gpu_program

MISSING = compiler_missing() or disassembler_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100")
ARCHITECTURES = {name: architecture_of(named_target(name).cpu) for name in TARGETS}


def compiled(form: Attention, target: str, vectors: bool = True) -> Resources:
    (graph,) = run_passes(parse(form.text()), TO_KERNELS).graphs
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    whole = gpu_program(graph, named_target(target), units)
    program = plan_shared(lower_threads(whole), 227 << 10)
    source = emit_cuda(program, "attention", () if vectors else range(len(program.params)))
    return resources(compile_kernel(source.text, ARCHITECTURES[target], "attention"))


@pytest.mark.parametrize("target", list(ARCHITECTURES))
@pytest.mark.parametrize(("head", "causal"), [(64, True), (128, False), (128, True)])
def test_default_schedules_spill_nothing(target: str, head: int, causal: bool) -> None:
    found = compiled(Attention(head, head, "bf16", causal), target)
    assert found.spills == 0 and found.stack_bytes == 0
    assert found.count("LDGSTS") and found.count("MUFU.EX2")
    if target == "cuda-sm90":
        assert found.count("HGMMA") and not found.count("LDSM")
    else:
        assert found.count("HMMA") and found.count("LDSM")


def test_f32_uses_matrix_units() -> None:
    found = compiled(Attention(64, 64, "f32"), "cuda-sm80")
    assert found.spills == 0 and found.count("HMMA.1688.F32.TF32")


def test_memory_that_lies_in_no_lines_is_read_by_elements() -> None:
    found = compiled(Attention(64, 64, "bf16"), "cuda-sm80", vectors=False)
    assert found.spills == 0 and found.count("LDG.E.U16") and not found.count("LDGSTS")
