"""Layouts: which lane and which register of a lane holds which element of a tile.

A layout is a product of atoms, outermost first (Tilus, arXiv 2504.12984, section 4): ``local``
spreads elements over the registers of one lane, ``spatial`` over lanes, ``replicate`` gives the
same element to several lanes. In a product every element of the left becomes a tile of the right::

    local(8, 3).spatial(1, 16)      8 x 48 elements on 16 lanes, 24 registers each
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Step = tuple[str, int, int]  # kind, dimension, size
Digit = tuple[int, int, int]  # dimension, stride in it (0 for copies), size


@dataclass(frozen=True)
class Layout:
    """A map (lane, register) -> index of a tile of ``rank`` dimensions."""

    rank: int
    steps: tuple[Step, ...] = ()

    def _then(self, kind: str, sizes: tuple[int, ...]) -> Layout:
        assert len(sizes) == self.rank, f"{kind}{sizes} on a layout of rank {self.rank}"
        new = tuple((kind, d, s) for d, s in enumerate(sizes) if s != 1)
        return Layout(self.rank, _merge(self.steps + new))

    def local(self, *sizes: int) -> Layout:
        """This layout, each element becoming a tile kept in one lane's registers (row-major)."""
        return self._then("local", sizes)

    def spatial(self, *sizes: int) -> Layout:
        """This layout, each element becoming a tile spread over lanes (row-major)."""
        return self._then("spatial", sizes)

    def replicate(self, count: int) -> Layout:
        """This layout with every element held by ``count`` neighbouring lanes."""
        extra: tuple[Step, ...] = (("replicate", 0, count),) if count != 1 else ()
        return Layout(self.rank, _merge(self.steps + extra))

    def __matmul__(self, other: Layout) -> Layout:
        """The product: every element of ``self`` becomes a tile laid out as ``other``."""
        assert self.rank == other.rank, "the product needs equal ranks"
        return Layout(self.rank, _merge(self.steps + other.steps))

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = [1] * self.rank
        for kind, dim, size in self.steps:
            if kind != "replicate":
                sizes[dim] *= size
        return tuple(sizes)

    @property
    def lanes(self) -> int:
        return math.prod(s for k, _, s in self.steps if k != "local")

    @property
    def registers(self) -> int:
        return math.prod(s for k, _, s in self.steps if k == "local")

    def index(self, lane: int, register: int) -> tuple[int, ...]:
        """The element that ``register`` of ``lane`` holds."""
        out, scale = [0] * self.rank, [1] * self.rank
        for kind, dim, size in reversed(self.steps):
            if kind == "local":
                register, digit = divmod(register, size)
            else:
                lane, digit = divmod(lane, size)
            if kind != "replicate":
                out[dim] += digit * scale[dim]
                scale[dim] *= size
        return tuple(out)

    def table(self) -> list[list[tuple[int, ...]]]:
        """``table[register][lane]`` is the element held there."""
        return [list(row) for row in _table(self)]

    def collapse(self, dim: int) -> Layout:
        """The layout of a reduction's result over ``dim``: its lanes hold copies, its registers
        go."""
        steps: list[Step] = []
        for kind, d, size in self.steps:
            if kind == "replicate" or d != dim:
                steps.append((kind, d, size))
            elif kind == "spatial":
                steps.append(("replicate", 0, size))
        return Layout(self.rank, _merge(tuple(steps)))

    def join(self, other: Layout) -> Layout | None:
        """The layout of the broadcast of two tiles: a dimension of size one in one of them is taken
        from the other; None if they put one dimension on different lanes.

        ``local(8, 1).replicate(16)`` and ``local(1, 3).spatial(1, 16)`` give
        ``local(8, 3).spatial(1, 16)``.
        """
        if self.lanes != other.lanes or self.rank != other.rank:
            return None
        if other.is_part_of(self):
            return self
        lanes = _join_lanes(self._kind("lane"), other._kind("lane"))
        mine, theirs = self._kind("local"), other._kind("local")
        both = {d for _, d, _ in mine} & {d for _, d, _ in theirs}
        if lanes is None or (both and mine != theirs):
            return None
        registers = mine if both else tuple(sorted(mine + theirs, key=lambda step: step[1]))
        whole = Layout(self.rank, _merge(registers + lanes))
        return whole if self.is_part_of(whole) and other.is_part_of(whole) else None

    def is_part_of(self, whole: Layout) -> bool:
        """True if every lane holds its elements of ``whole``, except for dimensions of size one,
        which broadcast."""
        if self == whole:
            return True
        for dim, size in enumerate(self.shape):
            if size == 1:
                whole = whole.collapse(dim)
        return self.same_map(whole)

    def same_map(self, other: Layout) -> bool:
        """True if both put the same elements into the same registers of the same lanes."""
        return self == other or self._digits() == other._digits()

    def _digits(self) -> tuple[list[Digit], list[Digit]]:
        """The digits that register and lane numbers consist of, innermost first; those that count
        on are one. Two layouts have the same digits just if they are the same map."""
        registers: list[Digit] = []
        lanes: list[Digit] = []
        strides = [1] * self.rank
        for kind, dim, size in reversed(self.steps):
            digits = registers if kind == "local" else lanes
            stride = 0 if kind == "replicate" else strides[dim]
            inner_dim, inner_stride, inner_size = digits[-1] if digits else (-1, 0, 0)
            if inner_dim == dim and inner_stride * inner_size == stride:
                digits[-1] = (dim, inner_stride, inner_size * size)
            else:
                digits.append((dim, stride, size))
            if stride:
                strides[dim] *= size
        return registers, lanes

    def _kind(self, kind: str) -> tuple[Step, ...]:
        local = kind == "local"
        return tuple(step for step in self.steps if (step[0] == "local") == local)

    def drop(self, dim: int) -> Layout:
        """The layout without dimension ``dim``, which must have size one."""
        assert self.shape[dim] == 1, f"dimension {dim} of {self} is not of size one"
        steps = tuple((k, d - (d > dim), s) for k, d, s in self.steps)
        return Layout(self.rank - 1, steps)

    @property
    def packed(self) -> int:
        """How many consecutive elements the innermost registers of a lane hold side by side."""
        return self.steps[-1][2] if self.steps and self.steps[-1][0] == "local" else 1

    def __str__(self) -> str:
        atoms = list(self._atoms())
        if all(kind == "replicate" for kind, _, _ in self.steps):  # which does not tell the rank
            atoms.insert(0, f"local({', '.join(['1'] * self.rank)})")
        return ".".join(atoms)

    def _atoms(self) -> Iterator[str]:
        at = 0
        while at < len(self.steps):
            kind = self.steps[at][0]
            if kind == "replicate":
                yield f"replicate({self.steps[at][2]})"
                at += 1
                continue
            sizes, last = [1] * self.rank, -1
            while at < len(self.steps) and self.steps[at][0] == kind and self.steps[at][1] > last:
                last = self.steps[at][1]
                sizes[last] = self.steps[at][2]
                at += 1
            yield f"{kind}({', '.join(map(str, sizes))})"


def _join_lanes(a: tuple[Step, ...], b: tuple[Step, ...]) -> tuple[Step, ...] | None:
    """Lane steps of two layouts side by side; replication gives way to the other's dimension."""
    left, right, out = list(a), list(b), []
    while left and right:
        (kind, dim, size), (other_kind, other_dim, other_size) = left.pop(0), right.pop(0)
        common = math.gcd(size, other_size)
        if common != min(size, other_size):
            return None
        if size > common:
            left.insert(0, (kind, dim, size // common))
        if other_size > common:
            right.insert(0, (other_kind, other_dim, other_size // common))
        if kind == "replicate":
            kind, dim = other_kind, other_dim
        elif other_kind != "replicate" and (other_kind, other_dim) != (kind, dim):
            return None
        out.append((kind, dim, common))
    return None if left or right else tuple(out)


def _merge(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    out: list[Step] = []
    for step in steps:
        if out and out[-1][:2] == step[:2]:
            out[-1] = (step[0], step[1], out[-1][2] * step[2])
        else:
            out.append(step)
    return tuple(out)


@lru_cache(maxsize=4096)
def _table(layout: Layout) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(layout.index(lane, register) for lane in range(layout.lanes))
        for register in range(layout.registers)
    )


def local(*sizes: int) -> Layout:
    """A tile kept whole in every lane's registers, row-major."""
    return Layout(len(sizes)).local(*sizes)


def spatial(*sizes: int) -> Layout:
    """A tile with one element per lane, row-major."""
    return Layout(len(sizes)).spatial(*sizes)
