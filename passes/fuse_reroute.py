"""Routing in as few kernels as its channels allow: one for few tokens, and what many share out.

What waits for counts waits for all tokens: a channel as deep as the batch, which partition cuts
(passes/partition.py). Two facts about the number of tokens change that:

*At most* ``FEW`` *tokens.* Then no channel holds more than FEW elements: a constant depth, so that
gate product, scores, choice, adapters' map, counts, offsets and permutation are one kernel, which
walks the tokens once for each level.

*Many tokens.* Counters of one worker would make all others wait. Each part of the loop is counted
by itself, and what needs the counts adds those of the parts up, once:

    counts = segment_count ids   ->   parts = segment_count ids {parts = 16}      in the loop
                                      counts = fold parts {kind = "sum"}          after it
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import I32
from tilewright.ir.ops_routing_stream import StreamSegmentCount, StreamSegmentRank
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.rewrite import sizes_in
from tilewright.passes.to_tile.kernel_info import is_routing

PARTS = 16  # of a loop over tokens: as many workers can take part


def whole_routing(module: Module, kernels: Module) -> Graph | None:
    """The graph of ``module`` before it was cut into ``kernels``, if all of these route tokens of
    one loop; None else, and if it was not cut."""
    if (
        len(module.graphs) != 1
        or len(kernels.graphs) < 2
        or not all(map(is_routing, kernels.graphs))
    ):
        return None
    return module.graphs[0]


@dataclass(frozen=True)
class SharedCounts:
    """``loop`` counts parts: its results are those of the whole graph at ``loop_results``, then the
    counts of the parts. ``after`` takes these, then inputs ``after_inputs`` of the whole graph, and
    gives the results at ``after_results``."""

    loop: Graph
    after: Graph
    loop_results: tuple[int, ...]
    after_inputs: tuple[int, ...]
    after_results: tuple[int, ...]


def share_counts(graph: Graph, parts: int = PARTS) -> SharedCounts | None:
    """A stream kernel that counts, as two; None if it does not, or if its loop needs the counts or
    all tokens before one (a rank)."""
    if any(isinstance(op, StreamSegmentRank) for op in graph.body.ops):
        return None
    counts = [op for op in graph.body.ops if isinstance(op, StreamSegmentCount)]
    late: set[Value] = {op.result for op in counts}
    for op in graph.body.ops:
        if any(v in late for v in op.operands):
            late.update(op.results)
    if not counts or any(isinstance(v.type, StreamType) and v.type.loops for v in late):
        return None
    loop, crossing = _loop(graph, late, parts)
    after, inputs = _after(graph, late, crossing)
    if not sizes_in(after.body.ops) <= {*after.sizes}:
        return None  # such as the number of tokens, which nothing it reads has
    results = [v in late for v in graph.results]
    return SharedCounts(
        loop,
        after,
        tuple(i for i, moved in enumerate(results) if not moved),
        inputs,
        tuple(i for i, moved in enumerate(results) if moved),
    )


def _loop(graph: Graph, late: set[Value], parts: int) -> tuple[Graph, dict[Value, Value]]:
    """What does not need the counts, and for each count the memory of its parts."""
    build, counted = Builder(), dict[Value, Value]()
    for op in graph.body.ops:
        if isinstance(op, StreamSegmentCount):
            attrs = {**op.attrs, "parts": parts}
            counted[op.result] = build(StreamSegmentCount, op.ids, hint=op.result.hint, **attrs)
        elif not any(v in late for v in op.operands):
            build.add(op)
    crossing = {}
    for count, found in counted.items():  # behind the others: results are in the order of the sinks
        assert isinstance(found.type, StreamType)
        kind = TensorType(tuple(a.size for a in found.type.element), I32)
        dims = tuple((a.name,) for a in found.type.element)
        crossing[count] = build(s.Sink, found, dims=dims, type=kind, hint=f"{count.hint}_of_parts")
    results = (*(v for v in graph.results if v not in late), *crossing.values())
    body = Region(graph.params, tuple(build.ops), results)
    return Graph("stream", graph.name, graph.sizes, body), crossing


def _after(
    graph: Graph, late: set[Value], crossing: dict[Value, Value]
) -> tuple[Graph, tuple[int, ...]]:
    """What needs the counts, from those of the parts."""
    build, mapping = Builder(), dict[Value, Value]()
    params: list[Value] = []
    for count, sunk in crossing.items():
        assert isinstance(count.type, StreamType)
        (segments,) = count.type.element
        assert isinstance(sunk.type, TensorType)
        part = Axis("part", sunk.type.shape[0])
        params.append(Value(sunk.type, sunk.hint))
        kind = StreamType((), (part, segments), I32)
        dims = (("part",), (segments.name,))
        each = build(s.Source, params[-1], dims=dims, type=kind, hint="part_counts")
        mapping[count] = build(s.Fold, each, kind="sum", axis="part", hint=count.hint)
    ops = [op for op in graph.body.ops if any(v in late for v in op.operands)]
    needed = {v for op in ops for v in op.operands if v not in late}
    given: list[int] = []
    for op in _feeding(graph, needed):  # loopless numbers, made again
        for value in op.operands:
            if value in graph.params and value not in mapping:
                given.append(graph.params.index(value))
                mapping[value] = Value(value.type, value.hint)
                params.append(mapping[value])
        _copy(build, op, mapping)
    for op in ops:
        _copy(build, op, mapping)
    results = tuple(mapping[v] for v in graph.results if v in late)
    body = Region(tuple(params), tuple(build.ops), results)
    types = [v.type for v in params]
    names = {n for x in types if isinstance(x, TensorType) for size in x.shape for n in size.names}
    sizes = tuple(n for n in graph.sizes if n in names)
    return Graph("stream", f"{graph.name}_counts", sizes, body), tuple(given)


def _feeding(graph: Graph, needed: set[Value]) -> list[Op]:
    """The operations that make values, in order."""
    wanted, found = set(needed), list[Op]()
    for op in reversed(graph.body.ops):
        if any(v in wanted for v in op.results):
            found.append(op)
            wanted.update(op.operands)
    return found[::-1]


def _copy(build: Builder, op: Op, mapping: dict[Value, Value]) -> None:
    fresh = type(op)(
        *(mapping[v] for v in op.operands),
        loc=op.loc,
        hints=[v.hint for v in op.results],
        **op.attrs,
    )
    build.add(fresh)
    mapping.update(zip(op.results, fresh.results, strict=True))
