"""Graphs cut before their last reductions: which are, how they are wired, and their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fused_programs import CASES
from tests.fused_text import SCORES, const, lse
from tests.passes.stages import run_chain, streamed
from tests.strategies import Program as Drawn
from tilewright.ir.parser import parse
from tilewright.ir.types import TensorType
from tilewright.passes.split_sums import result_names
from tilewright.runtime.program import Program

QK = "%q: tensor<N x 16 x f32>, %k: tensor<M x 16 x f32>"
MEAN = (
    '%sum = tensor.reduce %lse {kind = "sum", axis = 0, keep = true}\n'
    "%size = math.size {size = size(N), type = tensor<i64>}\n%n = math.cast %size {dtype = f32}\n"
    "%o = math.div %sum, %n\n"
)
SPLIT = {
    "mean of log-sum-exps": f"graph f<N, M>({QK}) {{\n{SCORES}{lse()}{MEAN}return %o }}",
    "mean, and every one": f"graph f<N, M>({QK}) {{\n{SCORES}{lse()}{MEAN}return %lse, %o }}",
    "the other way round": f"graph f<N, M>({QK}) {{\n{SCORES}{lse()}{MEAN}return %o, %lse, %top }}",
    "weighted by an input": f"graph f<N, M>({QK}, %r: tensor<N x 1 x f32>) {{\n{SCORES}{lse()}"
    '%w = math.mul %lse, %r\n%o = tensor.reduce %w {kind = "sum", axis = 0}\nreturn %o }',
    "mean of those that count": f"graph f<N, M>({QK}, %r: tensor<N x 1 x f32>) {{\n{SCORES}{lse()}"
    '%w = math.mul %lse, %r\n%top_ = tensor.reduce %w {kind = "sum", axis = 0}\n'
    '%below = tensor.reduce %r {kind = "sum", axis = 0}\n%o = math.div %top_, %below\nreturn %o }',
    "mean of rows of two axes": "graph f<A, N, M>(%q: tensor<A x N x 16 x f32>,"
    " %k: tensor<M x 16 x f32>, %r: tensor<(A*N) x f32>) {\n"
    '%s = tensor.contract %q, %k {equation = "anc,mc->anm"}\n'
    "%rows = tensor.reshape %s {shape = [size(A*N), size(M)]}\n"
    '%sum = tensor.reduce %rows {kind = "max", axis = 1}\n%w = math.mul %sum, %r\n'
    '%all = tensor.reduce %w {kind = "sum", axis = 0}\n'
    '%count = tensor.reduce %r {kind = "sum", axis = 0}\n%o = math.div %all, %count\nreturn %o }',
    "sum of sums": "graph f<N, M>(%x: tensor<N x M x f32>) {\n"
    '%a = tensor.reduce %x {kind = "sum", axis = 1}\n'
    '%o = tensor.reduce %a {kind = "sum", axis = 0}\nreturn %o }',
}


def sizes(rows: int, length: int) -> dict[str, int]:
    return {"N": rows, "M": length, "A": 3}


def drawn(text: str, rows: int, length: int) -> Drawn:
    module = parse(text)
    known = {n: v for n, v in sizes(rows, length).items() if n in module.main.sizes}
    return Drawn(module, tuple(inputs(text, rows, length)), known)


def inputs(text: str, rows: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = []
    for param in parse(text).main.params:
        assert isinstance(param.type, TensorType)
        shapes.append([s.evaluate(sizes(rows, length)) for s in param.type.shape])
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("name", SPLIT)
def test_two_graphs_mean_the_same(name: str) -> None:
    text = SPLIT[name]
    program = drawn(text, 5, 7)
    stream = streamed(program.module)
    assert len(stream.graphs) == 2
    for module in (stream, parse(str(stream))):  # wired by names, in print too
        found = run_chain(program, module.graphs, result_names(module))
        for got, want in zip(found, program.run(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("name", SPLIT)
def test_two_kernels(name: str) -> None:
    program = Program(parse(SPLIT[name]))
    assert len(program.steps) == 2 and program.supported
    for rows, length in ((1, 1), (30, 300)):
        given = inputs(SPLIT[name], rows, length)
        found = program(*(torch.from_numpy(x) for x in given))
        for got, want in zip(found, drawn(SPLIT[name], rows, length).run(), strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)


WHOLE = {
    **{name: case.text for name, case in CASES.items()},
    "softmax along the rows and their sum": "graph f<N>(%x: tensor<N x f32>) {\n"
    "%p = tensor.softmax %x {axis = 0}\nreturn %p, %x }",
    "sums of columns": "graph f<N, M>(%x: tensor<N x M x f32>) {\n"
    + const("two", 2.0)
    + '%y = math.mul %x, %two\n%o = tensor.reduce %y {kind = "sum", axis = 0}\nreturn %o }',
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_cut(name: str) -> None:
    assert len(streamed(parse(WHOLE[name])).graphs) == 1
