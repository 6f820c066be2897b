"""Kernels cut at deep channels: how many, wired by name, the whole as before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from tests.passes.stages import run_chain, streamed
from tests.strategies import Program, assert_same, attention_programs
from tilewright.ir.core import Graph
from tilewright.ir.parser import parse
from tilewright.passes.channels import find_channels
from tilewright.passes.partition import partition
from tilewright.passes.reorder import reorder


@given(attention_programs())
@settings(max_examples=40)
def test_without_reordering_attention_is_three_kernels(program: Program) -> None:
    """Scores and their maximum; exponentials and their sum; quotient and product with v."""
    stream = streamed(program.module)
    kernels = partition(stream).graphs
    assert len(kernels) == 3
    for kernel in kernels:
        assert not any(c.deep for c in find_channels(kernel))
    names = [v.hint for v in stream.main.results]
    assert_same(run_chain(program, kernels, names), program.run(), program.scale)


@given(attention_programs())
@settings(max_examples=30)
def test_kernels_need_only_what_is_there(program: Program) -> None:
    """A parameter is an input or an earlier result; a result is read later or is an output."""
    stream = streamed(program.module)
    kernels = partition(stream).graphs
    known = {p.hint for p in stream.main.params}
    for kernel in kernels:
        assert {p.hint for p in kernel.params} <= known
        known |= {v.hint for v in kernel.results}
    read = {p.hint for kernel in kernels for p in kernel.params}
    outputs = {v.hint for v in stream.main.results}
    assert {v.hint for kernel in kernels for v in kernel.results} <= read | outputs
    assert all(k.name.startswith(stream.main.name) for k in kernels)
    assert len({k.name for k in kernels}) == len(kernels)


def test_one_kernel_is_left_as_it_is() -> None:
    stream = streamed(parse("graph f<N>(%x: tensor<N x f32>) { %y = math.exp %x return %y }"))
    assert partition(stream) == stream
    assert partition(stream).graphs[0] is stream.main


def test_other_levels_pass_through() -> None:
    module = parse("graph f(%x: tensor<4 x f32>) { return %x }\ntile g() { return }")
    assert partition(module) == module


HEAD = "graph f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x f32>) {\n"
SOFTMAXES = (
    "%a = math.neg %x\n%b = math.neg %y\n"
    "%p = tensor.softmax %a {axis = 1}\n%q = tensor.softmax %b {axis = 1}\n"
)
RNG = np.random.default_rng(0)


def pair(body: str) -> tuple[Program, tuple[Graph, ...], list[str]]:
    module = parse(HEAD + body)
    inputs = tuple(RNG.standard_normal((2, 3, 5)))
    program = Program(module, inputs, {"N": 3, "M": 5})
    stream = streamed(module)
    return program, partition(stream).graphs, [v.hint for v in stream.main.results]


def test_a_softmax_waits_twice() -> None:
    """Written in columns; of rows it is an element of one kernel."""
    body = "%a = math.neg %x\n%p = tensor.softmax %a {axis = 1}\n"
    columns = "%o = tensor.transpose %p {permutation = [1, 0]}\nreturn %o }"
    program, kernels, names = pair(body + columns)
    assert len(kernels) == 3 and len(pair(f"{body}return %p }}")[1]) == 1
    assert_same(run_chain(program, kernels, names), program.run(), 1)


def test_two_softmaxes_keep_their_intermediate_results_apart() -> None:
    """Both have values called e, max and sum, which decompose names."""
    program, kernels, names = pair(SOFTMAXES + "%r = math.sub %p, %q\nreturn %r }")
    assert_same(run_chain(program, kernels, names), program.run(), 1)


@pytest.mark.parametrize("returned", ["%p, %r", "%r, %p", "%r, %r", "%r, %p, %r"])
def test_every_result_has_a_name_of_its_own(returned: str) -> None:
    """Results of different kernels, in any order, one of them twice."""
    body = "%a = math.neg %x\n%p = tensor.softmax %a {axis = 1}\n%r = math.exp %a\n"
    program, kernels, names = pair(body + f"return {returned} }}")
    assert len(set(names)) == len(names)
    assert_same(run_chain(program, kernels, names), program.run(), 1)


def test_a_contraction_is_computed_once() -> None:
    """Scores that two kernels read go through memory; cheap constants and sources are made anew."""
    _, kernels, _ = pair(
        '%s = tensor.contract %x, %y {equation = "nm,km->nk"}\n%t = math.neg %s\n'
        "%p = tensor.softmax %t {axis = 1}\nreturn %p }"
    )
    contractions = [op for k in kernels for op in k.body.ops if op.name == "stream.contract"]
    assert len(contractions) == 1


@given(attention_programs())
@settings(max_examples=20)
def test_reordered_attention_is_not_cut(program: Program) -> None:
    assert len(partition(reorder(streamed(program.module))).graphs) == 1
