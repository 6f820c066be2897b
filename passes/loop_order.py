"""In which order the loops of a stream program run.

First the axes that all outputs share and on which every reduction depends (they are independent of
each other), then the axis along which values are reduced. Axes summed inside one element, and those
of an output that the reductions do not depend on, become the element's own axes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Op, Value
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_stream import Dims
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis
from tilewright.passes.axes import AxisMap
from tilewright.passes.routing_axes import chosen_from, elements, walked

LONGEST_ROW = 1 << 14  # numbers that a block of rows may keep packed, or a GPU's work item hold


@dataclass(frozen=True)
class LoopOrder:
    """Parallel loops, the streamed axis (or None), and the axes inside an element."""

    parallel: tuple[int, ...]
    streamed: int | None
    element: frozenset[int]


def choose_order(axes: AxisMap, held: bool = False) -> LoopOrder:
    """The order of loops that needs the least state: see the module's docstring. ``held``: programs
    hold whole rows, which must be of a known length up to LONGEST_ROW."""
    reduced: Counter[int] = Counter()
    depends: list[frozenset[int]] = []
    last: dict[int, int] = {}
    chosen: set[int] = set()
    for at, op in enumerate(axes.graph.body.ops):
        chosen |= chosen_from(axes, op)
        gone = reduced_axes(axes, op) | chosen_from(axes, op)
        if gone:
            reduced.update(gone)
            last.update(dict.fromkeys(gone, at))
            if not isinstance(op, Remake):  # it is made again in the loops of its readers
                depends.append(_operand_axes(axes, op))
    outputs = [axes.views[None, i].dims for i in range(len(axes.graph.results))]
    ordered = list(dict.fromkeys(x for dims in outputs for d in axes.resolved(dims) for x in d))
    rows = not chosen and not walked(axes) and _are_rows(axes, bool(reduced))
    inside = _inside(axes, reduced, ordered, rows)
    if held:
        known = {x: axes.size[x].constant for x in inside}
        inside = {x for x, length in known.items() if length is not None and length <= LONGEST_ROW}
    inside |= elements(axes)
    parallel = tuple(
        x for x in ordered if x not in {*reduced, *inside} and all(x in d for d in depends)
    )
    streamed = None
    if chosen - inside or not _only_products(axes):
        streamed = _streamed(axes, {x: n for x, n in reduced.items() if x not in inside}, last)
        others = [x for x in ordered if x not in parallel]
        streamed = _along_results(axes, streamed, others, reduced)
    for axis in walked(axes):
        if streamed is None and axis not in parallel:
            streamed = axis
        elif axis not in (*parallel, streamed):
            parallel = (axis, *parallel)
    dims = [*(view.dims for view in axes.views.values()), *axes.dims.values()]
    every = {x for one in dims for x in axes.flat(one)}
    return LoopOrder(parallel, streamed, frozenset(every - {*parallel, streamed}))


def _along_results(
    axes: AxisMap, streamed: int | None, others: list[int], reduced: Counter[int]
) -> int | None:
    """Where all sums run along one axis of known length, that axis can lie inside an element, and
    the one axis that only some results have is streamed: a row is normalised once, and its product
    is formed for one weight after the other."""
    alone = streamed is not None and set(reduced) == {streamed} and streamed not in others
    if not alone or streamed is None or len(others) != 1:
        return streamed
    length = axes.size[streamed].constant
    return others[0] if length is not None and length <= LONGEST_ROW else streamed


def _inside(axes: AxisMap, reduced: Counter[int], outputs: list[int], rows: bool) -> set[int]:
    """Axes that results run along as well as reductions, if their length is a number, or if it is
    the last axis of ``rows``: a row of them is one element, read twice, and no channel has to hold
    it. Without any reduction the last axis."""
    products = any(isinstance(op, t.Contract) for op in axes.graph.body.ops)
    candidates = [x for x in outputs if x in reduced] if not products else []
    if not reduced and len(outputs) > 1:
        candidates = outputs[-1:]
    known = {x for x in candidates if axes.size[x].constant is not None}
    last = rows and candidates == outputs[-1:]
    return known or (set(candidates) if last else set())


def _are_rows(axes: AxisMap, reduced: bool) -> bool:
    """True if every result is made of whole rows: it has more dimensions than one and differs along
    the last. Without reductions only pointwise work is: masks made of positions are read number by
    number, and products may have a single term."""
    plain = t.Broadcast | t.Reshape | t.Transpose
    ops = axes.graph.body.ops
    if not reduced and not all("pointwise" in op.traits or isinstance(op, plain) for op in ops):
        return False
    for at in range(len(axes.graph.results)):
        view = axes.views[None, at]
        along = axes.resolved(view.dims)
        if len(along) < 2 or not along[-1] or not {*along[-1]} <= axes.flat(view.root_dims):
            return False
    return True


def _streamed(axes: AxisMap, reduced: dict[int, int], last: dict[int, int]) -> int | None:
    """The axis most reductions run along, the latest of equals; one without a known length before
    any that could lie inside an element."""

    def rank(axis: int) -> tuple[bool, int, int]:
        return axes.size[axis].constant is None, reduced[axis], last[axis]

    return max(reduced, key=rank) if reduced else None


def _only_products(axes: AxisMap) -> bool:
    """True if all reductions are contractions and none takes the result of another: then each is
    summed inside an element, and no axis has to be streamed."""
    after: set[Value] = set()
    for op in axes.graph.body.ops:
        reduces = isinstance(op, t.Reduce | t.Contract)
        follows = any(v in after for v in op.operands)
        if isinstance(op, t.Reduce) or (reduces and follows):
            return False
        if reduces or follows:
            after.update(op.results)
    return True


def _operand_axes(axes: AxisMap, op: Op) -> frozenset[int]:
    views = [axes.views[op, i] for i in range(len(op.operands))]
    return frozenset(x for view in views for x in axes.flat(view.dims))


def reduced_axes(axes: AxisMap, op: Op) -> frozenset[int]:
    """The axes that a contraction or reduction sums along; none for other operations."""
    if not isinstance(op, t.Contract | t.Reduce):
        return frozenset()
    return _operand_axes(axes, op) - axes.flat(axes.dims[op.result])


def row_alone(taken: set[str]) -> Axis:
    """A loop of one turn, for what runs in none, with a name that is not ``taken``."""
    names = map("row{}".format, range(len(taken) + 1))
    return Axis(next(n for n in names if n not in taken), Size.of(1))


def along_unit(dims: Dims, axis: Axis) -> Dims:
    """The axis along the first dimension that none runs along: the size of that is 1. The same
    if there is no such dimension."""
    at = dims.index(()) if () in dims else len(dims)
    return (*dims[:at], (axis.name,), *dims[at + 1 :]) if at < len(dims) else dims
