"""How deep every channel has to be for the stream program to run at full rate.

A channel waits when its consumer also needs something that comes later. On the paper's machine
(arXiv 2404.16629; every node has latency 1, sending and the response take a cycle each) a value's
first element appears after

    source: 0    map, scan, repeat: latest input + 1    reduce over an axis of size S: input + S

and a channel holds what is produced while its consumer waits, plus 2 for send and response. Only
paths that part and meet again force this: what comes from sources of its own simply starts later. A
depth that contains the size of a loop is *deep*: it has to be kept in memory, a border between
kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.sizes import Size, largest
from tilewright.ir.types import StreamType

SEND_AND_RESPONSE = 2
_WAIT = "wait "  # prefix of the symbols that stand for an axis's size while analysing


@dataclass(frozen=True, eq=False)
class Channel:
    """From ``value`` to operand ``at`` of ``consumer``; ``depth`` in elements of the stream."""

    value: Value
    consumer: Op
    at: int
    depth: Size
    deep: bool

    def __str__(self) -> str:
        mark = "  deep: has to be kept in memory" if self.deep else ""
        return f"%{self.value.hint} -> {self.consumer.name}[{self.at}]: depth {self.depth}{mark}"


def find_channels(graph: Graph) -> list[Channel]:
    """All channels between nodes of a stream graph with their depths, symbolic in the sizes."""
    ready: dict[Value, Size] = {}
    origins: dict[Value, frozenset[Op]] = {}
    loops: dict[str, Size] = {}
    channels: list[Channel] = []
    for op in graph.body.ops:
        inputs = [v for v in op.operands if v in ready]
        start = largest(ready[v] for v in inputs)
        for at, value in enumerate(op.operands):
            if value in ready:
                others = [v for v in inputs if v is not value]
                shared = any(origins[value] & origins[v] for v in others)
                wait = start - ready[value] if shared else Size()
                channels.append(_channel(op, at, value, wait, loops))
        if isinstance(op, m.Const):
            continue
        for result in op.results:
            ready[result] = _ready(op, start, loops)
            own = frozenset({op}) if isinstance(op, s.Source | s.Index) else frozenset()
            origins[result] = own.union(*(origins[v] for v in inputs))
    return channels


def _ready(op: Op, start: Size, loops: dict[str, Size]) -> Size:
    """When the first result comes, with a symbol for the size of each axis waited for."""
    if isinstance(op, s.Source | s.Index):
        return Size()
    if isinstance(op, s.Reduce):
        assert isinstance(op.x.type, StreamType)
        axis = op.x.type.loops[-1]
        loops[_WAIT + axis.name] = axis.size
        return start + (_WAIT + axis.name)
    return start + 1


def _channel(op: Op, at: int, value: Value, wait: Size, loops: dict[str, Size]) -> Channel:
    """A stream that runs in the waited-for loop fills the channel, one element a cycle; a row's
    scalar comes only once per round of that loop."""
    assert isinstance(value.type, StreamType)
    own = {_WAIT + axis.name for axis in value.type.loops}
    deep = bool(own & wait.names)
    if not deep:
        rounds = {name: 1 for name in wait.names if name in loops}
        return Channel(value, op, at, wait.substitute(rounds) + SEND_AND_RESPONSE, False)
    return Channel(value, op, at, (wait + SEND_AND_RESPONSE).substitute(dict(loops)), True)
