"""From a region to a module: parameters, operations, results, size names and guards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from tilewright.frontend.op_map.emitter import LookUp
from tilewright.frontend.op_map.registry import lookup
from tilewright.frontend.provenance import function_of
from tilewright.frontend.regions import Region
from tilewright.frontend.static_sizes import fix_element_sizes
from tilewright.frontend.symbols import SizeTable, hint
from tilewright.frontend.translate import Translator, fake_of
from tilewright.ir.core import Graph, Module, Value, size_names
from tilewright.ir.core import Region as Body
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import TensorType
from tilewright.runtime.locks import GENERATORS

Order = tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """A region's module. ``orders[i]``: how to permute result i to get torch's dimensions.
    ``look_ups``: nodes whose positions have to be looked at before its kernel."""

    module: Module
    orders: tuple[Order | None, ...]
    look_ups: tuple[tuple[Node, LookUp], ...] = ()


def build_module(region: Region) -> Built:
    """Translates a region; UnsupportedError if an operation or size cannot be expressed."""
    for node in region.nodes:
        entry = lookup(node)
        if entry is not None and entry.settle is not None:
            entry.settle(node)
    while True:
        built, translator = _translate(region)
        if not fix_element_sizes(built.module.main, translator.sizes):
            break
    _guard_floats(translator.floats)
    return built


def _translate(region: Region) -> tuple[Built, Translator]:
    translator = Translator(SizeTable([fake_of(n).shape for n in region.inputs]))
    parameters = tuple(translator.parameter(node) for node in region.inputs)
    for node in region.nodes:
        translator.node(node)
    orders = tuple(memory_order(fake_of(n)) for n in region.outputs)
    results = tuple(
        _in_memory_order(translator, node, order)
        for node, order in zip(region.outputs, orders, strict=True)
    )
    sizes = [s for p in parameters if isinstance(p.type, TensorType) for s in p.type.shape]
    body = Body(parameters, tuple(translator.emitter.builder.ops), results)
    graph = Graph("graph", function_of(region.anchor), size_names(sizes), body)
    backward = tuple(None if o is None else _inverse(o) for o in orders)
    nodes = {value: node for node, value in translator.scope.items()}
    look_ups = tuple((nodes[one.ids], one) for one in translator.emitter.looked_up)
    return Built(Module((graph,)), backward, look_ups), translator


def memory_order(fake: torch.Tensor) -> Order | None:
    """The dimensions of a dense tensor from the largest stride to the smallest, None if in order.

    Later views of the captured function may rely on it: SDPA's [b, h, n, d] lies as [b, n, h, d].
    """
    sizes, strides = [hint(s) for s in fake.shape], [hint(s) for s in fake.stride()]
    order = sorted(range(len(sizes)), key=lambda d: (sizes[d] != 1, strides[d]), reverse=True)
    large = [d for d in order if sizes[d] != 1]
    expected = 1
    for dim in reversed(large):
        if strides[dim] != expected:
            return None
        expected *= sizes[dim]
    if large == sorted(large):
        return None
    places = iter(large)
    return tuple(d if sizes[d] == 1 else next(places) for d in range(len(sizes)))


def _in_memory_order(translator: Translator, node: Node, order: Order | None) -> Value:
    value = translator.scope[node]
    assert isinstance(value, Value)
    return value if order is None else translator.emitter.transpose(value, order)


def _inverse(order: Order) -> Order:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _guard_floats(floats: Sequence[torch.SymFloat]) -> None:
    """Guards the values of Python floats that the graph took as constants.

    One that depends on a size that stays symbolic (a length) would need a kernel for every length.
    """
    if not floats:
        return
    with GENERATORS.lock:
        from torch.utils._sympy.symbol import SymT, symbol_is_type  # brings sympy, half a second

    for value in floats:
        expr = value.node.expr
        if expr.is_number:
            continue
        if not all(symbol_is_type(s, SymT.FLOAT) for s in expr.free_symbols):
            raise UnsupportedError(f"the number {expr} depends on a size that may change")
        float(value)
