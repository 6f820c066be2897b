"""Score and mask functions that cannot be traced: the line, and how to write it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tilewright
from tilewright.ir.errors import UnsupportedError

Function = Callable[..., Any]
Q = torch.sin(torch.arange(1 * 2 * 4 * 8)).reshape(1, 2, 4, 8)
BIAS = torch.ones(2, 4, 4)
NUMBERS: list[Any] = []
COUNT = torch.zeros(2)
SETTINGS = SimpleNamespace(window=3)
TALLY = 0


@pytest.fixture(autouse=True)
def empty_list() -> Iterator[None]:
    yield
    NUMBERS.clear()


def with_if(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    if q_idx > kv_idx:  # here
        return True
    return kv_idx > 1


def with_and(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx and h > 0  # here


def chained(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return 0 <= q_idx - kv_idx < 3  # here


def with_max(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return max(q_idx, kv_idx) > 2  # here


def with_item(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx.item() >= kv_idx  # here


def with_list(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return [1, 2, 3, 4][q_idx] > kv_idx  # here


def with_range(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    for _ in range(q_idx):  # here
        pass
    return q_idx > kv_idx


def with_math(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return math.sin(q_idx) > kv_idx  # here


def with_numpy(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx.numpy() > 0  # here


def of_a_closed_over_number(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx > kv_idx) if COUNT[0] > 0 else (q_idx < kv_idx)  # here


def not_indexed(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS[h] > kv_idx  # here


def whole_tensor(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS * kv_idx > 1  # here


def too_many_indices(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS[h, q_idx, kv_idx, 0] > 1  # here


def float_index(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS[h, q_idx * 0.5, kv_idx] > 1  # here


def bool_index(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS[h > 0, q_idx, kv_idx] > 1  # here


def sliced(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return BIAS[h, 1:, kv_idx][q_idx] > 1  # here


def unknown_operation(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.special.erfc(q_idx) > 0  # here


def stacked(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.stack([q_idx, kv_idx]).sum() > 3  # here


def reduced(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx.sum() > 3  # here


def random(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.rand(()) > 0.5  # here


def odd_bits(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx & 6) == 0  # here


def setting(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    COUNT[h] = q_idx  # here
    return q_idx > kv_idx


def adding_in_place(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    COUNT.add_(1)  # here
    return q_idx > kv_idx


def appending(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    NUMBERS.append(1)
    return q_idx > kv_idx


def keeping(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    NUMBERS.append(q_idx)
    return q_idx > kv_idx


def counting(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    global TALLY  # noqa: PLW0603
    TALLY += 1
    return q_idx > kv_idx


def setting_an_attribute(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    SETTINGS.last = 5
    return q_idx > kv_idx


def nothing_returned(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    pass


def a_tensor_returned(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # here
    return BIAS > 0


REFUSED: dict[Function, str] = {
    with_if: "torch.where",
    with_and: "& for and, or, not|&, |, ~",
    chained: "two comparisons",
    with_max: "torch.where",
    with_item: r"\.item\(\)",
    with_list: "Python index",
    with_range: "range",
    with_math: "math module",
    with_numpy: "numpy",
    of_a_closed_over_number: "closed-over tensor",
    not_indexed: "2 dimensions are not indexed",
    whole_tensor: "index the tensor by positions",
    too_many_indices: "4 indices for 3 dimensions",
    float_index: "index by integers",
    bool_index: "index by integers",
    sliced: "slice",
    unknown_operation: "erfc",
    stacked: "stack is not known",
    reduced: "sum is not known",
    random: "random",
    odd_bits: "constant",
    setting: "in place",
    adding_in_place: "in place",
    appending: "side effect",
    keeping: "side effect",
    counting: "global TALLY",
    setting_an_attribute: "side effect",
    nothing_returned: "NoneType",
    a_tensor_returned: r"tensor of shape \(2, 4, 4\)",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_refused_with_the_line_and_the_way_out(function: Function) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[function]) as caught:
        tilewright.attention(Q, Q, Q, mask_mod=function)
    location = caught.value.location
    assert location is not None and location.file == __file__
    assert "# here" in location.text and str(location.line) in str(caught.value)
    assert location.text in str(caught.value)
    tilewright.attention(Q, Q, Q)  # nothing is left of the failed trace


def test_printing_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        print("mask", q_idx, f"{q_idx.dtype} {q_idx.shape} {q_idx.device}")
        return q_idx >= kv_idx

    tilewright.attention(Q, Q, Q, mask_mod=mask_mod)
    assert "torch.int64 torch.Size([]) cpu" in capsys.readouterr().out


def test_gradients_are_refused_with_advice() -> None:
    slopes = torch.ones(2, requires_grad=True)
    score_mod = lambda s, b, h, q, k: s * slopes[h]  # noqa: E731
    with pytest.raises(UnsupportedError, match="no_grad"):
        tilewright.attention(Q, Q, Q, score_mod=score_mod)
    with pytest.raises(UnsupportedError, match="no_grad"):
        tilewright.attention(Q.clone().requires_grad_(), Q, Q)
    with torch.no_grad():
        tilewright.attention(Q, Q, Q, score_mod=score_mod)
