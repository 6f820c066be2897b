"""Exponentials that are elements: softmaxes over two axes of one tensor, keys made by a product.

One order of loops serves one axis. Along the other the numbers of an element each have a maximum of
their own, so that no one factor rescales their sums: the running rule has to leave them, and they
become kernels one after the other. Keys made by a product are cut off before the loop over rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import run_chain, streamed
from tests.strategies import Program, assert_same
from tilewright.frontend.compile import compile
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_stream import Scan
from tilewright.ir.parser import parse
from tilewright.passes.partition import partition
from tilewright.passes.reorder import reorder
from tilewright.passes.split_sums import result_names
from tilewright.runtime import program as runtime

COMBINED = (
    "%r = math.add %a, %b",
    "%r = math.mul %a, %b",
    '%r = tensor.contract %a, %x {{equation = "{0}nd,{0}nd->{0}n"}}',
    '%r = tensor.contract %b, %x {{equation = "{0}nd,{0}nd->{0}d"}}',
    '%r = tensor.contract %b, %a {{equation = "{0}nd,{0}md->{0}nm"}}',
    '%r = tensor.contract %a, %b {{equation = "{0}nd,{0}ne->{0}de"}}',
    '%r = tensor.reduce %a {{kind = "sum", axis = -1}}',
    '%r = tensor.reduce %a {{kind = "sum", axis = -2}}',
    "%r = tensor.softmax %a {{axis = -1}}",
)


def two_axes(batch: bool, shape: str, combined: str, swapped: bool) -> str:
    """Softmaxes %a, %b over the last two axes of %x [B?, rows, columns]."""
    names = [n for n in ("B" if batch else "", "N", "M") if n and (n == "B" or n in shape)]
    sizes = f"<{', '.join(names)}>" if names else ""
    first, second = (-1, -2) if swapped else (-2, -1)
    return (
        f"graph f{sizes}(%x: tensor<{'B x ' if batch else ''}{shape} x f32>) {{\n"
        f"%a = tensor.softmax %x {{axis = {first}}}\n%b = tensor.softmax %x {{axis = {second}}}\n"
        f"{combined.format('b' if batch else '')}\nreturn %r }}"
    )


def made_keys(batch: bool, heads: bool, rows: str, made_values: bool) -> str:
    """softmax(q (x wk)') v, with v = x wv if ``made_values``; %q [B?, H?, rows, 4]."""
    b, h = "b" if batch else "", "h" if heads else ""
    wide, many = "B x " if batch else "", "3 x " if heads else ""
    sizes = ", ".join(n for n in ("B" if batch else "", rows if rows == "N" else "", "M") if n)
    v = f"%wv: tensor<5 x {many}2 x f32>" if made_values else f"%v: tensor<{wide}{many}M x 2 x f32>"
    make = f'%v = tensor.contract %x, %wv {{equation = "{b}mc,c{h}e->{b}{h}me"}}\n'
    return (
        f"graph f<{sizes}>(%x: tensor<{wide}M x 5 x f32>, %wk: tensor<5 x {many}4 x f32>, "
        f"%q: tensor<{wide}{many}{rows} x 4 x f32>, {v}) {{\n"
        f'%k = tensor.contract %x, %wk {{equation = "{b}mc,c{h}d->{b}{h}md"}}\n'
        f"{make if made_values else ''}"
        f'%s = tensor.contract %q, %k {{equation = "{b}{h}nd,{b}{h}md->{b}{h}nm"}}\n'
        f"%p = tensor.softmax %s {{axis = -1}}\n"
        f'%r = tensor.contract %p, %v {{equation = "{b}{h}nm,{b}{h}me->{b}{h}ne"}}\nreturn %r }}'
    )


TEXTS = st.one_of(
    st.builds(
        two_axes,
        st.booleans(),
        st.sampled_from(["N x M", "N x 3", "3 x N", "4 x 3"]),
        st.sampled_from(COMBINED),
        st.booleans(),
    ),
    st.builds(made_keys, st.booleans(), st.booleans(), st.sampled_from(["N", "3"]), st.booleans()),
)


def drawn(text: str, seed: int, extents: list[int]) -> Program:
    module = parse(text)
    sizes = dict(zip(module.main.sizes, extents, strict=False))
    rng = np.random.default_rng(seed)
    shapes = [[s.evaluate(sizes) for s in p.type.shape] for p in module.main.params]  # type: ignore[union-attr]
    return Program(module, tuple(rng.standard_normal(s) for s in shapes), sizes, scale=100)


@given(TEXTS, st.integers(0, 2**20), st.lists(st.integers(1, 6), min_size=3, max_size=3))
@settings(max_examples=60)
def test_kernels_mean_the_program(text: str, seed: int, extents: list[int]) -> None:
    program = drawn(text, seed, extents)
    try:
        stream = reorder(streamed(program.module))
    except UnsupportedError:
        return
    names = result_names(stream)
    assert_same(run_chain(program, partition(stream).graphs, names), program.run(), program.scale)


def test_two_axes_are_several_kernels() -> None:
    """With the channels that stay deep between them, and no running maximum of elements."""
    text = two_axes(True, "N x 3", COMBINED[0], False)
    kernels = runtime.Program(parse(text), backend="interpreter").steps
    assert len(kernels) > 1
    assert all("stream.scan" not in str(step.graph) for step in kernels)


@pytest.mark.parametrize("made_values", [False, True])
def test_what_is_made_is_a_kernel_before_attention_s(made_values: bool) -> None:
    text = made_keys(True, True, "3", made_values)
    *before, last = runtime.Program(parse(text), backend="interpreter").steps
    assert [step.outputs for step in before] == [("k_made",), ("v_made",)][: 1 + made_values]
    assert any(isinstance(op, Scan) for op in last.graph.body.ops)


def over_two_axes(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    scores = q @ k.mT
    return scores.softmax(-1) * scores.softmax(-2)


def over_made_keys(q: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    k = (x @ w).unflatten(-1, (3, 8)).transpose(1, 2)
    return (q @ k.mT).softmax(-1) @ k


@pytest.mark.parametrize(
    ("function", "shapes", "said"),
    [
        (over_two_axes, ((2, 5, 8), (2, 7, 8)), "no kernel for these inputs"),
        (over_made_keys, ((2, 3, 5, 8), (2, 7, 6), (6, 24)), "kernel, 1 call"),
    ],
)
def test_compiled_functions_give_torch_s_result(
    function: Callable[..., torch.Tensor], shapes: tuple[tuple[int, ...], ...], said: str
) -> None:
    """What has no schedule stays with torch, and the report says why."""
    compiled, inputs = compile(function), [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), function(*inputs), rtol=1e-5, atol=1e-5)
    assert said in str(compiled.explain())
