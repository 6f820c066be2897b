"""Products of products in the cheaper order: ``q (x w)^T = (q w^T) x^T``.

    %k = tensor.contract %x, %w {"mc,dc->md"}            %a = tensor.contract %q, %w {"nd,dc->nc"}
    %s = tensor.contract %q, %k {"nd,md->nm"}       ->   %s = tensor.contract %a, %x {"nc,mc->nm"}

and %k is never formed.

Source: DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.sizes import product
from tilewright.passes.canonicalise import drop_dead


def absorb(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """Products of a product taken in the order that costs fewer multiply-adds at these sizes;
    the same graph if that is the order as written."""
    changed = True
    while changed:
        changed = False
        uses = graph.uses()
        made = graph.producers()
        for op in graph.body.ops:
            found = absorbed(op, made, uses, graph, sizes)
            if found is not None:
                graph, changed = replaced(graph, op, found), True
                break
    return graph


def absorbed(
    op: Op,
    made: Mapping[Value, Op],
    uses: Mapping[Value, Sequence[Op]],
    graph: Graph,
    sizes: Mapping[str, int],
    times: int = 1,
) -> tuple[Contract, Contract] | None:
    """q (x w) -> (q w) x, if it is cheaper; w is the side without the letters of many tokens.
    ``times``: how often x w is made."""
    if not isinstance(op, Contract):
        return None
    left, right, out = op.letters()
    best: tuple[float, tuple[Contract, Contract]] | None = None
    for outer, outer_letters, product_, letters in (
        (op.lhs, left, op.rhs, right),
        (op.rhs, right, op.lhs, left),
    ):
        inner = made.get(product_)
        only = len(uses.get(product_, ())) == 1 and product_ not in graph.results
        if not isinstance(inner, Contract) or isinstance(inner, Remake) or not only:
            continue
        x, w = _renamed(inner, letters, set(left + right))
        before = work(op, sizes) + times * work(inner, sizes)
        for (first, first_letters), (second, second_letters) in (
            ((inner.rhs, w), (inner.lhs, x)),
            ((inner.lhs, x), (inner.rhs, w)),
        ):
            pair = _pair(outer, outer_letters, first, first_letters, second, second_letters, out)
            after = sum(work(p, sizes) for p in pair)
            if after < before and (best is None or after < best[0]):
                best = after, pair
    return None if best is None else best[1]


def _renamed(inner: Contract, wanted: str, taken: set[str]) -> tuple[str, str]:
    """The letters of an inner product's operands, its result called ``wanted``."""
    left, right, out = inner.letters()
    names = dict(zip(out, wanted, strict=True))
    free = (c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in taken)
    for letter in left + right:
        if letter not in names:
            names[letter] = next(free)
    return "".join(names[c] for c in left), "".join(names[c] for c in right)


def _pair(
    outer: Value, a: str, first: Value, b: str, second: Value, c: str, out: str
) -> tuple[Contract, Contract]:
    """outer x first, then that x second."""
    kept = "".join(dict.fromkeys(x for x in a + b if x in c + out))
    early = Contract(outer, first, equation=f"{a},{b}->{kept}", hints=["absorbed"])
    return early, Contract(early.result, second, equation=f"{kept},{c}->{out}")


def work(op: Contract, sizes: Mapping[str, int]) -> float:
    """Multiply-adds of a product."""
    return float(product(op.extents().values()).evaluate(dict(sizes)))


def replaced(graph: Graph, old: Op, new: tuple[Contract, Contract]) -> Graph:
    """``old`` as two products; what is not needed any more goes."""
    ops: list[Op] = []
    mapping: dict[Value, Value] = {}
    for op in graph.body.ops:
        if op is old:
            ops += new
            new[1].result.hint = old.results[0].hint
            mapping[old.results[0]] = new[1].result
            continue
        fresh = op.rebuilt([mapping.get(v, v) for v in op.operands])
        mapping.update(zip(op.results, fresh.results, strict=True))
        ops.append(fresh)
    results = tuple(mapping.get(v, v) for v in graph.results)
    return drop_dead(graph.with_body(Region(graph.params, tuple(ops), results)))
