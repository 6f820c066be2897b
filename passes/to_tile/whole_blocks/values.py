"""Values of a kernel as tiles in frames: expressions down to memory, positions and statistics.

Exponentials become powers of two, and their constants move to where they cost one operation a row:

    exp(c x - r)              ->  exp2(fma(x, c log2 e, -r log2 e))      r constant along the block
    max_j (c x_j)             ->  c max_j x_j                            c > 0
    select(mask, c x, -inf)   ->  c select(mask, x, -inf)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BF16, F16, F32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_stream import IDENTITY
from tilewright.ir.sizes import Size
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.mask_range import is_countable
from tilewright.passes.to_tile.rows import RowLowering, strip_repeat
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.codes import CodeBlock, has_one_scale
from tilewright.passes.to_tile.whole_blocks.frame import Frame, FrameMemory, Place
from tilewright.passes.to_tile.whole_blocks.row_powers import in_f16
from tilewright.passes.to_tile.whole_blocks.schedule import padded

LOG2E = math.log2(math.e)
SINGLE = Frame(("", ""), (1, 1))
Key = tuple[Value, Frame]


@dataclass
class Scope:
    """What is known where tiles are being built: their place, whether masks may cut, and tiles that
    were built before."""

    place: Place
    masked: bool
    tiles: dict[Key, Value] = field(default_factory=dict)
    statistics: dict[Value, Value] = field(default_factory=dict)  # results of scans and reduces
    scaled: dict[Key, tuple[Value, float]] = field(default_factory=dict)

    def inner(self, place: Place, masked: bool) -> Scope:
        """A scope within this one: knows its tiles, and keeps its own to itself."""
        return Scope(place, masked, dict(self.tiles), dict(self.statistics), dict(self.scaled))


class Values:
    """Builds tiles of one kernel in the scope at hand."""

    def __init__(
        self, state: LoweringState, memory: FrameMemory, conditions: set[Value], scope: Scope
    ) -> None:
        self.state, self.info, self.build = state, state.info, state.build
        self.memory, self.conditions, self.scope = memory, conditions, scope
        self.rows = RowLowering(state)
        self.one_warp = False  # whether threads unpack codes for themselves (schedule.py)
        self.operands: dict[s.Contract, Value] = {}  # what rows bring to products
        self.sums: dict[s.Contract, Value] = {}  # the sum of that, for products with codes
        self.powers: dict[s.Contract, Value] = {}  # what that was divided by (row_powers.py)

    @contextmanager
    def within(self, place: Place, masked: bool) -> Iterator[Scope]:
        """Tiles of a block."""
        before, self.scope = self.scope, self.scope.inner(place, masked)
        yield self.scope
        self.scope = before

    # ---- frames

    def row_frame(self, axis: str = "") -> Frame:
        """Rows along dimension 0, an element's axis along dimension 1."""
        rows = " ".join(a.name for a in self.info.rows)
        size = self.state.schedule.rows if rows else 1
        return Frame((rows, axis), (size, self.length(axis) if axis else 1))

    @property
    def score_frame(self) -> Frame:
        """Rows and positions."""
        return Frame((self.row_frame().axes[0], self.info.inner.name), self._score_sizes())

    def _score_sizes(self) -> tuple[int, int]:
        return self.row_frame().sizes[0], self.state.schedule.inner_block

    def length(self, axis: str) -> int:
        """How long a tile is along an axis."""
        if axis == self.info.inner.name:
            return self.state.schedule.inner_block
        return padded(self.element_sizes[axis])

    @property
    def element_sizes(self) -> dict[str, Size]:
        """The sizes of all axes inside elements."""
        types = [v.type for op in self.info.graph.body.ops for v in op.results]
        return {a.name: a.size for x in types for a in getattr(x, "element", ())}

    # ---- values

    def tile(self, value: Value, frame: Frame) -> Value:
        """``value`` in a frame; one number for the work item is the same in every frame."""
        value = strip_repeat(self.info.made, value)
        frame = SINGLE if self._is_single(value, frame) else frame
        key = value, frame
        if key not in self.scope.tiles:
            self.scope.tiles[key] = self._built(value, frame)
        return self.scope.tiles[key]

    def _is_single(self, value: Value, frame: Frame) -> bool:
        """True for an integer that no axis of a frame changes, wherever it is read."""
        if not isinstance(self.info.made.get(value), s.Gather | s.Source | m.Cast | m.Add | m.Sub):
            return False
        plain = is_countable(value) and not self.info.element(value)
        return plain and self.memory.tiled.isdisjoint(self.info.depends[value])

    def _built(self, value: Value, frame: Frame) -> Value:
        op, build = self.info.made.get(value), self.build
        if value in self.scope.statistics:
            return self.scope.statistics[value]
        if isinstance(op, m.Const):
            return build.number(op.value, self.state.dtype(value))
        if isinstance(op, m.SizeValue):
            return self.state.build.number_of(build.size(op.size), self.state.dtype(value))
        found = self._streamed(op, frame)
        if found is None:
            found = self._simplified(op, frame)
        if found is not None:
            return found
        if op is None or "pointwise" not in op.traits:
            name = op.name if op else "an input"
            raise UnsupportedError(f"{name} on a GPU", op.loc if op else None)
        operands = [self.tile(v, frame) for v in op.operands]
        return build(type(op), *operands, hint=value.hint, **op.attrs)

    def _streamed(self, op: Op | None, frame: Frame) -> Value | None:
        """What comes from memory, positions, and sums inside elements."""
        if isinstance(op, s.Index):
            dtype = self.state.dtype(op.result)
            return self.memory.position(op.axis, frame, self.scope.place, dtype)
        if isinstance(op, s.Source):
            return self.memory.load(op, frame, self.scope.place)
        if isinstance(op, s.Gather):
            return self._gather(op, frame)
        if isinstance(op, CachedStream):
            return self.code_block(op, frame).value()
        if isinstance(op, s.Contract):
            return self._product(op, frame)
        return self._fold(op, frame) if isinstance(op, s.Fold) else None

    def _simplified(self, op: Op | None, frame: Frame) -> Value | None:
        """Pointwise operations that cost less than they say."""
        if isinstance(op, m.Select) and op.condition in self.conditions and not self.scope.masked:
            return self.tile(op.lhs, frame)
        if isinstance(op, m.Exp | m.Exp2) and self.state.dtype(op.result) == F32:
            return self._power(op, frame)
        return self._as_it_was(op, frame) if isinstance(op, m.Cast) else None

    def _as_it_was(self, op: m.Cast, frame: Frame) -> Value | None:
        """A cast to 16 bits of what was cast from them, or is a constant where a mask hides it, and
        nothing else: as it lies in memory, from where matrix units take it."""
        below, made = self.info.made.get(strip_repeat(self.info.made, op.x)), self.info.made
        hidden = below if isinstance(below, m.Select) else None
        if hidden is not None:
            below = made.get(strip_repeat(made, hidden.lhs))
        if not isinstance(below, m.Cast) or self.state.dtype(below.x) != op.dtype:
            return None
        if op.dtype not in (BF16, F16):
            return None
        if hidden is None or (hidden.condition in self.conditions and not self.scope.masked):
            return self.tile(below.x, frame)
        other = made.get(strip_repeat(made, hidden.rhs))
        if not isinstance(other, m.Const):
            return None
        condition, x = self.tile(hidden.condition, frame), self.tile(below.x, frame)
        none = self.build.number(other.value, op.dtype)
        return self.build(m.Select, condition, x, none, hint=below.x.hint)

    def _gather(self, op: s.Gather, frame: Frame) -> Value:
        indices, at = list(op.indices), []
        for (name,) in op.dims:
            if name == s.INDEXED:
                at.append((self.tile(indices.pop(0), frame), False))
            else:
                here = self.memory.position(name, frame, self.scope.place, I64)
                at.append((here, self.memory.stays_inside((name,))))
        x = self.memory.gather(op, at)
        for axis in self.info.element(op.result):
            x = self.memory.masked(x, axis.name, frame, self.scope.place, 0.0)
        return x

    # ---- exponentials

    def scaled(self, value: Value, frame: Frame) -> tuple[Value, float]:
        """A tile and a positive number whose product ``value`` is."""
        value = strip_repeat(self.info.made, value)
        key = value, frame
        if key not in self.scope.scaled:
            self.scope.scaled[key] = self._scaled(value, frame)
        return self.scope.scaled[key]

    def _scaled(self, value: Value, frame: Frame) -> tuple[Value, float]:
        op = self.info.made.get(value)
        if isinstance(op, m.Mul) and self.state.dtype(value) == F32:
            factor = self._constant(op.rhs)
            if factor is not None and 0 < factor < math.inf:
                x, inner = self.scaled(op.lhs, frame)
                return x, inner * factor
        if isinstance(op, m.Select) and self._constant(op.rhs) == -math.inf:
            x, factor = self.scaled(op.lhs, frame)
            if op.condition in self.conditions and not self.scope.masked:
                return x, factor
            condition = self.tile(op.condition, frame)
            none = self.build.number(-math.inf, F32)
            return self.build(m.Select, condition, x, none, hint=value.hint), factor
        return self.tile(value, frame), 1.0

    def _constant(self, value: Value) -> float | None:
        op = self.info.made.get(strip_repeat(self.info.made, value))
        return float(op.value) if isinstance(op, m.Const) else None

    def _power(self, op: Any, frame: Frame) -> Value:
        b, hint = self.build, op.result.hint
        base = LOG2E if isinstance(op, m.Exp) else 1.0
        below = self.info.made.get(strip_repeat(self.info.made, op.x))
        if isinstance(below, m.Sub) and is_steady(self.info, below.rhs):
            x, factor = self.scaled(below.lhs, frame)
            shift = b(m.Mul, self.tile(below.rhs, frame), b.number(-base, F32), hint="shift")
            x = b(m.Fma, x, b.number(factor * base, F32), shift, hint="power")
        else:
            x, factor = self.scaled(op.x, frame)
            x = b(m.Mul, x, b.number(factor * base, F32), hint="power")
        return b(m.Exp2, x, hint=hint)

    # ---- products and folds

    def narrow(self, value: Value) -> tuple[Value, DType]:
        """What lies below a cast of 16-bit floats to f32, and its dtype."""
        value = strip_repeat(self.info.made, value)
        op = self.info.made.get(value)
        if isinstance(op, m.Cast) and self.state.dtype(op.x) in (BF16, F16):
            return op.x, self.state.dtype(op.x)
        return value, self.state.dtype(value)

    def sides(self, op: s.Contract) -> tuple[Value, Value]:
        """What a row brings and what rows share; both as narrow as they lie in memory."""
        row, inner = self.rows.row_side(op)
        (below, dtype), (other, same) = self.narrow(row), self.narrow(inner)
        if isinstance(self.info.made.get(other), CachedStream):  # as narrow as what it meets
            return below, other
        return (below, other) if dtype == same else (row, inner)

    @cached_property
    def code_dtype(self) -> DType:
        """What numbers from a cache are rounded to in products: as narrow as the rows are."""
        rows = {self.narrow(self.rows.row_side(op)[0])[1] for op in self.info.products}
        return next(iter(rows)) if len(rows) == 1 else F32

    def prepare(self, op: s.Contract) -> None:
        """Builds what rows bring to a product, [rows, terms], once for all blocks."""
        row, inner = self.sides(op)
        x = self.operands[op] = self._operand(row, self.row_frame(op.axes[0]), op.axes[0])
        if any(isinstance(o, CachedStream) for o in self.info.graph.body.ops):
            wide = x if self.code_dtype == F32 else self.build(m.Cast, x, dtype=F32, hint=x.hint)
            self.sums[op] = self.build(t.Reduce, wide, kind="sum", dim=1, hint="row_sum")
        if self._meets_bytes(inner):
            self.operands[op], self.powers[op] = in_f16(self.build, x)

    def _meets_bytes(self, inner: Value) -> bool:
        """Whether threads unpack codes of 8 bits for bf16 rows."""
        cache = self.info.made.get(inner)
        if not self.one_warp or self.code_dtype != BF16 or not isinstance(cache, CachedStream):
            return False
        return has_one_scale(cache) and cache.form.bits == 8

    def _operand(self, value: Value, frame: Frame, axis: str) -> Value:
        """A side of a product: whole, and zero past the axis's end."""
        x = self.memory.widened(self.tile(value, frame), frame.layout)
        if isinstance(self.info.made.get(value), CachedStream):
            x = self.narrowed(x)
        if isinstance(self.info.made.get(strip_repeat(self.info.made, value)), s.Source):
            return x
        return self.memory.masked(x, axis, frame, self.scope.place, 0.0)

    def _product(self, op: s.Contract, frame: Frame) -> Value:
        axis = op.axes[0]
        if frame != self.score_frame:
            raise UnsupportedError("a product that is read along another axis", op.loc)
        _, inner = self.sides(op)
        shared = Frame((axis, self.info.inner.name), (self.length(axis), frame.sizes[1]))
        zero, cache = self.build.filled(0, F32, frame.layout), self.info.made.get(inner)
        if isinstance(cache, CachedStream) and has_one_scale(cache):
            return self._coded_product(op, cache, shared, zero)
        a, c = self.operands[op], self._operand(inner, shared, axis)
        return self.build(t.Product, zero, a, c, hint=op.result.hint)

    def _coded_product(
        self, op: s.Contract, cache: CachedStream, shared: Frame, zero: Value
    ) -> Value:
        """A product with a block's codes, which scales and zeros of tokens then put right."""
        b, a = self.build, self.operands[op]
        block = self.code_block(cache, shared)
        power = self.powers.get(op)
        codes = block.codes(self.code_dtype if power is None else F16)
        codes = self.memory.masked(codes, shared.axes[0], shared, self.scope.place, 0.0)
        raw = b(t.Product, zero, a, codes, hint="raw")
        raw = raw if power is None else b(m.Mul, raw, power, hint="raw")
        scale, from_zero = block.factors(1)
        less = b(m.Mul, self.sums[op], from_zero, hint="less")
        return b(m.Mul, b(m.Sub, raw, less, hint="raw"), scale, hint=op.result.hint)

    def code_block(self, cache: CachedStream, frame: Frame) -> CodeBlock:
        """A block of a cache here."""
        return CodeBlock(self.memory, cache, frame, self.scope.place, self.scope.masked)

    def narrowed(self, x: Value) -> Value:
        """Numbers of a cache as products take them."""
        if self.code_dtype == F32:
            return x
        return self.build(m.Cast, x, dtype=self.code_dtype, hint=x.hint)

    def _fold(self, op: s.Fold, frame: Frame) -> Value:
        """A reduction over an element's axis, in the frame that has it as the other dimension."""
        b, axis = self.build, op.axis
        around = self.info.depends[op.x] - {axis}
        varies = [frame.has(dim, around) for dim in (0, 1)]
        if all(varies):
            raise UnsupportedError("a reduction of an element for every row and position", op.loc)
        dim = 0 if varies[1] else 1
        axes, sizes = list(frame.axes), list(frame.sizes)
        axes[dim], sizes[dim] = axis, self.length(axis)
        inner = Frame((axes[0], axes[1]), (sizes[0], sizes[1]))
        x = self.memory.widened(
            self.tile(op.x, inner), inner.along(self.info.depends[op.x] | {axis})
        )
        x = self.memory.masked(x, axis, inner, self.scope.place, IDENTITY[op.kind])
        return b(t.Reduce, x, kind=op.kind, dim=dim, hint=op.result.hint)


def is_steady(info: KernelInfo, value: Value) -> bool:
    """True for what is one number a row throughout a block: computed from running statistics and
    from what does not change along the inner axis."""
    op = info.made.get(value)
    if not info.varies(value):
        return True
    if op is None or ("pointwise" not in op.traits and not isinstance(op, s.Repeat)):
        return False
    return all(is_steady(info, v) for v in op.operands)


def is_bounded(info: KernelInfo, value: Value) -> bool:
    """True for exponentials of scores less their running maximum: numbers from 0 to 1."""
    op: Op | None = info.made.get(strip_repeat(info.made, value))
    if isinstance(op, m.Cast):
        return is_bounded(info, op.x)
    if not isinstance(op, m.Exp | m.Exp2):
        return False
    below = info.made.get(strip_repeat(info.made, op.x))
    return isinstance(below, m.Sub) and info.phase[op.result] > 0 and is_steady(info, below.rhs)
