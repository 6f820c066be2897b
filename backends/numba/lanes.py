"""Operations between the registers of tiles: products, reductions, and other orders of elements.

With one lane nothing moves between lanes: what elsewhere is a shuffle is here another index.
"""

from __future__ import annotations

from tilewright.backends.numba.functions import Functions
from tilewright.backends.numba.pointwise import dtype_of, settle
from tilewright.backends.numba.registers import Tile, indices
from tilewright.backends.numba.text import Index
from tilewright.ir import ops_tile as t
from tilewright.ir.dtypes import BOOL

Elements = dict[Index, str]


class LaneEmitter:
    """Gives the expressions of such operations' elements."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions

    def dot(self, op: t.Dot, acc: Tile, a: Tile, b: Tile) -> Elements:
        """acc[m, n] + a[m, 0, k] * b[0, n, k] + …"""
        dtype, out = dtype_of(op.result.type), Elements()
        for index in indices(op.result.type):
            row, column = index
            if op.fused:
                x, y = a.at((row, 0, 0)), b.at((0, column, 0))
                out[index] = f"fused({x}, {y}, {acc.at(index)})"
                continue
            products = [f"{a.at((row, 0, k))} * {b.at((0, column, k))}" for k in range(a.shape[2])]
            out[index] = settle(" + ".join([acc.at(index), *products]), dtype)
        return out

    def pair_dot(self, op: t.PairDot, acc: Tile, a: Tile, b: Tile) -> Elements:
        """acc[…, n] + a[…, 2n] * b[…, 2n] + a[…, 2n + 1] * b[…, 2n + 1]"""
        dtype, out = dtype_of(op.result.type), Elements()
        for index in indices(op.result.type):
            places = [(*index[:-1], 2 * index[-1] + h) for h in range(2)]
            products = [f"{a.at(place)} * {b.at(place)}" for place in places]
            out[index] = settle(" + ".join([acc.at(index), *products]), dtype)
        return out

    def reduce(self, op: t.Reduce, x: Tile) -> Elements:
        """One expression of all elements that fall together."""
        groups: dict[Index, list[str]] = {}
        for index, name in x.elements.items():
            kept = tuple(0 if d == op.dim else i for d, i in enumerate(index))
            groups.setdefault(kept, []).append(name)
        return {index: self._combined(op, names) for index, names in groups.items()}

    def _combined(self, op: t.Reduce, names: list[str]) -> str:
        dtype = dtype_of(op.x.type)
        if len(names) == 1:
            return names[0]
        if op.halves:
            return self._by_halves(op, len(names)) + f"({', '.join(names)})"
        if dtype == BOOL:
            return (" & " if op.kind == "min" else " | ").join(names)
        if op.kind == "sum":
            return settle(" + ".join(names), dtype)
        name = op.kind if dtype.is_int else self._extreme(op.kind, len(names))
        return settle(f"{name}({', '.join(names)})", dtype)

    def _by_halves(self, op: t.Reduce, count: int) -> str:
        """A function of ``count`` numbers: the first half with the second until one is left."""
        dtype = dtype_of(op.x.type)
        inputs, body = [f"x{i}" for i in range(count)], list[str]()
        form = {"sum": "{0} + {1}", "max": "first_larger({0}, {1})"}
        form["min"] = "first_smaller({0}, {1})"
        left = inputs
        while len(left) > 1:
            half, made = len(left) // 2, []
            for a, b in zip(left[:half], left[half:], strict=True):
                made.append(f"y{len(body)}")
                body.append(f"    {made[-1]} = {settle(form[op.kind].format(a, b), dtype)}")
            left = made
        body.append(f"    return {left[0]}")
        return self.functions.add(f"{op.kind}_of_halves", inputs, body)

    def _extreme(self, kind: str, count: int) -> str:
        """A function of ``count`` floats: their maximum or minimum, NaN only if all are NaN."""
        combine = {"max": "largest_number", "min": "smallest_number"}[kind]
        inputs = [f"x{i}" for i in range(count)]
        text = inputs[0]
        for x in inputs[1:]:
            text = f"{combine}({text}, {x})"
        return self.functions.add(f"{kind}_of", inputs, [f"    return {text}"])

    def stack(self, op: t.Stack, parts: list[Tile]) -> Elements:
        """Row i is that of part i."""
        return {i: parts[i[0]].at((0, *i[1:])) for i in indices(op.result.type)}

    def take(self, op: t.Take, x: Tile) -> Elements:
        """One row."""
        return {i: x.at((op.at, *i[1:])) for i in indices(op.result.type)}

    def transpose(self, op: t.Transpose, x: Tile) -> Elements:
        """Rows as columns."""
        return {i: x.at(i[::-1]) for i in indices(op.result.type)}

    def rearrange(self, op: t.Rearrange, x: Tile) -> Elements:
        """The same elements, in another order."""
        return {i: x.at(i) for i in indices(op.result.type)}

    def reduce_to_lanes(self, op: t.ReduceToLanes, x: Tile) -> Elements:
        """The last dimension is spread over lanes: there is one, and nothing to sum."""
        return {i: x.at((*i, 0)) for i in indices(op.result.type)}

    def split_pairs(self, op: t.SplitPairs, x: Tile) -> Elements:
        """[1, 2] as [1, 1, 2]."""
        return {i: x.at((0, i[2])) for i in indices(op.result.type)}

    def pack_pairs(self, op: t.PackPairs, x: Tile) -> Elements:
        """Rows 2i and 2i + 1 side by side, rounded if they are not 16-bit floats yet."""
        found = {i: x.at((2 * i[0] + i[2], i[1])) for i in indices(op.result.type)}
        if dtype_of(op.x.type) == op.dtype:
            return found
        return {i: settle(text, op.dtype) for i, text in found.items()}
