"""Banks of shared memory: how many turns an access takes, and the swizzle that takes fewest.

Shared memory has 32 banks of 4 bytes. Eight lanes read or write 16 bytes each in one turn if their
pieces lie in different banks. A matrix of eight rows (``ldmatrix``) is read one piece of each row
at a time; copies write pieces of one row side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tilewright.ir.dtypes import U8
from tilewright.ir.types import SWIZZLED_BYTES, SharedType

BANKS, BANK_BYTES, LANES = 32, 4, 8
SWIZZLES = (0, 2, 4, 8)


def turns(places: Sequence[int]) -> int:
    """How many turns eight lanes' accesses to 16 bytes each take; ``places``: bytes."""
    banks = Counter(
        (place // BANK_BYTES + word) % BANKS
        for place in places
        for word in range(SWIZZLED_BYTES // BANK_BYTES)
    )
    return max(banks.values(), default=0)


def swizzle_turns(row_bytes: int, swizzle: int) -> int:
    """Turns of a matrix read and of a copy's write, the worse of all places in a row."""
    memory = SharedType((2 * LANES, row_bytes), U8, swizzle)
    pieces = row_bytes // SWIZZLED_BYTES
    down = max(
        turns([memory.place(row, piece * SWIZZLED_BYTES) for row in range(LANES)])
        for piece in range(pieces)
    )
    flat = [(n // pieces, n % pieces) for n in range(LANES)]
    across = turns([memory.place(row, piece * SWIZZLED_BYTES) for row, piece in flat])
    return max(down, across)


def choose_swizzle(row_bytes: int) -> int:
    """The least swizzle whose accesses take fewest turns for rows of that many bytes."""
    fits = [s for s in SWIZZLES if s == 0 or row_bytes % (s * SWIZZLED_BYTES) == 0]
    if row_bytes % SWIZZLED_BYTES:
        return 0
    return min(fits, key=lambda s: (swizzle_turns(row_bytes, s), s))
