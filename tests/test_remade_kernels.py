"""Attention from a layer's input in one kernel: keys and values made, rotated and met in blocks.

Against float64 of the program as written, which forms keys and values as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.cache_programs import Side
from tilewright.frontend.attention.form import CacheSide
from tilewright.frontend.attention.from_input import InputForm, attention_graph
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_tile import Alloc
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_module
from tilewright.ir.sizes import Size
from tilewright.ir.target import named_target
from tilewright.ir.types import BufferType, ScratchType
from tilewright.passes.channels import find_channels
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.rematerialise import Fused, fuse
from tilewright.passes.to_tile.lower import kernel_to_tile
from tilewright.runtime.program import Program
from tilewright.runtime.simulator import simulate

TARGETS = [None, "x86-64-v3", "x86-64-v4"]
TOKENS = Size.of("M")
Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Problem:
    """The input's codes, head sizes of keys and values, and the shape: batch, key heads, query
    heads of each, queries, tokens. ``absorbed``: values are weighed before they are projected."""

    side: Side
    head: int = 32
    value_head: int = 32
    rotated: bool = True
    causal: bool = True
    absorbed: bool = True
    shape: Shape = (1, 2, 2, 1, 70)

    @property
    def graph(self) -> Graph:
        scales = {"f32": torch.float32, "f16": torch.float16}[self.side.scales]
        side = CacheSide(self.side.form, scales, self.side.zeros, self.side.zero)
        form = InputForm(side, self.head, self.value_head, self.rotated, self.causal)
        return attention_graph(form)

    @property
    def fused(self) -> Fused:
        """Few rows absorb values, many do not (but for inputs smaller than a head): the sizes are
        given to that end."""
        rows, share = (1, 1) if self.absorbed else (10**6, 10**9)
        sizes = {"B": 1, "H": 1, "G": 1, "N": rows, "M": 4096, "R": 1}
        return fuse(self.graph, TOKENS, sizes, share)

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        batch, heads, groups, rows, tokens = self.shape
        width = self.side.form.width
        codes, _ = self.side.inputs(rng, batch, 1, tokens)
        given = dict(zip(("words", "scales", "zeros"), codes, strict=False))
        for name, size in (("wk", self.head), ("wv", self.value_head)):
            given[name] = rng.standard_normal((heads, width, size)).astype("f4") / width**0.5
        q = rng.standard_normal((batch, heads, groups, rows, self.head)) / self.head**0.5
        angles = np.arange(tokens)[:, None] * 10.0 ** -np.arange(self.head // 2)
        angles = np.concatenate([angles, angles], 1)
        given |= {"q": q, "cos": np.cos(angles), "sin": np.sin(angles)}
        floats = {"q", "wk", "wv", "cos", "sin"}
        return {n: x.astype("f4") if n in floats else x for n, x in given.items()}


def of(graph: Graph, given: dict[str, Any]) -> list[Any]:
    return [given[p.hint] for p in graph.params]


def finished(fused: Fused, out: Any, given: dict[str, Any]) -> Any:
    last = fused.last[0]
    return out if last is None else np.einsum(last.equation, out, given[last.weights])


def expected(problem: Problem, given: dict[str, Any]) -> Any:
    """Float64 of the program as written."""
    graph = problem.graph
    (want,) = evaluate(Module((graph,)), *of(graph, given), precision="f64")
    return want


def check(problem: Problem, target: str | None, backend: str | None = None) -> None:
    fused, given = problem.fused, problem.inputs()
    program = Program(Module((fused.graph,)), target=target, backend=backend)
    assert program.supported and len(program.steps) == 1, program.steps[0].reason
    (got,) = program(*(torch.from_numpy(x) for x in of(fused.graph, given)))
    want = expected(problem, given)
    close(finished(fused, got.numpy(), given), want, problem)


def close(got: Any, want: Any, problem: Problem) -> None:
    """Within what f32 loses: sums of ``width`` and ``head`` terms of some size."""
    size = 1 + (np.abs(want).max() if want.size else 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * size)


def forms() -> st.SearchStrategy[CacheForm]:
    """The input as values lie, or as keys do, of any width and group."""

    def made(tokens: str, bits: int, width: int, share: int) -> CacheForm:
        group = (16 if tokens == "codes" else 7) * share
        return CacheForm(tokens, bits, width, "token", group)

    widths = st.integers(2, 300) | st.sampled_from([16, 64, 128, 256])
    return st.builds(
        made, st.sampled_from(["codes", "lanes"]), st.integers(1, 8), widths, st.integers(1, 9)
    )


def problems() -> st.SearchStrategy[Problem]:
    sides = st.builds(Side, forms(), st.booleans(), st.sampled_from(["f32", "f16"]))
    rows = st.sampled_from([1, 1, 2, 3, 20])
    lengths = st.integers(1, 40) | st.integers(120, 140) | st.integers(250, 300)
    shape = st.tuples(
        st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 4]), rows, lengths
    )
    heads = st.integers(1, 35).map(lambda half: 2 * half)
    return st.builds(
        Problem,
        sides,
        heads,
        st.integers(2, 70),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        shape,
    )


def side(bits: int = 4, width: int = 64, group: int = 64, tokens: str = "codes") -> Side:
    return Side(CacheForm(tokens, bits, width, "token", group), scales="f16")


@pytest.mark.parametrize("target", TARGETS)
@given(problems())
@example(Problem(side(), shape=(1, 2, 4, 1, 300)))
@example(Problem(side(3, 200, 48), 64, 64, absorbed=False, shape=(1, 1, 2, 30, 133)))
@settings(max_examples=3)
def test_any_form(target: str | None, problem: Problem) -> None:
    check(problem, target)


@given(problems())
@settings(max_examples=1)
def test_any_form_with_numba(problem: Problem) -> None:
    pytest.importorskip("numba")
    check(problem, "scalar", "numba")


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_in_the_tile_interpreter(bits: int) -> None:
    """The tile programs of few and of many rows run by the interpreter, for one target."""
    absorbed = bits % 2 == 0
    problem = Problem(side(bits, 40, 16), 12, 10, absorbed=absorbed, shape=(1, 2, 2, 1, 37))
    fused, given = problem.fused, problem.inputs()
    want = expected(problem, given)
    for rows in (2, 0):
        tile = tile_program(fused, rows)
        (got,) = evaluate_graph(tile, *of(fused.graph, given))
        close(finished(fused, got, given), want, problem)


def tile_program(fused: Fused, rows: int, target: str = "x86-64-v3") -> Graph:
    (kernel,) = run_passes(Module((fused.graph,)), TO_KERNELS).graphs
    units = {p.hint: len(p.type.shape) - 1 for p in kernel.params}  # type: ignore[union-attr]
    return kernel_to_tile(kernel, named_target(target), rows, units)


@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_no_memory_holds_keys_or_values_of_all_tokens(rows: int, absorbed: bool) -> None:
    """Of the sizes M and head only the rotation's tables have both, which all layers share; what a
    worker holds is a few blocks of tokens."""
    problem = Problem(side(4, 1024, 1024), 48, 56, absorbed=absorbed)
    tile = tile_program(problem.fused, rows, "x86-64-v4")
    heads = {Size.of(48), Size.of(56)}
    buffers = {p.hint: p.type for p in tile.params}
    both = {
        name
        for name, type_ in buffers.items()
        if isinstance(type_, BufferType) and TOKENS in type_.shape and heads & set(type_.shape)
    }
    assert both == {"cos", "sin"}
    scratch = {op.result.hint: op.result.type for op in tile.body.walk() if isinstance(op, Alloc)}
    blocks = {n: t.shape for n, t in scratch.items() if isinstance(t, ScratchType)}
    made = [shape for name, shape in blocks.items() if name.endswith("_made")]
    assert len(made) == 2 - absorbed and all(shape[0] <= 128 for shape in made)
    total = sum(int(np.prod(shape)) * 4 for shape in blocks.values())
    assert total < 1 << 20  # keys and values of 4,096 tokens: 1.7 MB a key head


def test_a_product_is_made_once_for_its_readers() -> None:
    """Two attentions over the same keys, one of them rotated, and values that are the keys."""
    text = """graph f<N, M>(%q: tensor<N x 16 x f32>, %x: tensor<M x 40 x f32>,
        %w: tensor<40 x 16 x bf16>, %cos: tensor<M x 16 x f32>) {
      %wide = math.cast %w {dtype = f32}
      %k = tensor.remake %x, %wide {equation = "mc,cd->md"}
      %r = tensor.roll %k {axis = 1, shift = 3}
      %t = math.mul %r, %cos
      %a = tensor.contract %q, %k {equation = "nd,md->nm"}
      %b = tensor.contract %q, %t {equation = "nd,md->nm"}
      %s = math.add %a, %b
      %p = tensor.softmax %s {axis = 1}
      %o = tensor.contract %p, %k {equation = "nm,md->nd"}
      return %o }"""
    module = parse(text)
    rng = np.random.default_rng(0)
    given = [torch.randn(s) / 4 for s in ((7, 16), (70, 40), (40, 16), (70, 16))]
    given[2] = given[2].bfloat16()
    reference = [x.float().numpy() for x in given]
    wide = text.replace("bf16", "f32").replace("math.cast %w {dtype = f32}", "math.mul %w, %one")
    wide = wide.replace("%wide =", "%one = math.const {value = 1.0, type = tensor<f32>}\n %wide =")
    (want,) = evaluate(parse(wide), *reference, precision="f64")
    program = Program(module)
    assert program.supported and len(program.steps) == 1
    for count in (7, 40):
        given[0] = torch.from_numpy(rng.standard_normal((count, 16)).astype("f4") / 4)
        (want,) = evaluate(parse(wide), given[0].numpy(), *reference[1:], precision="f64")
        np.testing.assert_allclose(program(*given)[0].numpy(), want, rtol=0, atol=2e-5)


def test_no_channel_is_deep_on_the_streaming_machine() -> None:
    """Which is why it is one kernel: keys made again, rotated and met need no memory on the way."""
    text = """graph f<H, N, M>(%q: tensor<H x N x 4 x f32>, %x: tensor<M x 6 x f32>,
        %w: tensor<H x 6 x 4 x f32>, %sin: tensor<M x 4 x f32>) {
      %k = tensor.remake %x, %w {equation = "mc,hcd->hmd"}
      %t = math.mul %k, %sin
      %s = tensor.contract %q, %t {equation = "hnd,hmd->hnm"}
      %p = tensor.softmax %s {axis = 2}
      %o = tensor.contract %p, %k {equation = "hnm,hmd->hnd"}
      return %o }"""
    (kernel,) = run_passes(parse(text), TO_KERNELS).graphs
    assert not any(c.deep for c in find_channels(kernel))
    rng, sizes = np.random.default_rng(0), {"H": 2, "N": 3, "M": 5}
    given = [rng.standard_normal(s) for s in ((2, 3, 4), (5, 6), (2, 6, 4), (5, 4))]
    run = simulate(kernel, *given, sizes=sizes)
    (want,) = evaluate(parse(text), *given, precision="f64")
    assert not run.stuck
    np.testing.assert_allclose(run.outputs[0], want, rtol=1e-9, atol=1e-9)


def test_programs_print_and_parse() -> None:
    module = Module((Problem(side(5, 96, 96)).fused.graph,))
    assert any(isinstance(op, Remake) for op in module.main.body.ops)
    for stage in (module, run_passes(module, TO_KERNELS)):
        text = print_module(stage)
        assert print_module(parse(text)) == text


def test_what_is_not_input_times_weights_is_refused() -> None:
    text = """graph f<N, M>(%q: tensor<N x 16 x f32>, %x: tensor<M x 40 x f32>,
        %w: tensor<40 x 16 x f32>) {
      %u = math.exp %w
      %k = tensor.remake %x, %u {equation = "mc,cd->md"}
      %s = tensor.contract %q, %k {equation = "nd,md->nm"}
      %p = tensor.softmax %s {axis = 1}
      %o = tensor.contract %p, %x {equation = "nm,mc->nc"}
      return %o }"""
    (kernel,) = run_passes(parse(text), TO_KERNELS).graphs
    with pytest.raises(UnsupportedError, match="not input times weights"):
        kernel_to_tile(kernel, named_target("x86-64-v3"), 0, {})
