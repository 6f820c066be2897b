"""Cuts a stream graph at its deep channels: each part is a kernel, what crosses goes through
memory.

A module of one stream graph becomes a module of kernels in order. Wiring is by name: a kernel's
parameter is an input of the program, or the result of that name of an earlier kernel.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_remake import RemakeStream
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.channels import deep_inputs
from tilewright.passes.reorder.along import LoopAnalysis
from tilewright.passes.rewrite import sizes_in

# made anew in every kernel that needs them
_FREE = (s.Source, s.Gather, CachedStream, RemakeStream, s.Index, s.Repeat, m.Const, m.SizeValue)


def partition_graph(graph: Graph) -> tuple[Graph, ...]:
    """The kernels of one stream graph, in an order in which they can run."""
    level = levels(graph)
    last = max(level.values(), default=0)
    if last == 0:
        return (graph,)
    names, sunk = _memory_names(graph), _results_in_memory(graph)
    names.update({value: result.hint for value, result in sunk.items()})
    kept = [_Part(graph, level, at, names, sunk).build() for at in range(last + 1)]
    return tuple(g for g in kept if g.results)


def levels(graph: Graph) -> dict[Op, int]:
    """How many deep channels lie before each op on the worst path. What a loop waits for from a
    loop over the same axis comes from an earlier kernel, too: a kernel runs each loop once."""
    deep = deep_inputs(graph)
    producers = graph.producers()
    loops = LoopAnalysis()
    level: dict[Op, int] = {}
    for op in graph.body.ops:
        found = [0]
        for at, value in enumerate(op.operands):
            producer = producers.get(value)
            if producer is not None:
                axis = _entered(op, value, producer)
                waits = axis is not None and loops.along(producers, axis.name).late(value)
                found.append(level[producer] + ((op, at) in deep or waits))
        level[op] = max(found)
    return level


def _entered(op: Op, value: Value, producer: Op) -> Axis | None:
    """The loop in which an op gets a value that runs in none of it: repeated, or one number for a
    graph's only loop."""
    if isinstance(producer, s.Repeat):
        return producer.axis
    here = op.results[0].type
    if not isinstance(value.type, StreamType) or not isinstance(here, StreamType):
        return None
    return here.loops[-1] if here.loops and not value.type.loops else None


class _Part:
    """The kernel made of the ops of one level."""

    def __init__(
        self,
        graph: Graph,
        level: dict[Op, int],
        at: int,
        names: dict[Value, str],
        sunk: dict[Value, Value],
    ) -> None:
        self.graph, self.level, self.at, self.names = graph, level, at, names
        self.sunk = sunk
        self.producers = graph.producers()
        self.build_ = Builder()
        self.values: dict[Value, Value] = {}
        self.params: dict[Value, Value] = {}

    def build(self) -> Graph:
        results = []
        for value in self._leaving():
            producer = self.producers[value]
            if isinstance(producer, s.Sink):
                results.append(self.take(value))
            else:
                results.append(self.spill(value))
        body = Region(tuple(self.params.values()), tuple(self.build_.ops), tuple(results))
        name = f"{self.graph.name}_{self.at}"
        used = sizes_in(body.ops)
        return Graph("stream", name, tuple(n for n in self.graph.sizes if n in used), body)

    def _leaving(self) -> list[Value]:
        """Sinks of this level and values that later levels read."""
        out: dict[Value, None] = {}
        for op in self.graph.body.ops:
            if isinstance(op, s.Sink) and self.level[op] == self.at:
                out.setdefault(op.result)
            if self.level[op] > self.at:
                crossing = [v for value in op.operands for v in self._crossing(value)]
                out.update(dict.fromkeys(self.sunk.get(v, v) for v in crossing))
        return list(out)

    def _crossing(self, value: Value) -> list[Value]:
        producer = self.producers.get(value)
        if producer is None or self.level[producer] > self.at:
            return []
        if isinstance(producer, _FREE):
            return [v for o in producer.operands for v in self._crossing(o)]
        return [value] if self.level[producer] == self.at else []

    def take(self, value: Value) -> Value:
        """``value`` inside this kernel: computed here, or read back from memory."""
        if value in self.values:
            return self.values[value]
        producer = self.producers.get(value)
        if producer is None:
            self.values[value] = self.params.setdefault(value, Value(value.type, value.hint))
        elif self.level[producer] == self.at or isinstance(producer, _FREE):
            op = producer.rebuilt([self.take(v) for v in producer.operands])
            fresh = op if op is not producer else type(op)(*op.operands, loc=op.loc, **op.attrs)
            self.build_.add(fresh)
            for old, new in zip(producer.results, fresh.results, strict=True):
                new.hint = old.hint
                self.values[old] = new
        else:
            self.values[value] = self.fill(value)
        return self.values[value]

    def spill(self, value: Value) -> Value:
        stream = self.take(value)
        type_, dims = _in_memory(value)
        return self.build_(s.Sink, stream, dims=dims, type=type_, hint=self.names[value])

    def fill(self, value: Value) -> Value:
        type_, dims = _in_memory(value)
        key = Value(type_, self.names[value])
        param = self.params.setdefault(value, key)
        return self.build_(s.Source, param, dims=dims, type=value.type, hint=value.hint)


def _in_memory(value: Value) -> tuple[TensorType, tuple[tuple[str, ...], ...]]:
    assert isinstance(value.type, StreamType)
    axes = value.type.axes
    return TensorType(tuple(a.size for a in axes), value.type.dtype), tuple((a.name,) for a in axes)


def _results_in_memory(graph: Graph) -> dict[Value, Value]:
    """Values that a result holds just as memory would: what reads them later reads that."""
    sinks = [op for op in graph.body.ops if isinstance(op, s.Sink)]
    return {op.x: op.result for op in sinks if (op.type, op.dims) == _in_memory(op.x)}


def _memory_names(graph: Graph) -> dict[Value, str]:
    """A name of its own for every value, should it go through memory."""
    names: dict[Value, str] = {}
    taken = {p.hint for p in graph.params} | {v.hint for v in graph.results}
    for op in graph.body.ops:
        for value in op.results:
            stem = name = f"{value.hint}_in_memory"
            number = 1
            while name in taken:
                number += 1
                name = f"{stem}{number}"
            taken.add(name)
            names[value] = name
    return names


def partition(module: Module) -> Module:
    """Every stream graph cut into kernels."""
    out: list[Graph] = []
    for graph in module.graphs:
        out.extend(partition_graph(graph) if graph.level == "stream" else (graph,))
    return Module(tuple(out))
