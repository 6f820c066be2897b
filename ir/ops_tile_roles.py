"""Warps of a block with work of their own, and what they wait for each other with.

``tile.roles`` gives every region to warps of its own, which run at their own pace. They meet at
barriers in shared memory: a phase of such a barrier ends when all its arrivals have come and all
bytes that were announced have been copied; then the next begins. Who waits for a phase has seen
what was done before the arrivals, and what was copied. ``tile.copy_bulk`` is a copy that no lane
carries out (the tensor memory accelerator of sm_90).
"""

from __future__ import annotations

import math

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import I64
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import (
    LINE_BYTES,
    SWIZZLED_BYTES,
    BufferType,
    SharedType,
    Type,
)

MOST_BOX = (
    256  # elements of a bulk copy along a dimension (CUDA driver API, cuTensorMapEncodeTiled)
)
MOST_DIMENSIONS = 5


class Barriers(TileOp, name="tile.barriers"):
    """``count`` barriers in shared memory, each for ``arrivals`` arrivals a phase."""

    count: int = attribute()
    arrivals: int = attribute()

    def infer(self) -> Type:
        self.require(self.count > 0 and self.arrivals > 0, "count and arrivals are positive")
        return SharedType((self.count,), I64)


class BarrierOp(TileOp):
    """Base of what is done at one of several barriers."""

    barriers: Value = operand()
    number: Value = operand()

    def check_barrier(self) -> None:
        type_ = self.barriers.type
        fits = isinstance(type_, SharedType) and type_.dtype == I64 and len(type_.shape) == 1
        self.require(fits, "needs barriers (tile.barriers)")
        self.require_indices((self.number,))


class Expect(BarrierOp, name="tile.expect", traits=("writes",)):
    """One arrival; the phase ends only when ``bytes`` more have been copied."""

    bytes: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        self.check_barrier()
        self.require(self.bytes > 0, "bytes is positive")
        return ()


class Arrive(BarrierOp, name="tile.arrive", traits=("writes",)):
    """One arrival of every warp of the role, once all of its lanes are here."""

    def infer(self) -> tuple[Type, ...]:
        self.check_barrier()
        return ()


class Await(BarrierOp, name="tile.await", traits=("writes",)):
    """Until the phase of this number has ended. Phases count from 0, modulo 2: a barrier that is
    fresh has ended the phase of number 1."""

    phase: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        self.check_barrier()
        self.require_indices((self.phase,))
        return ()


class CopyBulk(BarrierOp, name="tile.copy_bulk", traits=("reads", "writes")):
    """Asks for a copy of a box of a buffer into slot ``slot`` of shared memory [slots, rows,
    columns]; its bytes count for a barrier. What lies outside the buffer is 0.

    ``at``: where the box starts, an index for each dimension of the buffer; ``dims`` says along
    which it has the slot's rows (0) and columns (1); in others it has one element (-1). Columns run
    along the dimension whose elements are neighbours in memory.
    """

    source: Value = operand()
    target: Value = operand()
    slot: Value = operand()
    at: tuple[Value, ...] = operand(rest=True)
    dims: tuple[int, ...] = attribute()

    def infer(self) -> tuple[Type, ...]:
        self.check_barrier()
        source, target = self.source.type, self.target.type
        self.require(isinstance(source, BufferType), "copies from a buffer")
        self.require(
            isinstance(target, SharedType) and len(target.shape) == 3, "into shared memory"
        )
        assert isinstance(source, BufferType) and isinstance(target, SharedType)
        self.require(source.dtype == target.dtype, "dtypes must agree")
        rank = len(source.shape)
        self.require(
            len(self.at) == len(self.dims) == rank, f"dims and indices need {rank} entries"
        )
        self.require_indices((self.slot, *self.at))
        ordered = sorted(d for d in self.dims if d != -1) == [0, 1]
        self.require(
            ordered and self.dims[source.unit] == 1, "columns run along the unit dimension"
        )
        problem = bulk_problem(rank, target)
        self.require(problem is None, str(problem))
        return ()

    @property
    def box(self) -> tuple[int, ...]:
        """How many elements are copied along each dimension of the buffer."""
        assert isinstance(self.target.type, SharedType)
        return tuple(1 if d < 0 else self.target.type.shape[1 + d] for d in self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of a slot, those outside the buffer among them."""
        assert isinstance(self.target.type, SharedType)
        return math.prod(self.box) * self.target.type.dtype.bits // 8


def bulk_problem(rank: int, target: SharedType) -> str | None:
    """Why the copy engine cannot fill slots of such a memory from a buffer of ``rank`` dimensions;
    None if it can."""
    rows, columns = target.shape[-2:]
    row = columns * target.dtype.bits // 8
    if not 2 <= rank <= MOST_DIMENSIONS:
        return f"bulk copies take buffers of 2 to {MOST_DIMENSIONS} dimensions"
    if max(rows, columns) > MOST_BOX or row % SWIZZLED_BYTES:
        return f"a box of {rows} x {columns}: up to {MOST_BOX} each, rows of whole 16 bytes"
    if target.swizzle and (row > LINE_BYTES or row != target.swizzle * SWIZZLED_BYTES):
        return f"rows of {row} bytes: swizzled ones have 32, 64 or 128, all of their pieces"
    return None


class Roles(TileOp, name="tile.roles", traits=("regions",)):
    """Runs every region by warps of its own, all at once: region i by ``warps[i]`` warps, whose
    lanes count from 0. All lanes meet before; what was allocated and initialised before is seen.

    ``idle``: warps beside those of a role, which end at once (registers are given to groups of four
    warps). ``registers``: how many a thread of the role has (a multiple of 8; 0: as the block
    starts with). Within a role ``tile.barrier`` is a barrier of its lanes.
    """

    warps: tuple[int, ...] = attribute()
    idle: tuple[int, ...] = attribute(default=())
    registers: tuple[int, ...] = attribute(default=())

    @property
    def first_warps(self) -> tuple[int, ...]:
        """The number of each role's first warp in the block, and of all warps."""
        idle = self.idle or (0,) * len(self.warps)
        return tuple(sum(self.warps[:i]) + sum(idle[:i]) for i in range(len(self.warps) + 1))

    def infer(self) -> tuple[Type, ...]:
        plain = all(not r.params and not r.yields for r in self.regions)
        self.require(plain, "regions have no parameters and yield nothing")
        self.require(len(self.warps) == len(self.regions) > 1, "warps has an entry for each region")
        self.require(min(self.warps) > 0, "every role has a warp")
        self.require(len(self.idle) in (0, len(self.warps)), "idle has an entry for each region")
        known = self.registers or (0,) * len(self.warps)
        fits = len(known) == len(self.warps) and all(
            n == 0 or (n % 8 == 0 and 24 <= n <= 256) for n in known
        )
        self.require(fits, "registers are multiples of 8 from 24 to 256, or 0")
        return ()


ROLE_OPS = (Barriers, Expect, Arrive, Await, CopyBulk, Roles)
