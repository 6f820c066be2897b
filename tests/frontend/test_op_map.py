"""Every handler of the op map against torch in float64, through Dynamo's capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.frontend.standin import in_torch_order, run_module, translate_whole
from tilewright.frontend.op_map.registry import Kind, entries, lookup
from tilewright.ir.parser import parse

Function = Callable[..., Any]

X = torch.linspace(-2, 2, 30).reshape(2, 3, 5)
Y = torch.linspace(0.5, 3, 30).reshape(2, 3, 5).flip(0)
ROW = torch.tensor([0.5, -1.0, 2.0, 0.25, 1.5])
MASK = torch.tensor([[[True, False, True, True, False]] * 3] * 2)
INTS = torch.arange(30).reshape(2, 3, 5) - 7
A = torch.sin(torch.arange(42.0)).reshape(2, 3, 7)
B = torch.cos(torch.arange(70.0)).reshape(2, 7, 5)

ONE_TENSOR: dict[str, Function] = {
    "neg": lambda x: -x,
    "exp": torch.exp,
    "exp2": lambda x: x.exp2(),
    "log": lambda x: (x.abs() + 1).log(),
    "log2": lambda x: torch.log2(abs(x) + 1),
    "tanh": lambda x: 30 * torch.tanh(x / 30),
    "sigmoid": F.sigmoid,
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1e-5),
    "reciprocal": lambda x: (x + 3).reciprocal(),
    "relu": F.relu,
    "silu": F.silu,
    "erf": lambda x: (torch.erf(x), torch.special.erf(3 * x)),
    "gelu": lambda x: (F.gelu(3 * x), F.gelu(3 * x, approximate="tanh")),
    "layer_norm": lambda x: (F.layer_norm(x, (5,)), F.layer_norm(x * 9 + 7, (5,), eps=0.5)),
    "rms_norm": lambda x: (F.rms_norm(x, (5,), eps=1e-6), x + F.rms_norm(x, [5], None, 0.5)),
    "pow": lambda x: (x**2, x.pow(3), (x + 3) ** 0.5, (x + 3) ** -0.5, 2.0**x, (x + 3) ** 1.7),
    "add alpha": lambda x: torch.add(x, x, alpha=2) - torch.sub(x, 1, alpha=0.5),
    "rsub": lambda x: (1 - x, torch.rsub(x, 3)),
    "clamp": lambda x: (x.clamp(-1, 1), x.clamp(min=0), torch.clamp(x, max=0.5), x.clamp_max(0)),
    "clamp_min": lambda x: (x.clamp_min(0), torch.clamp_max(x, 0.5)),
    "isnan": lambda x: torch.isnan(x.log()),
    "nan_to_num": lambda x: (x.log().nan_to_num(), (1 / x.relu()).nan_to_num(0.5, 7, -7)),
    "softplus": lambda x: (F.softplus(40 * x), F.softplus(x, beta=2, threshold=3)),
    "relu6": lambda x: (F.relu6(4 * x), F.hardtanh(x), F.hardtanh(x, -0.5, 1.5)),
    "leaky_relu": lambda x: (F.leaky_relu(x), F.leaky_relu(x, 0.3), F.threshold(x, 0.5, -3)),
    "elu": lambda x: (F.elu(x), F.elu(9 * x, alpha=0.5), F.celu(x, 0.7), F.selu(x)),
    "hardswish": lambda x: (F.hardswish(3 * x), F.hardsigmoid(3 * x)),
    "mish": lambda x: (F.mish(x), F.logsigmoid(30 * x), F.tanhshrink(x)),
    "log1p": lambda x: (torch.log1p(x / 3), x.mul(1e-9).log1p(), torch.log1p(1 / x.relu())),
    "expm1": lambda x: (torch.expm1(20 * x), x.mul(1e-9).expm1(), torch.expm1(x.log())),
    "log10": lambda x: torch.log10(x.abs()),
    "round": lambda x: (torch.round(2.5 * x), x.floor(), torch.ceil(-x), x.trunc(), x.frac()),
    "sign": lambda x: (torch.sign(x), x.log().sgn(), (1 / x.relu()).isinf(), x.log().isfinite()),
    "log_softmax": lambda x: (
        F.log_softmax(x, -1),
        torch.log_softmax(x, 1),
        x.relu().log().log_softmax(0, torch.float64),
    ),
    "var": lambda x: (x.var(-1), x.var((0, 2), unbiased=False, keepdim=True), x.std()),
    "std": lambda x: (
        torch.std(x, 1, correction=0),
        x.var(1, correction=3),
        x.mean(1, True).var(1),
    ),
    "any": lambda x: ((x > 1.9).any(-1), x.relu().any(), x.gt(-1).all((0, 1)), torch.all(x, 1)),
    "any of none": lambda x: (x.new_zeros(2, 0).any(-1), x.new_zeros(0, 3).all(0)),
    "of a number": lambda x: (x.sum().norm(), x.mean().any(-1), x.sum().log_softmax(0)),
    "norm": lambda x: (x.norm(), x.norm(2, -1), x.norm(p=1, dim=(0, 2), keepdim=True)),
    "vector_norm": lambda x: (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        torch.linalg.vector_norm(x, float("inf"), 1),
    ),
    "normalize": lambda x: (F.normalize(x), F.normalize(x.relu(), dim=-1), F.normalize(x, 1, 0)),
    "dropout": lambda x: F.dropout(x, p=0.5, training=False),
    "sum": lambda x: (x.sum(), x.sum(-1), x.sum((0, 2)), torch.sum(x, 1, keepdim=True)),
    "mean": lambda x: (x.mean(), x.mean(-1, keepdim=True), torch.mean(x, (0, 1))),
    "amax": lambda x: (x.amax(-1), torch.amin(x, (0, 2), keepdim=True)),
    "max": lambda x: (x.max(), x.max(-1).values, x.min(1, keepdim=True)[0]),
    "softmax": lambda x: (x.softmax(-1), torch.softmax(x, 1), F.softmax(x, dim=0)),
    "softmax dtype": lambda x: F.softmax(x, dim=-1, dtype=torch.float64),
    "logsumexp": lambda x: (x.logsumexp(-1), torch.logsumexp(x, (0, 2), keepdim=True)),
    "transpose": lambda x: (x.transpose(0, 2), 2 * x.mT, torch.swapaxes(x, -1, 1)),
    "t": lambda x: (x.sum(0).t(), x.sum(0).T),
    "permute": lambda x: (x.permute(2, 0, 1), x.permute((-1, 1, 0)), torch.permute(x, (1, 0, 2))),
    "reshape": lambda x: (x.reshape(6, 5), x.view(-1), x.flatten(1), x.reshape(2, -1)),
    "unsqueeze": lambda x: (x.unsqueeze(1).squeeze(1), x.unsqueeze(-1), torch.squeeze(x)),
    "expand": lambda x: (x[:, None].expand(-1, 4, -1, -1), x.expand(3, *x.shape)),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "getitem": lambda x: (
        x[:, None],
        x[..., None, :],
        x[None, :, :, None, :],
        x[:, :, : x.size(2)],
    ),
    "identity": lambda x: x.transpose(0, 1).contiguous() + x.clone().detach().transpose(0, 1),
    "arange": lambda x: x + torch.arange(x.size(-1)) * torch.arange(2, 8, 2)[:, None],
    "full": lambda x: torch.full((3, 5), 2.5) + x + torch.full_like(x, 0.5) + x.new_full((5,), 1.0),
    "zeros": lambda x: torch.zeros(5) + torch.ones_like(x) * x + x.new_ones(3, 1),
    "tensor": lambda x: torch.where(x > 0, x, torch.tensor(float("-inf"))),
    "tril": lambda x: (x.tril(), x.tril(-1), torch.triu(x, diagonal=1)),
    "causal": lambda x: torch.ones(3, 5, dtype=torch.bool).tril().logical_not() * x,
}

TWO_TENSORS: dict[str, tuple[Function, torch.Tensor, torch.Tensor]] = {
    "arithmetic": (lambda x, y: (x + y) * (x - y) / y, X, Y),
    "broadcast": (lambda x, r: x * r + r[:, None, None, None], X, ROW),
    "maximum": (lambda x, y: (torch.maximum(x, y), torch.min(x, y), x.minimum(y)), X, Y),
    "max of two": (torch.max, X, Y),
    "compare": (lambda x, y: (x < y, x.le(y), x > 0, x >= y, y == x, x.ne(y)), X, Y),
    "where": (lambda x, m: (torch.where(m, x, 0.0), torch.where(m, x, -x), x.where(m, 1)), X, MASK),
    "masked_fill": (lambda x, m: x.masked_fill(~m, float("-inf")), X, MASK),
    "logic": (lambda x, m: (m & (x > 0), m | (x > 1), torch.logical_and(x, m), ~m), X, MASK),
    "logical_or": (lambda x, m: (torch.logical_or(x > 0, m), torch.logical_not(x)), X, MASK),
    "logical_xor": (lambda x, m: (torch.logical_xor(x > 0, m), (x > 1) ^ m), X, MASK),
    "bits": (
        lambda i, j: (i & 7, 3 & j, i << 2, j >> 1, i.div(4, rounding_mode="floor")),
        INTS,
        INTS,
    ),
    "prelu": (
        lambda x, w: (
            F.prelu(x, x.mean((0, 2))),
            torch.prelu(x, w.sum(0, True)),
            F.prelu(x, w.sum()),
        ),
        X,
        ROW,
    ),
    "logaddexp": (
        lambda x, y: (
            torch.logaddexp(x, y),
            torch.logaddexp(x.relu().log(), y.sub(1).relu().log()),
        ),
        X,
        Y,
    ),
    "lerp": (lambda x, y: (torch.lerp(x, y, 0.3), x.lerp(y, 0.75), torch.lerp(x, y, y / 3)), X, Y),
    "addcmul": (
        lambda x, y: (torch.addcmul(x, y, y, value=0.5), x.addcdiv(x, y), torch.addcdiv(y, x, y)),
        X,
        Y,
    ),
    "cosine_similarity": (
        lambda x, y: (F.cosine_similarity(x, y), F.cosine_similarity(x, y.mean(1, True), dim=-1)),
        X,
        Y,
    ),
    "addmm": (lambda a, x: torch.addmm(x.sum((0, 2)), a.sum(0), a.sum(0).mT, alpha=0.5), A, X),
    "bool mul": (lambda x, m: (x > 0) * m, X, MASK),
    "floor_divide": (lambda i, j: (i // 4, i % 4, i.remainder(j.abs() + 1)), INTS, INTS + 3),
    "int to float": (lambda i, x: (i / 4, i * 0.5, i.float() + x, (i > 2).to(x.dtype)), INTS, X),
    "type_as": (
        lambda i, x: (i.type_as(x), x.to(i.dtype), x.long(), x.bool(), i.double()),
        INTS,
        X,
    ),
    "promotion": (lambda i, x: (i < 2.5, i == 3, x * i, torch.maximum(i, x)), INTS, X),
    "matmul": (lambda a, b: (a @ b, torch.matmul(a, b), a.bmm(b)), A, B),
    "linear": (lambda x, w: (F.linear(x, w), F.linear(x, w, w.sum(1))), X, B[0, :, :]),
    "matmul broadcast": (lambda a, b: (a[:, None] @ b, a @ b[None]), A, B),
    "matmul shared": (lambda a, b: a.unsqueeze(1) @ b.unsqueeze(0), A, B),
    "matrix times vector": (lambda a, v: a @ v, X, ROW),
    "vector times matrix": (lambda v, b: v @ b, ROW, B.transpose(1, 2).contiguous()),
    "einsum": (lambda a, b: torch.einsum("bnd,bdm->bnm", a, b), A, B),
    "einsum dots": (lambda a, b: torch.einsum("...nd, ...dm -> n...m", a, b), A, B),
    "einsum implicit": (lambda a, b: torch.einsum("bij,bjk", a, b), A, B),
    "einsum sum": (lambda a, b: torch.einsum("bnd,bdm->n", a, b), A, B),
    "layer_norm scaled": (lambda x, r: F.layer_norm(x, (x.size(-1),), r, 1 - r), X, ROW),
    "rms_norm scaled": (lambda x, r: F.rms_norm(x, (x.size(-1),), weight=r, eps=1e-3), X, ROW),
    "cross_entropy": (
        lambda x, i: (
            F.cross_entropy(x.reshape(6, 5), i.sum(-1).reshape(6) % 5, reduction="none"),
            F.cross_entropy(
                x.reshape(3, 10), i.amax(-1).sum(0) % 7, reduction="none", ignore_index=2
            ),
            F.cross_entropy(x.reshape(6, 5), i.sum(-1).reshape(6) % 5, reduction="sum"),
        ),
        X,
        INTS.abs() % 5,
    ),
    "baddbmm": (lambda a, x: torch.baddbmm(x, a, a.mT @ x, beta=2, alpha=0.5), A, X),
    "baddbmm without": (lambda a, x: torch.baddbmm(x, a, a.mT @ x, beta=0), A, X),
}


def check(function: Function, *inputs: torch.Tensor) -> None:
    """The module in float64 equals torch in float64, and its text parses back."""
    built, arguments = translate_whole(function, *inputs)
    results = in_torch_order(built, run_module(built.module, arguments, precision="f64"))
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    reference = function(*wide)
    reference = reference if isinstance(reference, tuple) else (reference,)
    assert len(results) == len(reference)
    for ours, theirs in zip(results, reference, strict=True):
        assert ours.shape == theirs.shape
        if not theirs.is_floating_point():
            assert ours.dtype == theirs.dtype
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=1e-9, atol=1e-12, equal_nan=True
        )
    assert parse(str(built.module)) == built.module


@pytest.mark.parametrize("name", ONE_TENSOR)
def test_one_tensor(name: str) -> None:
    check(ONE_TENSOR[name], X)


@pytest.mark.parametrize("name", TWO_TENSORS)
def test_two_tensors(name: str) -> None:
    function, *inputs = TWO_TENSORS[name]
    check(function, *inputs)


def test_every_entry_has_a_case() -> None:
    """Attention itself has its own file, and so have routers (test_capture_routing.py)."""
    seen: set[str] = {"scaled_dot_product_attention"}

    def backend(gm: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        found = [lookup(node) for node in gm.graph.nodes]
        seen.update(entry.name for entry in found if entry is not None)
        return gm.forward

    cases = [(f, [X]) for f in ONE_TENSOR.values()]
    cases += [(f, inputs) for f, *inputs in TWO_TENSORS.values()]
    for function, tensors in cases:
        torch._dynamo.reset()
        torch.compile(function, backend=backend, dynamic=True)(*tensors)
    own = (entry.name for entry in entries() if entry.kind is not Kind.ROUTING)
    assert not set(own) - seen
