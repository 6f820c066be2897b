"""The terms of a vector-valued sum as scalar * vector: the scalar differs from row to row, the
vector is what the rows share."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import StreamType
from tilewright.passes.to_tile.kernel_info import KernelInfo, strip_casts


def weight_of(info: KernelInfo, op: s.Reduce) -> tuple[Value, Value]:
    """(scalar factor, vector factor) of a sum's terms, each the product of several if need be."""
    below, _ = strip_casts(info, op.x)
    scalars: list[Value] = []
    vectors: list[Value] = []
    for value in _factors(info, below):
        (vectors if info.element(value) else scalars).append(value)
    if op.kind != "sum" or not vectors or any(info.on_rows(v) for v in vectors):
        raise UnsupportedError("a vector-valued sum whose terms are not scalar * vector", op.loc)
    if not scalars:
        one = StreamType((), (), F32)  # sums are kept in f32
        scalars = [info.derive(m.Const(value=1.0, type=one, hints=["one"]))]
    return _product(info, scalars), _product(info, vectors)


def _factors(info: KernelInfo, value: Value) -> list[Value]:
    """The factors of a product with a vector in it; a product of scalars is one factor."""
    op = info.made.get(value)
    if not isinstance(op, m.Mul) or not info.element(value):
        return [value]
    return _factors(info, op.lhs) + _factors(info, op.rhs)


def _product(info: KernelInfo, values: list[Value]) -> Value:
    product = values[0]
    for value in values[1:]:
        product = info.derive(m.Mul(product, value, hints=["weight"]))
    return product
