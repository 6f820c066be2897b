"""Which of the three ways a product with packed weights is computed in."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_stream as s
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.lowbit.decode import decoder
from tilewright.passes.to_tile.lowbit.floating import FloatProduct
from tilewright.passes.to_tile.lowbit.grouped import GroupedProduct
from tilewright.passes.to_tile.lowbit.halves import HalfTable
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.integer import IntegerProduct
from tilewright.passes.to_tile.lowbit.pairs import PairProduct, pair_table
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.weights import Workplace


def product_writer(
    work: Workplace, product: PackedProduct, schedule: PackedSchedule, target: Target
) -> GroupedProduct:
    """What writes a product's sums: of bytes, of pairs of bf16, or of f32."""
    if product.integer:
        return IntegerProduct(work, product, schedule, target)
    pairs = _pairs(work, product, target) if product.narrow else None
    if pairs is not None:
        return PairProduct(work, product, schedule, pairs)
    return FloatProduct(work, product, schedule, target)


def _pairs(work: Workplace, product: PackedProduct, target: Target) -> HalfTable | None:
    """How a product with activations in bf16 takes two codes at once; None if it does not."""
    assert isinstance(product.activations, s.Source)
    memory, w = work.buffers[product.activations.tensor].type, product.weights
    assert isinstance(memory, BufferType)
    if memory.unit != 1:  # neighbours need not lie side by side
        return None
    zero = w.zero if w.extra != "zeros" else 0
    return pair_table(w.layout, w.dtype, zero, product.length, target)


def unpack_slots(products: Sequence[PackedProduct], target: Target) -> float | None:
    """Instructions that make a register of f32 weights, the most of any product; None where one has
    activations in bytes or bf16."""
    if any(product.integer or product.narrow for product in products):
        return None
    most = 0.0
    for product in products:
        w = product.weights
        zero = w.zero if w.extra != "zeros" else 0
        way = decoder(product.packing, w.dtype, zero, target)
        most = max(most, way.instructions(target) / product.packing.chunk)
    return most
