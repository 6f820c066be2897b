"""Routers compiled: each is a kernel that gives what torch gives, ties included, for any tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.frontend import routers
from tests.frontend.test_capture_routing import Gate, logits
from tests.frontend.test_capture_routing import _modules as transformers_routers
from tilewright.frontend import programs
from tilewright.frontend.compile import compile

REAL = programs.make_program  # before conftest.py puts the stand-in there
ROUTING = {"topk", "argmax", "max", "gather", "scatter", "scatter_", "histc", "cumsum", "index"}
TOKENS = (7, 100, 33)


@pytest.fixture(autouse=True)
def kernels(stand_in: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "make_program", REAL)


class Compiled:
    """A function compiled for any number of tokens."""

    def __init__(self, function: Any) -> None:
        self.function, self.compiled = function, compile(function, dynamic=True)

    def check(self, *inputs: Tensor) -> None:
        """Positions are equal, floats close; dtypes and shapes agree."""
        with torch.no_grad():
            ours = self.compiled(*(x.clone() for x in inputs))
            theirs = self.function(*(x.clone() for x in inputs))
        pairs = zip(ours, theirs, strict=True) if isinstance(theirs, tuple) else [(ours, theirs)]
        for mine, wanted in pairs:
            assert mine.dtype == wanted.dtype and mine.shape == wanted.shape
            tight = 8e-3 if wanted.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(mine, wanted, rtol=tight, atol=tight, equal_nan=True)

    def assert_kernel(self) -> None:
        """One region in one graph, called as a kernel every time, and no routing beside it."""
        report = self.compiled.explain()
        assert len(report.graphs) == len(report.regions) == 1, str(report)
        for region in report.regions:
            assert region.status == "kernel" and not region.fallbacks, region.reason
        left = {row.op for graph in report.graphs for row in graph.left}
        assert not left & ROUTING, left


GATES: dict[str, tuple[Any, int]] = {
    "softmax, then top": (Gate(routers.softmax_then_top, k=3), 16),
    "renormalised": (Gate(routers.renormalised, k=4), 64),
    "top, then softmax": (Gate(routers.top_then_softmax, k=2), 8),
    "the least costs": (Gate(routers.own_function, k=3), 12),
    "switch": (routers.switch, 8),
    "sigmoid of one": (routers.sigmoid_of_one, 6),
    "best of both": (routers.best_of_both, 8),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_with_ties(name: str) -> None:
    function, experts = GATES[name]
    compiled = Compiled(function)
    for seed, tokens in enumerate(TOKENS):
        for kind in ("different", "equal", "nan"):
            compiled.check(logits(seed, tokens, experts, kind))
    compiled.assert_kernel()


def test_groups() -> None:
    compiled = Compiled(Gate(routers.grouped, k=5, groups=4, kept=2, width=4))
    for tokens in TOKENS:
        compiled.check(torch.randn(tokens, 16), torch.randn(16))
    compiled.assert_kernel()


def test_noise() -> None:
    compiled = Compiled(Gate(routers.noisy, k=2))
    for tokens in TOKENS:
        compiled.check(torch.randn(tokens, 8), torch.randn(tokens, 8) * 20, torch.randn(tokens, 8))
    compiled.assert_kernel()


class Rerouted(torch.nn.Module):
    """A gate, and the experts that the tokens' adapters have in place of the chosen ones."""

    def forward(self, x: Tensor, adapter: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = routers.renormalised(x, 3)
        return weights, routers.rerouted(ids, adapter, table)


def test_rerouting() -> None:
    compiled = Compiled(Rerouted())
    table = torch.randint(0, 60, (3, 8), dtype=torch.int32)
    for tokens in TOKENS:
        adapter = torch.randint(-1, 3, (tokens,)).int()
        compiled.check(logits(tokens, tokens, 8, "equal"), adapter, table)
    compiled.assert_kernel()


ROUTERS = ("Mixtral", "Qwen3-MoE", "DeepSeek-V3", "gpt-oss", "OLMoE", "Llama 4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROUTERS)
def test_routers_of_transformers(name: str, dtype: torch.dtype) -> None:
    """With exact sums, so that ties are torch's ties whatever the order of additions."""
    module = transformers_routers()[name].to(dtype)
    with torch.no_grad():
        for weight in (*module.parameters(), *module.buffers()):
            weight.copy_(torch.randint(-1, 2, weight.shape) / 4)

    def forward(x: Tensor) -> Any:
        return module(x)

    compiled = Compiled(forward)
    for tokens in TOKENS:
        compiled.check((torch.randint(-2, 3, (tokens, 16))).to(dtype))
    compiled.assert_kernel()


@pytest.mark.parametrize("name", GATES)
def test_one_token(name: str) -> None:
    """Dynamo takes 1 as a number, whatever is said to be dynamic: decoding has a graph of its
    own, without a loop over tokens."""
    function, experts = GATES[name]
    compiled = Compiled(function)
    for kind in ("different", "equal", "nan"):
        compiled.check(logits(0, 1, experts, kind))
    compiled.assert_kernel()


@torch.no_grad()
def test_a_choice_from_a_vocabulary_is_no_router() -> None:
    """Its product is as wide as memory is fast: one worker for few tokens would be slower."""
    weight = torch.nn.Parameter(torch.randn(1500, 8))

    def next_token(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight).argmax(-1)

    compiled = compile(next_token)
    x = torch.randn(5, 8)
    assert torch.equal(compiled(x), next_token(x))
    left = {row.op for graph in compiled.explain().graphs for row in graph.left}
    assert "argmax" in left


ALONG_TOKENS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "topk": ((7, 16), lambda x: x.topk(2, 0)),
    "as many as there are": ((7, 16), lambda x: x.topk(7, 0)),
    "max": ((7, 16), lambda x: x.max(0)),
    "min": ((7, 16), lambda x: x.min(0, keepdim=True)),
    "of a softmax": ((33, 16), lambda x: x.softmax(-1).topk(5, 0)),
    "one dimension": ((16,), lambda x: x.topk(3)),
    "one dimension, max": ((16,), lambda x: x.softmax(-1).max(-1)),
    "three dimensions": ((7, 4, 16), lambda x: x.topk(2, -3)),
    "first the last": ((33, 16), lambda x: x.topk(4, -1).values.topk(3, 0)),
    "then the last": ((33, 16), lambda x: x.topk(3, 0).values.topk(2, -1)),
    "both": ((33, 16), lambda x: (x.topk(3, 0).indices, x.softmax(-1).topk(2, -1).indices)),
    "looked up": ((7, 16), lambda x: (x.gather(0, x.topk(2, 0).indices),)),
}


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ALONG_TOKENS)
def test_choices_along_tokens(name: str, dynamic: bool) -> None:
    """The best tokens of an expert, not the best experts of a token."""
    shape, function = ALONG_TOKENS[name]
    compiled = compile(function, dynamic=dynamic)
    x = torch.randperm(math.prod(shape)).view(shape) / 100
    for ours, theirs in zip(compiled(x), function(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_choice_whose_values_come_back_by_a_detour() -> None:
    """An operation that torch runs reads one result of a choice; the other meets it again."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = x.softmax(-1).topk(2, -1)
        return (torch.special.bessel_j0(values) + indices).max(-1)

    x = torch.randn(7, 16)
    for ours, theirs in zip(compile(function)(x), function(x), strict=True):
        torch.testing.assert_close(ours, theirs)
