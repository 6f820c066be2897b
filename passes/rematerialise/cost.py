"""What each way of keeping an attention layer's tokens costs, and which is the fastest.

Source: Tomar et al., "XQuant" (arXiv 2508.10395), for the count of multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.schedule import choose_schedule

KEYS_AND_VALUES, ABSORBED, FUSED, REMADE = "keys and values", "absorbed", "fused", "remade"
ITEM_ROWS = 48  # of a work item of many rows where vectors have 16 lanes
UNPACKED = 64  # bytes that pass through memory for a number that torch dequantises, about
THROUGH_MEMORY = 16  # bytes for a number written there in f32 and read by products and attention


@dataclass(frozen=True)
class Balance:
    """What a machine does in a second on all ``threads``: multiply-adds in f32, bytes from memory.
    ``item_rows`` rows share what a kernel makes for them."""

    multiply_adds: float
    bytes: float
    item_rows: int = ITEM_ROWS
    threads: int = 1

    @staticmethod
    def of(target: Target, threads: int = 2) -> Balance:
        """Two pipes of eight lanes (of fewer where the target has fewer) at 3 GHz, 15 GB a second
        and thread: a core of a Zen 4, where vectors of sixteen lanes take both pipes."""
        rows = choose_schedule(target, 0).rows
        pipes = 2 * min(target.lanes, 8)
        return Balance(pipes * 3e9 * threads, 15e9 * threads, rows, threads)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one call, bytes that it reads and writes, bytes kept for a token. ``items``
    are the parts that threads share out (infinity: any). ``steps``: several passes over memory, in
    which arithmetic and reading take turns."""

    multiply_adds: float
    bytes: float
    kept: float = 0.0
    items: float = math.inf
    steps: bool = False

    def seconds(self, balance: Balance) -> float:
        """Arithmetic and reading overlap in one kernel: the longer of the two, on the threads that
        find work."""
        parts = self.multiply_adds / balance.multiply_adds, self.bytes / balance.bytes
        longer = sum(parts) if self.steps else max(parts)
        if self.items == math.inf or self.items < 1:
            return longer
        turns = math.ceil(self.items / balance.threads)
        return longer * turns * balance.threads / self.items


@dataclass(frozen=True)
class Layer:
    """An attention layer: ``width`` of its input, heads, their size; ``bits`` per number of what is
    kept. ``rotated``: keys are rotated by their positions (RoPE) after the projection. ``batch``
    sequences are attended to at a time."""

    width: int
    heads: int
    key_heads: int
    head: int
    key_bits: float = 8.5
    value_bits: float = 4.5
    input_bits: float = 4.5
    rotated: bool = True
    batch: int = 1

    def costs(self, rows: int, tokens: int, item_rows: int = ITEM_ROWS) -> dict[str, Cost]:
        """Every way of attending with ``rows`` queries to ``tokens`` of a sequence."""
        numbers = self.key_heads * self.head
        both = numbers * (self.key_bits + self.value_bits) / 8
        given = self.width * self.input_bits / 8
        attend = 2 * self.heads * rows * tokens * self.head
        made = 2 * tokens * self.width * numbers
        moved = given + UNPACKED * self.width + THROUGH_MEMORY * 2 * numbers
        found = {
            KEYS_AND_VALUES: Cost(attend, both * tokens, both),
            FUSED: self._fused(rows, tokens, item_rows),
            REMADE: Cost(attend + made, moved * tokens, given, steps=True),
        }
        if not self.rotated:
            wide = 2 * self.heads * rows * tokens * self.width
            ends = 2 * self.heads * rows * self.head * self.width
            found[ABSORBED] = Cost(wide + ends, given * tokens, given)
        return found

    def _fused(self, rows: int, tokens: int, item_rows: int) -> Cost:
        """Keys are made once for the rows of a work item; values like them, or their input is
        weighed and the sums are projected. Each key head reads the input."""
        times = -(-(self.heads // self.key_heads * rows) // item_rows)
        given = self.width * self.input_bits / 8
        made = times * tokens * self.width * self.key_heads * self.head
        product = self.heads * rows * tokens * self.head
        weighed = self.heads * rows * self.width * (tokens + self.head)
        work = product + made + min(made + product, weighed)
        items = self.batch * self.key_heads * times
        return Cost(work, given * tokens * self.key_heads * times, given, items)

    def choose(
        self,
        rows: int,
        tokens: int,
        balance: Balance,
        most_bytes: float | None = None,
        among: Collection[str] | None = None,
    ) -> str:
        """The fastest way that keeps at most ``most_bytes`` for a token (None: any number), out of
        ``among`` (None: all).

        Raises UnsupportedError if none does.
        """
        costs = self.costs(rows, tokens, balance.item_rows)
        costs = {way: c for way, c in costs.items() if among is None or way in among}
        fitting = {k: c for k, c in costs.items() if most_bytes is None or c.kept <= most_bytes}
        if not fitting:
            least = min(c.kept for c in costs.values())
            raise UnsupportedError(
                f"a token of this layer takes {least:.0f} bytes at least, {most_bytes:.0f} are "
                "allowed: take fewer bits"
            )
        return min(fitting, key=lambda way: (fitting[way].seconds(balance), fitting[way].kept))

    def table(
        self, rows: int, tokens: int, balance: Balance, most_bytes: float | None = None
    ) -> str:
        """Every way with its cost, as text; one that keeps too much says so."""
        lines = [f"{'way':16}{'multiply-adds':>15}{'bytes':>15}{'kept/token':>12}{'ms':>9}"]
        for way, cost in self.costs(rows, tokens, balance.item_rows).items():
            over = most_bytes is not None and cost.kept > most_bytes
            note = f"  more than {most_bytes:.0f} bytes a token" if over else ""
            lines.append(
                f"{way:16}{cost.multiply_adds:>15,.0f}{cost.bytes:>15,.0f}{cost.kept:>12,.0f}"
                f"{1e3 * cost.seconds(balance):>9.2f}{note}"
            )
        return "\n".join(lines)
