"""Blocks of grouped products on GPUs: how many rows of an expert, columns and terms at a time."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from tilewright.ir.dtypes import F32
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.grouped_form import FloatForm
from tilewright.passes.to_tile.whole_blocks.schedule import LEAST, power_of_two

ROWS = (16, 32, 64, 128)  # of a block; matrix units take 16 at least
_ROWS_EACH = (8, 24, 64)  # up to which number of rows of an expert, about, one has the first ones


@dataclass(frozen=True)
class ProductBlocks:
    """A work item makes ``rows`` by ``columns`` (of gate and up each) results, ``terms`` of the
    sums at a time, with so many warps and blocks of terms under way (``stages``)."""

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


def rows_class(rows_each: int) -> int:
    """The class of calls whose experts have about ``rows_each`` rows: those of one have blocks
    of as many."""
    return bisect_left(_ROWS_EACH, rows_each)


def rows_of_block(rows_each: int, wide: bool = False) -> int:
    """Rows of a block where experts have about ``rows_each`` rows; ``wide``: products in f32, whose
    sums take the registers of twice as many rows."""
    sizes = ROWS[:-1] if wide else ROWS
    return sizes[min(rows_class(rows_each), len(sizes) - 1)]


def product_blocks(form: FloatForm, target: Target, rows: int) -> ProductBlocks:
    """The blocks of a product whose plan has blocks of ``rows``.

    Few rows: time goes to reading weights, so that columns are few, for many work items, and much
    is under way at once. Many rows: sums of 128 x 128 numbers in eight warps' registers, two work
    items on a multiprocessor; on sm_90, whose warp groups read both sides in shared memory, as many
    columns of gate and up each (measured on an H100: 1.35 ms for 1.53, bench/gpu_moe.py).
    """
    wide = target.cpu == "sm_90"
    if F32 in (form.x, form.weight):  # products by the ordinary units
        return ProductBlocks(rows, 32, _terms(form, 32), 4, 2)
    matrices = form.products
    stages = 2 if target.gpu == "hip" else 4 if rows < ROWS[-1] else 3
    if rows == ROWS[0]:
        return ProductBlocks(rows, _columns(form, 64 // matrices), _terms(form, 128), 4, stages)
    many = rows == ROWS[-1]
    columns = _columns(form, 128 if many and wide else 128 // matrices)
    return ProductBlocks(rows, columns, _terms(form, 64), 8 if many else 4, stages)


def _columns(form: FloatForm, most: int) -> int:
    return max(LEAST, min(most, power_of_two(form.width)))


def _terms(form: FloatForm, most: int) -> int:
    """The most terms that leave none over, or else ``most``: those past the end are read as 0."""
    wanted = max(LEAST, min(most, power_of_two(form.length)))
    sizes = (n for n in (wanted, wanted // 2, wanted // 4) if n >= LEAST)
    return next((n for n in sizes if form.length % n == 0), wanted)
