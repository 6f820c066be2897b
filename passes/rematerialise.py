"""What to keep of an attention layer: its keys and values, or the input that they are made from.

``absorb`` is the rewrite that makes the input enough where nothing lies between the projection and
the product (no rotation): products are associative,

    %k = tensor.contract %x, %w {"mc,dc->md"}            %a = tensor.contract %q, %w {"nd,dc->nc"}
    %s = tensor.contract %q, %k {"nd,md->nm"}       ->   %s = tensor.contract %a, %x {"nc,mc->nm"}

and %k is never formed. Where it does not apply, keys and values are made again from the input,
which costs the projection of every token in every step. The cost model tells which is fastest, and
which fits into memory; on CPUs, what is kept decides about memory more often than about time.

Source: Tomar et al., "XQuant" (arXiv 2508.10395); DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1,
for the absorbed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.sizes import Size, product
from tilewright.ir.target import Target
from tilewright.ir.types import TensorType

KEYS_AND_VALUES, ABSORBED, REMADE = "keys and values", "absorbed", "remade"


@dataclass(frozen=True)
class Balance:
    """What a machine does in a second: multiply-adds in f32, bytes from memory."""

    multiply_adds: float
    bytes: float

    @staticmethod
    def of(target: Target, threads: int = 2) -> Balance:
        """Two pipes of the target's lanes at 3 GHz, 15 GB a second and thread."""
        return Balance(2 * target.lanes * 3e9 * threads, 15e9 * threads)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one call, bytes that it reads, bytes kept for a token."""

    multiply_adds: float
    bytes: float
    kept: float

    def seconds(self, balance: Balance) -> float:
        """Arithmetic and reading overlap: the longer of the two."""
        return max(self.multiply_adds / balance.multiply_adds, self.bytes / balance.bytes)


@dataclass(frozen=True)
class Layer:
    """An attention layer: ``width`` of its input, heads, their size; ``bits`` per number of what is
    kept. ``rotated``: keys are rotated by their positions (RoPE) after the projection."""

    width: int
    heads: int
    key_heads: int
    head: int
    key_bits: float = 8.5
    value_bits: float = 4.5
    input_bits: float = 4.5
    rotated: bool = True

    def costs(self, rows: int, tokens: int) -> dict[str, Cost]:
        """Every way of attending with ``rows`` queries to ``tokens`` of a sequence."""
        numbers = self.key_heads * self.head
        both = numbers * (self.key_bits + self.value_bits) / 8
        given = self.width * self.input_bits / 8
        attend = 2 * self.heads * rows * tokens * self.head
        found = {
            KEYS_AND_VALUES: Cost(attend, both * tokens, both),
            REMADE: Cost(attend + 2 * tokens * self.width * numbers, given * tokens, given),
        }
        if not self.rotated:
            wide = 2 * self.heads * rows * tokens * self.width
            ends = 2 * self.heads * rows * self.head * self.width
            found[ABSORBED] = Cost(wide + ends, given * tokens, given)
        return found

    def choose(
        self, rows: int, tokens: int, balance: Balance, most_bytes: float | None = None
    ) -> str:
        """The fastest way that keeps at most ``most_bytes`` for a token (None: any number).

        Raises UnsupportedError if none does.
        """
        costs = self.costs(rows, tokens)
        fitting = {k: c for k, c in costs.items() if most_bytes is None or c.kept <= most_bytes}
        if not fitting:
            least = min(c.kept for c in costs.values())
            raise UnsupportedError(
                f"a token of this layer takes {least:.0f} bytes at least, {most_bytes:.0f} are "
                "allowed: take fewer bits"
            )
        return min(fitting, key=lambda way: (fitting[way].seconds(balance), fitting[way].kept))


def absorb(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """Products of a product taken in the order that costs fewer multiply-adds at these sizes;
    the same graph if that is the order as written."""
    changed = True
    while changed:
        changed = False
        uses = graph.uses()
        made = graph.producers()
        for op in graph.body.ops:
            found = _absorbed(op, made, uses, graph, sizes)
            if found is not None:
                graph, changed = _replaced(graph, op, found), True
                break
    return graph


def _absorbed(
    op: Op,
    made: Mapping[Value, Op],
    uses: Mapping[Value, Sequence[Op]],
    graph: Graph,
    sizes: Mapping[str, int],
) -> tuple[Contract, Contract] | None:
    """q (x w) -> (q w) x, if it is cheaper; w is the side without the letters of many tokens."""
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
        if not isinstance(inner, Contract) or not only:
            continue
        x, w = _renamed(inner, letters, set(left + right))
        before = _work(op, sizes) + _work(inner, sizes)
        for (first, first_letters), (second, second_letters) in (
            ((inner.rhs, w), (inner.lhs, x)),
            ((inner.lhs, x), (inner.rhs, w)),
        ):
            pair = _pair(outer, outer_letters, first, first_letters, second, second_letters, out)
            after = sum(_work(p, sizes) for p in pair)
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


def _work(op: Contract, sizes: Mapping[str, int]) -> float:
    """Multiply-adds of a product."""
    left, right, _ = op.letters()
    extents: dict[str, Size] = {}
    for letters, value in ((left, op.lhs), (right, op.rhs)):
        assert isinstance(value.type, TensorType)
        extents.update(zip(letters, value.type.shape, strict=True))
    return float(product(extents.values()).evaluate(dict(sizes)))


def _replaced(graph: Graph, old: Op, new: tuple[Contract, Contract]) -> Graph:
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
    needed, kept = set(results), []
    for op in reversed(ops):
        if needed.intersection(op.results):
            kept.append(op)
            needed.update(op.operands)
    return replace(graph, body=Region(graph.params, tuple(reversed(kept)), results))
