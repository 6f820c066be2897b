"""Which sizes a kernel is compiled for: the head sizes, never the lengths.

In ``scores = q k^T`` the summed axis ``d`` lies inside one element of the stream, and so does ``e``
in ``scores v``; loops over them have to be unrolled. Their values are fixed by a guard.
"""

from __future__ import annotations

from tilewright.frontend.symbols import SizeTable, expression, make_static
from tilewright.ir.core import Graph, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_routing import TopK
from tilewright.ir.ops_tensor import Contract, Reduce, Softmax
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType


def fix_element_sizes(graph: Graph, sizes: SizeTable) -> bool:
    """Guards the values of symbolic element sizes; True if there were any. UnsupportedError for one
    that no guard makes a number."""
    found = [sizes.source(s) for s in element_sizes(graph) if s.constant is None]
    for dim in found:
        if dim is not None:
            make_static(dim)
            if not isinstance(expression(dim), int):
                raise UnsupportedError(f"the size {expression(dim)}, which varies, in an element")
    return any(dim is not None for dim in found)


def element_sizes(graph: Graph) -> list[Size]:
    """Axes summed in products of two inputs; axes that a product with scores adds to them; axes
    that numbers are chosen from."""
    computed: set[Value] = set()
    found: list[Size] = []
    for op in graph.body.ops:
        if isinstance(op, Contract):
            found.extend(_of_contraction(op, computed))
        if isinstance(op, TopK):
            found.append(_of_choice(op))
        if isinstance(op, Contract | Reduce | Softmax) or computed & set(op.operands):
            computed.update(op.results)
    return list(dict.fromkeys(found))


def _of_choice(op: TopK) -> Size:
    assert isinstance(op.x.type, TensorType)
    return op.x.type.shape[-1]


def _of_contraction(op: Contract, computed: set[Value]) -> list[Size]:
    left, right, out = op.letters()
    sides = [(left, op.lhs, right), (right, op.rhs, left)]
    given = [side for side in sides if side[1] not in computed]
    if len(given) == 2:
        inner = set(left + right) - set(out)
    else:
        inner = {c for letters, _, others in given for c in letters if c in out and c not in others}
    sizes: dict[str, Size] = {}
    for letters, value, _ in sides:
        assert isinstance(value.type, TensorType)
        sizes.update(zip(letters, value.type.shape, strict=True))
    return [sizes[c] for c in sorted(inner)]
