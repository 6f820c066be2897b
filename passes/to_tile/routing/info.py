"""Which kernels route tokens, and what their loops are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_routing_stream import (
    StreamScatter,
    StreamSegmentCount,
    StreamSegmentRank,
    StreamTakeAlong,
    StreamTopK,
)
from tilewright.ir.target import Target
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.partition import levels

FEW = 256  # tokens whose numbers a kernel may keep from one loop over them to the next
FEW_WITH_PRODUCT = 32
FEW_PRODUCT = 4  # tokens up to which the gate's product has its terms on lanes
LOOPLESS, TOKEN, TERM = range(3)  # what runs once, once a token, once for each term of a product

_CHOICES = (StreamTopK, StreamTakeAlong, StreamScatter, s.Gather, s.Reduce, s.Contract)


@dataclass(frozen=True)
class RoutingInfo:
    """``token`` is the loop over tokens; ``single``: there is one token, and no loop. With neither
    nothing is a token's. ``levels``: operations by how many deep channels lie before them, each of
    which is a loop over tokens of its own."""

    graph: Graph
    token: Axis | None
    single: bool
    levels: tuple[tuple[Op, ...], ...]
    uses: dict[Value, list[Op]]
    made: dict[Value, Op]

    def depth(self, value: Value) -> int:
        """LOOPLESS, TOKEN or TERM."""
        assert isinstance(value.type, StreamType)
        return len(value.type.loops) + self.single

    @cached_property
    def level(self) -> dict[Op, int]:
        return {op: at for at, ops in enumerate(self.levels) for op in ops}

    def crosses(self, value: Value) -> bool:
        """Whether a later level reads a value."""
        own = self.level[self.made[value]]
        return any(self.level[op] > own for op in self.uses.get(value, ()))

    @property
    def counts(self) -> bool:
        """Whether tokens are walked by one worker, or by some with counters of their own."""
        walks = (StreamSegmentCount, StreamSegmentRank)
        return any(isinstance(op, walks) for level in self.levels for op in level)

    @property
    def parts(self) -> int:
        """How many parts of the loop have counters of their own."""
        ops = [op for level in self.levels for op in level if isinstance(op, StreamSegmentCount)]
        return min((op.parts for op in ops), default=1)


def check_orders(graph: Graph) -> None:
    """Raises UnsupportedError where an operand's element has its axes in another order than the
    result's: a vector of places of one is no vector of the other."""
    for op in graph.body.ops:
        result = op.results[0].type
        for value in op.operands if "pointwise" in op.traits else ():
            if isinstance(value.type, StreamType) and isinstance(result, StreamType):
                ours = [a.name for a in value.type.element]
                if ours != [a.name for a in result.element if a.name in ours]:
                    raise UnsupportedError("elements whose axes lie in two orders", op.loc)


def routing_info(graph: Graph) -> RoutingInfo:
    """Raises UnsupportedError for a form that no schedule covers."""
    check_orders(graph)
    types = [v.type for op in graph.body.ops for v in op.results]
    streams = [x for x in types if isinstance(x, StreamType)]
    terms = {op.axis for op in graph.body.ops if isinstance(op, s.Reduce)}
    outer = {x.loops[0] for x in streams if x.loops and x.loops[0].name not in terms}
    single = not outer and any(isinstance(op, _CHOICES) for op in graph.body.ops)
    deepest = max((len(x.loops) for x in streams), default=0)
    inner = {loop.name for x in streams for loop in x.loops[1:]}  # those of products alone
    if len(outer) > 1 or inner - terms or deepest + single > TERM:
        raise UnsupportedError(f"{graph.name}: routing over more than one loop of tokens")
    level = levels(graph)
    last = max(level.values(), default=0)
    each = tuple(tuple(op for op in graph.body.ops if level[op] == at) for at in range(last + 1))
    token = next(iter(outer), None)
    return RoutingInfo(graph, token, single, each, graph.uses(), graph.producers())


def token_classes(graph: Graph, target: Target) -> tuple[int, ...]:
    """Numbers of tokens that have programs of their own: few have their products along lanes, and
    up to ``FEW`` are walked by one worker. On GPUs there is one for any number."""
    if target.gpu:
        return (0,)
    info = routing_info(graph)
    ops = graph.body.ops
    product = target.lanes > 1 and any(isinstance(op, s.Reduce | s.Contract) for op in ops)
    walks = len(info.levels) > 1 or any(isinstance(op, StreamSegmentCount) for op in ops)
    few = FEW_WITH_PRODUCT if product else FEW  # products are worth sharing out
    return (*((FEW_PRODUCT,) if product else ()), *((few,) if walks else ()), 0)
