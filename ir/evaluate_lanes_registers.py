"""Register tiles as bits: what every register of every lane holds, and which bits were written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.ir.bit_patterns import Patterns, from_bits, ones, recut, to_bits
from tilewright.ir.core import Op
from tilewright.ir.dtypes import DType
from tilewright.ir.evaluate import Arithmetic, check
from tilewright.ir.layout import Layout
from tilewright.ir.types import RegisterType

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Registers:
    """A register tile: bits [registers, lanes], and a mark for each of them that is known.

    ``exact`` holds floats as doubles, as evaluation in f64 does; their bits are taken when asked.
    """

    type: RegisterType
    bits: Patterns
    known: Patterns
    exact: bool = False

    @staticmethod
    def of(values: Any, type_: RegisterType, arithmetic: Arithmetic) -> Registers:
        """Registers that hold values [registers, lanes], rounded to the tile's dtype."""
        settled = arithmetic.settle(values, type_.dtype)
        exact = arithmetic.exact and type_.dtype.is_float
        held = _doubles(settled) if exact else to_bits(settled, type_.dtype)
        return Registers(type_, held, np.full_like(held, _full(type_.dtype, exact)), exact)

    @staticmethod
    def of_tile(tile: Any, type_: RegisterType, arithmetic: Arithmetic) -> Registers:
        """Registers that hold a whole tile, each lane its elements."""
        whole = np.broadcast_to(tile, type_.shape).reshape(-1)
        return Registers.of(whole[flat_table(type_.layout)], type_, arithmetic)

    @staticmethod
    def undefined(type_: RegisterType, exact: bool) -> Registers:
        """Registers that nothing wrote."""
        nothing = np.zeros((type_.layout.registers, type_.layout.lanes), np.uint64)
        return Registers(type_, nothing, nothing, exact and type_.dtype.is_float)

    def values(self, op: Op, at: tuple[Any, Any] | None = None) -> Any:
        """The numbers [registers, lanes], or those at registers and lanes; every bit of them must
        be known."""
        registers, lanes = np.indices(self.bits.shape) if at is None else at
        bits, known = self.bits[registers, lanes], self.known[registers, lanes]
        self._check_known(op, known, registers, lanes)
        if self.exact:
            return bits.view(np.float64)
        return from_bits(bits, self.type.dtype)

    def _check_known(self, op: Op, known: Patterns, registers: Any, lanes: Any) -> None:
        missing = known ^ _full(self.type.dtype, self.exact)
        if not missing.any():
            return
        at = tuple(int(i) for i in np.argwhere(missing)[0])
        shape = missing.shape
        register = int(np.broadcast_to(registers, shape)[at])
        lane = int(np.broadcast_to(lanes, shape)[at])
        lowest = int(missing[at])
        bit = (lowest & -lowest).bit_length() - 1
        index = list(self.type.layout.index(lane, register))
        message = f"reads bit {bit} of register {register} of lane {lane}, element {index} of"
        check(False, f"{message} {self.type}, which nothing wrote", op)

    def tile(self, op: Op) -> Any:
        """The whole tile, put together from its lanes."""
        registers, lanes = owners(self.type.layout)
        return self.values(op, (registers, lanes)).reshape(self.type.shape)

    def check_copies(self, op: Op) -> Registers:
        """Raises EvaluationError if two lanes that hold one element hold different bits of it."""
        layout = self.type.layout
        if layout.lanes * layout.registers == math.prod(layout.shape):
            return self
        registers, lanes = (owner[flat_table(layout)] for owner in owners(layout))
        both = self.known & self.known[registers, lanes]
        differ = (self.bits ^ self.bits[registers, lanes]) & both
        if differ.any():
            register, lane = (int(i) for i in np.argwhere(differ)[0])
            index, other = list(layout.index(lane, register)), int(lanes[register, lane])
            message = f"lanes {other} and {lane} hold element {index} of {self.type}"
            check(False, f"{message}, but not the same bits of it", op)
        return self

    def moved(self, type_: RegisterType, registers: Any, lanes: Any) -> Registers:
        """The bits of other registers, as they are."""
        return Registers(
            type_, self.bits[registers, lanes], self.known[registers, lanes], self.exact
        )

    def viewed(self, type_: RegisterType, arithmetic: Arithmetic) -> Registers:
        """The same bits of every lane, cut into other elements."""
        dtype = self.type.dtype
        bits, known = self.bits, self.known
        if self.exact:
            bits = to_bits(dtype.round(bits.view(np.float64)), dtype)
            known = np.where(known, ones(dtype.bits), np.uint64(0))
        cut = (dtype.bits, type_.layout.registers, type_.dtype.bits)
        bits, known = recut(bits, *cut), recut(known, *cut)
        if not (arithmetic.exact and type_.dtype.is_float):
            return Registers(type_, bits, known)
        whole = known == ones(type_.dtype.bits)
        doubles = _doubles(from_bits(bits, type_.dtype))
        return Registers(type_, doubles, np.where(whole, ones(64), np.uint64(0)), True)


def _full(dtype: DType, exact: bool) -> np.uint64:
    return ones(64 if exact else dtype.bits)


def _doubles(values: Any) -> Patterns:
    return np.ascontiguousarray(np.asarray(values).astype(np.float64)).view(np.uint64)


# ---- layouts as tables


@lru_cache(maxsize=512)
def index_table(layout: Layout) -> Numbers:
    """The index [registers, lanes, rank] that each register of each lane holds."""
    found = np.zeros((layout.registers, layout.lanes, layout.rank), np.int64)
    registers, lanes = layout.digits()
    numbers = np.arange(layout.registers)[:, None], np.arange(layout.lanes)[None, :]
    for number, digits in zip(numbers, (registers, lanes), strict=True):
        inner = 1
        for dim, stride, size in digits:
            if stride:
                found[:, :, dim] += number // inner % size * stride
            inner *= size
    return found


def ravelled(index: Any, shape: tuple[int, ...]) -> Numbers:
    """Indices [..., rank] as row-major numbers."""
    flat = np.zeros(index.shape[:-1], np.int64)
    for dim, size in enumerate(shape):
        flat = flat * size + index[..., dim]
    return flat


@lru_cache(maxsize=512)
def flat_table(layout: Layout) -> Numbers:
    """The row-major number [registers, lanes] of the element that each register holds."""
    return ravelled(index_table(layout), layout.shape)


@lru_cache(maxsize=512)
def owners(layout: Layout) -> tuple[Numbers, Numbers]:
    """Register and lane, of the lowest lane, that hold each element (by row-major number)."""
    table = flat_table(layout)
    places = np.arange(table.size).reshape(table.shape).T[::-1]  # the lowest lane comes last
    first = np.zeros(math.prod(layout.shape), np.int64)
    first[table.T[::-1].reshape(-1)] = places.reshape(-1)
    return first // layout.lanes, first % layout.lanes


def registers_with(layout: Layout, wanted: Numbers) -> tuple[Numbers, Numbers] | None:
    """Registers and lanes that hold the elements ``wanted`` [registers, lanes] of a tile, each in
    the lane that asks (a tile of one lane is in every lane). None if a lane does not hold one."""
    table, lanes = flat_table(layout), layout.lanes
    size = math.prod(layout.shape)
    here = np.broadcast_to(np.arange(wanted.shape[1]), wanted.shape)
    here = np.zeros_like(here) if lanes == 1 else here
    if here.size and int(here.max()) >= lanes:
        return None
    keys = (np.arange(lanes) * size + table).reshape(-1)
    order = np.argsort(keys, kind="stable")
    asked = here * size + wanted
    found = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    place = order[found]
    if not np.array_equal(keys[place], asked):
        return None
    return place // lanes, here


@lru_cache(maxsize=512)
def broadcast_registers(part: Layout, whole: Layout) -> tuple[Numbers, Numbers] | None:
    """``registers_with`` for every element of ``whole``; sizes of one in ``part`` broadcast."""
    sizes = np.array([size > 1 for size in part.shape], np.int64)
    return registers_with(part, ravelled(index_table(whole) * sizes, part.shape))
