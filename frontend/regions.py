"""Regions: which FX nodes become one IR graph.

A stream of scores opens with a product of activations (or a softmax of something torch made) and
closes with the next product: the nodes on the paths between are the core. An SDPA node is a core of
its own; products with weights and row-wise reductions have theirs (``weight_cores.py``), and so has
pointwise work on large tensors outside of all of these (``pointwise_cores.py``). What feeds a core
and is cheaper to redo than to read is absorbed (``absorb.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from tilewright.frontend.absorb import absorb_inputs
from tilewright.frontend.classify import LAST, Analysis, reduced_axes
from tilewright.frontend.hazards import Hazards
from tilewright.frontend.op_map.registry import Kind
from tilewright.frontend.pointwise_cores import pointwise_cores
from tilewright.frontend.rotations import find_rotation
from tilewright.frontend.routing_cores import routing_cores
from tilewright.frontend.translate import fake_of, operand_nodes
from tilewright.frontend.weight_cores import row_cores, weight_cores


@dataclass
class Region:
    """``nodes`` in graph order compute ``outputs`` from ``inputs``; ``anchor`` is the last of the
    core, at whose place the kernel will be called. ``refused`` says why there will be none.
    ``attention``: a stream of scores, which strict compilation must not leave with torch.
    ``plain``: the same without rotations of its inputs, should there be no kernel with them."""

    core: frozenset[Node]
    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    anchor: Node
    refused: str | None = None
    attention: bool = True
    plain: Region | None = None


def find_regions(analysis: Analysis) -> list[Region]:
    """All regions of a graph, in order, each convex and safe to move to its anchor."""
    hazards = Hazards(analysis.nodes)
    cores: Spans = {}
    for core in map(frozenset, _cores(analysis)):
        if core and not _turns_back(analysis, core, cores):
            cores[core] = _span(analysis, core)
    everything = frozenset().union(*cores)
    regions = [_complete(analysis, hazards, c, everything - c) for c in cores]
    used = set(everything).union(*(region.nodes for region in regions))
    for core in map(
        frozenset, pointwise_cores(analysis, used, lambda c: not _detours(analysis, c))
    ):
        if not _turns_back(analysis, core, cores):
            cores[core] = _span(analysis, core)
            regions.append(_complete(analysis, hazards, core, frozenset(used)))
            used |= core
    return sorted(regions, key=lambda r: analysis.position[r.anchor])


Spans = dict[frozenset[Node], tuple[int, int]]  # where the first and the last of a core are


def _span(analysis: Analysis, core: frozenset[Node]) -> tuple[int, int]:
    places = [analysis.position[n] for n in core]
    return min(places), max(places)


def _turns_back(analysis: Analysis, core: frozenset[Node], others: Spans) -> bool:
    """Whether a way out of a core comes back to it if other cores are computed as a whole, too:
    each of two may need what the other one makes."""
    at = analysis.position
    spans = {**others, core: _span(analysis, core)}
    near, before = {core}, 0  # cores that lie between each other's nodes
    while len(near) > before:
        before = len(near)
        low, high = min(spans[c][0] for c in near), max(spans[c][1] for c in near)
        near |= {c for c in others if spans[c][0] < high and low < spans[c][1]}
    whole = {node: c for c in near - {core} for node in c}
    reached: set[Node] = set()
    stack = [u for n in core for u in n.users if u not in core]
    while stack:
        node = stack.pop()
        if node in core:
            return True
        made = analysis.generated(node) and analysis.usable(node)  # taken along: see _tainted
        if node not in reached and at[node] <= high and not made:
            together = whole.get(node, frozenset({node}))
            reached |= together
            stack.extend(u for n in together for u in n.users if u not in together)
    return False


def _cores(analysis: Analysis) -> Iterator[set[Node]]:
    level = _levels(analysis)
    for node in analysis.nodes:
        if analysis.kind(node) is Kind.ATTENTION:
            yield {node}
    closers = [n for n in analysis.nodes if level.get(n) == 2 and analysis.multiplies(n)]
    closed = _merged(_between(analysis, level, node) for node in closers)
    ends = [n for n in analysis.nodes if level.get(n) == 1 and _reduces(analysis, n)]
    branches = {node: _between(analysis, level, node) for node in ends}
    closed = [_with_statistics(core, branches) for core in closed]
    taken = set().union(*closed)
    for core in [*closed, *(c for c in _merged(branches.values()) if not c & taken)]:
        for convex in _convex(analysis, core):
            taken |= convex
            yield convex
    taken |= {n for n in analysis.nodes if analysis.kind(n) is Kind.ATTENTION}
    for core in routing_cores(analysis, taken):
        for convex in _without_detours(analysis, core):
            taken |= convex
            yield convex
    for core in weight_cores(analysis, taken):
        taken |= core
        yield from _whole(analysis, core)
    for core in row_cores(analysis, taken):
        yield from _whole(analysis, core)


def _without_detours(analysis: Analysis, core: set[Node]) -> Iterator[set[Node]]:
    """What is left of a routing core without what a way out and back in depends on, if it still
    chooses."""
    core = _trimmed(analysis, core)
    if any(analysis.kind(n) is Kind.ROUTING for n in core):
        yield core


def _whole(analysis: Analysis, core: set[Node]) -> Iterator[set[Node]]:
    """The core if no path leads out of it and back in; else it stays with torch."""
    if not _detours(analysis, core):
        yield core


def _detours(analysis: Analysis, core: set[Node]) -> set[Node]:
    """Nodes outside that depend on the core and that the core needs."""
    return _tainted(analysis, core) & {n for c in core for n in c.all_input_nodes}


def _trimmed(analysis: Analysis, core: set[Node]) -> set[Node]:
    """The core without what a way out of it and back in depends on, and without operations of
    whose several results some are outside: a kernel gives tensors, not torch's tuples of them."""
    while True:
        leaving = _ancestors(_detours(analysis, core)) | _parted(core)
        if not leaving & core:
            return core
        core = core - leaving


def _parted(core: set[Node]) -> set[Node]:
    """Of operations with several results (topk) and their results those that are in a core without
    the others."""
    return {
        n
        for n in core
        if (isinstance(fake_of(n), tuple) and not core.issuperset(n.users))
        or any(isinstance(fake_of(s), tuple) and s not in core for s in n.all_input_nodes)
    }


def _with_statistics(core: set[Node], branches: dict[Node, set[Node]]) -> set[Node]:
    """The core and reductions of its stream along the same axis: ``weights @ v / weights.sum(-1)``.

    Each branch is a reduction with its stream; one along another axis (a mean over heads) is left.
    """
    axes = {a for n in core for a in reduced_axes(n)} | {LAST}
    for end, branch in branches.items():
        if branch & core and reduced_axes(end) and reduced_axes(end) <= axes:
            core = core | branch
    return core


def _levels(analysis: Analysis) -> dict[Node, int]:
    """1 for nodes that depend on an opened stream, 2 for a product that closes it and what follows.

    q k -> 1, softmax -> 1, softmax v -> 2, then another product of that -> 1 again
    """
    level: dict[Node, int] = {}
    for node in analysis.nodes:
        incoming = max((level.get(n, 0) for n in operand_nodes(node)), default=0)
        entry = analysis.entry(node)
        if entry is None or (entry.kind is Kind.ROUTING and not _picks(analysis, level, node)):
            continue
        if not incoming and not _may_open(analysis, node):
            continue
        if not analysis.usable(node) or analysis.kind(node) is Kind.ATTENTION:
            continue
        if analysis.multiplies(node):
            level[node] = 2 if incoming == 1 else 1
        elif analysis.opens(node) or analysis.kind(node) is Kind.SOFTMAX:
            level[node] = 1
        elif analysis.kind(node) is not Kind.CONTRACTION:
            level[node] = incoming
    return {n: v for n, v in level.items() if v}


def _picks(analysis: Analysis, level: dict[Node, int], node: Node) -> bool:
    """Whether a look-up reads one number of each row of a product's stream, at places that do not
    depend on it (those that a router chose are its core's)."""
    if not analysis.picks(node):
        return False
    source, *places = operand_nodes(node)
    stream = {n for n in _ancestors([node]) if level.get(n) == 1}
    opened = level.get(source) == 1 and any(map(analysis.opens, stream))
    return opened and not stream & ({*places} | _ancestors(places))


def _may_open(analysis: Analysis, node: Node) -> bool:
    entry = analysis.entry(node)
    return entry is not None and entry.kind in (Kind.SOFTMAX, Kind.CONTRACTION, Kind.ATTENTION)


def _reduces(analysis: Analysis, node: Node) -> bool:
    return analysis.kind(node) in (Kind.SOFTMAX, Kind.REDUCTION) or analysis.picks(node)


def _between(analysis: Analysis, level: dict[Node, int], end: Node) -> set[Node]:
    """``end`` and the nodes of the streams that it closes, back to where those open."""
    found, stack = {end}, [end]
    while stack:
        node = stack.pop()
        if node is not end and analysis.opens(node):
            continue
        for operand in operand_nodes(node):
            if level.get(operand) == 1 and operand not in found:
                found.add(operand)
                stack.append(operand)
    return found


def _merged(groups: Iterable[set[Node]]) -> list[set[Node]]:
    """Groups that share a node made one."""
    out: list[set[Node]] = []
    for group in groups:
        touching = [o for o in out if o & group]
        out = [o for o in out if not o & group]
        out.append(group.union(*touching))
    return out


def _convex(analysis: Analysis, core: set[Node]) -> Iterator[set[Node]]:
    """The core without what a detour out and back in depends on; nothing if too little stays."""
    core = core | {u for n in core if isinstance(fake_of(n), tuple) for u in n.users}
    core = _trimmed(analysis, core)
    products = [n for n in core if analysis.opens(n)]
    reductions = [n for n in core if _reduces(analysis, n)]
    ordered = sorted(core, key=analysis.position.__getitem__)
    core = _attached(ordered, {*products, *reductions})
    if len(products) >= 2 or (products and reductions):
        yield core


def _attached(core: list[Node], anchors: set[Node]) -> set[Node]:
    """Nodes that still depend on an anchor of the core; leading pointwise leftovers go."""
    kept: set[Node] = set()
    for node in core:
        if node in anchors or any(n in kept for n in node.all_input_nodes):
            kept.add(node)
    return kept


def _dependents(analysis: Analysis, core: Iterable[Node]) -> set[Node]:
    """Nodes outside that stand behind the core in the graph."""
    inside = set(core)
    found: set[Node] = set()
    for node in analysis.nodes:
        if node not in inside and any(n in inside or n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _tainted(analysis: Analysis, core: Iterable[Node]) -> set[Node]:
    """Those of them that have to. ``zeros_like(scores)`` does not depend on the core's numbers, nor
    what is made of it and other constants: the core takes those along (``absorb.py``). But
    ``zeros_like(scores.flip(0))`` stands behind a flip that is not the core's."""
    core = set(core)
    behind = _dependents(analysis, core)
    along: set[Node] = set()
    for node in analysis.nodes:
        if node in behind and analysis.generated(node) and analysis.usable(node):
            after = behind.intersection(node.all_input_nodes)
            if after <= along:
                along.add(node)
    return behind - along


def _ancestors(nodes: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _scores(analysis: Analysis, core: frozenset[Node]) -> bool:
    kinds = {analysis.kind(n) for n in core}
    if Kind.ROUTING in kinds:
        return False
    return bool(kinds & {Kind.ATTENTION, Kind.SOFTMAX}) or any(map(analysis.multiplies, core))


def _surviving(nodes: list[Node], core: frozenset[Node]) -> set[Node]:
    """Absorbed nodes that the rest of the graph needs too: they stay there as well."""
    stay: set[Node] = set()
    inside = set(nodes)
    for node in reversed(nodes):
        if node not in core and any(u not in inside or u in stay for u in node.users):
            stay.add(node)
    return stay


def _complete(
    analysis: Analysis, hazards: Hazards, core: frozenset[Node], others: frozenset[Node]
) -> Region:
    """Adds the absorbed inputs, and rotations of an attention's."""
    place = max(map(analysis.position.__getitem__, core))
    absorbed = absorb_inputs(analysis, hazards, core, others, place)
    region = _with_borders(analysis, hazards, core, absorbed)
    if region.refused is not None or not region.attention:
        return region
    rotation = find_rotation(analysis, hazards, {*core, *absorbed}, others, place)
    if not rotation.nodes:
        return region
    rotation.settle()
    more = absorb_inputs(analysis, hazards, {*core, *absorbed, *rotation.nodes}, others, place)
    rotated = _with_borders(analysis, hazards, core, absorbed | rotation.nodes | more)
    if rotated.refused is not None:
        return region
    rotated.plain = region
    return rotated


def _is_empty(node: Node) -> bool:
    """Whether a tensor has no elements; sizes that may change are never 0 (Dynamo guards it)."""
    fake = fake_of(node)
    return isinstance(fake, torch.Tensor) and any(
        isinstance(size, int) and size == 0 for size in fake.shape
    )


def _with_borders(
    analysis: Analysis, hazards: Hazards, core: frozenset[Node], absorbed: set[Node]
) -> Region:
    """Finds what goes in and out."""
    at = analysis.position
    anchor = max(core, key=at.__getitem__)
    nodes = sorted({*core, *absorbed}, key=at.__getitem__)
    inside = set(nodes)
    inputs = list(dict.fromkeys(o for n in nodes for o in operand_nodes(n) if o not in inside))
    stay = _surviving(nodes, core)
    outputs = [n for n in nodes if n in core and any(u not in inside or u in stay for u in n.users)]
    behind = _dependents(analysis, core)
    late = [n for n in behind if at[n] < at[anchor] and n not in absorbed]
    region = Region(core, nodes, inputs, outputs, anchor, attention=_scores(analysis, core))
    first = min(at[n] for n in core)
    if any(map(_is_empty, (*inputs, *nodes))):
        region.refused = "a tensor of it has no elements: torch makes as many in no time"
    elif behind & set(inputs):
        region.refused = "one of its inputs depends on its own results"
    elif any(hazards.block(n, at[n], at[anchor]) for n in core):
        region.refused = "memory that it reads is written in place before it ends"
    elif late and hazards.any_between(first, at[anchor]):
        region.refused = "users of its results would have to move past a write in place"
    return region
