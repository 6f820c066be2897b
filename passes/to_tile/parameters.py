"""What a kernel's tile program takes: a buffer for each input, then one for each result."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Value
from tilewright.ir.types import BufferType, TensorType


@dataclass(frozen=True)
class Parameters:
    """``buffers``: what stands for the stream graph's inputs and for the results of its ``sinks``;
    ``values``: all of them, in order."""

    values: tuple[Value, ...]
    buffers: dict[Value, Value]
    sinks: tuple[s.Sink, ...]


def kernel_parameters(graph: Graph, units: dict[str, int]) -> Parameters:
    """Those of a stream graph. ``units`` maps an input's name to the dimension known to have stride
    one; results are contiguous."""
    buffers: dict[Value, Value] = {}
    for value in graph.params:
        assert isinstance(value.type, TensorType)
        unit = units.get(value.hint, -1)
        buffers[value] = Value(BufferType(value.type.shape, value.type.dtype, unit), value.hint)
    sinks = tuple(op for op in graph.body.ops if isinstance(op, s.Sink))
    for sink in sinks:
        assert isinstance(sink.type, TensorType)
        last = len(sink.type.shape) - 1
        out = Value(BufferType(sink.type.shape, sink.type.dtype, last), f"out_{sink.x.hint}")
        buffers[sink.result] = out
    return Parameters(tuple(buffers.values()), buffers, sinks)
