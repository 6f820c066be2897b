"""Which axis of the iteration space every dimension of every tensor runs over.

Shape changes (transpose, reshape, broadcast) disappear here: they only say which axes a
dimension is
made of. ``h`` reshaped to ``k x g`` makes ``h`` the pair (k, g) everywhere, so that grouped
heads or
repeated keys need no copy. Every use of a parameter gets its own axes (``q`` and ``k`` may be one
tensor); uses are brought together by the operations that combine them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_cache import CachedTensor
from tilewright.ir.ops_lowbit import Dequantize
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import Axis, TensorType

Dim = tuple[int, ...]
Dims = tuple[Dim, ...]


@dataclass
class View:
    """One use of a value: its dimensions' axes. ``root`` is what has to be read for it."""

    root: Value
    root_dims: Dims
    dims: Dims


@dataclass
class AxisMap:
    """The result: views of all operands, dims of all computed values, names and sizes of axes."""

    graph: Graph
    size: dict[int, Size] = field(default_factory=dict)
    hint: dict[int, str] = field(default_factory=dict)
    parts: dict[int, Dim] = field(default_factory=dict)
    dims: dict[Value, Dims] = field(default_factory=dict)
    views: dict[tuple[Op | None, int], View] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    share: bool = True
    shared: dict[tuple[Value, str], Dims] = field(default_factory=dict)

    def fresh(self, size: Size, hint: str = "") -> Dim:
        """A new axis; none for a dimension of size one."""
        if size == Size.of(1):
            return ()
        at = len(self.size)
        self.size[at], self.hint[at] = size, hint
        return (at,)

    def resolve(self, dim: Dim) -> Dim:
        out: list[int] = []
        for axis in dim:
            out.extend(self.resolve(self.parts[axis]) if axis in self.parts else (axis,))
        return tuple(out)

    def resolved(self, dims: Dims) -> Dims:
        return tuple(self.resolve(d) for d in dims)

    def unify(self, a: Dim, b: Dim, op: Op) -> Dim:
        """Makes two dimensions one; an empty one broadcasts."""
        a, b = self.resolve(a), self.resolve(b)
        if not a or not b or a == b:
            return a or b
        if len(a) == 1 and a[0] not in b:
            return self._alias(a[0], b)
        if len(b) == 1 and b[0] not in a:
            return self._alias(b[0], a)
        same = [self.size[x] for x in a] == [self.size[x] for x in b]
        if len(a) != len(b) or not same:
            raise UnsupportedError("dimensions are split in two different ways", op.loc)
        for x, y in zip(a, b, strict=True):
            self.unify((x,), (y,), op)
        return self.resolve(a)

    def _alias(self, axis: int, target: Dim) -> Dim:
        self.parts[axis] = target
        if len(target) == 1 and not self.hint[target[0]]:
            self.hint[target[0]] = self.hint[axis]
        return target

    def name(self, axis: int) -> str:
        return self.names[axis]

    def axis(self, axis: int) -> Axis:
        return Axis(self.names[axis], self.size[axis])

    def flat(self, dims: Dims) -> frozenset[int]:
        """All axes of some dimensions."""
        return frozenset(x for d in self.resolved(dims) for x in d)


def find_axes(graph: Graph) -> AxisMap:
    """Axes of a decomposed tensor graph. Raises UnsupportedError where one value would need to be
    read along one axis twice (its diagonal), or is split in two ways."""
    try:
        return _find(graph, share=True)
    except UnsupportedError:
        return _find(graph, share=False)


def _find(graph: Graph, share: bool) -> AxisMap:
    """With ``share`` all plain pointwise and reducing uses of an input run over the same axes."""
    axes = AxisMap(graph, share=share)
    producers = graph.producers()
    for op in graph.body.ops:
        if not _is_view(op):
            _infer(axes, op, producers)
    for at, value in enumerate(graph.results):
        axes.views[None, at] = _view(axes, value, producers)
    _merge_loops(axes)
    _check_diagonals(axes)
    _name(axes)
    return axes


def _is_view(op: Op) -> bool:
    return isinstance(op, t.Transpose | t.Reshape | t.Broadcast) or _is_leaf(op)


def _is_leaf(op: Op) -> bool:
    """True for what is made anew at every use instead of being read."""
    return isinstance(op, t.Iota | m.Const | m.SizeValue)


def _view(axes: AxisMap, value: Value, producers: dict[Value, Op]) -> View:
    """A use of ``value``: shape changes undone down to what has to be read."""
    op = producers.get(value)
    assert isinstance(value.type, TensorType)
    if op is None or _is_leaf(op):
        dims = tuple(axes.fresh(s) for s in value.type.shape)
        if isinstance(op, t.Iota):
            axis = op.axis % len(dims)
            only = tuple(d if i == axis else () for i, d in enumerate(dims))
            return View(value, only, dims)
        return View(value, dims, dims)
    if not _is_view(op):
        return View(value, axes.dims[value], axes.dims[value])
    below = _view(axes, op.operands[0], producers)
    return View(below.root, below.root_dims, _reshaped(axes, op, below.dims))


def _reshaped(axes: AxisMap, op: Op, dims: Dims) -> Dims:
    if isinstance(op, t.Transpose):
        return tuple(dims[p] for p in op.permutation)
    type_ = op.result.type
    assert isinstance(type_, TensorType)
    if isinstance(op, t.Broadcast):
        padded = ((),) * (len(type_.shape) - len(dims)) + dims
        return tuple(
            d if axes.resolve(d) else axes.fresh(s)
            for d, s in zip(padded, type_.shape, strict=True)
        )
    return _regroup(axes, op, [x for d in axes.resolved(dims) for x in d], type_.shape)


def _regroup(axes: AxisMap, op: Op, flat: list[int], shape: tuple[Size, ...]) -> Dims:
    """Distributes a row-major list of axes over the dimensions of a new shape."""
    out: list[Dim] = []
    for size in shape:
        taken: list[int] = []
        have = Size.of(1)
        while have != size and flat:
            axis = flat.pop(0)
            rest = _quotient(axes.size[axis], _quotient(size, have))
            if rest is not None and rest != Size.of(1):
                axis, inner = _split(axes, axis, _quotient(size, have), rest)
                flat.insert(0, inner)
            taken.append(axis)
            have = have * axes.size[axis]
        if have != size:
            raise UnsupportedError("a reshape that splits and merges dimensions at once", op.loc)
        out.append(tuple(taken))
    return tuple(out)


def _split(axes: AxisMap, axis: int, outer: Size | None, inner: Size) -> tuple[int, int]:
    assert outer is not None
    (first,), (second,) = axes.fresh(outer), axes.fresh(inner)
    axes.parts[axis] = (first, second)
    return first, second


def _quotient(a: Size, b: Size | None) -> Size | None:
    """a / b if b divides a exactly and both are single products, else None."""
    if b is None or len(a.terms) != 1 or len(b.terms) != 1:
        return Size.of(1) if a == b else None
    (top, x), (bottom, y) = a.terms[0], b.terms[0]
    left = list(top)
    for name in bottom:
        if name not in left:
            return None
        left.remove(name)
    if y == 0 or x % y:
        return None
    return product([x // y, *left])


def _use(axes: AxisMap, op: Op, at: int, producers: dict[Value, Op]) -> View:
    """A view for an operand; plain uses of an input share one."""
    value = op.operands[at]
    assert isinstance(value.type, TensorType)
    if value in producers or not axes.share:
        return _view(axes, value, producers)
    # the same side of the same product (keys of several attentions) is read once
    side = f"{op.equation} {at}" if isinstance(op, t.Contract) else ""
    if (value, side) not in axes.shared:
        axes.shared[value, side] = tuple(axes.fresh(s) for s in value.type.shape)
    dims = axes.shared[value, side]
    return View(value, dims, dims)


def _infer(axes: AxisMap, op: Op, producers: dict[Value, Op]) -> None:
    if isinstance(op, t.Gather):
        _gather(axes, op, producers)
        return
    if isinstance(op, Dequantize | CachedTensor):
        if any(v in producers for v in op.operands):
            raise UnsupportedError("codes that are computed: give them as inputs", op.loc)
        type_ = op.result.type
        assert isinstance(type_, TensorType)
        axes.dims[op.result] = tuple(axes.fresh(s) for s in type_.shape)
        return
    views = [_use(axes, op, i, producers) for i in range(len(op.operands))]
    for at, view in enumerate(views):
        axes.views[op, at] = view
    if isinstance(op, t.Contract):
        axes.dims[op.result] = _contract(axes, op, views)
    elif isinstance(op, t.Reduce):
        axis = op.axis_of(op.axis, len(views[0].dims))
        kept: Dims = ((),) if op.keep else ()
        axes.dims[op.result] = views[0].dims[:axis] + kept + views[0].dims[axis + 1 :]
    elif isinstance(op, t.Roll):
        axes.dims[op.result] = views[0].dims
    elif "pointwise" in op.traits:
        axes.dims[op.result] = _pointwise(axes, op, views)
    elif (dims := _routing(axes, op, views)) is not None:
        axes.dims.update(dict.fromkeys(op.results, dims))
    else:
        raise UnsupportedError(f"{op.name} has no meaning on streams yet", op.loc)


def _gather(axes: AxisMap, op: t.Gather, producers: dict[Value, Op]) -> None:
    """The indices run over the iteration space, the table is memory read anywhere."""
    if op.x in producers:
        raise UnsupportedError("a gather from a computed tensor: give it as an input", op.loc)
    views = [_view(axes, v, producers) for v in op.indices]
    for at, view in enumerate(views, 1):
        axes.views[op, at] = view
    axes.dims[op.result] = _pointwise(axes, op, views)


def _contract(axes: AxisMap, op: t.Contract, views: list[View]) -> Dims:
    left, right, out = op.letters()
    by_letter: dict[str, Dim] = {}
    for letters, view in ((left, views[0]), (right, views[1])):
        for letter, dim in zip(letters, view.dims, strict=True):
            merged = axes.unify(by_letter.get(letter, ()), dim, op)
            by_letter[letter] = merged
            for axis in merged:
                axes.hint[axis] = axes.hint[axis] or letter
    return tuple(by_letter[letter] for letter in out)


def _pointwise(axes: AxisMap, op: Op, views: list[View]) -> Dims:
    rank = max((len(v.dims) for v in views), default=0)
    out: list[Dim] = [()] * rank
    for view in views:
        for at, dim in enumerate(view.dims, rank - len(view.dims)):
            out[at] = axes.unify(out[at], dim, op)
    return tuple(out)


def _routing(axes: AxisMap, op: Op, views: list[View]) -> Dims | None:
    """The dimensions of a routing operation's results (all alike); None for any other."""
    first = views[0].dims if views else ()
    if isinstance(op, r.TopK):
        return (*first[:-1], axes.fresh(Size.of(op.k), "k"))
    if isinstance(op, r.SegmentCount):
        return (axes.fresh(op.segments, "segment"),)
    if isinstance(op, r.PrefixSum | r.SegmentRank):
        return first
    if isinstance(op, r.TakeAlong):
        return _unified(axes, op, views[1].dims, first, op.axis)
    if isinstance(op, r.Scatter):
        places = tuple(
            axes.unify(a, b, op) for a, b in zip(views[1].dims, views[2].dims, strict=True)
        )
        return _unified(axes, op, first, places, op.axis)
    return None


def _unified(axes: AxisMap, op: Op, kept: Dims, other: Dims, axis: int) -> Dims:
    """``kept`` after all dimensions but one were made those of ``other``."""
    at = axis % len(kept)
    pairs = enumerate(zip(kept, other, strict=True))
    return tuple(a if i == at else axes.unify(a, b, op) for i, (a, b) in pairs)


def _merge_loops(axes: AxisMap) -> None:
    """Axes of one length become one loop if no value runs along both: sums that are taken apart
    from each other, the same dimension of results that have nothing to do with each other, what is
    counted along and any other. Axes of known length that only products sum over lie inside
    elements: they stay as they are."""
    kept: dict[int, int] = {}  # axes of results, and which dimension they belong to
    gone: dict[int, bool] = {}  # whether a reduction proper, not only a product, runs along it
    for op in axes.graph.body.ops:
        if isinstance(op, t.Contract | t.Reduce):
            views = [axes.views[op, i] for i in range(len(op.operands))]
            inside = frozenset().union(*(axes.flat(v.dims) for v in views))
            for axis in inside - axes.flat(axes.dims[op.result]):
                gone[axis] = gone.get(axis, False) or isinstance(op, t.Reduce)
    for at in range(len(axes.graph.results)):
        for number, dim in enumerate(axes.resolved(axes.views[None, at].dims)):
            kept.update(dict.fromkeys(dim, number))
    counted = {
        axis
        for op in axes.graph.body.ops
        if isinstance(op, r.SegmentCount)
        for axis in axes.resolve(axes.views[op, 0].dims[0])[:1]
    }
    meetings = _meetings(axes)
    for at, axis in enumerate(candidates := sorted({*gone, *kept, *counted})):
        for other in candidates[:at]:
            alike = kept.get(axis) == kept.get(other) or bool({axis, other} & counted)
            alike = alike and axes.size[axis] == axes.size[other]
            reduced = gone.get(axis, False) and gone.get(other, False)
            loop = axes.size[axis].constant is None or reduced or axis in kept
            free = other not in axes.parts
            if alike and free and loop and not any({axis, other} <= x for x in meetings):
                axes.parts[axis] = (other,)
                meetings = [x - {axis} | {other} if axis in x else x for x in meetings]
                break


def _meetings(axes: AxisMap) -> list[frozenset[int]]:
    """For every operation and every result the axes that its values run along."""
    found: dict[Op | Value, frozenset[int]] = {}
    for (user, at), view in axes.views.items():
        key = user if user is not None else axes.graph.results[at]
        flat = axes.flat(view.dims) | axes.flat(view.root_dims)
        found[key] = found.get(key, frozenset()) | flat
    for op in axes.graph.body.ops:
        if op in found and op.results[0] in axes.dims:
            found[op] |= axes.flat(axes.dims[op.results[0]])
    return list(dict.fromkeys(found.values()))


def _check_diagonals(axes: AxisMap) -> None:
    for product_op in axes.graph.body.ops:
        if isinstance(product_op, t.Contract):
            _check_letters(axes, product_op)
    for (op, _), view in axes.views.items():
        for dims in (view.dims, view.root_dims):
            flat = [x for d in axes.resolved(dims) for x in d]
            if len(flat) != len(set(flat)):
                where = op.loc if op else None
                raise UnsupportedError("a value is combined with its own transpose", where)


def _check_letters(axes: AxisMap, op: t.Contract) -> None:
    """Different letters must run over different axes."""
    left, right, _ = op.letters()
    by_letter: dict[str, frozenset[int]] = {}
    for at, letters in enumerate((left, right)):
        for letter, dim in zip(letters, axes.views[op, at].dims, strict=True):
            by_letter[letter] = frozenset(axes.resolve(dim))
    flat = [x for found in by_letter.values() for x in found]
    if len(flat) != len(set(flat)):
        raise UnsupportedError("two letters of a contraction run over one axis", op.loc)


def _name(axes: AxisMap) -> None:
    taken: set[str] = set()
    every = [*(view.dims for view in axes.views.values()), *axes.dims.values()]
    used = [x for dims in every for d in axes.resolved(dims) for x in d]
    for axis in dict.fromkeys(used):
        stem = axes.hint[axis] or "i"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}{number}"
        taken.add(name)
        axes.names[axis] = name
