"""Products of warp groups that read both sides in shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ir.thread_examples import coordinates, program
from tilewright.ir.errors import EvaluationError, VerifyError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.to_threads.layouts import ROWS, BlockLayouts

FENCE = "tile.fence {}\ntile.barrier {}\n"


def both_sides(rows: int = 128, left: str = "2 x 128 x 16 x bf16, swizzle 2") -> str:
    """Two groups; k in two slots of lines of 32 bytes: [position, ...] times [[column], [1]]."""
    acc = BlockLayouts(8).of(ROWS, (rows, 8))
    lines = f"%acc = math.const {{value = 1.0, type = reg<{rows} x 8 x f32, {acc}>}}\n"
    lines += coordinates("a", (rows, 16), 0, f"local({rows // 32}, 2).spatial(32, 8)")
    lines += coordinates("c", (rows, 16), 1, f"local({rows // 32}, 2).spatial(32, 8)")
    lines += coordinates("b", (8, 16), 1, "replicate(2).spatial(8, 16)")
    return program(
        rows,
        8,
        lines
        + f"""%s = tile.alloc {{type = shared<2 x 8 x 16 x bf16, swizzle 2>}}
        %t = tile.alloc {{type = shared<{left}>}}
        %c1 = math.const {{value = 1, type = index}}
        tile.store %b, %s, %c0, %c0, %c0 {{dims = [-1, 0, 1]}}
        tile.store %b_one, %s, %c1, %c0, %c0 {{dims = [-1, 0, 1]}}
        tile.store %a, %t, %c0, %c0, %c0 {{dims = [-1, 0, 1]}}
        tile.store %c, %t, %c1, %c0, %c0 {{dims = [-1, 0, 1]}}
        {FENCE}%r = tile.group_product %acc, %t, %s, %c0 {{dims = [1, 0]}}
        """,
    )


@pytest.mark.parametrize("lanes", [False, True])
def test_both_sides_in_shared_memory(lanes: bool) -> None:
    (got,) = evaluate_graph(parse(both_sides()).main, lanes=lanes)
    total = np.arange(16.0).sum()
    want = 1.0 + np.arange(128.0)[:, None] * total + total + np.zeros((128, 8))
    np.testing.assert_array_equal(got, want)


def test_what_threads_wrote_needs_a_fence_and_a_barrier() -> None:
    with pytest.raises(EvaluationError, match="between"):
        evaluate_graph(parse(both_sides().replace("tile.barrier {}\n", "")).main, lanes=True)


def test_unwritten_rows_are_found() -> None:
    text = both_sides().replace("tile.store %c, %t, %c1, %c0, %c0 {dims = [-1, 0, 1]}", "")
    for lanes in (False, True):
        with pytest.raises(EvaluationError, match="nothing wrote"):
            evaluate_graph(parse(text).main, lanes=lanes)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("2 x 64 x 16 x bf16, swizzle 2", "acc is"),
        ("2 x 128 x 16 x bf16", "rows of a are lines"),
        ("2 x 128 x 16 x f32, swizzle 4", "a and b are bf16 or f16|dtypes must agree"),
    ],
)
def test_left_sides_that_do_not_fit_are_refused(left: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        parse(both_sides(left=left))
