"""Which buffers of a call do not lie at multiples of 16 bytes: those are not read several elements
at once, and the others are."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.runtime.cuda.calls import ADDRESSES, Strides
from tilewright.runtime.cuda.descriptions import MOST


class OddBuffers:
    """A bit for every buffer whose address or strides are no multiples of 16 bytes, of a launch's
    values: addresses, strides, sizes. ``widths``: bytes of an element of each."""

    def __init__(self, widths: Sequence[int], strides: Strides) -> None:
        self.widths, self.strides = widths, strides
        self.end = len(widths) + len(strides)
        self.known: dict[tuple[int, ...], int] = {}  # by strides, of buffers at good addresses

    def __call__(self, values: tuple[int, ...], low: int) -> int:
        """``low``: the low bits of all of them (``direct_call_source``)."""
        if not low:
            return 0
        if low > ADDRESSES:
            return self._found(values)
        key = values[len(self.widths) : self.end]
        found = self.known.get(key)
        if found is None:
            if len(self.known) >= MOST:
                self.known.clear()
            found = self.known[key] = self._found(values)
        return found

    def _found(self, values: Sequence[int]) -> int:
        odd, first = 0, len(self.widths)
        for i in range(first):
            odd |= (values[i] % 16 != 0) << i
        for at, (buffer, _) in enumerate(self.strides, first):
            odd |= (values[at] * self.widths[buffer] % 16 != 0) << buffer
        return odd
