"""Arithmetic of f32 that NumPy lacks, bit by bit as machines do it.

x * y + z, rounded once: products of two f32 are exact in f64, sums of three are not, and rounding
the f64 sum again would round twice. The f64 sum is therefore rounded to odd (Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums", 2008): the second rounding then gives what one would
have given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tilewright.ir.core import Graph

ORDER, FIXED = "order", "fixed"  # attribute of a tile program in which every rounding is written


def has_fixed_order(graph: Graph) -> bool:
    """Whether back ends have to compute a program as IEEE 754 says, subnormal numbers too."""
    return graph.attrs.get(ORDER) == FIXED


def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
    """The f32 nearest to x * y + z (arrays of f32, broadcast), ties to even."""
    with np.errstate(all="ignore"):
        wide = [np.asarray(a, np.float64) for a in (x, y, z)]
        product, addend = np.broadcast_arrays(wide[0] * wide[1], wide[2])
        total = np.asarray(product + addend)
        # what the sum lost, exactly (Knuth's two-sum)
        part = total - product
        lost = (product - (total - part)) + (addend - part)
        even = (total.view(np.int64) & 1) == 0
        inexact = np.isfinite(lost) & (lost != 0) & even
        toward = np.where(lost > 0, np.inf, -np.inf)
        odd = np.where(inexact, np.nextafter(total, toward), total)
        return odd.astype(np.float32)


def fraction_below(x: Any) -> Any:
    """x - floor(x) of f32 rounded down, so that it stays below 1; 0 for infinities."""
    with np.errstate(all="ignore"):
        floor = np.floor(x)
        near = np.asarray(x - floor)
        # inexact for x in (-1/2, 0) only, where near + floor is exact
        below = np.where(near + floor > x, np.nextafter(near, np.float32(0)), near)
        return np.where(np.isinf(x), np.float32(0), below)
