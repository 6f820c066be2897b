"""Attention over low-bit caches through machine code and the interpreter, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.cache_programs import Problem, Side, problems, tolerance
from tests.integer_expressions import Expression, conditions
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_module
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.lower import kernel_to_tile
from tilewright.runtime.program import Program

TARGETS = [None, "x86-64-v3", "x86-64-v4"]


def key(bits: int, width: int = 64, by: str = "token", group: int = 64) -> Side:
    return Side(CacheForm("lanes", bits, width, by, group))


def value(bits: int, width: int = 64, by: str = "token", group: int = 64) -> Side:
    return Side(CacheForm("codes", bits, width, by, group))


def check(
    problem: Problem,
    target: str | None,
    backend: str | None = None,
    mask: str = "",
    table: Any = None,
) -> None:
    """The kernel's result against float64 of the tensor program."""
    module = parse(problem.text(mask))
    program = Program(module, target=target, backend=backend)
    assert program.supported, program.steps[0].reason
    inputs, keys, values = problem.inputs()
    inputs += [] if table is None else [table]
    (got,) = program(*(torch.from_numpy(x) for x in inputs))
    (want,) = evaluate(module, *inputs, precision="f64")
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance(inputs[0], keys, values))


def test_the_operation_means_what_the_codes_say() -> None:
    """The oracle of the other tests against softmax written down."""
    problem = Problem(key(3, 20, "channel", 32), value(7, 24), (2, 2, 2, 3, 37))
    inputs, k, v = problem.inputs()
    (got,) = evaluate(parse(problem.text()), *inputs, precision="f64")
    q = inputs[0].astype(np.float64).reshape(2, 2, 2, 3, 20)
    scores = np.einsum("bkgnd,bkmd->bkgnm", q, k)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("bkgnm,bkme->bkgne", weights, v).reshape(got.shape)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", TARGETS)
@given(problems())
@example(Problem(key(8, 128, group=128), value(4, 128, group=128), (1, 2, 4, 1, 300)))
@example(Problem(key(4, 70, group=2), value(3, 40, group=40), (1, 1, 2, 1, 45)))
@example(Problem(key(1, 10, group=3), value(5, 33, group=16), (1, 1, 1, 1, 1)))
@settings(max_examples=3)
def test_any_form(target: str | None, problem: Problem) -> None:
    check(problem, target)


@given(problems())
@settings(max_examples=1)
def test_any_form_with_numba(problem: Problem) -> None:
    pytest.importorskip("numba")
    check(problem, "scalar", "numba")


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@given(problems(), conditions(), st.integers(1, 80))
@settings(max_examples=3)
def test_random_masks(target: str | None, problem: Problem, mask: Expression, run: int) -> None:
    length = max(problem.shape[3:])
    rng = np.random.default_rng(run)
    table = np.repeat(rng.integers(-5, 9, length // run + 1), run)[:length]
    check(problem, target, mask=mask.lines("seen"), table=table)


WINDOW = """%back = math.const {value = 50, type = tensor<i64>}
%first = math.sub %n, %back
%far = math.const {value = 230, type = tensor<i64>}
%low = math.add %first, %far
%end = math.add %n, %far
%a = math.compare %m, %low {relation = "gt"}
%b = math.compare %m, %end {relation = "le"}
%c = math.and %a, %b
%d = tensor.gather %table, %m
%e = math.compare %d, %zero {relation = "ge"}
%seen = math.and %c, %e"""


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@pytest.mark.parametrize("rows", [1, 2, 30])
def test_windows_begin_anywhere(target: str | None, rows: int) -> None:
    """The first key that is seen is no multiple of anything: blocks start before it."""
    problem = Problem(key(6), value(3), (1, 2, 2, rows, 299))
    check(problem, target, mask=WINDOW, table=np.zeros(299, np.int64))


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_in_the_tile_interpreter(bits: int) -> None:
    """The tile programs of few and of many rows run by the interpreter, for one target."""
    problem = Problem(key(bits, 12, group=8), value(9 - bits, 20, "channel", 32), (1, 1, 2, 1, 37))
    inputs, keys, values = problem.inputs()
    module = parse(problem.text())
    (want,) = evaluate(module, *inputs, precision="f64")
    kernel = run_passes(module, TO_KERNELS).main
    units = {p.hint: len(p.type.shape) - 1 for p in kernel.params}  # type: ignore[union-attr]
    for rows in (2, 0):
        tile = kernel_to_tile(kernel, named_target("x86-64-v3"), rows, units)
        (got,) = evaluate_graph(tile, *inputs)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(inputs[0], keys, values))


def test_programs_print_and_parse() -> None:
    module = parse(Problem(key(5, 24, "channel", 96), value(2, 24)).text())
    for stage in (module, run_passes(module, TO_KERNELS)):
        text = print_module(stage)
        assert print_module(parse(text)) == text


def test_what_numbers_are_not_finite_is_nan() -> None:
    """NaN in a query stays in its row, in kernels of few rows and of many."""
    for rows in (1, 20):
        problem = Problem(key(8), value(4), (1, 1, 2, rows, 40))
        inputs, _, _ = problem.inputs()
        inputs[0][0, 1, 0, 3] = np.nan
        (got,) = Program(parse(problem.text()))(*(torch.from_numpy(x) for x in inputs))
        assert got[0, 1, 0].isnan().all()
        assert not got[0, 0].isnan().any() and not got[0, 1, 1:].isnan().any()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (("lanes", 9, 8, "token", 8), "not a form"),
        (("lanes", 4, 8, "channel", 20), "multiple of 32"),
        (("codes", 4, 40, "token", 24), "multiple of 16"),
    ],
)
def test_forms_that_there_are_not(form: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        CacheForm(*form)
