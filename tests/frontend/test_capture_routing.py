"""Routers captured as ordinary operations: what the interpreter makes of them equals torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.frontend import routers
from tests.frontend.standin import in_torch_order, run_module, translate_whole
from tilewright.frontend.compile import compile
from tilewright.frontend.op_map.registry import Kind, entries, lookup
from tilewright.ir.parser import parse

Function = Callable[..., Any]


class Gate(torch.nn.Module):
    """A function with numbers that are settings, as modules of models have them."""

    def __init__(self, function: Function, **options: int) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **self.options)


class Captured:
    """A function captured once, for inputs of other lengths and numbers too."""

    def __init__(self, function: Function, *examples: Tensor) -> None:
        self.function = function
        self.built, arguments = translate_whole(function, *examples)
        self.order = [next(i for i, x in enumerate(examples) if x is a) for a in arguments]
        assert parse(str(self.built.module)) == self.built.module

    def check(self, *inputs: Tensor) -> None:
        """Positions and counts are equal, floats close; dtypes and shapes agree."""
        results = run_module(self.built.module, [inputs[i] for i in self.order])
        wanted = self.function(*(x.clone() for x in inputs))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for ours, theirs in zip(in_torch_order(self.built, results), wanted, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def check(function: Function, *inputs: Tensor) -> None:
    Captured(function, *inputs).check(*inputs)


def logits(seed: int, tokens: int, experts: int, kind: str) -> Tensor:
    """Scores: all different in a row, many equal, or with NaN among many equal."""
    rng = np.random.default_rng(seed)
    if kind == "different":
        rows = [rng.permutation(experts) for _ in range(tokens)]
        found = np.array(rows, np.float32).reshape(tokens, experts) * (8 / experts) - 4
    else:
        found = rng.integers(-2, 3, (tokens, experts)).astype(np.float32)
    if kind == "nan":
        found[rng.random(found.shape) < 0.2] = np.nan
    return torch.from_numpy(found)


SEEDS, TOKENS = st.integers(0, 999), st.integers(0, 9)
GATES: list[Function] = [
    routers.softmax_then_top,
    routers.renormalised,
    routers.top_then_softmax,
    routers.own_function,
]


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (8, 8), (64, 6), (128, 2)])
@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.__name__)
def test_gates_with_ties_and_nan_resolved_as_torch_does(
    gate: Function, experts: int, k: int
) -> None:
    captured = Captured(Gate(gate, k=k), logits(0, 5, experts, "different"))

    @given(SEEDS, TOKENS, st.sampled_from(["different", "equal", "nan"]))
    @settings(max_examples=25)
    def property_(seed: int, tokens: int, kind: str) -> None:
        captured.check(logits(seed, tokens, experts, kind))

    property_()


@pytest.mark.parametrize(
    ("groups", "kept", "width", "k"), [(4, 2, 2, 3), (8, 4, 8, 8), (1, 1, 6, 1)]
)
def test_groups(groups: int, kept: int, width: int, k: int) -> None:
    function = Gate(routers.grouped, k=k, groups=groups, kept=kept, width=width)
    experts = groups * width
    captured = Captured(function, torch.randn(5, experts), torch.randn(experts))

    @given(SEEDS, TOKENS)
    @settings(max_examples=15)
    def property_(seed: int, tokens: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        captured.check(
            torch.randn(tokens, experts, generator=rng), torch.randn(experts, generator=rng)
        )

    property_()


def test_other_gates() -> None:
    x = torch.randn(7, 8)
    check(routers.sigmoid_of_one, x)
    check(routers.switch, logits(3, 7, 8, "nan"))
    check(routers.best_of_both, logits(4, 7, 8, "nan"))
    check(Gate(routers.noisy, k=2), x, torch.randn(7, 8) * 20, torch.randn(7, 8))


def test_rerouting_reads_the_adapters_map() -> None:
    function = routers.rerouted
    table = torch.zeros(3, 8, dtype=torch.int32)
    captured = Captured(function, torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5).int(), table)

    @given(SEEDS, TOKENS, st.integers(1, 20), st.integers(2, 8))
    @settings(max_examples=25)
    def property_(seed: int, tokens: int, adapters: int, k: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 8, (tokens, k), generator=rng)
        adapter = torch.randint(-1, adapters, (tokens,), generator=rng).int()
        table = torch.randint(0, 60, (adapters, 8), generator=rng, dtype=torch.int32)
        captured.check(ids, adapter, table)

    property_()


def test_counting_and_sorting() -> None:
    """Captured once for T tokens; checked for none and many."""
    ids = torch.randint(0, 8, (7, 2))
    for function in (routers.counted, routers.by_expert):
        captured = Captured(Gate(function, experts=8), ids)
        for tokens in (2, 7, 60):
            captured.check(torch.randint(0, 8, (tokens, 2)))
    check(Gate(routers.capacity, experts=5), torch.randint(0, 5, (9,)))


X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)
AT = torch.tensor([[[3, 0, 0, 1]] * 3, [[1, 2, 2, 0]] * 3])
FLAT = torch.tensor([2, 0, 1, 1])
OTHERS: dict[str, tuple[Function, ...]] = {
    "topk": (
        lambda x, i, j: x.topk(2, 1),
        lambda x, i, j: torch.topk(x, 3, dim=-2, largest=False),
    ),
    "arg": (lambda x, i, j: (x.argmax(1), x.argmin(-1, keepdim=True), x.argmax(dim=0)),),
    "max": (lambda x, i, j: (x.min(1, keepdim=True).indices, x.max(-1)[1], x.min(-1).values),),
    "sort": (
        lambda x, i, j: (*x.sort(1, descending=True), torch.argsort(i, stable=True, dim=-1)),
        lambda x, i, j: torch.sort(i, stable=True, dim=-1),
    ),
    "gather": (lambda x, i, j: (x.gather(-1, i), torch.take_along_dim(x, i.amax(1, True), 2)),),
    "scatter": (
        lambda x, i, j: (x.scatter(2, i, 7.0), x.scatter(2, i, x * 2), x.scatter(2, i, value=1)),
        lambda x, i, j: (x.scatter(2, i, x, reduce="add"), torch.scatter_add(x, 2, i, x)),
        lambda x, i, j: torch.zeros(4).index_put((j,), x.amax((0, 1))),
    ),
    "index": (
        lambda x, i, j: (x[j % 2], x[:, j - 3], x[i % 2, i - 2], x[:, :, j], x[0 * j, j, j]),
        lambda x, i, j: (x.index_select(1, j), x.index_add(1, j, x[:, j] * 2, alpha=0.5)),
    ),
    "sums": (lambda x, i, j: (x.cumsum(1), i.cumsum(-1), (x > 0).cumsum(0)),),
    "counts": (lambda x, i, j: (F.one_hot(i, 5), torch.histc(i.double(), bins=4, min=0, max=3)),),
}


@pytest.mark.parametrize("name", OTHERS)
def test_spellings(name: str) -> None:
    for function in OTHERS[name]:
        check(function, X, AT, FLAT)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, i: x[x > 0].sum() + x, "dynamic|mask|not known"),
        (lambda x, i: x.gather(2, i[:, :2]), "leaves out rows"),
        (lambda x, i: x.scatter(2, i[..., :2], x), "larger than the index"),
        (lambda x, i: x.scatter(2, i, x, reduce="multiply"), "only 'add'"),
        (lambda x, i: x[i % 2, :, i], "not neighbours"),
        (lambda x, i: torch.histc(x, bins=4, min=0, max=3), "other than integers"),
        (lambda x, i: torch.histc(i.float(), bins=4, min=0, max=4), "max=bins-1"),
        (lambda x, i: x.bfloat16().cumsum(-1), "16-bit"),
        (lambda x, i: x.argmax() + x, "without dim"),
    ],
)
def test_what_is_refused(function: Function, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        check(function, X, AT)


def _modules() -> dict[str, Any]:
    """transformers' routers from small random configurations."""
    from transformers import (
        DeepseekV3Config,
        GptOssConfig,
        Llama4TextConfig,
        MixtralConfig,
        OlmoeConfig,
        Qwen3MoeConfig,
    )
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
    from transformers.models.llama4.modeling_llama4 import Llama4Router
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
    from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    size: dict[str, Any] = {"hidden_size": 16, "num_experts_per_tok": 3}
    group = {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_local_experts": 16}
    return {
        "Mixtral": MixtralTopKRouter(MixtralConfig(num_local_experts=8, **size)),
        "Qwen3-MoE": Qwen3MoeTopKRouter(
            Qwen3MoeConfig(num_experts=12, norm_topk_prob=True, **size)
        ),
        "DeepSeek-V3": DeepseekV3TopkRouter(DeepseekV3Config(**group, **size)),
        "gpt-oss": GptOssTopKRouter(GptOssConfig(num_local_experts=8, **size)),
        "OLMoE": OlmoeTopKRouter(OlmoeConfig(num_experts=12, **size)),
        "Llama 4": Llama4Router(
            Llama4TextConfig(num_local_experts=6, hidden_size=16, num_experts_per_tok=1)
        ),
    }


@pytest.mark.parametrize(
    "name", ["Mixtral", "Qwen3-MoE", "DeepSeek-V3", "gpt-oss", "OLMoE", "Llama 4"]
)
def test_routers_of_transformers(name: str) -> None:
    """Without a graph break (``fullgraph``), with weights as inputs; bf16 with exact sums, ties."""
    module = _modules()[name]
    weights = [*module.parameters(), *module.buffers()]
    x = torch.randn(5, 16)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape))
    _check_module(module, x)
    if name != "DeepSeek-V3":  # whose sums of sigmoids round differently
        module.bfloat16()
        with torch.no_grad():
            for weight in weights:
                weight.copy_(torch.randint(-1, 2, weight.shape))
        _check_module(module, torch.randint(-2, 3, (9, 16)).bfloat16())


def _check_module(module: Any, x: Tensor) -> None:
    built, arguments = translate_whole(_called(module), x)
    ours = in_torch_order(built, run_module(built.module, arguments))
    with torch.no_grad():
        theirs = module(x.clone())
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    ours = _distinct(ours, theirs)
    assert len(ours) == len(theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype == wanted.dtype
        tolerance = 1e-5 if wanted.dtype == torch.float32 else 8e-3
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)


def _called(module: Any) -> Function:
    """A frame to start from: Dynamo looks into torch's own modules only when one calls them."""

    def forward(x: Tensor) -> Any:
        return module(x)

    return forward


def _distinct(ours: list[Tensor], theirs: tuple[Tensor, ...]) -> list[Tensor]:
    """One of ours for each of theirs: Dynamo gives a tensor that is returned twice once."""
    if len(ours) == len(theirs):
        return ours
    kinds = [(t.shape, t.dtype) for t in ours]
    return [ours[kinds.index((t.shape, t.dtype))] for t in theirs]


def test_routing_stays_with_torch_where_it_has_no_kernel() -> None:
    """A sort needs all of an axis; a compiled function with one gives torch's results."""
    x = torch.randn(6, 8)

    def function(logits: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sort(torch.softmax(logits, -1), dim=-1, stable=True)

    compiled = compile(function)
    for ours, theirs in zip(compiled(x), function(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    left = {row.op for graph in compiled.explain().graphs for row in graph.left}
    assert "sort" in left


def test_every_entry_of_routing_has_a_case() -> None:
    seen: set[str] = set()

    def backend(gm: torch.fx.GraphModule, _: object) -> Function:
        found = [lookup(node) for node in gm.graph.nodes]
        seen.update(entry.name for entry in found if entry is not None)
        return gm.forward

    cases: list[tuple[Function, tuple[Tensor, ...]]] = [
        (function, (X, AT, FLAT)) for functions in OTHERS.values() for function in functions
    ]
    for function, tensors in cases:
        torch._dynamo.reset()
        torch.compile(function, backend=backend, dynamic=True)(*tensors)
    assert not {e.name for e in entries() if e.kind is Kind.ROUTING} - seen
