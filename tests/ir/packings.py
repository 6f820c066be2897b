"""All packings of 1 to 8 bits, and packings as Hypothesis draws them."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from tilewright.ir.packing import ORDERS, Packing


def sums(total: int) -> Iterator[tuple[int, ...]]:
    """All ordered sums of widths that divide a byte."""
    if total == 0:
        yield ()
    for part in (p for p in (1, 2, 4, 8) if p <= total):
        for rest in sums(total - part):
            yield (part, *rest)


EVERY = [
    *(Packing("quads", planes, 1, 1) for bits in range(1, 9) for planes in sums(bits)),
    *(Packing(order, (bits,), 1, 1) for order in ORDERS[1:] for bits in range(1, 9)),
]
packings = st.builds(
    lambda form, lanes, group: Packing(form.order, form.planes, lanes, group),
    st.sampled_from(EVERY),
    st.sampled_from([1, 2, 3, 8, 16]),
    st.one_of(st.integers(1, 70), st.sampled_from([128, 1000, 4096])),
)
