"""Trials: every schedule that a space offers is right, what is wrong gets no time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tilewright
from tests.runtime.tuning.kernels import attention, matrices, prefill, product, softmax
from tilewright.ir.core import Graph
from tilewright.passes.to_tile.choices import Space
from tilewright.runtime import backends
from tilewright.runtime.schedule_forms import KernelForm
from tilewright.runtime.tuned import TUNED
from tilewright.runtime.tuning import trial
from tilewright.runtime.tuning.task import KernelTask, TensorShape, order_of, uninitialised
from tilewright.runtime.tuning.trial import CAPS, Effort, run_trial, small_shapes

BRIEF = Effort(0.0, 1)
TASKS = {
    "many rows": lambda: attention(130, 200),
    "causal": lambda: attention(70, 70, causal=True),
    "decode": lambda: attention(1, 700),
    "four rows": lambda: attention(4, 300),
    "rows": lambda: softmax(77, 45),
    "product of one row": lambda: product(1, 4),
    "product of many": lambda: product(37, 3),
}


@pytest.fixture(autouse=True)
def tuned_as_before() -> Any:
    """Trials switch tuned schedules off for their process, which is this one here."""
    before = TUNED.off
    yield
    TUNED.off = before


@cache
def task_and_space(name: str) -> tuple[KernelTask, Space]:
    task = TASKS[name]()
    return task, KernelForm.of(task).space


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.sampled_from(sorted(TASKS)), st.data())
def test_every_schedule_of_a_space_is_right(name: str, data: st.DataObject) -> None:
    task, space = task_and_space(name)
    choice = {field: data.draw(st.sampled_from(some)) for field, some in space.values.items()}
    if space.why_not(choice):
        return
    (outcome,) = run_trial(task, [choice], BRIEF)
    assert outcome.state == "ok", (outcome, choice)
    assert outcome.ratio is not None and outcome.milliseconds is not None


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_is_the_same_in_another_process_and_checked_at_a_size_of_its_form(
    name: str,
) -> None:
    task, _ = task_and_space(name)
    again = KernelTask.from_json(task.to_json())
    assert again == task and isinstance(again.graph, Graph)
    small = replace(task, inputs=small_shapes(task))
    form, other_form = KernelForm.of(task), KernelForm.of(small)
    family, smaller = form.family, other_form.family
    variant, other = form.variant, other_form.variant
    assert (variant.rows, variant.units) == (other.rows, other.units)
    assert family.key(uninitialised(family.source, task.inputs)) == smaller.key(
        uninitialised(smaller.source, small.inputs)
    )


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 3000))
def test_every_number_of_rows_can_be_checked(queries: int, keys: int) -> None:
    """At a size of its own form, with a tail wherever the form leaves a choice."""
    task = _attention_of_any_size()
    shapes = [(1, 2, n, 16) for n in (queries, keys, keys)]
    inputs = tuple(replace(x, shape=shape) for x, shape in zip(task.inputs, shapes, strict=True))
    task = replace(task, inputs=inputs)
    small = replace(task, inputs=small_shapes(task))
    assert KernelForm.of(small).variant.rows == KernelForm.of(task).variant.rows
    assert small.inputs[1].shape[2] in {keys, *CAPS} and small.inputs[1].shape[2] <= keys


def test_a_product_of_a_models_size_can_be_checked() -> None:
    """Nothing of it can be made smaller; a billion multiply-adds are a product of matrices."""
    task = matrices(256, 2048, 2048)
    assert [x.shape for x in small_shapes(task)] == [(256, 2048), (2048, 2048)]


@cache
def _attention_of_any_size() -> KernelTask:
    return attention(9, 20)


@given(st.permutations(range(3)), st.sets(st.integers(0, 2)), st.integers(2, 5))
def test_inputs_of_a_task_lie_as_those_of_the_call(
    order: list[int], broadcast: set[int], size: int
) -> None:
    """The dimension with stride one is the same: forms depend on it."""
    x = torch.zeros([1 if at in broadcast else size + at for at in range(3)])
    x = x.permute(order).expand([size + at for at in order])
    shape = TensorShape(tuple(x.shape), order_of(x.stride()))
    graph = tilewright.parse("graph same<A, B, C>(%x: tensor<A x B x C x f32>) { return %x }").main
    (again,) = uninitialised(graph, [shape])
    assert again.shape == x.shape
    if 1 in x.stride():
        assert again.stride()[x.stride().index(1)] == 1


def test_a_kernel_that_is_off_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = backends.MAKERS["mlir"]

    def slightly_off(variant: Any, target: Any) -> Any:
        call, report = whole(variant, target)
        if variant.choice.get("unroll") != 2:
            return call, report
        return lambda *x: tuple(y * 1.001 for y in call(*x)), report

    monkeypatch.setitem(trial.MAKERS, "mlir", slightly_off)
    task = prefill()
    good, bad = run_trial(task, [{"unroll": 8}, {"unroll": 2}], BRIEF)
    assert good.state == "ok" and good.ratio is not None
    assert bad.state == "wrong" and bad.ratio is None and "the bound" in bad.reason


def test_a_tail_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's size has ragged tails, whatever the size that is timed."""
    whole = backends.MAKERS["mlir"]

    def without_last(variant: Any, target: Any) -> Any:
        call, report = whole(variant, target)

        def cut(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            (y,) = call(*x)
            if y.shape[-2] % 16:
                y = y.clone()
                y[..., -1, :] = 0
            return (y,)

        return (cut, report) if variant.choice else (call, report)

    monkeypatch.setitem(trial.MAKERS, "mlir", without_last)
    (outcome,) = run_trial(attention(128, 256), [{"unroll": 8}], BRIEF)
    assert outcome.state == "wrong"


def test_the_oracle_is_computed_once_for_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = softmax(77, 45)
    assert run_trial(task, [{"unroll": 8}], BRIEF, str(tmp_path))[0].state == "ok"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(trial, "evaluate_graph", never)
    assert run_trial(task, [{"unroll": 2}], BRIEF, str(tmp_path))[0].state == "ok"


def test_a_field_that_the_schedule_has_not_is_an_error() -> None:
    (outcome,) = run_trial(prefill(), [{"columns": 3}], BRIEF)
    assert outcome.state == "error" and "unknown field 'columns'" in outcome.reason
