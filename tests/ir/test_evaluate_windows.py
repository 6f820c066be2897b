"""Tiles that lie in memory whole are read and written as slices, with the meaning of positions."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse

X = np.arange(8.0)[None] + 1


def run(body: str) -> np.ndarray:
    text = f"""tile f(%x: buffer<1 x 8 x f32, unit 1>, %o: buffer<1 x 8 x f32, unit 1>)
    with {{grid = [[1, 1]], outputs = 1}} {{
      %c = math.const {{value = 0, type = index}}
      %n = math.const {{value = 5, type = index}}
      {body}
      tile.store %r, %o, %c, %c {{dims = [0, 1]}}
      return }}"""
    (out,) = evaluate(parse(text), X)
    return np.asarray(out)


@pytest.mark.parametrize("bounds", ["zero", "clamp"])
def test_a_limit_before_the_end_of_memory_counts(bounds: str) -> None:
    out = run(
        "%r = tile.load %x, %c, %c, %n "
        f'{{dims = [0, 1], layout = spatial(1, 8), bounds = [[1, "{bounds}"]]}}'
    )
    beyond = 0.0 if bounds == "zero" else 5.0
    assert out.tolist() == [[1, 2, 3, 4, 5, *[beyond] * 3]]


def test_what_was_read_is_not_changed_by_what_is_written_later() -> None:
    out = run(
        """%a = tile.load %x, %c, %c {dims = [0, 1], layout = spatial(1, 8)}
      %s = tile.alloc {type = scratch<1 x 8 x f32>}
      tile.store %a, %s, %c, %c {dims = [0, 1]}
      %r = tile.load %s, %c, %c {dims = [0, 1], layout = spatial(1, 8)}
      %twice = math.add %a, %a
      tile.store %twice, %s, %c, %c {dims = [0, 1]}"""
    )
    assert np.array_equal(out, X)
