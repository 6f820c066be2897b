"""Low-bit caches in kernels on whole blocks (for GPUs), in the tile interpreter against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.cache_programs import Problem, Side, problems
from tests.passes.whole_block_runs import programs, run
from tests.test_cached_kernels import WINDOW, key, value
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule


def check(problem: Problem, rows: int, parts: int, inner: int = 32, mask: str = "") -> None:
    """Against float64 of the tensor program; the kernel's own arithmetic is f64 here, but for what
    turns codes into numbers, which is exact."""
    module = parse(problem.text(mask))
    inputs, _, values = problem.inputs()
    inputs += [np.zeros(problem.shape[4], np.int64)] if mask else []
    sizes = dict(zip("BKGNM", problem.shape, strict=True)) | {"T": problem.shape[4]}
    for name, side in (("k", problem.keys), ("v", problem.values)):
        words = inputs[1 if name == "k" else 2 + 1 + problem.keys.zeros]
        sizes[f"{name.upper()}R"] = words.shape[2]
        if side.form.by == "channel":
            sizes[f"{name.upper()}S"] = side.form.scale_shape(problem.shape[4])[0]
    schedule = BlockSchedule(16, inner, 4, 2)
    (got,) = run(module, inputs, sizes, rows, parts, schedule)
    (want,) = evaluate(module, *inputs, precision="f64")
    scale = 1 + float(np.abs(values).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 * scale)


@given(
    problems(), st.sampled_from([0, 16]), st.sampled_from([0, 1, 3]), st.sampled_from([16, 32, 64])
)
@example(Problem(key(8, 128, group=128), value(4, 128, group=128), (1, 2, 4, 1, 130)), 16, 2, 64)
@example(Problem(key(4, 70, group=2), value(3, 40, group=40), (1, 1, 2, 1, 45)), 0, 0, 32)
@example(Problem(key(1, 10, group=3), value(5, 33, group=16), (1, 1, 1, 1, 1)), 16, 1, 16)
@settings(max_examples=4)
def test_any_form(problem: Problem, rows: int, parts: int, inner: int) -> None:
    check(problem, rows, parts, inner)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zeros", [True, False])
def test_widths(bits: int, zeros: bool) -> None:
    keys, values = (
        Side(CacheForm(tokens, bits, 32, "token", 32), zeros, "f16")
        for tokens in ("lanes", "codes")
    )
    check(Problem(keys, values, (1, 1, 2, 2, 75)), 16, 2)


@pytest.mark.parametrize("tokens", [32, 64, 96])
def test_groups_of_tokens(tokens: int) -> None:
    """Groups that are a block, two, and no whole number of them."""
    keys, values = (make(4, 20, "channel", tokens) for make in (key, value))
    check(Problem(keys, values, (1, 1, 2, 1, 200)), 16, 3, 64)


@pytest.mark.parametrize("parts", [0, 2])
def test_windows_begin_anywhere(parts: int) -> None:
    """The first key that is seen is no multiple of anything: blocks start before it."""
    problem = Problem(key(8, 16), value(3, 16), (1, 1, 2, 3, 300))
    check(problem, 16, parts, mask=WINDOW)


def test_words_are_read_once() -> None:
    """Of a block of keys in eight bits and values in four: a load each, and no other of codes."""
    problem = Problem(key(8, 64), value(4, 64), (1, 1, 4, 1, 64))
    _, (program,) = programs(parse(problem.text()), 16, 0, BlockSchedule(16, 32, 4, 2))
    loop = next(op for op in program.body.ops if op.name == "tile.for")
    read = [op for op in loop.regions[0].ops if op.name in ("tile.load", "tile.gather")]
    words = [op for op in read if "words" in op.operands[0].hint]
    assert len(words) == 2
    sizes = [op.results[0].type.shape for op in words]  # type: ignore[union-attr]
    assert sorted(sizes) == [(4, 64), (16, 32)]  # four bytes each of 64 x 32 codes
