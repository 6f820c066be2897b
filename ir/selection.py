"""Which k of a row are the largest, and in which order, where the numbers alone do not say so.

Two orders of equal numbers are known: ``lowest`` (the lower position first) and ``torch``, that of
torch.topk on CPUs, which takes std::partial_sort where 64 k <= n, else std::nth_element and
std::sort (aten/src/ATen/native/TopKImpl.h). Neither is stable, but both are fixed algorithms of
libstdc++ (bits/stl_algo.h, bits/stl_heap.h), which torch's Linux builds use; here they are, step by
step. NaN counts as largest, as in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TIES = ("lowest", "torch")
_THRESHOLD = 16  # shorter ranges are sorted by insertion


def top_k(x: Any, k: int, largest: bool, torch: bool, ordered: bool) -> Any:
    """Positions [.., k] (int64) of the k largest (smallest) of the last axis of ``x`` [.., n].

    ``torch`` resolves ties as torch.topk does, else the lower position comes first; ``ordered`` is
    torch's ``sorted``: without it the order is what its algorithm leaves.
    """
    rank = ranks(x, largest)
    order = np.argsort(rank, axis=-1, kind="stable")
    if not torch:
        return order[..., :k]
    found = order[..., :k].copy()
    first = np.take_along_axis(rank, order[..., : k + 1], -1)
    tied = (first[..., 1:] == first[..., :-1]).any(-1) | (not ordered)
    for at in np.argwhere(tied):
        found[tuple(at)] = Selection(rank[tuple(at)].tolist()).top_k(k, ordered)
    return found


def ranks(x: Any, largest: bool = True) -> Any:
    """For every number of a row how many smaller (``largest``: larger) ones the row has: what comes
    first is 0, and equal numbers (all NaN) have one rank."""
    wide = x.astype(np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64)
    count = wide.shape[-1]
    found = np.zeros(wide.shape, np.int64)
    for at in np.ndindex(wide.shape[:-1]):
        row = np.sort(wide[at])  # NaN last
        found[at] = np.searchsorted(row, wide[at], side="right" if largest else "left")
    return count - found if largest else found


class Selection:
    """libstdc++'s algorithms on the positions of a row, by its ``ranks``."""

    def __init__(self, rank: list[int]) -> None:
        self.rank = rank
        self.at = list(range(len(rank)))

    def top_k(self, k: int, ordered: bool = True) -> list[int]:
        """What torch.topk leaves in its first k places."""
        count = len(self.at)
        if k * 64 <= count:
            self.partial_sort(k)
        else:
            self.nth_element(k - 1)
            if ordered:
                self.sort(0, k - 1)
        return self.at[:k]

    def less(self, a: int, b: int) -> bool:
        """The comparison of two positions: NaN and larger numbers come first."""
        return self.rank[a] < self.rank[b]

    def swap(self, i: int, j: int) -> None:
        self.at[i], self.at[j] = self.at[j], self.at[i]

    # ---- heaps

    def _adjust_heap(self, first: int, hole: int, length: int, value: int) -> None:
        at, top, child = self.at, hole, hole
        while child < (length - 1) // 2:
            child = 2 * (child + 1)
            if self.less(at[first + child], at[first + child - 1]):
                child -= 1
            at[first + hole] = at[first + child]
            hole = child
        if length % 2 == 0 and child == (length - 2) // 2:
            child = 2 * (child + 1)
            at[first + hole] = at[first + child - 1]
            hole = child - 1
        parent = (hole - 1) // 2
        while hole > top and self.less(at[first + parent], value):
            at[first + hole] = at[first + parent]
            hole = parent
            parent = (hole - 1) // 2
        at[first + hole] = value

    def _pop_heap(self, first: int, last: int, result: int) -> None:
        value = self.at[result]
        self.at[result] = self.at[first]
        self._adjust_heap(first, 0, last - first, value)

    def _heap_select(self, first: int, middle: int, last: int) -> None:
        length = middle - first
        for parent in range((length - 2) // 2, -1, -1):
            self._adjust_heap(first, parent, length, self.at[first + parent])
        for i in range(middle, last):
            if self.less(self.at[i], self.at[first]):
                self._pop_heap(first, middle, i)

    def _sort_heap(self, first: int, last: int) -> None:
        while last - first > 1:
            last -= 1
            self._pop_heap(first, last, last)

    def partial_sort(self, k: int) -> None:
        """std::partial_sort(begin, begin + k, end)"""
        self._heap_select(0, k, len(self.at))
        self._sort_heap(0, k)

    # ---- partitions

    def _partition(self, first: int, last: int) -> int:
        """__unguarded_partition_pivot: the median of three becomes the first, and the pivot."""
        a, b, c = first + 1, first + (last - first) // 2, last - 1
        self.swap(first, self._median(a, b, c))
        at, pivot = self.at, self.at[first]
        low, high = first + 1, last
        while True:
            while self.less(at[low], pivot):
                low += 1
            high -= 1
            while self.less(pivot, at[high]):
                high -= 1
            if not low < high:
                return low
            self.swap(low, high)
            low += 1

    def _median(self, a: int, b: int, c: int) -> int:
        x, y, z = self.at[a], self.at[b], self.at[c]
        if self.less(x, y):
            if self.less(y, z):
                return b
            return c if self.less(x, z) else a
        if self.less(x, z):
            return a
        return c if self.less(y, z) else b

    def nth_element(self, nth: int) -> None:
        """std::nth_element(begin, begin + nth, end): introselect."""
        first, last = 0, len(self.at)
        depth = 2 * _log2(last)
        while last - first > 3:
            if depth == 0:
                self._heap_select(first, nth + 1, last)
                self.swap(first, nth)
                return
            depth -= 1
            cut = self._partition(first, last)
            if cut <= nth:
                first = cut
            else:
                last = cut
        self._insertion_sort(first, last)

    def sort(self, first: int, last: int) -> None:
        """std::sort: introsort, then insertion over the whole."""
        if first == last:
            return
        self._introsort(first, last, 2 * _log2(last - first))
        if last - first > _THRESHOLD:
            self._insertion_sort(first, first + _THRESHOLD)
            for i in range(first + _THRESHOLD, last):
                self._linear_insert(i)
        else:
            self._insertion_sort(first, last)

    def _introsort(self, first: int, last: int, depth: int) -> None:
        while last - first > _THRESHOLD:
            if depth == 0:
                self._heap_select(first, last, last)
                self._sort_heap(first, last)
                return
            depth -= 1
            cut = self._partition(first, last)
            self._introsort(cut, last, depth)
            last = cut

    def _insertion_sort(self, first: int, last: int) -> None:
        at = self.at
        for i in range(first + 1, last):
            if self.less(at[i], at[first]):
                at.insert(first, at.pop(i))
            else:
                self._linear_insert(i)

    def _linear_insert(self, last: int) -> None:
        at, value, place = self.at, self.at[last], last
        while self.less(value, at[place - 1]):
            at[place] = at[place - 1]
            place -= 1
        at[place] = value


def _log2(n: int) -> int:
    """The whole part of log2 of n."""
    return n.bit_length() - 1
