"""What each FX node is to the compiler: its entry in the op map, whether it can be translated, and
the rules about contractions and parameters that decide what becomes a kernel.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from tilewright.frontend.op_map.registry import Entry, Kind, axes_named, lookup
from tilewright.frontend.symbols import depends_on_data, same
from tilewright.frontend.translate import fake_of, operand_nodes, probe


def is_weight(node: Node) -> bool:
    """Whether a tensor is a parameter, seen through changes of shape and dtype only."""
    node = _origin(node)
    return node.op == "get_attr" or isinstance(fake_of(node), torch.nn.Parameter)


def is_given(node: Node) -> bool:
    """Whether a tensor is an input of the function, seen through the same."""
    return _origin(node).op == "placeholder"


def _origin(node: Node) -> Node:
    """What a tensor is with other shapes and dtypes."""
    while True:
        entry = lookup(node)
        through = entry is not None and (entry.kind is Kind.SHAPE or entry.name == "cast")
        operands = [n for n in node.all_input_nodes if isinstance(fake_of(n), torch.Tensor)]
        if not through or not operands:
            return node
        node = operands[0]


def is_kernel_contraction(node: Node) -> bool:
    """Products of two activations, which open and close streams of scores.

    Products with weights have rules of their own (``weight_cores.py``).
    """
    entry = lookup(node)
    if entry is None or entry.kind is not Kind.CONTRACTION:
        return False
    return not any(is_weight(operand) for operand in operand_nodes(node))


def factors(node: Node) -> list[Node]:
    """The tensors that a contraction multiplies: without what baddbmm and addmm add to it."""
    entry, operands = lookup(node), operand_nodes(node)
    added = entry is not None and entry.name in ("addmm", "baddbmm") and len(operands) == 3
    return operands[1:] if added else operands


LAST = -1
_SECOND = axes_named(1, None)  # where most reductions have their dim


def reduced_axes(node: Node) -> frozenset[int]:
    """The dimensions a softmax or reduction works along, counted from the last (-1); else empty."""
    entry = lookup(node)
    if entry is None or entry.kind not in (Kind.SOFTMAX, Kind.REDUCTION):
        return frozenset()
    return (entry.axes or _SECOND)(node)


class Analysis:
    """Entries, order and usability of a graph's nodes, found when asked for."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = list(graph.nodes)
        self.position = {node: at for at, node in enumerate(self.nodes)}
        self._reasons: dict[Node, str | None] = {}
        self._generated: dict[Node, bool] = {}

    def entry(self, node: Node) -> Entry | None:
        return lookup(node)

    def kind(self, node: Node) -> Kind | None:
        """The node's kind if it can be translated, else None."""
        entry = lookup(node)
        return entry.kind if entry is not None and self.reason(node) is None else None

    def reason(self, node: Node) -> str | None:
        """Why the node cannot be part of a kernel; None if it can."""
        if node not in self._reasons:
            self._reasons[node] = self._find_reason(node)
        return self._reasons[node]

    def known_reason(self, node: Node) -> str | None:
        """The reason if it was asked for before; asking adds guards."""
        return self._reasons.get(node)

    def usable(self, node: Node) -> bool:
        return self.reason(node) is None

    def generated(self, node: Node) -> bool:
        """Whether a tensor is made of positions and constants only."""
        if node not in self._generated:
            entry = lookup(node)
            sources = operand_nodes(node)
            from_nothing = entry is not None and entry.kind is Kind.GENERATOR
            pointwise = entry is not None and entry.kind in (Kind.POINTWISE, Kind.SHAPE)
            derived = pointwise and bool(sources) and all(map(self.generated, sources))
            self._generated[node] = from_nothing or derived
        return self._generated[node]

    def multiplies(self, node: Node) -> bool:
        """Whether this is a usable product of activations."""
        return is_kernel_contraction(node) and self.usable(node)

    def opens(self, node: Node) -> bool:
        """Whether this product opens a stream of scores: of activations, or of a head with weights
        on a CPU whose rows only reductions read (the losses of a model: its logits need no memory;
        for GPUs the vendor's product is faster than one kernel of few blocks of rows)."""
        if self.multiplies(node):
            return True
        entry, fake = lookup(node), fake_of(node)
        if entry is None or entry.kind is not Kind.CONTRACTION or fake.device.type != "cpu":
            return False
        operands = factors(node)
        weights = len(operands) > 1 and is_weight(operands[1]) and not is_weight(operands[0])
        return weights and self.usable(node) and self._folds(node)

    def _folds(self, node: Node) -> bool:
        """Whether all that follows from a product's rows are numbers that reductions make of whole
        ones."""
        columns = fake_of(node).shape[-1]
        rows, folds = [node], False
        for source in rows:
            for user in source.users:
                if user in rows:
                    continue
                result = fake_of(user)
                if not isinstance(result, torch.Tensor):
                    return False
                if self.picks(user) and user.all_input_nodes[0] is source:
                    folds = True
                    continue
                if self.kind(user) is Kind.REDUCTION and reduced_axes(user) == {LAST}:
                    if result.shape != fake_of(source).shape:
                        folds = True
                        continue
                elif self.kind(user) not in (Kind.POINTWISE, Kind.SHAPE, Kind.SOFTMAX):
                    return False
                if not result.shape or not same(result.shape[-1], columns):
                    return False
                rows.append(user)
        return folds

    def picks(self, node: Node) -> bool:
        """Whether a node looks up one number of each row: of logits, those of labels."""
        entry = lookup(node)
        if entry is None or entry.name not in ("gather", "take_along_dim") or entry.axes is None:
            return False
        one = fake_of(node).dim() > 0 and fake_of(node).shape[-1] == 1
        return one and entry.axes(node) == {LAST} and self.usable(node)

    def _find_reason(self, node: Node) -> str | None:
        entry = lookup(node)
        if entry is None:
            return "not in the op map"
        if _depends_on_data(node):
            return "a size that depends on data"
        known = entry.kind is Kind.ROUTING or _takes_values_only(node)
        if isinstance(fake_of(node), tuple) and not known:
            return f"{entry.name}: positions of the maximum; only its values are known"
        return probe(node)


def _depends_on_data(node: Node) -> bool:
    fakes = [fake_of(n) for n in (node, *operand_nodes(node))]
    tensors = [x for f in fakes for x in (f if isinstance(f, tuple) else (f,))]
    return any(depends_on_data(x.shape) for x in tensors if isinstance(x, torch.Tensor))


def _takes_values_only(node: Node) -> bool:
    return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
