"""Walking over matrices in pieces: leading axes, chunks of rows, groups along K."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tilewright.ir.packing import Packing
from tilewright.runtime import huge_pages

PIECE = 1 << 18  # elements: so many that Python does not count, so few that caches hold them


def each(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``function`` of every matrix [N, K] of x [..., N, K], put together again."""
    *lead, rows, length = x.shape
    if not lead:
        return function(x)
    flat = matrices(x)
    if not len(flat):
        made = function(x.new_zeros(rows, length))
        return made.new_empty(*lead, *made.shape)
    out = huge_pages.stack([function(part) for part in flat])
    return out.view(*lead, *out.shape[1:])


def matrices(x: torch.Tensor, axes: int = 2) -> torch.Tensor:
    """x [..., ``axes`` axes] with one leading axis, also where there are none or of size 0."""
    return x.reshape(x.shape[:-axes].numel(), *x.shape[-axes:])


def row_chunks(layout: Packing, rows: int, length: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of chunks of whole blocks, about a piece or one block each."""
    step = max(PIECE // max(length, 1) // layout.lanes, 1) * layout.lanes
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def by_group(values: torch.Tensor, group: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Views [n, groups, codes of a group] of values [n, K], with the numbers of the groups: those
    of full length first, then the short one at the end if there is one."""
    rows, length = values.shape
    whole = length // group
    if whole:
        yield slice(0, whole), values[:, : whole * group].view(rows, whole, group)
    if length % group:
        yield slice(whole, whole + 1), values[:, whole * group :].unsqueeze(1)


def pieces(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Rows and groups of pieces of [n, groups, codes of a group]."""
    rows, groups, size = shape
    some = max(min(PIECE // size, groups), 1)
    step = max(PIECE // (some * size), 1) if some == groups else 1
    for row in range(0, rows, step):
        for group in range(0, groups, some):
            yield slice(row, min(row + step, rows)), slice(group, min(group + some, groups))
