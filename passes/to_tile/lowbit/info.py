"""What a kernel with packed weights consists of: its products, their packings, its rows."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.packing import Packing
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, TensorType

_WIDE = (F32, BF16, F16)  # f16 on GPUs only


@dataclass(frozen=True)
class WeightForm:
    """What a program has to know of one weight; its rows are free."""

    packing: str
    dtype: DType
    zero: int
    zeros: DType | None
    scales: DType
    scale_dtype: DType
    bias: DType | None

    @property
    def layout(self) -> Packing:
        return Packing.parse(self.packing)


@dataclass(frozen=True)
class PackedProduct:
    """sum over k of activations[m, k] * weights[n, k]; activations are f32, bf16 or f16 in memory,
    or packed codes of eight bits, too."""

    result: Value
    weights: StreamDequantize
    activations: s.Source | StreamDequantize

    @property
    def packing(self) -> Packing:
        return self.weights.layout

    @property
    def integer(self) -> bool:
        """True if both sides are integers: products of bytes, added up in 32 bits."""
        return isinstance(self.activations, StreamDequantize)

    @property
    def narrow(self) -> bool:
        """True if activations are bf16 in memory."""
        return not self.integer and getattr(self.activations.type, "dtype", None) == BF16

    @property
    def length(self) -> int:
        """Codes of a row."""
        known = self.weights.length.constant
        if known is None:
            raise UnsupportedError("the number of codes of a row must be known", self.weights.loc)
        return known

    @property
    def blocks(self) -> Size:
        words = self.weights.words.type
        assert isinstance(words, TensorType)
        return words.shape[0]


def has_packed_weights(graph: Graph) -> bool:
    """True if the kernel reads packed codes."""
    return any(isinstance(op, StreamDequantize) for op in graph.body.ops)


def packed_products(graph: Graph) -> tuple[PackedProduct, ...]:
    """All products of a kernel. Raises UnsupportedError where one has no such form."""
    made = graph.producers()
    found = []
    for op in graph.body.ops:
        if not isinstance(op, s.Contract):
            continue
        sides = [made.get(v) for v in (op.lhs, op.rhs)]
        # both sides may be packed for one lane: activations are the side of signed bytes
        weights = [x for x in sides if isinstance(x, StreamDequantize) and not x.signed]
        others = [x for x in sides if x not in weights]
        if len(weights) != 1 or len(others) != 1:
            raise UnsupportedError("a product without packed weights beside one with", op.loc)
        other = _below_cast(made, others[0])
        if isinstance(other, StreamDequantize):
            if other.layout != Packing.quads(8, 1, other.layout.group):
                raise UnsupportedError("packed activations must be bytes on one lane", op.loc)
        elif not isinstance(other, s.Source) or getattr(other.type, "dtype", None) not in _WIDE:
            raise UnsupportedError(
                "activations must be f32, bf16 or f16 in memory, or packed bytes", op.loc
            )
        assert isinstance(other, s.Source | StreamDequantize)
        found.append(PackedProduct(op.result, weights[0], other))
    _check_alike(found)
    return tuple(found)


def _below_cast(made: dict[Value, Op], op: Op | None) -> Op | None:
    """What is read from memory where it becomes f32 on the way."""
    if not isinstance(op, m.Cast) or op.dtype != F32:
        return op
    below = made.get(op.x)
    return below if isinstance(below, s.Source) else op


def _check_alike(products: list[PackedProduct]) -> None:
    rows = {p.weights.dims[0] for p in products}
    lanes = {p.packing.lanes for p in products}
    if len(rows) != 1 or len(lanes) != 1:
        raise UnsupportedError("packed weights with other rows or lanes in one kernel")


def weight_axis(graph: Graph) -> Axis:
    """The loop over the rows of the weights, which lie on lanes."""
    product = packed_products(graph)[0]
    name = product.weights.dims[0]
    assert hasattr(product.weights.type, "loops")
    for axis in product.weights.type.loops:
        if (axis.name,) == name:
            return axis
    raise UnsupportedError("packed weights of one row", product.weights.loc)
