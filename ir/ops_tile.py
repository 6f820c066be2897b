"""Operations of tile programs: what one worker does for one block of the output.

Memory is a ``buffer`` (the caller's, with run-time strides) or ``scratch`` (a worker's own). A load
or store names a start index in each memory dimension; ``dims`` says which tile dimension runs along
which memory dimension (-1: none). ``bounds`` lists tile dimensions with a limit operand each (after
the indices): positions at or past the limit are clamped to the last one (``clamp``), read as zero
(``zero``) or not written (stores).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BF16, F16, F32, I8, I32, I64, U8, DType
from tilewright.ir.layout import Layout

# every operation of a tile program is found under this module's name
from tilewright.ir.ops_index import BlockId as BlockId  # noqa: PLC0414
from tilewright.ir.ops_index import Less as Less  # noqa: PLC0414
from tilewright.ir.ops_index import Read as Read  # noqa: PLC0414
from tilewright.ir.ops_index import SizeOf as SizeOf  # noqa: PLC0414
from tilewright.ir.ops_index import StrideOf as StrideOf  # noqa: PLC0414
from tilewright.ir.ops_index import TileOp
from tilewright.ir.ops_tile_blocks import Integer as Integer  # noqa: PLC0414
from tilewright.ir.ops_tile_blocks import LastOf as LastOf  # noqa: PLC0414
from tilewright.ir.ops_tile_blocks import Product as Product  # noqa: PLC0414
from tilewright.ir.ops_tile_blocks import Scatter as Scatter  # noqa: PLC0414
from tilewright.ir.ops_tile_blocks import Unpack as Unpack  # noqa: PLC0414
from tilewright.ir.ops_tile_indexed import Alternate as Alternate  # noqa: PLC0414
from tilewright.ir.ops_tile_indexed import LoadRows as LoadRows  # noqa: PLC0414
from tilewright.ir.ops_tile_indexed import Reshape as Reshape  # noqa: PLC0414
from tilewright.ir.ops_tile_indexed import Scan as Scan  # noqa: PLC0414
from tilewright.ir.ops_tile_lanes import PairDot as PairDot  # noqa: PLC0414
from tilewright.ir.ops_tile_lanes import Rearrange as Rearrange  # noqa: PLC0414
from tilewright.ir.ops_tile_lanes import Reduce as Reduce  # noqa: PLC0414
from tilewright.ir.ops_tile_lanes import words_of as words_of  # noqa: PLC0414
from tilewright.ir.ops_tile_lines import CopyLines as CopyLines  # noqa: PLC0414
from tilewright.ir.ops_tile_lines import LoadLines as LoadLines  # noqa: PLC0414
from tilewright.ir.ops_tile_lines import StoreLines as StoreLines  # noqa: PLC0414
from tilewright.ir.ops_tile_threads import Fence as Fence  # noqa: PLC0414
from tilewright.ir.ops_tile_threads import GroupBegin as GroupBegin  # noqa: PLC0414
from tilewright.ir.ops_tile_threads import GroupProduct as GroupProduct  # noqa: PLC0414
from tilewright.ir.ops_tile_threads import GroupWait as GroupWait  # noqa: PLC0414
from tilewright.ir.ops_tile_threads import MatrixProduct as MatrixProduct  # noqa: PLC0414
from tilewright.ir.rounding import fused_multiply_add
from tilewright.ir.types import INDEX, RegisterType, ScratchType, Type

Bounds = tuple[tuple[int, str], ...]


class Alloc(TileOp, name="tile.alloc"):
    """Scratch memory of the worker, or memory that its lanes share, not initialised."""

    type: Type = attribute()

    def infer(self) -> Type:
        self.require(isinstance(self.type, ScratchType), "type must be scratch or shared")
        return self.type


class Access(TileOp):
    """Base of loads and stores: index and limit operands after the memory."""

    def check_access(self, memory: Value, rest: tuple[Value, ...], tile: RegisterType) -> None:
        rank = len(self.memory(memory).shape)
        if len(self.dims) != rank:
            raise self.error(f"dims needs {rank} entries")
        self.require(len(rest) == rank + len(self.bounds), "one index per dimension, then limits")
        self.require_indices(rest)
        for dim in (*self.dims, *(d for d, _ in self.bounds)):
            if not -1 <= dim < len(tile.shape):
                raise self.error(f"the tile has no dimension {dim}")
        bounded = {d for d, kind in self.bounds if d >= 0 and kind in ("clamp", "zero")}
        self.require(
            len(bounded) == len(self.bounds), "bounds are [dimension, clamp or zero], once"
        )
        used = [d for d in self.dims if d >= 0]
        self.require(
            len(set(used)) == len(used), "a tile dimension runs along one memory dimension"
        )
        for dim, size in enumerate(tile.shape):
            if size != 1 and dim not in used:
                raise self.error(f"tile dimension {dim} runs nowhere")

    dims: tuple[int, ...] = attribute()
    bounds: Bounds = attribute(default=())


class Load(Access, name="tile.load", traits=("reads",)):
    """A register tile of ``layout`` from memory."""

    source: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    layout: Layout = attribute()

    def infer(self) -> Type:
        type_ = RegisterType(self.memory(self.source).dtype, self.layout)
        self.check_access(self.source, self.rest, type_)
        return type_


class Prefetch(Access, name="tile.prefetch", traits=("writes",)):
    """Asks for the memory that a load of ``layout`` at this index would read, into the second-level
    cache; without effect on values, and allowed past the end of memory."""

    source: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    layout: Layout = attribute()

    def infer(self) -> tuple[Type, ...]:
        type_ = RegisterType(self.memory(self.source).dtype, self.layout)
        self.check_access(self.source, self.rest, type_)
        return ()


class Store(Access, name="tile.store", traits=("writes",)):
    """Writes a register tile to memory; replicated lanes write once."""

    value: Value = operand()
    target: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)

    def infer(self) -> tuple[Type, ...]:
        type_ = self.register(self.value)
        self.require(type_.dtype == self.memory(self.target).dtype, "dtypes must agree")
        self.check_access(self.target, self.rest, type_)
        return ()


class Gather(TileOp, name="tile.gather", traits=("reads",)):
    """Loads buffer[offset + offsets]: one element per element of the i64 tile ``offsets``."""

    source: Value = operand()
    offset: Value = operand()
    offsets: Value = operand()

    def infer(self) -> Type:
        self.require_indices((self.offset,))
        offsets = self.register(self.offsets)
        self.require(offsets.dtype == I64, "offsets must be i64")
        return RegisterType(self.memory(self.source).dtype, offsets.layout)


class Coordinate(TileOp, name="tile.coordinate", traits=("pure",)):
    """The position on tile dimension ``dim`` of every element, as i64."""

    dim: int = attribute()
    layout: Layout = attribute()

    def infer(self) -> Type:
        self.require_dim(self.dim, self.layout)
        return RegisterType(I64, self.layout)

    def reference_tile(self) -> Any:
        view = [1] * self.layout.rank
        view[self.dim] = self.layout.shape[self.dim]
        return np.broadcast_to(np.arange(view[self.dim]).reshape(view), self.layout.shape)


class Splat(TileOp, name="tile.splat", traits=("pure",)):
    """An index as an i64 tile of one element that broadcasts (rank of ``layout``)."""

    x: Value = operand()
    rank: int = attribute(default=2)

    def infer(self) -> Type:
        self.require_indices((self.x,))
        self.require(0 < self.rank <= 32, "rank must lie between 1 and 32")
        return RegisterType(I64, Layout(self.rank))


class Dot(TileOp, name="tile.dot", traits=("pure",)):
    """acc[m, n] + sum over k of a[m, 0, k] * b[0, n, k], kept in the dtype of acc.

    For 16-bit operands k runs over the two halves of a lane's 32-bit word (bf16 dot instruction);
    for a of i8, b of u8 and acc of i32 over its four bytes (8-bit dot instruction). ``b_bits``
    says how many bits b uses: below 8, two products fit into 16 bits. ``b_offset`` is what b's
    bytes are counted from. ``fused``: f32, k is 1, and each element is rounded once.
    """

    acc: Value = operand()
    a: Value = operand()
    b: Value = operand()
    b_bits: int = attribute(default=8)
    b_offset: int = attribute(default=0)
    fused: bool = attribute(default=False)

    def infer(self) -> Type:
        acc, a, b = (self.register(v) for v in self.operands)
        self.require(len(a.shape) == len(b.shape) == 3, "a is [m, 1, k], b is [1, n, k]")
        self.require(not self.fused or a.shape[2] == 1, "fused products have k = 1")
        fits = a.shape[1] == b.shape[0] == 1 and a.shape[2] == b.shape[2]
        self.require(fits and acc.shape == (a.shape[0], b.shape[1]), "shapes do not match")
        bytes_ = (acc.dtype, a.dtype, b.dtype) == (I32, I8, U8)
        self.require(bytes_ or a.dtype == b.dtype, "a and b must have one dtype, or be i8 and u8")
        return acc

    def reference(self, acc: Any, a: Any, b: Any) -> Any:
        if self.fused and np.asarray(acc).dtype == np.float32:  # the oracle computes in f64
            return fused_multiply_add(a[:, :, 0], b[:, :, 0], acc)
        with np.errstate(all="ignore"):
            wide = b[0].astype(acc.dtype) - acc.dtype.type(self.b_offset)
            return acc + np.einsum("mk,nk->mn", a[:, 0].astype(acc.dtype), wide)


class Stack(TileOp, name="tile.stack", traits=("pure",)):
    """Tiles of one layout, size 1 in dimension 0, one after another along it."""

    parts: tuple[Value, ...] = operand(rest=True)

    def infer(self) -> Type:
        self.require(bool(self.parts), "needs at least one tile")
        types = {self.register(v) for v in self.parts}
        self.require(len(types) == 1, "all tiles must have one type")
        type_ = types.pop()
        self.require(type_.shape[0] == 1, "dimension 0 must have size 1")
        ones = (1,) * (type_.layout.rank - 1)
        outer = Layout(type_.layout.rank).local(len(self.parts), *ones)
        return RegisterType(type_.dtype, outer @ type_.layout)

    def reference(self, *parts: Any) -> Any:
        return np.concatenate(parts, axis=0)


class ReduceToLanes(TileOp, name="tile.reduce_to_lanes", traits=("pure",)):
    """Sums the last dimension, spread over lanes, and moves the other dimensions from registers to
    lanes: [m, r, lanes] -> [m, r] with m*r = lanes (a transposing butterfly)."""

    x: Value = operand()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        layout = type_.layout
        outer = layout.shape[:2]
        expected = Layout(3).local(*outer, 1).spatial(1, 1, layout.lanes) if layout.rank == 3 else 0
        fits = layout == expected and layout.registers == layout.lanes
        self.require(fits, "needs [m, r, lanes] with m*r = lanes, the last on lanes")
        out = Layout(2).spatial(layout.shape[0], layout.shape[1])
        return RegisterType(type_.dtype, out)

    def reference(self, x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.sum(x, axis=2)


class Transpose(TileOp, name="tile.transpose", traits=("pure",)):
    """Registers become lanes and lanes registers: [n, n] with rows in registers and columns on
    lanes -> its transpose, laid out alike."""

    x: Value = operand()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        lanes = type_.layout.lanes
        expected = Layout(2).local(lanes, 1).spatial(1, lanes)
        self.require(type_.layout == expected, f"the layout must be {expected}")
        return type_

    def reference(self, x: Any) -> Any:
        return np.transpose(x)


class Take(TileOp, name="tile.take", traits=("pure",)):
    """Row ``at`` of a tile with rows in registers: [n, m] -> [1, m]."""

    x: Value = operand()
    at: int = attribute()

    def infer(self) -> Type:
        layout = self.register(self.x).layout
        rows = layout.shape[0]
        outer = layout.steps[:1] == (("local", 0, rows),)
        self.require(rows == 1 or outer, "dimension 0 must be local and outermost")
        self.require(0 <= self.at < rows, f"there are {rows} rows")
        rest = layout if rows == 1 else layout.without_first()
        return RegisterType(self.register(self.x).dtype, rest)

    def reference(self, x: Any) -> Any:
        return x[self.at : self.at + 1]


class PackPairs(TileOp, name="tile.pack_pairs", traits=("pure",)):
    """Rows 2i and 2i+1 of a tile side by side in one lane's word: [2m, n] -> [m, n, 2], as
    ``dtype``."""

    x: Value = operand()
    dtype: DType = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        self.require(self.dtype in (BF16, F16), "pairs are of 16-bit floats")
        self.require(type_.dtype in (F32, self.dtype), "converts f32 or packs the dtype itself")
        rows = type_.shape[0]
        fits = rows % 2 == 0 and type_.layout.steps[0] == ("local", 0, rows)
        self.require(fits, "dimension 0 must be local, outermost and even")
        plain = type_.layout.rank == 2 and not type_.layout.strides
        self.require(plain, "needs a tile of two dimensions, a product of atoms")
        steps = type_.layout.steps[1:]
        head = (("local", 0, rows // 2),) if rows > 2 else ()
        return RegisterType(self.dtype, Layout(3, (*head, *steps)).local(1, 1, 2))

    def reference(self, x: Any) -> Any:
        return np.stack([x[0::2], x[1::2]], axis=-1)


class SplitPairs(TileOp, name="tile.split_pairs", traits=("pure",)):
    """The same bits as pairs: [1, 2n] with two neighbours per lane -> [n, 1, 2]."""

    x: Value = operand()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        lanes = type_.layout.lanes
        expected = Layout(2).spatial(1, lanes).local(1, 2)
        self.require(type_.layout == expected, f"the layout must be {expected}")
        return RegisterType(type_.dtype, Layout(3).spatial(lanes, 1, 1).local(1, 1, 2))

    def reference(self, x: Any) -> Any:
        return np.reshape(x, (-1, 1, 2))


class For(TileOp, name="tile.for", traits=("regions",)):
    """Runs the region for lo, lo + step, … below hi, carrying values from one turn to the next.

    Operands: lo, hi, then initial values; the region takes the counter and the carried values and
    yields the next ones.
    """

    lo: Value = operand()
    hi: Value = operand()
    inits: tuple[Value, ...] = operand(rest=True)
    step: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        self.require_indices(self.operands[:2])
        self.require(self.step > 0, "step must be positive")
        self.require(len(self.regions) == 1, "needs one region")
        region = self.regions[0]
        carried = tuple(v.type for v in self.inits)
        self.require(tuple(p.type for p in region.params) == (INDEX, *carried), "region parameters")
        self.require(tuple(y.type for y in region.yields) == carried, "yields must match inits")
        return carried


class While(TileOp, name="tile.while", traits=("regions",)):
    """Runs the region while ``go`` is above 0, carrying values from one turn to the next.

    Operands: go, then initial values; the region takes the carried values and yields the next go
    and the next values. Whether it ends is for the program to know.
    """

    go: Value = operand()
    inits: tuple[Value, ...] = operand(rest=True)

    def infer(self) -> tuple[Type, ...]:
        self.require_indices((self.go,))
        self.require(len(self.regions) == 1, "needs one region")
        region = self.regions[0]
        carried = tuple(v.type for v in self.inits)
        self.require(tuple(p.type for p in region.params) == carried, "region parameters")
        yields = tuple(y.type for y in region.yields)
        self.require(yields == (INDEX, *carried), "yields must be the next go, then match inits")
        return carried


class If(TileOp, name="tile.if", traits=("regions",)):
    """Runs the region once if ``lo < hi``; it yields nothing."""

    lo: Value = operand()
    hi: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        self.require_indices(self.operands)
        region = self.regions[0] if len(self.regions) == 1 else None
        plain = region is not None and not region.yields and not region.params
        self.require(plain, "needs one region without parameters and yields")
        return ()
