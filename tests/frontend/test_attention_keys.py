"""What decides whether a score or mask function is traced again: never a length or a tensor."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tilewright
from tests.frontend.attention_oracle import assert_close, attend
from tilewright.frontend.attention import plans
from tilewright.frontend.attention.closure import Closure

Function = Callable[..., Any]
Q = torch.sin(torch.arange(1 * 2 * 4 * 8)).reshape(1, 2, 4, 8)
SETTINGS = SimpleNamespace(window=3)


@pytest.fixture(autouse=True)
def traces() -> Iterator[None]:
    plans.TRACES.clear()
    yield
    SETTINGS.window = 3


def check(**options: Any) -> None:
    given = tilewright.attention(Q, Q, Q, **options)
    assert isinstance(given, torch.Tensor)
    assert_close((given,), attend(Q, Q, Q, **options), torch.float32)


def window(size: Any) -> Function:
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx < size


def both(*functions: Function) -> Function:
    def joined(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = q_idx >= 0
        for function in functions:
            result = result & function(b, h, q_idx, kv_idx)
        return result

    return joined


def test_new_closures_are_not_new_functions() -> None:
    for _ in range(3):
        check(mask_mod=both(window(2), window(3)))
    assert plans.TRACES.total() == 1
    check(mask_mod=both(window(3), window(2)))
    check(mask_mod=both(window(2)))
    assert plans.TRACES.total() == 3


def test_numbers_count_by_value_and_tensors_are_read_in_every_call() -> None:
    for size in (1, 2, 1, 2):
        check(mask_mod=window(size))
    assert plans.TRACES.total() == 2
    for size in (1, 2, 3):
        check(mask_mod=window(torch.tensor(size)))
    assert plans.TRACES.total() == 3
    check(mask_mod=window(torch.tensor(2.5)))
    check(mask_mod=window(True))
    check(mask_mod=window(1.0))
    assert plans.TRACES.total() == 6


def test_a_tensor_changed_in_place_or_replaced() -> None:
    table = torch.tensor([1.0, 2.0])
    for _ in range(2):
        check(score_mod=functools.partial(doubled, table))
        table += 1
        table = table * 2
    longer = torch.arange(9.0)
    for tensor in (longer[:4], longer, longer[::2]):
        check(score_mod=functools.partial(added, tensor))
    assert plans.TRACES.total() == 2


def doubled(table: Any, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return s + (2 * table)[h]


def added(table: Any, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return s + table[k % table.shape[0]]


def test_sizes_read_as_python_numbers_are_guarded() -> None:
    def looped(table: Any) -> Function:
        def score_mod(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            for at in range(table.shape[0]):
                s = s + table[at] * (k == at)
            return s if table.shape[0] > 2 else s * 2

        return score_mod

    for size in (2, 3, 2, 3):
        check(score_mod=looped(torch.arange(size) + 1.0))
    assert plans.TRACES.total() == 2


def test_globals_attributes_defaults_and_methods_count() -> None:
    class Model:
        def __init__(self) -> None:
            self.size, self.inner = 1, SimpleNamespace(slopes=torch.tensor([1.0, 2.0]))
            self.unrelated = 0

        def limit(self) -> int:
            return self.size + 1

        def mask(self, b: Any, h: Any, q: Any, k: Any, *, extra: int = 0) -> Any:
            return q - k < self.limit() + extra + SETTINGS.window

        def score(self, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return s * self.inner.slopes[h]

    model = Model()
    check(mask_mod=model.mask, score_mod=model.score)
    model.unrelated += 1
    model.inner.slopes = torch.tensor([3.0, 4.0])
    check(mask_mod=model.mask, score_mod=model.score)
    assert plans.TRACES.total() == 1
    model.size = -3
    check(mask_mod=model.mask, score_mod=model.score)
    SETTINGS.window = 2
    check(mask_mod=model.mask, score_mod=model.score)
    check(mask_mod=functools.partial(model.mask, extra=1), score_mod=model.score)
    assert plans.TRACES.total() == 4


def test_the_same_tensor_twice_is_one_parameter() -> None:
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])

    def product(left: Any, right: Any) -> Function:
        return lambda s, b, h, q, k: s * left[h] * right[h]

    check(score_mod=product(one, one))
    check(score_mod=product(one, other))
    names = [p[0].traced.recipe.wanted for p in plans._plans.values()]
    assert [len(n) for n in names] == [1, 2]


def test_values_that_look_alike_have_keys_of_their_own() -> None:
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        0.0,
        -0.0,
        (1,),
        [1],
        {1: 1},
        {1},
        torch.ones(1),
        torch.ones(1).int(),
    ]
    keys = []
    for value in values:
        closure = Closure()
        closure.add(value)
        keys.append(tuple(closure.key))
    assert len(set(keys)) == len(values)
    again = Closure()
    again.add(math.nan)
    same = Closure()
    same.add(float("nan"))
    assert again.key == same.key


@pytest.mark.parametrize(
    "index",
    [
        lambda q, k: torch.maximum(q - k, -k - 1),
        lambda q, k: torch.minimum(q, k - q),
        lambda q, k: torch.clamp(q - k, -2, 3),
        lambda q, k: torch.clamp(q - k, min=-2),
        lambda q, k: torch.where(q > k, q, k - 4),
        lambda q, k: (q - k) // 2,
        lambda q, k: (q - k) % 4 - 4,
        lambda q, k: q * -1,
        lambda q, k: -(k + 1),
        lambda q, k: (k - 4).to(torch.int32),
        lambda q, k: -1,
    ],
)
def test_indices_that_may_be_negative_count_from_the_end(index: Function) -> None:
    table = torch.arange(5.0)
    check(score_mod=lambda s, b, h, q, k: s + table[index(q, k)])


def test_recursive_structures_end() -> None:
    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q >= k if mask_mod is not None else None

    node = SimpleNamespace(window=2)
    node.next = node
    check(mask_mod=mask_mod)
    check(mask_mod=lambda b, h, q, k: q - k < node.next.next.window)
