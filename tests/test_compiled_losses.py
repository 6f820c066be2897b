"""Heads of models whose logits only reductions read: one kernel, and no memory for the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright
from tests.frontend.test_regions import left_ops

IGNORED = -100
Loss = Callable[[Tensor, Tensor], Tensor]  # of logits [..., classes] and labels [...]
WIDTH, CLASSES = 24, 70


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def total(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def each(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    places = labels.clamp(min=0).unsqueeze(-1)
    return torch.log_softmax(logits, -1).gather(-1, places).squeeze(-1)


def chosen_less_all(logits: Tensor, labels: Tensor) -> Tensor:
    places = labels.clamp(min=0)[..., None]
    chosen = torch.take_along_dim(logits, places, dim=-1)
    return (chosen - logits.logsumexp(-1, keepdim=True)).squeeze(-1)


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


LOSSES = (mean, total, each, log_probabilities, chosen_less_all, entropy)


class Head(nn.Module):
    def __init__(self, loss: Loss, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(WIDTH, CLASSES, bias=bias, dtype=dtype)
        self.loss = loss

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(hidden).float(), labels)


def drawn(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(sum(shape))
    labels = torch.randint(CLASSES, shape, generator=rng)
    labels[..., 1::3] = IGNORED  # not the first
    return torch.randn(*shape, WIDTH, generator=rng).to(dtype) * 2, labels


@pytest.mark.parametrize(
    ("dtype", "bias"), [(torch.float32, True), (torch.bfloat16, False)], ids=["f32", "bf16"]
)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_head_and_its_loss_are_one_kernel(loss: Loss, dtype: torch.dtype, bias: bool) -> None:
    head = Head(loss, bias, dtype)
    compiled = tilewright.compile(head)
    for shape in ((2, 9), (3, 33), (1, 40), (1, 1)):  # the last: one row, whose labels count
        hidden, labels = drawn(*shape, dtype=dtype)
        with torch.no_grad():
            got = compiled(hidden, labels)
            logits = F.linear(
                *(
                    None if x is None else x.double()
                    for x in (hidden, head.head.weight, head.head.bias)
                )
            )
            want = loss(logits, labels)
        close = 1e-5 if dtype == torch.float32 else 0.02  # torch's logits have 16 bits
        torch.testing.assert_close(got.double(), want, rtol=close, atol=close)
    report = compiled.explain()
    assert "linear" not in left_ops(report) and "cross_entropy" not in left_ops(report)
    assert {r.status for r in report.regions} == {"kernel"}


def test_logits_that_are_read_otherwise_are_made() -> None:
    """torch's product in 16 bits is as fast; only what needs no memory for logits is a kernel."""
    for loss in (
        lambda x, _: x.softmax(-1),
        lambda x, _: x * x.sum(-1, True),
        lambda x, _: x.argmax(-1),
    ):
        head = Head(loss, False, torch.bfloat16)
        compiled = tilewright.compile(head)
        hidden, labels = drawn(3, 20, dtype=torch.bfloat16)
        with torch.no_grad():
            torch.testing.assert_close(compiled(hidden, labels), head(hidden, labels))
        assert "linear" in left_ops(compiled.explain())


def test_positions_that_the_logits_chose_belong_to_a_router() -> None:
    def route(x: Tensor, w: Tensor) -> Tensor:
        scores = (x @ w.T).softmax(-1)
        return scores.gather(-1, scores.topk(1, -1).indices)

    x, w = torch.randn(9, WIDTH), torch.randn(8, WIDTH)
    compiled = tilewright.compile(route)
    torch.testing.assert_close(compiled(x, w), route(x, w))
    scores, chosen = (r.ir for r in compiled.explain().regions)
    assert "softmax" in scores and "top_k" in chosen and "take_along" in chosen


def test_labels_whose_sizes_are_equal_in_the_call() -> None:
    """torch then knows of tokens [b, t] and labels [b', t'] that b*t == b'*t', and no more."""
    compiled = tilewright.compile(Head(mean, False, torch.float32))
    hidden, labels = drawn(3, 10, dtype=torch.float32)
    with torch.no_grad(), torch.fx.experimental._config.patch(use_duck_shape=False):
        compiled(hidden, labels)
        assert left_ops(compiled.explain()) <= {"flatten"}
        other = compiled(hidden, labels.reshape(5, 6))  # another graph
    torch.testing.assert_close(other, compiled(hidden, labels))


def test_halves_of_a_row_have_the_same_length() -> None:
    """(n + 1) // 2 and n - (n + 1) // 2, of which torch adds the guard that they are equal."""

    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    compiled = tilewright.compile(gated)
    for width in (512, 514, 1030):
        x = torch.randn(700, width)
        torch.testing.assert_close(compiled(x), gated(x))
    assert len(compiled.explain().regions) == 1
    assert "mul" not in left_ops(compiled.explain())


def test_labels_outside_are_refused() -> None:
    compiled = tilewright.compile(Head(log_probabilities, False, torch.float32))
    hidden, labels = drawn(2, 9, dtype=torch.float32)
    with torch.no_grad():
        compiled(hidden, labels)
        labels[1, 2] = CLASSES
        with pytest.raises(RuntimeError, match=f"index {CLASSES} is out of bounds"):
            compiled(hidden, labels)


def test_gradients_are_torchs() -> None:
    head = Head(mean, False, torch.float32)
    compiled = tilewright.compile(head)
    hidden, labels = drawn(2, 9, dtype=torch.float32)
    compiled(hidden, labels).backward()
    got = head.head.weight.grad
    head.head.weight.grad = None
    head(hidden, labels).backward()
    assert got is not None and head.head.weight.grad is not None
    torch.testing.assert_close(got, head.head.weight.grad)


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    rows, next_ = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    return F.cross_entropy(rows.view(-1, rows.shape[-1]), next_.view(-1))


def written(logits: Tensor, labels: Tensor) -> Tensor:
    rows = logits[:, 1:]
    rows[:, 0] = 0.5  # in the slice's memory alone
    return rows.logsumexp(-1)


def read_twice(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:, :-2].logsumexp(-1) + logits.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("loss", "fused"), [(shifted, 1), (written, 0), (read_twice, 0)])
def test_losses_of_some_rows(loss: Loss, fused: int, dtype: torch.dtype) -> None:
    """What the loss leaves out the head does not compute."""
    head = Head(loss, False, dtype)
    compiled = tilewright.compile(head)
    for shape in ((2, 9), (3, 40)):
        hidden, labels = drawn(*shape, dtype=dtype)
        with torch.no_grad():
            got, want = compiled(hidden, labels), head(hidden, labels)
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    left = left_ops(compiled.explain())
    assert "linear" not in left if fused or dtype == torch.float32 else "linear" in left
    assert ("cross_entropy" in left or "logsumexp" in left) != bool(fused)
