"""Size names: every size of a region follows from the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tilewright.frontend.symbols import SizeTable, must_be_multiple, must_equal
from tilewright.frontend.translate import fake_of
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

Function = Callable[..., Any]


def captured(function: Function, *tensors: torch.Tensor) -> list[list[Any]]:
    """The shapes of the results as Dynamo sees them."""
    found: list[list[Any]] = []

    def backend(gm: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        (output,) = [n for n in gm.graph.nodes if n.op == "output"]
        found.extend(list(fake_of(n).shape) for n in output.all_input_nodes)
        return gm.forward

    torch.compile(function, backend=backend, dynamic=True)(*tensors)
    return found


def binding(
    table: SizeTable, shapes: Sequence[Sequence[Any]], values: list[list[int]]
) -> dict[str, int]:
    params = tuple(Value(TensorType(table.shape(s), F32), f"p{i}") for i, s in enumerate(shapes))
    names = sorted({n for p in params for s in p.type.shape for n in s.names})  # type: ignore[union-attr]
    return bind_sizes(
        Graph("graph", "g", tuple(names), Region(params, ())), [tuple(v) for v in values]
    )


def test_bare_symbols_products_and_sums() -> None:
    x, y = torch.ones(4, 6), torch.ones(3, 6)
    shapes = captured(
        lambda x, y: (x * 1, x.new_ones(x.size(0) * y.size(0)), torch.cat([x, y]), y[:, 1:] * 1),
        x,
        y,
    )
    whole, flat, joined, cut = shapes
    table = SizeTable([whole, flat, joined])
    rows, columns = table.shape(whole)
    other = table.of(joined[0]) - rows
    assert table.of(flat[0]) == rows * other
    assert table.of(cut[1]) == columns - 1
    values = binding(table, [whole, flat, joined], [[4, 6], [12], [7, 6]])
    assert [s.evaluate(values) for s in (rows, columns, other)] == [4, 6, 3]


def test_a_sum_takes_the_name_and_its_symbol_follows() -> None:
    """Keys of length past + 1: the whole is N, past is N - 1."""
    past = torch.ones(5, 8)
    joined, before = captured(lambda p: (torch.cat([p, p[:1]]), p * 1), past)
    table = SizeTable([joined])
    total = table.of(joined[0])
    assert len(total.names) == 1 and total == Size.of(next(iter(total.names)))
    assert table.of(before[0]) == total - 1
    values = binding(table, [joined], [[6, 8]])
    assert table.of(before[0]).evaluate(values) == 5


def test_what_does_not_follow_is_refused() -> None:
    x, y = captured(lambda x, y: (x * 1, y * 1), torch.ones(4, 6), torch.ones(3, 7))
    with pytest.raises(UnsupportedError, match="does not follow"):
        SizeTable([x]).of(y[0])


def test_quotients_of_broadcast_products() -> None:
    x, odd = captured(lambda x: (x * 1, x[None] @ x.mT), torch.ones(4, 6, 7))
    table = SizeTable([x])
    rows, columns, _ = table.shape(x)
    assert table.shape(odd) == (Size.of(1), rows, columns, columns)


def test_guards() -> None:
    heads, shared = captured(lambda x, y: (x * 1, y * 1), torch.ones(8, 5), torch.ones(4, 6))
    must_be_multiple(heads[0], shared[0])
    table = SizeTable([heads, shared])
    assert table.of(heads[0]) == table.of(shared[0]) * 2
    with pytest.raises(UnsupportedError, match="not a multiple"):
        must_be_multiple(heads[1], shared[0])
    with pytest.raises(UnsupportedError, match="should be equal"):
        must_equal(heads[1], shared[1])
