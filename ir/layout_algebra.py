"""The algebra of layouts: division, composition, changes of a tile's dimensions.

A layout is a map (lane, register) -> index, and its digits (``Layout.digits``) say how: a digit
``(dim, stride, size)`` of the lane or register number counts in steps of ``stride`` along ``dim``.
Products put digits on top of each other, division takes them off, and composition sends each digit
through the digits of another map. Whatever a layout cannot say is None, never an approximation.
Sources: Tilus (arXiv 2504.12984, section 4) for product, division and the unified form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Digit, Layout, from_digits, spatial

LANE, REGISTER = 0, 1  # the dimensions of a map of lanes and registers


def modes(
    dims: Sequence[Sequence[int]], lanes: Sequence[int] = (), registers: Sequence[int] = ()
) -> Layout:
    """The layout in Tilus' unified form (``Layout.modes`` gives it back).

    ``dims`` splits every dimension into sizes, outermost first. ``lanes`` and ``registers`` share
    these out by their number, counted through all dimensions, outermost first; -k in ``lanes``
    stands for k copies. Raises UnsupportedError.
    """
    sizes = [(dim, size) for dim, split in enumerate(dims) for size in split]
    used = sorted([at for at in lanes if at >= 0] + list(registers))
    if used != list(range(len(sizes))):
        raise UnsupportedError(
            f"lanes {tuple(lanes)} and registers {tuple(registers)} share out {len(sizes)} modes: "
            f"each of 0 to {len(sizes) - 1} once, in lanes also -k for k copies"
        )
    if any(size < 1 for _, size in sizes):
        raise UnsupportedError(f"modes have sizes from 1, not {tuple(map(tuple, dims))}")
    digits: list[Digit] = []
    for at, (dim, size) in enumerate(sizes):
        inner = math.prod(s for d, s in sizes[at + 1 :] if d == dim)
        digits.append((dim, inner, size))
    on_lanes = [digits[at] if at >= 0 else (0, 0, -at) for at in reversed(lanes)]
    return from_digits(len(dims), [digits[at] for at in reversed(registers)], on_lanes)


def threads(lanes: int, registers: int) -> Layout:
    """The identity of composition: lane and register as the index of a tile [lanes, registers]."""
    return spatial(lanes, 1).local(1, registers)


# ---- division


def divide(whole: Layout, right: Layout) -> Layout | None:
    """The layout ``left`` with ``left @ right`` the same map as ``whole``; None if there is none.

    An instruction that works on tiles laid out as ``right`` applies to ``whole`` just if it
    divides.
    """
    if whole.rank != right.rank:
        return None
    shape, rests = right.shape, []
    for digits, inner in zip(whole.digits(), right.digits(), strict=True):
        rest = _without_inner(digits, inner)
        if rest is None:
            return None
        rests.append([(d, stride and stride // shape[d], size) for d, stride, size in rest])
    return from_digits(whole.rank, *rests)


def divide_left(whole: Layout, left: Layout) -> Layout | None:
    """The layout ``right`` with ``left @ right`` the same map as ``whole``; None if there is
    none."""
    if whole.rank != left.rank:
        return None
    fits = [b and a % b == 0 for a, b in zip(whole.shape, left.shape, strict=True)]
    if not all(fits):
        return None
    inner = [a // b for a, b in zip(whole.shape, left.shape, strict=True)]
    rests = []
    for digits, outer in zip(whole.digits(), left.digits(), strict=True):
        scaled = [(d, stride and stride * inner[d], size) for d, stride, size in outer]
        rest = _without_outer(digits, scaled)
        if rest is None:
            return None
        rests.append(rest)
    return from_digits(whole.rank, *rests)


def quotient(whole: Layout, right: Layout) -> Layout:
    """``divide``, or UnsupportedError that names both."""
    found = divide(whole, right)
    if found is None:
        raise UnsupportedError(f"{whole} is no product with {right} as its inner layout")
    return found


def _without_inner(digits: list[Digit], inner: list[Digit]) -> list[Digit] | None:
    rest = list(digits)
    for dim, stride, size in inner:
        if not rest or rest[0][:2] != (dim, stride) or rest[0][2] % size:
            return None
        rest[0] = (dim, stride * size, rest[0][2] // size)
        if rest[0][2] == 1:
            rest.pop(0)
    return rest


def _without_outer(digits: list[Digit], outer: list[Digit]) -> list[Digit] | None:
    rest = list(digits)
    for dim, stride, size in reversed(outer):
        if not rest or rest[-1][0] != dim or rest[-1][2] % size:
            return None
        left = rest[-1][2] // size
        if rest[-1][1] * left != stride:
            return None
        rest[-1] = (dim, rest[-1][1], left)
        if left == 1:
            rest.pop()
    return rest


# ---- composition


def compose(layout: Layout, threads: Layout) -> Layout | None:
    """``(t, r) -> layout(*threads(t, r))``: what new lanes and registers hold.

    ``threads`` is a layout of the tile [lanes, registers] of ``layout`` and says which lane and
    register a new lane's register stands for. None if no layout says it: a digit that is cut in
    the middle, or copies in one lane's registers. Raises UnsupportedError for another shape.
    """
    wanted = (layout.lanes, layout.registers)
    if threads.shape != wanted:
        raise UnsupportedError(
            f"{threads} has the shape {threads.shape}; to stand for lanes and registers of {layout}"
            f" it needs {wanted}"
        )
    registers, lanes = layout.digits()
    return _sent(threads, {LANE: lanes, REGISTER: registers}, layout.rank)


def conversion(source: Layout, target: Layout) -> Layout | None:
    """The map ``threads`` with ``compose(source, threads)`` the same map as ``target``: from which
    lane and register each lane's register gets its element, when a tile changes its layout.

    None if the shapes differ, ``source`` holds elements more than once, or no layout says it.
    """
    registers, lanes = source.digits()
    if source.shape != target.shape or any(stride == 0 for _, stride, _ in lanes):
        return None
    chains: dict[int, list[Digit]] = {d: [] for d in range(source.rank)}
    strides: dict[int, list[int]] = {d: [] for d in range(source.rank)}
    for number, digits in ((LANE, lanes), (REGISTER, registers)):
        inner = 1
        for dim, stride, size in digits:
            chains[dim].append((number, inner, size))
            strides[dim].append(stride)
            inner *= size
    ordered = {
        dim: [digit for _, digit in sorted(zip(strides[dim], chain, strict=True))]
        for dim, chain in chains.items()
    }
    return _sent(target, ordered, 2)


def permute(layout: Layout, order: Sequence[int]) -> Layout:
    """The layout of the transposed tile: its dimension i is dimension ``order[i]``."""
    if sorted(order) != list(range(layout.rank)):
        raise UnsupportedError(f"{tuple(order)} is no order of {layout.rank} dimensions")
    new = {old: at for at, old in enumerate(order)}
    steps = tuple((k, d if k == "replicate" else new[d], s) for k, d, s in layout.steps)
    return replace(layout, steps=steps)


def reshape(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout of the tile with its dimensions split and merged, elements in row-major order;
    None if a digit would have to be cut in the middle. Raises UnsupportedError for another number
    of elements."""
    if math.prod(shape) != math.prod(layout.shape) or any(size < 1 for size in shape):
        raise UnsupportedError(f"{layout} of shape {layout.shape} has no shape {tuple(shape)}")
    inner = [math.prod(layout.shape[d + 1 :]) for d in range(layout.rank)]
    flat = [
        [(0, stride and stride * inner[d], size) for d, stride, size in digits]
        for digits in layout.digits()
    ]
    dims: list[Digit] = [(d, 1, size) for d, size in reversed([*enumerate(shape)])]
    return _sent(from_digits(1, *flat), {0: dims}, len(shape))


def _sent(layout: Layout, chains: dict[int, list[Digit]], rank: int) -> Layout | None:
    """The layout with every dimension's index sent through ``chains[dim]``: its digits, innermost
    first, and what each of them counts along."""
    sent = []
    for digits in layout.digits():
        found: list[Digit] = []
        for dim, stride, size in digits:
            parts = [(0, 0, size)] if stride == 0 else _cut(chains[dim], stride, size)
            if parts is None:
                return None
            found += parts
        sent.append(found)
    registers, lanes = sent
    if any(stride == 0 for _, stride, size in registers if size != 1):
        return None
    return from_digits(rank, registers, lanes)


def _cut(chain: Iterable[Digit], stride: int, size: int) -> list[Digit] | None:
    """The digits of a number from the place ``stride`` up to ``stride * size``.

    ``number // stride % size`` of a number whose digits, innermost first, are ``chain``; None if
    that begins or ends inside a digit where it does not divide it.
    """
    found: list[Digit] = []
    end, place = stride * size, 1
    for dim, step, count in chain:
        low, high = max(place, stride), min(place * count, end)
        if low < high:
            divides = low % place == 0 and high % low == 0 and place * count % high == 0
            if not divides:
                return None
            found.append((dim, step and step * (low // place), high // low))
        place *= count
    return found
