"""Layouts that Hypothesis draws: any digits on lanes and registers, also what no product says."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tilewright.ir.layout import Layout
from tilewright.ir.layout_algebra import modes


@st.composite
def any_layouts(draw: st.DrawFn, rank: int | None = None, most: int = 64) -> Layout:
    """Up to five modes and copies in any order, at most ``most`` lanes and registers."""
    rank = draw(st.integers(1, 3)) if rank is None else rank
    sizes: list[list[int]] = [[] for _ in range(rank)]
    for _ in range(draw(st.integers(0, 5))):
        dim, size = draw(st.integers(0, rank - 1)), draw(st.sampled_from([2, 2, 2, 3, 4]))
        if size * math.prod(math.prod(s) for s in sizes) <= most:
            sizes[dim].append(size)
    count = sum(map(len, sizes))
    order = draw(st.permutations(range(count)))
    cut = draw(st.integers(0, count))
    lanes = list(order[:cut])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        lanes.insert(draw(st.integers(0, len(lanes))), -draw(st.sampled_from([2, 3])))
    return modes(sizes, lanes, order[cut:])


def factors(number: int) -> list[int]:
    """Prime factors, least first."""
    for p in range(2, number + 1):
        if number % p == 0:
            return [p, *factors(number // p)]
    return []


@st.composite
def threads_of(draw: st.DrawFn, layout: Layout) -> Layout:
    """A layout of the tile [lanes, registers] of another."""
    split = [draw(st.permutations(factors(n))) for n in (layout.lanes, layout.registers)]
    count = sum(map(len, split))
    order = draw(st.permutations(range(count)))
    cut = draw(st.integers(0, count))
    copies = draw(st.sampled_from([(), (), (-2,)]))
    return modes(split, [*order[:cut], *copies], order[cut:])
