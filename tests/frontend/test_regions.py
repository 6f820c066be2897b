"""What becomes a region, what does not, and that moving it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.frontend.test_attention_spellings import inputs
from tilewright.frontend.compile import compile
from tilewright.frontend.report import Report

Function = Callable[..., Any]
QKV = ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))


def compiled_report(function: Function, *tensors: Tensor) -> Report:
    """Runs a function compiled and plain, compares, and gives the report."""
    compiled = compile(function)
    copies = [t.clone() for t in tensors]
    with torch.no_grad():
        ours, theirs = compiled(*tensors), function(*copies)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6, equal_nan=True)
        assert a.stride() == b.stride() or not a.numel()
    for a, b in zip(tensors, copies, strict=True):
        torch.testing.assert_close(a, b)  # what the function writes in place
    return compiled.explain()


def count(function: Function, *tensors: Tensor) -> int:
    return len(compiled_report(function, *tensors).regions)


def left_ops(report: Report) -> set[str]:
    return {row.op for graph in report.graphs for row in graph.left}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = (q @ k.mT).softmax(-1)
    return weights @ v


CONSTANTS_LIKE_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "viewed": lambda s: torch.zeros_like(s).view(s.shape[0], -1, s.shape[-1]),
    "copied": lambda s: s.new_full((s.shape[-2], s.shape[-1]), -1.0).contiguous(),
    "mask": lambda s: s.new_ones(s.shape[-2:]).contiguous().tril() * 2,
    "summed up": lambda s: s.new_full((s.shape[-1],), -1.0).cumsum(-1),
    "like what torch makes of them": lambda s: torch.ones_like(s.flip(-1).roll(2)).tril(),
    "like constants like that": lambda s: torch.ones_like(s.flip(0).new_zeros(s.shape[-1])) * 2,
    "another region's": lambda s: (torch.ones_like(s) * 2).softmax(-1).softmax(-1),
    "another region's rows": lambda s: torch.zeros(7).add(torch.ones_like(s)).exp().softmax(-1),
}


@pytest.mark.parametrize("name", CONSTANTS_LIKE_SCORES)
def test_constants_of_the_shape_of_scores(name: str) -> None:
    """They are made from the scores' node, and come back to the scores' kernel."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        return (scores + CONSTANTS_LIKE_SCORES[name](scores)).softmax(-1) @ v

    q, k, v = (x[0] for x in inputs(*QKV))
    report = compiled_report(function, q, k, v)
    assert any("tensor.contract" in region.ir for region in report.regions)


def test_rows_made_of_the_shape_of_scores_that_meet_the_scores() -> None:
    """Two regions: the constants that the first begins with are made from the second's scores."""

    def function(a: Tensor) -> Tensor:
        scores = (a + 1) @ a.mT
        ones = scores.new_full((scores.shape[-1],), 2).contiguous()
        weights = (ones - ones.amax(-1, keepdim=True)).exp()
        return (weights / weights.sum(-1, keepdim=True)) @ scores.mT

    compiled_report(function, inputs((5, 8))[0])


def test_extremes_of_no_elements_are_refused_as_torch_refuses_them() -> None:
    def function(a: Tensor) -> Tensor:
        return (a @ a.mT).softmax(0).min(-1)[0]

    compiled = compile(function)
    compiled(torch.ones(2, 3, 4))
    assert len(compiled.explain().regions) == 1
    with pytest.raises(IndexError, match="non-zero size"):
        compiled(torch.ones(2, 0, 4))


def test_a_single_product_is_no_region() -> None:
    report = compiled_report(lambda q, k: q @ k.mT * 2, *inputs(*QKV[:2]))
    assert not report.regions
    reasons = {row.op: row.reason for row in report.graphs[0].left}
    assert reasons["matmul"] == "a single product stays with torch"


def test_scores_alone_are_a_region_up_to_the_softmax() -> None:
    report = compiled_report(lambda q, k: (q @ k.mT).softmax(-1) + 1, *inputs(*QKV[:2]))
    assert len(report.regions) == 1
    assert left_ops(report) == {"add"}


def test_a_norm_is_one_region() -> None:
    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)

    assert count(norm, *inputs((2, 5, 8))) == 1


def test_a_norm_of_rows_whose_length_a_weight_fixes_is_a_region() -> None:
    """Dynamo took the length for one that changes; the product behind it says that it does not."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.rand(8)), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
            out: Tensor = self.out(rows)
            return out

    report = compiled_report(Layer(), torch.randn(5, 8))
    assert len(report.regions) == 2
    assert not left_ops(report)


@pytest.mark.parametrize(
    "sums", [lambda y: y.mean(-1), lambda y: y.max(-1).values], ids=["mean", "max"]
)
def test_sums_over_products_with_what_is_no_parameter(sums: Function) -> None:
    weight = torch.randn(33, 40)
    compiled = compile(lambda x: sums(F.linear(x, weight)))
    x = torch.randn(9, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), sums(F.linear(x, weight)), rtol=1e-4, atol=1e-5)


def test_norms_of_queries_and_keys_are_kernels_of_their_own() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) for x in (q, k))
        return attend(q, k, v)

    report = compiled_report(function, *inputs(*QKV))
    assert len(report.regions) == 3
    assert left_ops(report) == set()


def test_rotary_embedding_is_not_absorbed() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, cos: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q * cos, k * cos + k, v)

    report = compiled_report(function, *inputs(*QKV[:2], QKV[1], (7, 8))[:3], torch.rand(1, 8))
    assert left_ops(report) == {"mul", "add"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_with_parameters_are_no_attention(dtype: torch.dtype) -> None:
    """Their softmax is not a stream of scores; in 16 bits torch's own products serve."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 8))

        def forward(self, x: Tensor) -> Tensor:
            weights: Tensor = self.inner(x).softmax(-1)
            return weights @ self.outer

    module = Layer().to(dtype)
    compiled = compile(module)
    x = torch.randn(3, 8, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    report = compiled.explain()
    assert "softmax" in left_ops(report)
    reasons = {row.reason for row in report.graphs[0].left}
    by_design = "a contraction with a parameter stays with torch"
    assert (by_design in reasons) == (dtype == torch.bfloat16)
    assert len(report.regions) == (0 if dtype == torch.bfloat16 else 2)


def test_row_work_with_a_detour_stays_with_torch() -> None:
    """The row's mean needs erfc of a row that would be in the kernel."""

    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            double = nn.functional.pad(x, (0, 0))[..., :8] * 2
            return (double + torch.erfc(double)).mean(-1, keepdim=True)

    module = Norm()
    compiled = compile(module, dynamic=None, strict=True)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    assert not compiled.explain().regions


def test_two_attentions_in_a_row_are_two_regions() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(attend(q, k, v), k, v)

    assert count(function, *inputs((2, 5, 8), (2, 7, 8), (2, 7, 8))) == 2


def test_two_values_of_one_softmax_are_one_region() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights @ (v + 1)

    assert count(function, *inputs(*QKV)) == 1


def test_a_detour_through_an_unknown_operation_splits() -> None:
    """q k goes out through erfc and back in: what follows the detour is still one kernel."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        return (scores + torch.erfc(scores)).softmax(-1) @ v

    report = compiled_report(function, *inputs(*QKV))
    assert len(report.regions) == 1
    assert left_ops(report) >= {"matmul", "erfc"}


def test_users_that_came_early_move_behind_the_kernel() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        early = torch.erfc(weights)
        return weights @ v, torch.cumsum(early, -1)

    assert count(function, *inputs(*QKV)) == 1


def test_memory_written_in_between_is_respected() -> None:
    """v changes after q k is computed and before it is used."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-1)
        k.copy_(k * 0)
        return weights @ v

    report = compiled_report(function, *inputs(*QKV))
    assert [r.status for r in report.regions] == ["torch"]
    assert "written in place" in report.regions[0].reason


def test_an_unrelated_write_in_between_does_no_harm() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, other: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-1)
        other.mul_(2)
        return weights @ v

    report = compiled_report(function, *inputs(*QKV, (3,)))
    assert [r.status for r in report.regions] == ["kernel"]


def test_a_mask_changed_after_it_was_made_is_not_remade() -> None:
    """The mask is written in place before its use, so it is read, not rebuilt from positions."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool)
        seen[:, 0] = False
        return (q @ k.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ v

    assert count(function, *inputs(*QKV)) == 1


def test_a_result_written_in_place_later() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v)
        out += 1
        out[..., 0] = 0
        return out

    assert count(function, *inputs(*QKV)) == 1


def test_in_place_work_that_others_see_is_left_alone() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = q @ k.mT
        view = scores[..., 0]
        scores += 1
        return scores.softmax(-1) @ v, view

    compiled_report(function, *inputs(*QKV))


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_scales(scale: Any) -> None:
    report = compiled_report(lambda q, k, v: attend(q * scale, k, v), *inputs(*QKV))
    assert len(report.regions) == 1
    assert ("mul" in left_ops(report)) == isinstance(scale, Tensor)


def test_a_scale_that_depends_on_a_length_is_refused() -> None:
    """It would be a new kernel for every length."""
    function = lambda q, k, v: (q @ k.mT * k.size(-2) ** 0.5).softmax(-1) @ v  # noqa: E731
    report = compiled_report(function, *inputs(*QKV))
    assert report.regions[0].status == "torch"
    assert "depends on a size" in report.regions[0].reason


def test_empty_and_single() -> None:
    for n, m in ((0, 3), (1, 1), (4, 1)):
        assert count(attend, *inputs((2, n, 8), (2, m, 8), (2, m, 8))) == 1


UNUSED: dict[str, Function] = {
    "norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "attention": lambda x: attend(x, x, x),
    "its shape": lambda x: attend(x, x, x).shape,
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x, x),
    "layer": lambda x: F.silu(F.linear(x, torch.ones(3, 64))) * 2,
    "large": lambda x: F.gelu(x.repeat(1, 40, 1)) * 2 + 1,
    "position": lambda x: x.argmax(-1),
    "choice": lambda x: x.view(-1, 64).softmax(-1).topk(3, -1),
    "its size": lambda x: x.view(-1, 64).topk(3, -1).values.numel(),
    "behind a choice": lambda x: x.view(-1, 64).topk(3, -1).indices + 1,
    "two in a row": lambda x: attend(x, attend(x, x, x), x),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_nothing_uses_is_dropped(name: str) -> None:
    """Its tensors are no results of anything; a size that is read needs no tensor."""

    def function(x: Tensor) -> Any:
        size = UNUSED[name](x)
        return x.cumsum(-1), size if name in ("its shape", "its size") else 0

    x = torch.randn(2, 60, 64)
    compiled = compile(function)
    with torch.no_grad():
        (ours, size), (theirs, its) = compiled(x), function(x)
    assert torch.equal(ours, theirs) and size == its
    report = compiled.explain()
    assert not report.regions and left_ops(report) <= {"cumsum", "repeat", "ones"}


def test_an_effect_of_what_nothing_uses_stays() -> None:
    """Writes in place and random numbers; only what follows from them goes."""

    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        F.silu(x, True)
        F.relu(y, inplace=True).softmax(-1)
        z.mul_(2).view(-1).exp()
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        F.dropout(x, 0.5, True) * 2
        return x + torch.rand(5, 8)

    tensors = inputs((5, 8), (5, 8), (5, 8))
    copies = [t.clone() for t in tensors]
    with torch.no_grad():
        torch.manual_seed(1)
        ours = compile(function)(*tensors)
        torch.manual_seed(1)
        theirs = function(*copies)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(tensors, copies, strict=True):
        torch.testing.assert_close(a, b)


def test_regions_that_need_each_other_are_not_both_kernels() -> None:
    """Each is convex alone: v * w needs what the second makes, that needs v reversed."""

    def function(h: Tensor) -> tuple[Tensor, ...]:
        v = torch.sigmoid(h)
        w = torch.where(h > 0, h, 0.1 * h)
        turned = v.flip(-1) - w
        return turned, v * w, w + turned

    report = compiled_report(function, torch.randn(600, 500))
    assert len(report.regions) == 1 and left_ops(report) >= {"flip", "mul"}
