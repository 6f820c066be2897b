"""Algebra that makes deep channels shallow: rules on streams, none of which knows attention.

    hoist       f(repeat x)                  ->  repeat f(x)
    logarithm   log(exp(x) / c)              ->  x - log c
    moments     sum_j (x_j - mean x)^2       ->  Welford's update
    distribute  sum_j x_j * (y_j + c)        ->  sum_j x_j * y_j + sum_j x_j * c
    maximum     exp(x_j + c)                 ->  exp(x_j - max x) * exp(max x + c)
    factor      sum_j (x_j / c) * y_j        ->  (sum_j x_j * y_j) / c
    running     sum_j exp(x_j - max x) * y_j ->  a sum rescaled whenever the running maximum grows

with c constant along j. Each rule's file has its algebra. The rules run in this order until nothing
changes: what one takes out of a loop may be what kept another from applying.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.core import Graph, Module
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.reorder.additive import distribute
from tilewright.passes.reorder.factor import move_factor
from tilewright.passes.reorder.hoist import hoist
from tilewright.passes.reorder.logarithm import logarithm
from tilewright.passes.reorder.moments import one_pass_moments
from tilewright.passes.reorder.rule import Rule
from tilewright.passes.reorder.running import introduce_maximum, running_maximum
from tilewright.passes.rewrite import for_each_graph

RULES = (
    Rule("hoist", hoist),
    Rule("logarithm", logarithm),
    Rule("moments", one_pass_moments),  # before distribute, which would square first
    Rule("distribute", distribute),
    Rule("maximum", introduce_maximum),  # before factor, which takes exp(max x + c) out
    Rule("factor", move_factor),
    Rule("running", running_maximum),  # last: sums that are rescaled are changed no more
)
MOST_ROUNDS = 4


def reorder_graph(graph: Graph, watch: Callable[[str, Graph], None] | None = None) -> Graph:
    """All rules in turn, each followed by canonicalisation, until nothing changes. ``watch`` is
    called with the name of each rule that changes something, and the graph after it."""
    graph = canonicalise_graph(graph)
    for _ in range(MOST_ROUNDS):
        before = graph.body.ops
        for rule in RULES:
            after = rule.apply(graph)
            if after.body.ops != graph.body.ops:
                graph = canonicalise_graph(after)
                if watch is not None:
                    watch(rule.name, graph)
        if graph.body.ops == before:
            break
    return graph


def reorder(module: Module) -> Module:
    """Applies the reorder rules to every stream graph."""
    return for_each_graph(module, reorder_graph, "stream")


__all__ = ["MOST_ROUNDS", "RULES", "Rule", "reorder", "reorder_graph"]
