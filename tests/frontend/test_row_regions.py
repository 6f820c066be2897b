"""Regions of rows and of products with matrices that a function is given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.frontend.test_regions import compiled_report, count, left_ops
from tilewright.frontend.compile import compile

LARGE = (130, 2048)  # beyond what pointwise_cores leaves to torch


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_residual_and_its_norm_are_one_region() -> None:
    """The sum is a result, too: what follows adds to it."""

    def block(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return x, F.layer_norm(x, (x.shape[-1],), w, b)

    report = compiled_report(block, rows(2, 9, 40), rows(2, 9, 40), rows(40), rows(40))
    assert len(report.regions) == 1 and left_ops(report) == set()


@pytest.mark.parametrize("shape", [(), (1,), (9, 1), (40,)], ids=str)
def test_rows_that_begin_with_a_narrower_tensor(shape: tuple[int, ...]) -> None:
    """How long rows are is what the reduction reads, not the first operand of what made them."""

    def scaled(c: Tensor, x: Tensor) -> Tensor:
        y = c / (x.abs() + 1)
        y = c - (c * y) ** 2
        return y / y.abs().amax(-1, keepdim=True) + 1

    report = compiled_report(scaled, rows(*shape, 1)[..., 0] + 2, rows(9, 40))
    assert len(report.regions) == 1 and left_ops(report) == set()


def test_a_conversion_to_the_dtype_that_a_tensor_has_is_the_tensor() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, z = x.float(), (y * 2).to(y)
        return x, (x.type_as(z) * 2).softmax(-1), z.to(torch.float32), z

    x, y = rows(9, 81)[:, 1::2], rows(9, 40)
    compiled = compile(function)
    with torch.no_grad():
        same, weights, first, second = compiled(x, y)
    assert same.data_ptr() == x.data_ptr() and same.stride() == x.stride()
    assert first.data_ptr() == second.data_ptr()
    torch.testing.assert_close(weights, (x * 2).softmax(-1))
    assert len(compiled.explain().regions) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rms_norm_without_eps_takes_that_of_its_arithmetic(dtype: torch.dtype) -> None:
    """Of numbers so small that another would show."""

    def norm(x: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x * 0.5, (x.shape[-1],), w)

    x, w = (rows(7, 24) * 1e-3).to(dtype), rows(24).to(dtype)
    compiled = compile(norm)
    torch.testing.assert_close(compiled(x, w), norm(x, w), rtol=2**-7, atol=0)
    assert len(compiled.explain().regions) == 1


def test_softmax_of_scaled_rows_is_a_region_and_softmax_of_few_is_not() -> None:
    assert count(lambda x: (x * 0.7).softmax(-1), rows(3, 50)) == 1
    assert count(lambda x: x.softmax(-1), rows(3, 50)) == 0
    assert count(lambda x: x.softmax(-1), rows(*LARGE)) == 1


def test_norms_alone() -> None:
    """torch has no rms_norm of its own on CPUs; its layer_norm is as good for few rows."""
    assert count(lambda x: F.rms_norm(x, (50,), eps=1e-6), rows(3, 50)) == 1
    assert count(lambda x: F.layer_norm(x, (50,)), rows(3, 50)) == 0
    assert count(lambda x: F.layer_norm(x, (LARGE[1],)), rows(*LARGE)) == 1


def test_products_with_given_matrices_take_along_what_follows() -> None:
    report = compiled_report(
        lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
        rows(33, 16),
        rows(24, 16) / 4,
        rows(24),
    )
    assert len(report.regions) == 1 and left_ops(report) == set()
    gated = compiled_report(
        lambda x, u, g: F.silu(x @ g.T) * (x @ u.T), rows(2, 9, 16), rows(24, 16), rows(24, 16)
    )
    assert len(gated.regions) == 1 and left_ops(gated) == set()


def test_a_product_of_two_inputs_alone_stays_with_torch() -> None:
    assert count(lambda a, b: a @ b, rows(6, 5), rows(5, 7)) == 0

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    assert count(layer, rows(6, 5), rows(7, 5)) == 1


def test_attention_of_two_dimensions_is_still_one_region() -> None:
    report = compiled_report(
        lambda q, k, v: (q @ k.T).softmax(-1) @ v, rows(6, 8), rows(9, 8), rows(9, 8)
    )
    assert len(report.regions) == 1 and left_ops(report) == set()


def test_cross_entropy_of_a_product_is_one_region() -> None:
    def loss(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.T, labels, reduction="none")

    labels = torch.arange(20) * 7 % 30
    labels[3] = -100  # ignored
    compiled = compile(loss)
    x, w = rows(20, 16), rows(30, 16)
    torch.testing.assert_close(compiled(x, w, labels), loss(x, w, labels), rtol=1e-5, atol=1e-5)
    report = compiled.explain()
    assert len(report.regions) == 1 and left_ops(report) == set()
    labels[5] = 30
    with pytest.raises(IndexError, match="Target 30 is out of bounds"):
        compiled(x, w, labels)


def test_pointwise_work_on_large_tensors_is_one_region() -> None:
    def gate(a: Tensor, b: Tensor) -> Tensor:
        return F.silu(a) * b

    report = compiled_report(gate, rows(*LARGE), rows(*LARGE))
    assert len(report.regions) == 1 and left_ops(report) == set()
    assert count(gate, rows(13, 20), rows(13, 20)) == 0
    assert count(gate, rows(1 << 16, 8), rows(1 << 16, 8)) == 0  # rows of half a vector
    assert count(lambda a: a * 2, rows(*LARGE)) == 0  # one pass over memory either way


def test_conditions_are_made_inside_and_may_be_results() -> None:
    leaky = compiled_report(lambda a: torch.where(a > 0, a, 0.1 * a) + 1, rows(*LARGE))
    assert len(leaky.regions) == 1 and left_ops(leaky) == set()

    def both(a: Tensor) -> tuple[Tensor, Tensor]:
        positive = a > 0
        return torch.where(positive, a, 0.1 * a), positive

    report = compiled_report(both, rows(*LARGE))
    assert len(report.regions) == 1 and left_ops(report) == set()


def test_pointwise_work_around_what_stays_with_torch() -> None:
    """The way out and back in is not closed: the first half ends before it."""

    def function(a: Tensor) -> Tensor:
        b = (a + 1) * 2
        return (b.flip(0) + b) * a - 3

    report = compiled_report(function, rows(*LARGE))
    assert left_ops(report) == {"flip"} and len(report.regions) == 2


def test_pointwise_work_of_tensors_that_are_written_in_place() -> None:
    def function(a: Tensor) -> Tensor:
        b = a * 2 + 1
        a.add_(1)
        return b * a - 1

    compiled_report(function, rows(*LARGE))


def test_large_tensors_of_other_strides_and_broadcasts() -> None:
    x, y = rows(*LARGE).T.contiguous().T, rows(1, LARGE[1])
    report = compiled_report(lambda a, b: (a * b + b).relu(), x, y)
    assert len(report.regions) == 1
    narrow = compile(lambda a, b: (a * b).sigmoid() + b)
    a, b = rows(*LARGE).bfloat16(), rows(*LARGE).bfloat16()
    torch.testing.assert_close(narrow(a, b), (a * b).sigmoid() + b, rtol=2**-7, atol=2**-7)


def test_cosines_of_tensors_of_other_shapes() -> None:
    """A number of each row stands for a row of it."""

    def function(x: Tensor) -> Tensor:
        return F.cosine_similarity(x.exp().sum(-1, keepdim=True), x, dim=-1)

    report = compiled_report(function, rows(9, 40))
    assert len(report.regions) == 1 and "cosine_similarity" not in left_ops(report)


def test_sizes_that_depend_on_data_stay_with_torch() -> None:
    def function(ids: Tensor) -> Tensor:
        return (torch.bincount(ids)[None] * 2.0 + 1).exp()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = compiled_report(function, torch.arange(40) % 7)
    assert not report.regions and "exp" in left_ops(report)
