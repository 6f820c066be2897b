"""Products of sorted rows with experts' weights as a model keeps them, f32, bf16 or f16.

    y[p, n] = function(sum over k of x[p, k] * w0[active[i], n, k] + b0) [* (the same with w1)]
              [* scale[p]]                                 for starts[i] <= p < starts[i + 1]

A work item is some columns of one expert for all of its rows: what it reads of the weights comes
from memory once.
"""

from __future__ import annotations

from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.columns import Columns
from tilewright.passes.to_tile.experts.elements import Elements
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, Tiling, Way


def grouped_program(form: FloatForm, target: Target, tiling: Tiling) -> Graph:
    """The tile program: active i32 [A], starts i32 [S], x [P, K], w0 [E, N, K] and w1 (or, woven,
    one [E, 2N, K]), then their biases, then scale f32 [P] -> y [P, N]."""
    writer = Elements if tiling.way == Way.ELEMENTS else Columns
    return writer(form, target, tiling).program()
