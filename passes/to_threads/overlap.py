"""Products of warp groups that go on beside the arithmetic between them.

A loop that makes scores of a block and then multiplies them with another block leaves the matrix
units idle in between. Here its turns overlap: the scores of a turn are begun before the product of
the turn before, which is still under way while exponentials are taken (FlashAttention-3, arXiv
2407.08608, section 3.2).

    for turn {                         first scores, and what follows from them
      s = product(q, k)                for later turns {
      … s …                      ->      s = begin(q, k); o = begin(p, v) of the turn before
      o = product(p, v)                  wait for s; … s …; wait for o; …
    }                                  }
                                       the last o
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.ops_tile_roles import Arrive, Await
from tilewright.ir.types import RegisterType
from tilewright.passes.rewrite import Rewriter, rewrite_graph
from tilewright.passes.to_tile.emitter import TileBuilder


def overlapped(graph: Graph) -> Graph:
    """The program of threads with roles whose loops' turns overlap where they can."""
    return rewrite_graph(graph, _rule)


def _rule(r: Rewriter, op: Op) -> Sequence[Value] | None:
    turn = find_turn(op) if isinstance(op, t.For) else None
    if turn is None:
        return None
    assert isinstance(op, t.For)
    return _Overlapping(TileBuilder([r]), op, turn).run()


@dataclass(frozen=True)
class _Turn:
    """A loop's body: its first product, and the last, each with its wait for memory before and its
    arrival behind; ``rest``: all operations but those of the last."""

    scores: t.GroupProduct
    read: Arrive  # behind the scores
    before: Await
    last: t.GroupProduct
    after: Arrive
    number: int  # which carried value the last product makes

    @property
    def late(self) -> tuple[Op, ...]:
        return self.before, self.last, self.after


def find_turn(loop: t.For) -> _Turn | None:
    """How a loop's turns can overlap; None if they cannot: it has two products, and nothing but
    the next turn needs the second."""
    region = loop.regions[0]
    ops = region.ops
    if any(op.regions or isinstance(op, t.Store | t.GroupBegin) for op in ops):
        return None
    products = [at for at, op in enumerate(ops) if isinstance(op, t.GroupProduct)]
    if len(products) != 2:
        return None
    first, last = products
    waits = [at for at, op in enumerate(ops) if isinstance(op, Await)]
    arrivals = [at for at, op in enumerate(ops) if isinstance(op, Arrive)]
    if len(waits) != 2 or len(arrivals) != 2:
        return None
    in_order = waits[0] < first < arrivals[0] < waits[1] < last < arrivals[1]
    scores, final = ops[first], ops[last]
    read, before, after = ops[arrivals[0]], ops[waits[1]], ops[arrivals[1]]
    assert isinstance(scores, t.GroupProduct) and isinstance(final, t.GroupProduct)
    assert isinstance(read, Arrive) and isinstance(before, Await) and isinstance(after, Arrive)
    users = [op for op in ops if final.result in op.operands]
    yielded = [n for n, v in enumerate(region.yields) if v is final.result]
    own = {*region.params, *(v for op in ops for v in op.results)}
    if not in_order or users or len(yielded) != 1 or final.acc not in own:
        return None
    return _Turn(scores, read, before, final, after, yielded[0])


class _Overlapping:
    """Rewrites one loop."""

    def __init__(self, build: TileBuilder, loop: t.For, turn: _Turn) -> None:
        self.build, self.loop, self.turn = build, loop, turn
        self.region = loop.regions[0]
        self.made = {v: op for op in self.region.ops for v in op.results}
        self.sums = self.region.params[1 + turn.number]
        self.kept = [n for n in range(len(loop.inits)) if n != turn.number]
        self.needed = self._needed()

    def _needed(self) -> list[Value]:
        """What the last product of a turn takes out of it."""
        own = {*self.region.params, *self.made} - {self.turn.last.result}
        found = [v for op in self.turn.late for v in op.operands if v in own]
        return [v for v in dict.fromkeys(found) if not isinstance(self.made.get(v), m.Const)]

    def run(self) -> tuple[Value, ...]:
        """The first turn without its last product, the others, and the last product: each a loop,
        since there may be no turn at all. The results of the loop."""
        b, loop, turn = self.build, self.loop, self.turn
        first = loop.inits[turn.number]
        carried = [loop.inits[n] for n in self.kept]
        carried += [self._nothing(v, first) for v in self.needed]
        second = b.add(loop.lo, loop.step)
        end = b.minimum(loop.hi, second)
        for lo, hi, later in ((loop.lo, end, False), (second, loop.hi, True)):
            with b.loop(lo, hi, loop.step, carried, self.region.params[0].hint) as made:
                made.next = self._turn(made.counter, made.carried, None if later else first)
            carried = list(made.results)
        late = carried[len(self.kept) :]
        sums = late[self.needed.index(turn.last.acc)]  # without a turn, what the loop began with
        with b.loop(loop.lo, end, loop.step, [sums], "last") as made:
            scope = self._before(late)
            scope[turn.last.acc] = made.carried[0]
            for op in turn.late:
                self._copy(op, scope)
            made.next = (scope[turn.last.result],)
        results = dict(zip(self.kept, carried, strict=False))
        results[turn.number] = made.results[0]
        return tuple(results[n] for n in range(len(loop.inits)))

    def _nothing(self, value: Value, first: Value) -> Value:
        """What is carried before the first turn; nobody reads it."""
        if value is self.turn.last.acc:
            return first
        if isinstance(value.type, RegisterType):
            return self.build.filled(0, value.type.dtype, value.type.layout)
        return self.build.index(0)

    def _before(self, values: Sequence[Value]) -> dict[Value, Value]:
        """What the last product of the turn before takes."""
        scope = dict(zip(self.needed, values, strict=True))
        for op in self.turn.late:
            for constant in {self.made[v]: None for v in op.operands if v in self.made}:
                if isinstance(constant, m.Const):
                    self._copy(constant, scope)
        return scope

    def _turn(
        self, counter: Value, carried: tuple[Value, ...], first: Value | None
    ) -> tuple[Value, ...]:
        """A turn without its last product, and what it carries on; in all but the first (which has
        the sums ``first``) beside that of the turn before."""
        b, turn, params = self.build, self.turn, self.region.params
        count = len(self.kept)
        scope = {params[0]: counter}
        scope |= {params[1 + n]: new for n, new in zip(self.kept, carried, strict=False)}
        before: dict[Value, Value] = {}
        flying: Value | None = None
        if first is not None:
            scope[self.sums] = first
        for op in self.region.ops:
            if op in turn.late:
                continue
            if flying is not None and self.sums in op.operands:
                self._land(flying, before, scope)
                flying = None
            if first is not None or op is not turn.scores:
                self._copy(op, scope)
                continue
            scores = self._begun(turn.scores, scope)
            before = self._before(carried[count:])
            self._copy(turn.before, before)
            flying = self._begun(turn.last, before)
            scope[op.results[0]] = b(t.GroupWait, scores, pending=1, hint=op.results[0].hint)
        if flying is not None:
            self._land(flying, before, scope)
        after = [self.region.yields[n] for n in self.kept] + self.needed
        return tuple(scope.get(v, v) for v in after)

    def _land(self, flying: Value, before: dict[Value, Value], scope: dict[Value, Value]) -> None:
        """The last product of the turn before has ended, beside which what the turn carries on
        otherwise has been made."""
        yields = [self.region.yields[n] for n in self.kept]
        made = [scope[v] for v in yields if v in self.made and v in scope]
        first = [v for v in made if getattr(v.type, "dtype", None) == F32]
        scope[self.sums] = self.build(t.GroupWait, flying, *first, hint=self.sums.hint)
        self._copy(self.turn.after, before)

    def _begun(self, op: t.GroupProduct, scope: dict[Value, Value]) -> Value:
        operands = [scope.get(v, v) for v in op.operands]
        return self.build(t.GroupBegin, *operands, hint=op.result.hint, **op.attrs)

    def _copy(self, op: Op, scope: dict[Value, Value]) -> None:
        """An operation on what stands for its operands."""
        made = type(op)(
            *(scope.get(v, v) for v in op.operands),
            loc=op.loc,
            hints=[r.hint for r in op.results],
            **op.attrs,
        )
        self.build.top.add(made)
        scope.update(zip(op.results, made.results, strict=True))
