"""Puts a RegionCall into the FX graph where a region was, and keeps the region for torch."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from tilewright.frontend.build import Built, build_module
from tilewright.frontend.looked_up import LookUps
from tilewright.frontend.options import Options
from tilewright.frontend.provenance import location_of
from tilewright.frontend.region_call import Instead, RegionCall
from tilewright.frontend.regions import Region
from tilewright.frontend.translate import fake_of
from tilewright.ir.errors import UnsupportedError


class Rewriter:
    """Replaces the regions of one graph, in the order of their anchors."""

    def __init__(self, gm: GraphModule, options: Options) -> None:
        self.graph = gm.graph
        self.options = options
        self.renamed: dict[Node, Node] = {}  # results of regions -> the nodes that give them now

    def replace(self, region: Region, built: Built, name: str) -> RegionCall:
        """Calls the region's kernel; users of the results that came too early move behind."""
        region = self._up_to_date(region)
        call, extras = region_call(region, built, name, self.options)
        arguments = [*region.inputs, *extras]
        with self.graph.inserting_after(region.anchor):
            node = self.graph.call_function(call, tuple(arguments))
        results = _result_nodes(self.graph, node, region.outputs)
        for old, new in zip(region.outputs, results, strict=True):
            old.replace_all_uses_with(new)
            self.renamed[old] = new
        _erase_unused(self.graph, region.nodes)
        _move_users_behind(self.graph, node, results[-1])
        return call

    def _up_to_date(self, region: Region) -> Region:
        """The region with its inputs as its nodes have them since others were replaced."""
        plain = None if region.plain is None else self._up_to_date(region.plain)
        inputs = [self.renamed.get(n, n) for n in region.inputs]
        return replace(region, inputs=inputs, plain=plain)


def region_call(
    region: Region, built: Built, name: str, options: Options
) -> tuple[RegionCall, list[Node]]:
    """The callable for a region, and the nodes that it takes besides the tensor inputs."""
    fallback, extras, _ = fallback_module(region)
    lines = tuple(dict.fromkeys(location_of(n) for n in region.nodes if n in region.core))
    # products with weights and norms may run in torch at any time: strict is about attention
    own = replace(options, strict=options.strict and region.attention)
    instead = None if region.plain is None else _instead(region, region.plain, name, options)
    looked_up = look_ups(region, built) if built.look_ups else None
    call = RegionCall(name, built.module, built.orders, fallback, lines, own, instead, looked_up)
    return call, extras


def look_ups(region: Region, built: Built) -> LookUps:
    """What computes the positions that have to be looked at, of the arguments of the region."""
    module, _, copies = fallback_module(region)
    given = next(node for node in module.graph.nodes if node.op == "output")
    given.args = (tuple(copies[node] for node, _ in built.look_ups),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return LookUps(module, [one for _, one in built.look_ups], built.module.main)


def _instead(region: Region, plain: Region, name: str, options: Options) -> Instead | None:
    """The region's operations with a kernel for those of ``plain`` only."""
    try:
        call, extras = region_call(plain, build_module(plain), name, options)
    except UnsupportedError:
        return None
    module, _, copies = fallback_module(region)
    with module.graph.inserting_after(copies[region.anchor]):
        arguments = tuple(copies[n] for n in (*plain.inputs, *extras))
        node = module.graph.call_function(call, arguments)
    for old, new in zip(
        plain.outputs, _result_nodes(module.graph, node, plain.outputs), strict=True
    ):
        copies[old].replace_all_uses_with(new)
    # by hand: what the kernel replaces reads results of it already, which stand behind
    _erase_unused(module.graph, [copies[n] for n in plain.nodes])
    module.graph.eliminate_dead_code()
    module.recompile()
    return Instead(module, call)


def _erase_unused(graph: Graph, nodes: list[Node]) -> None:
    """Takes away those of ``nodes``, which stand in their order, that nothing needs any more."""
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)


def _result_nodes(graph: Graph, call: Node, outputs: list[Node]) -> list[Node]:
    """The call itself, or one getitem for each of several results."""
    if len(outputs) == 1:
        call.meta = dict(outputs[0].meta)
        return [call]
    call.meta = {"example_value": tuple(fake_of(o) for o in outputs)}
    results: list[Node] = []
    for at, output in enumerate(outputs):
        with graph.inserting_after(results[-1] if results else call):
            results.append(graph.call_function(operator.getitem, (call, at)))
        results[-1].meta = dict(output.meta)
    return results


def _move_users_behind(graph: Graph, call: Node, last: Node) -> None:
    """Moves nodes that stand before ``call`` but depend on it behind ``last``, in their order."""
    moved = {call}
    for node in list(graph.nodes):
        if node is call:
            return
        if any(source in moved or _is_result(source, call) for source in node.all_input_nodes):
            last.append(node)
            moved.add(node)
            last = node


def _is_result(node: Node, call: Node) -> bool:
    return node is call or (node.target is operator.getitem and node.args[0] is call)


def fallback_module(region: Region) -> tuple[GraphModule, list[Node], dict[Node, Node]]:
    """The region's operations for torch to run, the nodes it needs besides the tensor inputs
    (sizes, and tensors of which only the shape matters), and what every node is in it."""
    graph = Graph()
    copies = {node: graph.placeholder(f"x{at}") for at, node in enumerate(region.inputs)}
    extras: list[Node] = []

    def copied(node: Node) -> Any:
        return copies[node]

    for node in region.nodes:
        for source in node.all_input_nodes:
            if source not in copies:
                copies[source] = _constant(source)
            if copies[source] is None:
                copies[source] = graph.placeholder(f"extra{len(extras)}")
                extras.append(source)
        copies[node] = graph.node_copy(node, copied)
    graph.output(tuple(copies[node] for node in region.outputs))
    _placeholders_first(graph)
    return GraphModule(torch.nn.Module(), graph), extras, copies


def _constant(node: Node) -> Any:
    """The number that a symbolic node was guarded to have, None for everything that may change."""
    value = fake_of(node)
    if isinstance(value, torch.SymFloat):
        return float(value.node.hint)
    if isinstance(value, torch.SymInt) and value.node.expr.is_Integer:
        return int(value.node.expr)
    return value if isinstance(value, int | float) else None


def _placeholders_first(graph: Graph) -> None:
    first = next(iter(graph.nodes))
    for node in reversed([n for n in graph.nodes if n.op == "placeholder"]):
        if node is not first:
            first.prepend(node)
            first = node
