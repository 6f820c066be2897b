"""Layouts: which lane and which register of a lane holds which element of a tile.

A layout is a product of atoms, outermost first (Tilus, arXiv 2504.12984, section 4): ``local``
spreads elements over the registers of one lane, ``spatial`` over lanes, ``replicate`` gives the
same element to several lanes. In a product every element of the left becomes a tile of the right::

    local(8, 3).spatial(1, 16)      8 x 48 elements on 16 lanes, 24 registers each

``column_local`` and ``column_spatial`` count column-major. What no product of atoms says, such as
lanes that count a dimension's digits in another order, is written digit by digit (modes)::

    modes((2, 2), lanes (1, 0), registers ())       elements 0 2 1 3 on 4 lanes

The algebra is in layout_algebra.py, views of bits in bit_view.py, pictures in layout_picture.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

Step = tuple[str, int, int]  # kind, dimension, size
Digit = tuple[int, int, int]  # dimension, stride in it (0 for copies), size


@dataclass(frozen=True)
class Layout:
    """A map (lane, register) -> index of a tile of ``rank`` dimensions.

    ``strides`` is empty, except for what is no product of atoms: then it has the stride of every
    step in its dimension, and ``from_digits`` makes the layout.
    """

    rank: int
    steps: tuple[Step, ...] = ()
    strides: tuple[int, ...] = ()

    def _then(self, kind: str, sizes: tuple[int, ...], column: bool = False) -> Layout:
        assert len(sizes) == self.rank, f"{kind}{sizes} on a layout of rank {self.rank}"
        new = tuple((kind, d, s) for d, s in enumerate(sizes) if s != 1)
        return self @ Layout(self.rank, new[::-1] if column else new)

    def local(self, *sizes: int) -> Layout:
        """This layout, each element becoming a tile kept in one lane's registers (row-major)."""
        return self._then("local", sizes)

    def spatial(self, *sizes: int) -> Layout:
        """This layout, each element becoming a tile spread over lanes (row-major)."""
        return self._then("spatial", sizes)

    def column_local(self, *sizes: int) -> Layout:
        """``local`` with the registers in column-major order."""
        return self._then("local", sizes, column=True)

    def column_spatial(self, *sizes: int) -> Layout:
        """``spatial`` with the lanes in column-major order."""
        return self._then("spatial", sizes, column=True)

    def replicate(self, count: int) -> Layout:
        """This layout with every element held by ``count`` neighbouring lanes."""
        return self @ Layout(self.rank, (("replicate", 0, count),) if count != 1 else ())

    def __matmul__(self, other: Layout) -> Layout:
        """The product: every element of ``self`` becomes a tile laid out as ``other``."""
        assert self.rank == other.rank, "the product needs equal ranks"
        if not (self.strides or other.strides):
            return Layout(self.rank, _merge(self.steps + other.steps))
        inner = other.shape
        both = zip(self.digits(), other.digits(), strict=True)
        registers, lanes = (
            [*b, *((d, stride and stride * inner[d], size) for d, stride, size in a)]
            for a, b in both
        )
        return from_digits(self.rank, registers, lanes)

    def __truediv__(self, other: Layout) -> Layout:
        """The layout whose product with ``other`` is this one. Raises UnsupportedError."""
        from tilewright.ir.layout_algebra import quotient

        return quotient(self, other)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        sizes = [1] * self.rank
        for kind, dim, size in self.steps:
            if kind != "replicate":
                sizes[dim] *= size
        return tuple(sizes)

    @cached_property
    def lanes(self) -> int:
        return math.prod(s for k, _, s in self.steps if k != "local")

    @cached_property
    def registers(self) -> int:
        return math.prod(s for k, _, s in self.steps if k == "local")

    def index(self, lane: int, register: int) -> tuple[int, ...]:
        """The element that ``register`` of ``lane`` holds."""
        out = [0] * self.rank
        for (kind, dim, size), stride in zip(self.steps[::-1], self._strides[::-1], strict=True):
            if kind == "local":
                register, digit = divmod(register, size)
            else:
                lane, digit = divmod(lane, size)
            if stride:
                out[dim] += digit * stride
        return tuple(out)

    def holders(self, index: Sequence[int]) -> list[tuple[int, int]]:
        """The inverse: every (lane, register) that holds an element, lowest lane first."""
        registers, lanes = self.digits()
        at, found, inner = 0, [0], 1
        for dim, stride, size in registers:
            at, inner = at + index[dim] // stride % size * inner, inner * size
        inner = 1
        for dim, stride, size in lanes:
            digit = range(size) if stride == 0 else (index[dim] // stride % size,)
            found = [lane + d * inner for d, lane in itertools.product(digit, found)]
            inner *= size
        return [(lane, at) for lane in sorted(found)]

    @cached_property
    def _strides(self) -> tuple[int, ...]:
        """The stride of every step in its dimension, 0 for copies."""
        if self.strides:
            return self.strides
        found, scale = [], [1] * self.rank
        for kind, dim, size in reversed(self.steps):
            found.append(0 if kind == "replicate" else scale[dim])
            if kind != "replicate":
                scale[dim] *= size
        return tuple(found[::-1])

    def table(self) -> list[list[tuple[int, ...]]]:
        """``table[register][lane]`` is the element held there."""
        return [list(row) for row in _table(self)]

    def collapse(self, dim: int) -> Layout:
        """The layout of a reduction's result over ``dim``: its lanes hold copies, its registers
        go."""
        if self.strides:
            registers, lanes = self.digits()
            copies = [(0, 0, digit[2]) if digit[0] == dim else digit for digit in lanes]
            return from_digits(self.rank, [x for x in registers if x[0] != dim], copies)
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
        if self.strides or other.strides:
            return other if self.is_part_of(other) else None
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
        return self == other or self.digits() == other.digits()

    def digits(self) -> tuple[list[Digit], list[Digit]]:
        """The digits that register and lane numbers consist of, innermost first; those that count
        on are one. Two layouts have the same digits just if they are the same map."""
        registers: list[Digit] = []
        lanes: list[Digit] = []
        for (kind, dim, size), stride in zip(self.steps[::-1], self._strides[::-1], strict=True):
            (registers if kind == "local" else lanes).append((dim, stride, size))
        return merge_digits(registers), merge_digits(lanes)

    def _kind(self, kind: str) -> tuple[Step, ...]:
        local = kind == "local"
        return tuple(step for step in self.steps if (step[0] == "local") == local)

    def drop(self, dim: int) -> Layout:
        """The layout without dimension ``dim``, which must have size one."""
        assert self.shape[dim] == 1, f"dimension {dim} of {self} is not of size one"
        steps = tuple((k, d - (d > dim), s) for k, d, s in self.steps)
        return Layout(self.rank - 1, steps, self.strides)

    def without_first(self) -> Layout:
        """The layout without its outermost step, which must be a whole dimension's."""
        rest = Layout(self.rank, self.steps[1:], self.strides[1:])
        return from_digits(self.rank, *rest.digits()) if self.strides else rest

    @property
    def packed(self) -> int:
        """How many consecutive elements the innermost registers of a lane hold side by side."""
        if self.strides:
            return next((size for _, stride, size in self.digits()[0][:1] if stride == 1), 1)
        return self.steps[-1][2] if self.steps and self.steps[-1][0] == "local" else 1

    def modes(self) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...]]:
        """Tilus' unified form: the sizes (modes) that every dimension is split into, and which of
        them, counted through all dimensions, lanes and registers consist of, outermost first. A
        negative number -k in lanes stands for k copies."""
        both = self.digits()
        on = sorted({(d, -stride, size) for digits in both for d, stride, size in digits if stride})
        number = {(d, -stride, size): at for at, (d, stride, size) in enumerate(on)}
        dims = tuple(tuple(size for d, _, size in on if d == dim) for dim in range(self.rank))
        registers, lanes = (
            tuple(number[digit] if digit[1] else -digit[2] for digit in digits[::-1])
            for digits in both
        )
        return dims, lanes, registers

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        if self.strides:
            dims, lanes, registers = self.modes()
            parts = [*map(_listed, dims), f"lanes {_listed(lanes)}"]
            return f"modes({', '.join(parts)}, registers {_listed(registers)})"
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


def merge_digits(digits: Sequence[Digit]) -> list[Digit]:
    """Digits, innermost first, with those that count on joined and those of size one left out."""
    out: list[Digit] = []
    for dim, stride, size in digits:
        inner_dim, inner_stride, inner_size = out[-1] if out else (-1, 0, 0)
        if inner_dim == dim and inner_stride * inner_size == stride:
            out[-1] = (dim, inner_stride, inner_size * size)
        elif size != 1:
            out.append((dim, stride, size))
    return out


def from_digits(rank: int, registers: Sequence[Digit], lanes: Sequence[Digit]) -> Layout:
    """The layout whose register and lane numbers consist of these digits, innermost first: a
    product of atoms if there is one."""
    queues = {"local": merge_digits(registers), "spatial": merge_digits(lanes)}
    left = [1] * rank
    for dim, stride, size in itertools.chain(*queues.values()):
        if stride:
            left[dim] *= size
    steps: list[Step] = []
    kind, other = "local", "spatial"
    while queues[kind] or queues[other]:
        if not _is_outermost(queues[kind], left):
            kind, other = other, kind
            if not _is_outermost(queues[kind], left):
                return _no_product(rank, registers, lanes)
        dim, stride, size = queues[kind].pop()
        steps.append((kind, dim, size) if stride else ("replicate", 0, size))
        if stride:
            left[dim] = stride
    return Layout(rank, tuple(steps))


def _is_outermost(queue: list[Digit], left: list[int]) -> bool:
    """Whether the next digit is the outermost of what is left of its dimension."""
    return bool(queue) and (not queue[-1][1] or queue[-1][1] * queue[-1][2] == left[queue[-1][0]])


def _no_product(rank: int, registers: Sequence[Digit], lanes: Sequence[Digit]) -> Layout:
    rows = [("local", *digit) for digit in merge_digits(registers)[::-1]]
    rows += [
        ("spatial" if digit[1] else "replicate", *digit) for digit in merge_digits(lanes)[::-1]
    ]
    steps = tuple((kind, dim, size) for kind, dim, _, size in rows)
    return Layout(rank, steps, tuple(stride for _, _, stride, _ in rows))


def _listed(numbers: Sequence[int]) -> str:
    return f"({', '.join(map(str, numbers))})"


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


def column_local(*sizes: int) -> Layout:
    """A tile kept whole in every lane's registers, column-major."""
    return Layout(len(sizes)).column_local(*sizes)


def column_spatial(*sizes: int) -> Layout:
    """A tile with one element per lane, column-major."""
    return Layout(len(sizes)).column_spatial(*sizes)
