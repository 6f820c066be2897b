"""Operations between registers and across lanes: products, reductions, pairs."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.backends.mlir.bits import ByteDot
from tilewright.backends.mlir.pointwise import Scalars, comparison, multiply_add, narrow_bf16
from tilewright.backends.mlir.registers import (
    Registers,
    is_uniform,
    packed,
    register_map,
    spread,
)
from tilewright.backends.mlir.text import MlirText
from tilewright.ir import ops_tile as t
from tilewright.ir.dtypes import BF16, F32, U8
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.target import Target
from tilewright.ir.types import RegisterType


class LaneEmitter:
    """Writes tile operations that are not pointwise."""

    def __init__(self, text: MlirText, target: Target) -> None:
        self.text, self.target = text, target
        self.bytes = ByteDot(text, target)
        self.writers: dict[str, Callable[..., Registers]] = {
            t.PairDot.name: self.pair_dot,
            t.Rearrange.name: self.rearrange,
        }

    def dot(self, op: t.Dot, acc: Registers, a: Registers, b: Registers) -> Registers:
        """Multiply-adds register by register; pairs through the bf16 dot instruction, quads of
        bytes through the 8-bit one."""
        columns = acc.type.shape[1] // (acc.lanes if not acc.uniform else 1)
        rows = acc.type.shape[0]
        vectors = [
            spread(self.text, name, a.held, acc.lanes) if a.uniform else name for name in a.names
        ]
        if a.pack == 4 and not a.uniform:
            raise UnsupportedError("tile.dot of bytes that differ between lanes", op.loc)
        names = []
        for row in range(rows):
            for column in range(columns):
                c = acc.names[row * columns + column]
                x, y = vectors[row], b.names[column]
                if b.type.dtype == U8:
                    names.append(self.bytes.add_products(c, x, y, acc.lanes, op))
                else:
                    names.append(self._multiply_add(op, (c, x, y), acc, a, b))
        return Registers(acc.type, names)

    def _multiply_add(
        self, op: t.Dot, names: tuple[str, str, str], acc: Registers, a: Registers, b: Registers
    ) -> str:
        c, x, y = names
        if a.pack == 1:
            if a.type.dtype != F32:
                raise UnsupportedError(f"tile.dot on {a.type.dtype} without pairs")
            return multiply_add(self.text, op.fused or self.target.fused, (x, y, c), acc.held)
        given = f"vector<{acc.lanes}xi32>" if a.uniform else a.held
        return self._add_pairs(acc, c, (x, given), (y, b.held))

    def _add_pairs(self, acc: Registers, c: str, x: tuple[str, str], y: tuple[str, str]) -> str:
        """The bf16 dot instruction; x and y with the types that they are held in."""
        held = f"vector<{2 * acc.lanes}xbf16>"
        a, b = (self.text.op(f"vector.bitcast {n} : {given} to {held}") for n, given in (x, y))
        name = '"llvm.x86.avx512bf16.dpbf16ps.512"'
        types = f"({acc.held}, {held}, {held}) -> {acc.held}"
        return self.text.op(f"llvm.call_intrinsic {name}({c}, {a}, {b}) : {types}")

    def pair_dot(self, op: t.PairDot, acc: Registers, a: Registers, b: Registers) -> Registers:
        """One instruction for each register of sums."""
        pairs = a.pack == b.pack == 2 and not a.uniform and not b.uniform
        if not self.target.bf16_dot or acc.lanes != 16 or a.type.dtype != BF16 or not pairs:
            raise UnsupportedError(
                f"tile.pair_dot of {a.type} and {b.type} for {self.target.name}", op.loc
            )
        at = [_words(x.type, acc.type) for x in (a, b)]
        names = [
            self._add_pairs(acc, c, (a.names[i], a.held), (b.names[j], b.held))
            for c, i, j in zip(acc.names, *at, strict=True)
        ]
        return Registers(acc.type, names)

    def rearrange(self, op: t.Rearrange, x: Registers) -> Registers:
        """Every register from those that its elements come from, by shuffles of two at a time."""
        result = op.result.type
        assert isinstance(result, RegisterType)
        if x.uniform or is_uniform(result.layout) or x.pack > 1 or packed(result) > 1:
            raise UnsupportedError(f"{x.type} as {result}: not one element in a lane", op.loc)
        layout, names = x.type.layout, []
        for row in result.layout.table():
            places = [layout.holders(index)[0] for index in row]
            names.append(self._collected(x, places))
        return Registers(result, names)

    def _collected(self, x: Registers, places: list[tuple[int, int]]) -> str:
        """A register of the elements that lie in (lane, register) of x."""
        first, *others = dict.fromkeys(register for _, register in places)
        found = x.names[first]
        mask = [lane if register == first else -1 for lane, register in places]
        if not others:
            return self.text.shuffle(found, found, mask, x.held)
        for register in others:
            mask = [
                x.lanes + lane if there == register else kept
                for (lane, there), kept in zip(places, mask, strict=True)
            ]
            given = [0 if at < 0 else at for at in mask]  # lanes that are not there yet hold any
            found = self.text.shuffle(found, x.names[register], given, x.held)
            mask = [here if at >= 0 else -1 for here, at in enumerate(mask)]
        return found

    def reduce(self, op: t.Reduce, x: Registers) -> Registers:
        """Registers first, as a tree, then lanes by exchanging halves; ``halves``: halves of
        registers, too, and the most distant lanes first."""
        result = op.result.type
        assert isinstance(result, RegisterType)
        groups: dict[int, list[str]] = {}
        for name, group in zip(x.names, register_map(result, x.type), strict=True):
            groups.setdefault(group, []).append(name)
        tree = self._halved if op.halves else self._tree
        names = [tree(op.kind, groups[g], x) for g in sorted(groups)]
        distances = lane_distances(x.type.layout, op.dim)
        for distance in reversed(distances) if op.halves else distances:
            names = [self._exchange(op.kind, n, distance, x) for n in names]
        if is_uniform(result.layout) and not x.uniform:
            zero = self.text.i64(0)
            names = [
                self.text.op(f"llvm.extractelement {n}[{zero} : i64] : {x.held}") for n in names
            ]
        return Registers(result, names)

    def _tree(self, kind: str, names: list[str], x: Registers) -> str:
        while len(names) > 1:
            paired = [
                self._combine(kind, a, b, x) for a, b in zip(names[::2], names[1::2], strict=False)
            ]
            names = paired + names[len(names) - len(names) % 2 :]
        return names[0]

    def _halved(self, kind: str, names: list[str], x: Registers) -> str:
        while len(names) > 1:
            half = len(names) // 2
            pairs = zip(names[:half], names[half:], strict=True)
            names = [self._combine(kind, a, b, x) for a, b in pairs]
        return names[0]

    def _combine(self, kind: str, a: str, b: str, x: Registers) -> str:
        held, dtype = x.held, x.type.dtype
        if kind == "sum":
            return self.text.op(f"arith.add{'f' if dtype.is_float else 'i'} {a}, {b} : {held}")
        compare = comparison("gt" if kind == "max" else "lt", dtype)
        chosen = self.text.op(f"{compare}, {a}, {b} : {held}")
        if held.startswith("vector"):
            lanes = held[7:].split("x", maxsplit=1)[0]
            return self.text.op(f"arith.select {chosen}, {a}, {b} : vector<{lanes}xi1>, {held}")
        return self.text.op(f"arith.select {chosen}, {a}, {b} : {held}")

    def _exchange(self, kind: str, name: str, distance: int, x: Registers) -> str:
        mask = [lane ^ distance for lane in range(x.lanes)]
        other = self.text.shuffle(name, name, mask, x.held)
        return self._combine(kind, name, other, x)

    def reduce_to_lanes(self, op: t.ReduceToLanes, x: Registers) -> Registers:
        """Sums of as many registers as there are lanes, one per lane: in each round two registers
        become one that holds both their half-way sums."""
        names, lanes = x.names, x.lanes
        group = lanes
        while len(names) > 1:
            half, count = group // 2, len(names) // 2
            low, high = _halves(lanes, group, half)
            merged = []
            for i in range(count):
                a, b = names[i], names[i + count]
                kept = self.text.shuffle(a, b, low, x.held)
                added = self.text.shuffle(a, b, high, x.held)
                merged.append(self.text.op(f"arith.addf {kept}, {added} : {x.held}"))
            names, group = merged, half
        result = op.result.type
        assert isinstance(result, RegisterType)
        return Registers(result, names)

    def transpose(self, x: Registers) -> Registers:
        """In each round registers ``distance`` apart exchange blocks of lanes off the diagonal."""
        names, lanes, distance = list(x.names), x.lanes, x.lanes // 2
        while distance:
            upper = [i if not i & distance else i - distance + lanes for i in range(lanes)]
            lower = [i + distance if not i & distance else i + lanes for i in range(lanes)]
            for i in range(lanes):
                if not i & distance:
                    a, b = names[i], names[i + distance]
                    names[i] = self.text.shuffle(a, b, upper, x.held)
                    names[i + distance] = self.text.shuffle(a, b, lower, x.held)
            distance //= 2
        return Registers(x.type, names)

    def pack_pairs(self, op: t.PackPairs, x: Registers) -> Registers:
        """Rows 2i and 2i+1 woven into one register of pairs."""
        result = op.result.type
        assert isinstance(result, RegisterType)
        per_row = len(x.names) // x.type.shape[0]
        lanes = x.lanes
        narrow = x.names
        if x.type.dtype != op.dtype:
            if op.dtype != BF16:
                raise UnsupportedError("pairs of f16")
            scalars = Scalars(self.text, self.target, F32, lanes)
            narrow = [narrow_bf16(scalars, n) for n in x.names]
        woven = [k // 2 + (k % 2) * lanes for k in range(2 * lanes)]
        names = []
        for row in range(0, x.type.shape[0], 2):
            for column in range(per_row):
                a = narrow[row * per_row + column]
                b = narrow[(row + 1) * per_row + column]
                names.append(self.text.shuffle(a, b, woven, f"vector<{lanes}xi16>"))
        return Registers(result, names)


def _words(pairs: RegisterType, sums: RegisterType) -> list[int]:
    """For each register of sums, the register of the pairs that go with it."""
    words = t.words_of(pairs.layout)
    assert words is not None
    return register_map(RegisterType(F32, words), sums)


def _halves(lanes: int, group: int, half: int) -> tuple[list[int], list[int]]:
    """Shuffle masks over (a, b): in every group of lanes the halves of a, then those of b."""
    low, high = [], []
    for start in range(0, lanes, group):
        for source in (0, lanes):
            low += [source + start + i for i in range(half)]
            high += [source + start + half + i for i in range(half)]
    return low, high


def lane_distances(layout: Layout, dim: int) -> list[int]:
    """Distances of lanes that hold neighbouring halves of dimension ``dim``."""
    distances, inner = [], 1
    for kind, d, size in reversed([step for step in layout.steps if step[0] != "local"]):
        if kind == "spatial" and d == dim:
            step = 1
            while step < size:
                distances.append(step * inner)
                step *= 2
        inner *= size
    return distances
