"""Where the shared memories of a program lie: those that are never needed at once share bytes.

A memory is needed from the operation that allocates it to the last that touches it (of the
outermost region: a loop counts as one). Another may begin where it lay only behind a barrier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_tile_memory import Barrier
from tilewright.ir.ops_tile_roles import Barriers
from tilewright.ir.types import SharedType

ALIGNED = 1024  # bytes: a swizzle's pattern of 8 lines of 128 bytes begins there


@dataclass
class _Span:
    memory: Value
    bytes: int
    first: int
    last: int
    offset: int = 0


def plan_shared(graph: Graph, most: int) -> Graph:
    """The program with its attributes ``shared`` (a byte offset for every shared memory, in the
    order of their allocations) and ``shared_bytes``. Raises UnsupportedError above ``most`` bytes.
    """
    spans = _spans(graph)
    barriers = [at for at, op in enumerate(graph.body.ops) if isinstance(op, Barrier)]
    placed: list[_Span] = []
    for span in spans:
        taken = sorted(
            (p.offset, p.offset + p.bytes) for p in placed if _together(p, span, barriers)
        )
        for start, end in taken:
            if span.offset + span.bytes <= start:
                break
            span.offset = max(span.offset, end)
        placed.append(span)
    total = max((s.offset + s.bytes for s in spans), default=0)
    if total > most:
        raise UnsupportedError(
            f"{graph.name}: {total} bytes of shared memory, a block has {most}: take smaller "
            "blocks or fewer stages"
        )
    attrs = {**graph.attrs, "shared": tuple(s.offset for s in spans), "shared_bytes": total}
    return replace(graph, attrs=attrs)


def _together(one: _Span, other: _Span, barriers: list[int]) -> bool:
    """Whether two memories are needed at once, or with no barrier between."""
    first, second = sorted((one, other), key=lambda span: span.first)
    return not any(first.last < at <= second.first for at in barriers)


def _spans(graph: Graph) -> list[_Span]:
    spans: dict[Value, _Span] = {}
    for at, op in enumerate(graph.body.ops):
        for inner in (op, *(i for region in op.regions for i in region.walk())):
            _touch(inner, at, spans)
    return list(spans.values())


def _touch(op: Op, at: int, spans: dict[Value, _Span]) -> None:
    made = op.results[0].type if isinstance(op, t.Alloc | Barriers) else None
    if isinstance(made, SharedType):
        whole = -(-made.bytes // ALIGNED) * ALIGNED
        spans[op.results[0]] = _Span(op.results[0], whole, at, at)
    for value in op.operands:
        if value in spans:
            spans[value].last = at
