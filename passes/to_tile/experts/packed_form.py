"""Grouped products with experts' packed weights: what one is, and the buffers of its programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I32, U8, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.packing import QUAD, Packing
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, BufferType, StreamType, TensorType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.lowbit.info import PackedProduct, WeightForm


@dataclass(frozen=True)
class Stack:
    """Packed matrices of some experts in one tensor, ``parts`` of each expert (gate and up), of
    which ``taken`` are multiplied. ``integer``: with activations as bytes. ``factor``: times a
    number of each expert."""

    weight: WeightForm
    integer: bool
    parts: int = 1
    taken: tuple[int, ...] = (0,)
    factor: bool = False


Kind = tuple[Stack, ...]


@dataclass(frozen=True)
class PackedForm:
    """A grouped product of ``columns`` results of ``length`` products each, with weights of
    ``kinds``, each of one product in all or two, gate and up. ``x``: dtype of activations that are
    no bytes; ``bias`` dtype or None; ``scaled``: times a number of each row. ``indirect``: rows of
    x are not sorted."""

    length: int
    columns: int
    kinds: tuple[Kind, ...]
    x: DType
    gate: GateFunction
    bias: DType | None
    scaled: bool
    out: DType
    indirect: bool

    @property
    def products(self) -> int:
        return sum(len(stack.taken) for stack in self.kinds[0])


def reads_floats(kinds: Sequence[Kind]) -> bool:
    """Whether some product reads x itself."""
    return not all(stack.integer for kind in kinds for stack in kind)


def byte_groups(kinds: Sequence[Kind], length: int) -> tuple[int, ...]:
    """The sizes of groups in which some product reads x as bytes."""
    groups = (activation_group(w, length) for kind in kinds for w in kind if w.integer)
    return tuple(dict.fromkeys(groups))


def activation_group(stack: Stack, length: int) -> int:
    """Activations that share a scale: those of the weights' group."""
    return max(1, min(stack.weight.layout.group, length))


@dataclass
class Parts:
    """A stack's weights as a product reads them, and the factor of each of its experts."""

    stack: Stack
    weights: StreamDequantize
    factor: Value | None


class PackedBuffers:
    """Parameters of a program, and what reads them. ``build`` and ``buffers`` are what products of
    packed weights work in; weights lie in blocks of ``lanes`` rows."""

    def __init__(self, form: PackedForm, lanes: int) -> None:
        self.build, self.buffers = TileBuilder(), dict[Value, Value]()
        self.form, self.lanes = form, lanes
        self.blocks, self.cut = -(-form.columns // lanes), form.columns % lanes > 0
        self.params: list[Value] = []
        self.lookup: list[Value] = []
        self.kinds: list[list[Parts]] = []

    # ---- parameters, in their order

    def param(
        self, name: str, shape: Sequence[int | str | Size], dtype: DType, unit: int | None = None
    ) -> Value:
        sizes = tuple(Size.of(size) for size in shape)
        own = len(sizes) - 1 if unit is None else unit
        self.params.append(Value(BufferType(sizes, dtype, own), name))
        return self.params[-1]

    def tensor(self, name: str, shape: Sequence[int | str | Size], dtype: DType) -> Value:
        """A parameter as products name it."""
        buffer = self.param(name, shape, dtype)
        value = Value(TensorType(tuple(Size.of(size) for size in shape), dtype), name)
        self.buffers[value] = buffer
        return value

    def add_lookup(self) -> None:
        """With several kinds: the kind of each expert, and its place among those of its kind."""
        names = ("kinds", "slots") if len(self.form.kinds) > 1 else ()
        self.lookup = [self.param(name, ("E",), I32) for name in names]

    def floats(self, rows: Size) -> s.Source:
        """x [rows, K]"""
        x = self.tensor("x", (rows, self.form.length), self.form.x)
        return s.Source(x, dims=(("n",), ("k",)), type=self._stream(rows, self.form.x))

    def rounded(self, rows: Size, group: int) -> StreamDequantize:
        """x in groups of bytes."""
        packing = Packing.quads(8, 1, group)
        groups = packing.groups(self.form.length)
        width = groups * packing.padded_group // QUAD
        parts = [
            self.tensor(f"codes{group}", (rows, width), I32),
            self.tensor(f"steps{group}", (rows, groups), F32),
            self.tensor(f"sums{group}", (rows, groups), I32),
        ]
        return StreamDequantize(
            *parts,
            packing=str(packing),
            dtype=U8,
            dims=(("n",), ("k",)),
            type=self._stream(rows, F32),
            signed=True,
            extra="sums",
        )

    def add_weights(self) -> None:
        """Every stack's words [blocks, …], scales, zeros and factors f32 [E]."""
        self.kinds = [
            [self._parts(stack, f"{k}_{i}") for i, stack in enumerate(kind)]
            for k, kind in enumerate(self.form.kinds)
        ]

    def _parts(self, stack: Stack, name: str) -> Parts:
        weight, packing = stack.weight, stack.weight.layout
        if packing.lanes != self.lanes:
            raise UnsupportedError(
                f"weights are packed for {packing.lanes} lanes, the target has {self.lanes}"
            )
        blocks = Size.of(f"B{name}")
        _, chunks, words, lanes = packing.word_shape(1, self.form.length)
        beside = (blocks, packing.groups(self.form.length) * lanes)
        given = [
            self.tensor(f"words{name}", (blocks, chunks * words * lanes), I32),
            self.tensor(f"scales{name}", beside, weight.scales),
        ]
        if weight.zeros is not None:
            given.append(self.tensor(f"zeros{name}", beside, weight.zeros))
        op = StreamDequantize(
            *given,
            packing=weight.packing,
            dtype=weight.dtype,
            dims=(("n",), ("k",)),
            type=self._stream(blocks * lanes, F32),
            zero=weight.zero,
            extra="" if weight.zeros is None else "zeros",
            scale=weight.scale_dtype,
        )
        factor = self.param(f"factor{name}", (f"F{name}",), F32) if stack.factor else None
        return Parts(stack, op, factor)

    def add_biases(self, dtype: DType | None) -> list[Value]:
        """[E, N] of every product; none without a dtype."""
        count = range(0 if dtype is None else self.form.products)
        shape = ("E", self.form.columns)
        return [self.param(f"bias{i}", shape, dtype or F32, unit=-1) for i in count]

    def _stream(self, rows: Size, dtype: DType) -> StreamType:
        return StreamType((Axis("n", rows),), (Axis("k", Size.of(self.form.length)),), dtype)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Of all parameters."""
        types = (p.type for p in self.params)
        shapes = (x.shape for x in types if isinstance(x, BufferType))
        return tuple(dict.fromkeys(n for shape in shapes for z in shape for n in z.names))

    # ---- what an expert's weights are

    def of_kind(self, expert: Value, write: Callable[[Sequence[Parts], Value], None]) -> None:
        """What ``write`` does with an expert's weights, given its place in their stacks."""
        b = self.build
        if not self.lookup:
            write(self.kinds[0], expert)
            return
        kind, slot = (b(t.Read, table, expert, hint="kind") for table in self.lookup)
        for at, parts in enumerate(self.kinds):
            with b.when_less(b.index(at - 1), kind), b.when_less(kind, b.index(at + 1)):
                write(parts, slot)

    def first_block(self, parts: Parts, slot: Value, part: int) -> Value:
        """The block with which a matrix of an expert begins."""
        b = self.build
        first = b.mul(b.mul(slot, parts.stack.parts), self.blocks)
        return b.add(first, part * self.blocks)

    def factor(self, parts: Parts, slot: Value, layout: Layout) -> Value | None:
        """[1, 1]: the expert's factor."""
        if parts.factor is None:
            return None
        return self.build.load(parts.factor, [slot], (-1,), layout)

    def product(self, parts: Parts, x: s.Source | StreamDequantize) -> PackedProduct:
        return PackedProduct(parts.weights.result, parts.weights, x)
