"""Routing on GPUs: in Triton's interpreter (a process of its own), programs by their meaning,
compiled ahead of time for GPUs that need not be there, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.backends.interpreted import run_interpreted
from tests.routing_inputs import whole
from tests.test_routing_kernels import routed, routing
from tilewright.backends.triton.build import compile_ahead
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.fuse_reroute import share_counts
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import routing_programs
from tilewright.runtime.program import Program

pytest.importorskip("triton")
CHOICE = """graph choice<T>(%x: tensor<T x 128 x f32>) {
  %p = tensor.softmax %x {axis = 1}
  %v, %ids = tensor.top_k %p {k = 8}
  %total = tensor.reduce %v {kind = "sum", axis = 1, keep = true}
  %weights = math.div %v, %total
  return %weights, %ids
}"""


def test_in_tritons_interpreter() -> None:
    run_interpreted("triton_interpreted_routing.py")


def programs(text: str, target: str) -> Iterator[Graph]:
    """All programs of a call with many tokens."""
    for graph in run_passes(parse(text), TO_KERNELS).graphs:
        shared = share_counts(graph, 128)
        for part in (graph,) if shared is None else (shared.loop, shared.after):
            units = {p.hint: len(p.type.shape) - 1 for p in part.params}  # type: ignore[union-attr]
            yield from routing_programs(part, named_target(target), units)


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_choice_by_its_meaning(tokens: int) -> None:
    """The interpreter also sees whether something outside of a buffer is read."""
    x = whole(np.random.default_rng(tokens), tokens, 128, step=0.3).numpy()
    (program,) = programs(CHOICE, "cuda-sm90")
    weights, ids = evaluate_graph(program, x)
    want, at = evaluate(parse(CHOICE), x)
    assert np.array_equal(ids, at)
    np.testing.assert_allclose(weights, want, rtol=1e-6)


@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942"])
@pytest.mark.parametrize("text", [CHOICE, routing(64, 128, 8, "softmax")], ids=["choice", "whole"])
def test_default_schedules_spill_nothing(text: str, target: str) -> None:
    for program in programs(text, target):
        source = emit_source(program, "kernel")
        warps, stages = int(program.attrs["warps"]), int(program.attrs["stages"])
        found = compile_ahead(source, program, named_target(target), warps, stages)
        assert found.spills == 0, program.name
        assert "T" not in source.sizes or '"T"' in source.text  # no length compiles anything


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 300, 4096])
def test_on_a_gpu(tokens: int) -> None:
    text = routing(64, 16, 4, "softmax").replace(', ties = "torch"', "")
    inputs = routed(np.random.default_rng(tokens), tokens, 64, 16)
    found = Program(parse(text))(*(x.cuda() for x in inputs))
    for got, want in zip(found, evaluate(parse(text), *(x.numpy() for x in inputs)), strict=True):
        torch.testing.assert_close(got.cpu().double(), torch.from_numpy(want).double())
