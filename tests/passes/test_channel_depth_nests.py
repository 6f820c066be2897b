"""Depths where loops lie deeper than two: parts at their own pace, values repeated in bursts."""

from __future__ import annotations

import pytest

from tilewright.ir.parser import parse
from tilewright.passes.channels.depth import channel_depths
from tilewright.passes.channels.nodes import find_nodes
from tilewright.runtime.simulator import Machine
from tilewright.runtime.simulator.build import Plan
from tilewright.runtime.simulator.run import run_plan

APART = """stream f<N, M, K>(%x: tensor<N x M x K x f32>, %y: tensor<N x M x f32>) {
  %v = stream.source %x {dims = [["n"], ["m"], ["k"]], type = stream<n=N, m=M, k=K; f32>}
  %a = stream.source %y {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %b = math.tanh %a
  %c = math.tanh %b
  %s = stream.reduce %c {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %d = math.sub %b, %r
  %o = stream.sink %v {dims = [["n"], ["m"], ["k"]], type = tensor<N x M x K x f32>}
  %p = stream.sink %d {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  %q = stream.sink %s {dims = [["n"]], type = tensor<N x f32>}
  return %o, %p, %q
}"""


@pytest.mark.parametrize("extents", [(2, 1, 3), (2, 1, 2), (3, 2, 2), (4, 5, 6)])
def test_parts_that_no_channel_connects_go_at_their_own_pace(extents: tuple[int, ...]) -> None:
    """A sum of one element a row comes every cycle, not every three: it needs two places."""
    sizes = dict(zip("NMK", extents, strict=True))
    nodes = find_nodes(parse(APART).main)
    plan = Plan(nodes, Machine(), sizes)
    found = channel_depths(nodes, sizes)
    full = {e: c.full.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    assert run_plan(plan, full).cycles == run_plan(plan, dict.fromkeys(nodes.edges)).cycles


BURSTS = """stream f<N, M, K>(%x: tensor<N x M x K x f32>, %y: tensor<N x M x f32>,
                          %w: tensor<N x M x f32>, %g: tensor<N x f32>) {
  %v = stream.source %x {dims = [["n"], ["m"], ["k"]], type = stream<n=N, m=M, k=K; f32>}
  %g1 = stream.source %g {dims = [["n"]], type = stream<n=N; f32>}
  %r = stream.repeat %g1 {axis = axis(m, M)}
  %a = stream.source %y {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %b = math.tanh %a
  %c = math.tanh %b
  %e = stream.source %w {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %d = math.sub %c, %e
  %z = math.add %d, %r
  %q = stream.repeat %z {axis = axis(k, K)}
  %o = math.add %q, %v
  %p = stream.sink %o {dims = [["n"], ["m"], ["k"]], type = tensor<N x M x K x f32>}
  return %p
}"""


@pytest.mark.parametrize("inside", [1, 2, 12])
def test_depths_of_a_middle_loop_are_enough_whatever_loop_is_inside(inside: int) -> None:
    """Elements of the middle loop come every K cycles, or one after another once the value of their
    row has come."""
    nodes, sizes = find_nodes(parse(BURSTS).main), {"N": 3, "M": 12, "K": inside}
    plan, found = Plan(nodes, Machine(), sizes), channel_depths(nodes)
    full = {e: c.full.evaluate(sizes) for e, c in zip(nodes.edges, found, strict=True)}
    cycles = run_plan(plan, dict.fromkeys(nodes.edges)).cycles
    assert run_plan(plan, full).cycles == cycles
