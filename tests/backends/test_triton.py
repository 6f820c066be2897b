"""The Triton back end: its kernels in Triton's interpreter (a process of their own), compiled ahead
of time for GPUs that need not be there, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from tests.attention_programs import Attention
from tests.backends.gpu_corpus import planes
from tests.backends.interpreted import run_interpreted
from tilewright.backends.triton.build import Resources, compile_ahead
from tilewright.backends.triton.emit import TritonSource, emit_source
from tilewright.ir.core import Graph
from tilewright.ir.errors import TargetError
from tilewright.ir.ops_tile import For
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.runtime.program import Program

pytest.importorskip("triton")
TARGETS = ("cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942")


def test_in_tritons_interpreter() -> None:
    run_interpreted("triton_interpreted.py")


def program(form: Attention, target: str) -> Graph:
    (graph,) = run_passes(parse(form.text()), TO_KERNELS).graphs
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params}  # type: ignore[union-attr]
    return gpu_program(graph, named_target(target), units)


def source(form: Attention, target: str) -> TritonSource:
    tile = program(form, target)
    return emit_source(tile, "kernel", bulk=bool(tile.attrs["bulk"]))


def resources(form: Attention, target: str) -> Resources:
    tile = program(form, target)
    made = source(form, target)
    warps, stages = int(tile.attrs["warps"]), int(tile.attrs["stages"])
    return compile_ahead(made, tile, named_target(target), warps, stages)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("causal", [False, True])
def test_default_schedules_spill_nothing(target: str, causal: bool) -> None:
    found = resources(Attention(128, 128, "bf16", causal), target)
    assert found.spills == 0
    matrix = {"cuda-sm80": "mma.sync", "cuda-sm90": "wgmma.mma_async", "hip-gfx942": "v_mfma"}
    assert matrix.get(target, "tcgen05.mma") in found.assembly
    if target == "cuda-sm90":
        assert "cp.async.bulk.tensor" in found.assembly and found.shared_bytes < 116 << 10


@pytest.mark.parametrize(("head", "dtype"), [(64, "f16"), (80, "bf16"), (64, "f32")])
def test_other_heads_and_dtypes_spill_nothing(head: int, dtype: str) -> None:
    assert resources(Attention(head, head, dtype), "cuda-sm90").spills == 0


def test_source_is_one_readable_kernel() -> None:
    text = source(Attention(64, 64, "bf16", causal=True), "cuda-sm80").text
    assert text.count("@triton.jit") == 1 and text.count("tl.dot") == 4
    assert 'do_not_specialize=["B", "K", "G", "N", "M"]' in text  # no length compiles anything
    assert "q_stride_2" in text and "q_stride_3" not in text  # the last stride is one


def test_no_gpu_and_wrong_targets_are_named() -> None:
    module = parse(Attention(16, 16).text())
    if not torch.cuda.is_available():
        with pytest.raises(TargetError, match="no GPU that torch can reach"):
            Program(module, backend="triton")
    with pytest.raises(TargetError, match="makes kernels for cuda-sm80"):
        Program(module, backend="triton", target="x86-64-v3")
    with pytest.raises(TargetError, match="is a GPU"):
        Program(module, target="cuda-sm90")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    form = Attention(64, 64, "bf16", causal=True)
    q, k, v = (torch.randn(2, 4, 300, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    (got,) = Program(parse(form.text()))(q, k, v)
    want = form.reference(q.cpu(), k.cpu(), v.cpu(), None)
    assert got.is_cuda and float((got.cpu().double() - want).abs().max()) < 2e-2


def test_caches_in_few_bits_are_multiplied_plane_by_plane() -> None:
    """Codes of few rows' blocks need not be put together; where some have to, all are."""
    for name, tokens, dots in (("cache u8, u4", 128, 4 + 8), ("cache u3, u5", 64, 2)):
        programs = planes(name, named_target("cuda-sm90"))
        for program in (x for x in programs if "merge" not in x.name):
            text = emit_source(program, "kernel").text
            (loop, *_) = (op for op in program.body.ops if isinstance(op, For))
            assert loop.step == tokens
            body = text[text.index("for m_at in") : text.index("for after in")]
            assert body.count("tl.dot(") == dots
