"""Kernels that choose the k largest: positions are those of torch.topk, ties included."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright
from tests.ir.test_ops_routing import Adversary
from tests.routing_inputs import KINDS, TOKENS, compiled, scores, worst_row
from tilewright.ir.parser import parse

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Form(NamedTuple):
    """A choice: of how many, how many, of which dtype, how."""

    experts: int
    k: int
    dtype: str = "f32"
    largest: bool = True
    ordered: bool = True
    ties: str = "torch"

    @property
    def text(self) -> str:
        words = f'largest = {self.largest}, ordered = {self.ordered}, ties = "{self.ties}"'
        return (
            f"graph choice<T>(%x: tensor<T x {self.experts} x {self.dtype}>) {{\n"
            f"%v, %i = tensor.top_k %x {{k = {self.k}, {words.lower()}}}\nreturn %v, %i }}"
        )

    def wanted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and positions. The lowest of equal numbers are torch's in a stable sort."""
        if self.ties == "torch":
            found = x.topk(self.k, largest=self.largest, sorted=self.ordered)
            return found.values, found.indices
        ordered = torch.sort(x, descending=self.largest, stable=True)
        return ordered.values[:, : self.k], ordered.indices[:, : self.k]


def check(form: Form, x: Tensor, target: str | None = None, backend: str = "mlir") -> None:
    values, ids = compiled(form.text, target, backend)(x)
    right, at = form.wanted(x)
    assert values.dtype == x.dtype and ids.dtype == torch.int32
    assert torch.equal(ids.long(), at), (ids.long() != at).nonzero()[:3]
    denormal = 0 if x.dtype == torch.float32 else 1e-38  # which bf16 instructions take for 0
    torch.testing.assert_close(values, right, rtol=0, atol=denormal, equal_nan=True)


FORMS = [
    Form(2, 1, "bf16", ordered=False),
    Form(3, 3),
    Form(8, 2, "bf16"),
    Form(16, 4, "f16", largest=False),
    Form(17, 17),
    Form(64, 1),  # a heap of one
    Form(64, 8, "bf16"),
    Form(100, 28, ordered=False),  # its worst rows end with heaps
    Form(128, 8, "f16", ordered=False, largest=False),
    Form(192, 3, largest=False),  # a heap: 64 k = E
    Form(256, 8),
    Form(5, 5, "bf16", ties="lowest", largest=False),
    Form(64, 32, ties="lowest"),
]
DRAWN = st.integers(0, 9999), st.sampled_from(TOKENS), st.sampled_from(KINDS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_positions_are_torchs(form: Form) -> None:
    check_many(form, examples=15)


@pytest.mark.parametrize(
    "form", [FORMS[2], FORMS[7], FORMS[9]], ids=lambda form: "-".join(map(str, form))
)
def test_with_narrower_vectors(form: Form) -> None:
    check_many(form, examples=10, target="x86-64-v3")


def check_many(form: Form, examples: int, target: str | None = None) -> None:
    check(form, torch.zeros(3, form.experts).to(DTYPES[form.dtype]), target)  # compiles it

    @given(*DRAWN)
    @settings(max_examples=examples)
    def property_(seed: int, tokens: int, kind: str) -> None:
        x = scores(np.random.default_rng(seed), tokens, form.experts, form.k, kind)
        check(form, x.to(DTYPES[form.dtype]), target)

    property_()
    for kind in KINDS:  # every one of them, in blocks that are not full
        x = scores(np.random.default_rng(0), 37, form.experts, form.k, kind)
        check(form, x.to(DTYPES[form.dtype]), target)


def test_there_are_rows_that_defeat_the_median_of_three() -> None:
    """Else the worst rows would not try what std::nth_element does then."""
    adversary = Adversary(100)
    adversary.top_k(28, ordered=False)
    assert adversary.heaps and worst_row(100, 28)


@pytest.mark.parametrize(
    ("form", "backend"),
    [
        (Form(9, 4), "numba"),
        (Form(9, 4), "interpreter"),
        (Form(64, 1, "bf16", largest=False), "interpreter"),  # a heap
        (Form(7, 3, "f16", ties="lowest"), "interpreter"),
    ],
    ids=str,
)
def test_other_back_ends(form: Form, backend: str) -> None:
    for tokens, kind in [(0, "few"), (1, "odd"), (5, "halves"), (9, "few"), (4, "worst thirds")]:
        x = scores(np.random.default_rng(tokens), tokens, form.experts, form.k, kind)
        check(form, x.to(DTYPES[form.dtype]), backend=backend)


@pytest.mark.parametrize("backend", ["mlir", "numba"])
def test_an_axis_without_a_known_length_has_no_kernel(backend: str) -> None:
    choice = "%v, %i = tensor.top_k %x {k = 3}"
    text = f"graph f<N, M>(%x: tensor<N x M x f32>) {{\n{choice}\nreturn %v, %i }}"
    program = tilewright.Program(parse(text), backend=backend)
    x = torch.randn(4, 24)
    assert torch.equal(program(x)[1].long(), x.topk(3, -1)[1]) and not program.supported


@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 1, 5), (2, 2, 3, 6)])
def test_tokens_of_several_dimensions(shape: tuple[int, ...]) -> None:
    """Scores [batch, tokens, experts]: every position is written, by whatever computes it."""
    x = torch.randn(shape)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "topk": lambda s: s.softmax(-1).topk(2, -1)[1],
        "values": lambda s: s.sigmoid().topk(2, -1)[0],
        "argmax": lambda s: s.argmax(-1),
        "max": lambda s: s.softmax(-1).max(-1)[1],
    }
    for name, function in functions.items():
        with torch.no_grad():
            torch.testing.assert_close(tilewright.compile(function)(x), function(x), msg=name)
    sizes = ", ".join("BNM"[: len(shape) - 1])
    text = (
        f"graph g<{sizes}>(%x: tensor<{sizes.replace(', ', ' x ')} x {shape[-1]} x f32>) {{\n"
        "%v, %i = tensor.top_k %x {k = 2}\nreturn %v, %i }"
    )
    values, positions = tilewright.Program(parse(text))(x)
    want = x.topk(2, -1)
    assert torch.equal(values, want[0]) and torch.equal(positions.long(), want[1])
