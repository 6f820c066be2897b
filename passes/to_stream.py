"""Tensors to streams: every tensor becomes the stream of its elements in one order of loops.

``%s = tensor.contract %q, %k {"hnd,hmd->hnm"}``  ->
``%s = stream.contract %q, %k {axes = ["d"]} : stream<h=H, n=N, m=M; f32>``

``loop_order.py`` chooses the order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.ops_cache import CachedTensor
from tilewright.ir.ops_lowbit import Dequantize
from tilewright.ir.ops_remake import Remake, RemakeStream
from tilewright.ir.ops_routing_stream import StreamSegmentCount
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.axes import View, find_axes
from tilewright.passes.coded_sources import cached, dequantized
from tilewright.passes.inner_products import (
    Inner,
    cut_products,
    inner_products,
    made_again,
    reductions_of_inputs,
)
from tilewright.passes.loop_order import along_unit, choose_order, reduced_axes, row_alone
from tilewright.passes.routing_axes import OPS
from tilewright.passes.routing_streams import RoutingStreams
from tilewright.passes.split_sums import split_sums


class _Converter:
    """Builds the stream graph of one tensor graph."""

    def __init__(self, graph: Graph, label: str = "", held: bool = False) -> None:
        self.graph, self.label = graph, label
        self.axes = find_axes(graph)
        self.order = choose_order(self.axes, held)
        self.build = Builder()
        self.made: dict[Value, Value] = {}
        self.read: dict[tuple[Value, str], Value] = {}
        self.late: set[Value] = set()  # what follows from counts: it runs in their loop no more
        self.producers = graph.producers()
        self.parallel = tuple(self.axes.axis(x) for x in self.order.parallel)
        self.inner: Axis | None = None
        if self.order.streamed is not None:
            self.inner = self.axes.axis(self.order.streamed)
        self.alone = self._row_alone()
        if self.alone is not None:
            self.parallel = (self.alone,)

    def _row_alone(self) -> Axis | None:
        """The loop of one turn that a row alone runs in, whose other dimensions are 1: what runs in
        no loop has nothing to wait for, and rules make channels shallow between loops. None if
        there are loops, or a result has no dimension of 1 that the loop may run along."""
        results = [self.axes.views[None, at] for at in range(len(self.graph.results))]
        units = all(() in self._along(view) for view in results)
        routes = any(isinstance(op, OPS) for op in self.graph.body.ops)
        if self.parallel or self.inner is None or not units or routes:
            return None
        return row_alone(set(self.axes.names.values()))

    def run(self) -> Graph:
        for op in self.graph.body.ops:
            if op.results[0] in self.axes.dims:
                self.build.loc = op.loc
                before = len(self.build.ops)
                made = self.convert(op)
                made = made if isinstance(made, tuple) else (made,)
                self.made.update(zip(op.results, made, strict=True))
                for new in self.build.ops[before:]:
                    if isinstance(new, StreamSegmentCount) or self.late & {*new.operands}:
                        self.late.update(new.results)
        sinks = [self.sink(i, v) for i, v in enumerate(self.graph.results)]
        body = Region(self.graph.params, tuple(self.build.ops), tuple(sinks))
        return Graph("stream", self.graph.name, self.graph.sizes, body)

    def loops(self, flat: frozenset[int]) -> tuple[Axis, ...]:
        streamed = self.order.streamed in flat and self.inner is not None
        return (*self.parallel, self.inner) if streamed and self.inner else self.parallel

    def stream_type(self, view: View) -> StreamType:
        flat = self.axes.flat(view.root_dims)
        inside = [
            x for d in self.axes.resolved(view.root_dims) for x in d if x in self.order.element
        ]
        dtype = view.root.type
        assert isinstance(dtype, TensorType)
        element = tuple(self.axes.axis(x) for x in inside)
        return StreamType(self.loops(flat), element, dtype.dtype)

    def named(self, view: View) -> tuple[tuple[str, ...], ...]:
        return tuple(
            tuple(self.axes.name(x) for x in d) for d in self.axes.resolved(view.root_dims)
        )

    def _along(self, view: View) -> tuple[tuple[str, ...], ...]:
        """The axes along each dimension of a view itself."""
        return tuple(tuple(self.axes.name(x) for x in d) for d in self.axes.resolved(view.dims))

    def operand(self, op: Op | None, at: int) -> Value:
        """The stream of one use: made before, or a source, an index, a constant."""
        view = self.axes.views[op, at]
        root = self.producers.get(view.root)
        if isinstance(root, m.Const | m.SizeValue):
            assert isinstance(view.root.type, TensorType)
            given = {**root.attrs, "type": StreamType((), (), view.root.type.dtype)}
            return self.build(type(root), hint=view.root.hint, **given)
        if view.root in self.made:
            return self.made[view.root]
        key = (view.root, str(self.named(view)))
        if key not in self.read:
            self.read[key] = self.source(view, root)
        return self.read[key]

    def source(self, view: View, root: Op | None) -> Value:
        type_ = self.stream_type(view)
        if isinstance(root, t.Iota):
            return self.index(view, root, type_)
        dims = self.named(view)
        return self.build(s.Source, view.root, dims=dims, type=type_, hint=view.root.hint)

    def index(self, view: View, root: t.Iota, type_: StreamType) -> Value:
        """The position on an axis; on a merged one (k, g) it is k * size(g) + g."""
        flat = [x for d in self.axes.resolved(view.root_dims) for x in d]
        inside = [x for x in flat if x in self.order.element]
        if inside and len(flat) > 1:
            raise UnsupportedError("the position on an element's axis and a loop's", root.loc)
        if inside:
            own = self.axes.axis(flat[0])
            here = StreamType(self.parallel, (own,), type_.dtype)
            return self.build(s.Index, axis=own.name, type=here, hint=f"{own.name}_at")
        total: Value | None = None
        for axis in flat:
            name, loops = self.axes.name(axis), self.loops(frozenset({axis}))
            here = StreamType(loops, (), type_.dtype)
            at = self.build(s.Index, axis=name, type=here, hint=f"{name}_at")
            if total is not None:
                single = StreamType((), (), type_.dtype)
                size = self.build(m.SizeValue, size=self.axes.size[axis], type=single, hint="size")
                outer = self.build(m.Mul, total, size, hint="outer")
                at = self.build(m.Add, *self.level([outer, at]), hint="at")
            total = at
        if total is None:  # an axis of one element
            return self.build(m.Const, value=0, type=StreamType((), (), type_.dtype), hint="at")
        return total

    def gather(self, op: t.Gather) -> Value:
        """Indices along the element's own axes become named dimensions, the others operands."""
        dims: list[tuple[str, ...]] = []
        indices: list[Value] = []
        for at in range(1, len(op.operands)):
            view = self.axes.views[op, at]
            flat = [x for d in self.axes.resolved(view.root_dims) for x in d]
            iota = isinstance(self.producers.get(view.root), t.Iota)
            if iota and len(flat) == 1 and flat[0] in self.order.element:
                dims.append((self.axes.name(flat[0]),))
            else:
                dims.append((s.INDEXED,))
                indices.append(self.operand(op, at))
        indices = self.level(indices)
        loops = max((v.type.loops for v in indices if isinstance(v.type, StreamType)), key=len)
        dtype = op.x.type.dtype if isinstance(op.x.type, TensorType) else I64
        own = [x for d in self.axes.resolved(self.axes.dims[op.result]) for x in d]
        element = tuple(self.axes.axis(x) for x in own if x in self.order.element)
        type_ = StreamType(loops or self.parallel, element, dtype)
        hint = op.result.hint
        return self.build(s.Gather, op.x, *indices, dims=tuple(dims), type=type_, hint=hint)

    def roll(self, op: t.Roll, value: Value) -> Value:
        dim = self.axes.dims[op.result][op.axis_of(op.axis, len(self.axes.dims[op.result]))]
        flat = self.axes.resolve(dim)
        if len(flat) != 1 or flat[0] not in self.order.element:
            raise UnsupportedError("a roll along an axis that is not an element's own", op.loc)
        name = self.axes.name(flat[0])
        return self.build(s.Roll, value, axis=name, shift=op.shift, hint=op.result.hint)

    def level(self, values: list[Value]) -> list[Value]:
        """All operands brought into the same loops by repeating the outer ones."""
        types = [v.type for v in values]
        assert all(isinstance(x, StreamType) for x in types)
        deepest = max((x.loops for x in types if isinstance(x, StreamType)), key=len)
        out = []
        for value in values:
            assert isinstance(value.type, StreamType)
            repeats = bool(value.type.loops) or value in self.late
            missing = deepest[len(value.type.loops) :] if repeats else ()
            out.append(reduce(self.repeat, missing, value))
        return out

    def repeat(self, value: Value, axis: Axis) -> Value:
        key = (value, f"repeat {axis}")
        if key not in self.read:
            self.read[key] = self.build(s.Repeat, value, axis=axis, hint=value.hint)
        return self.read[key]

    def convert(self, op: Op) -> Value | tuple[Value, ...]:
        if isinstance(op, t.Gather):
            return self.gather(op)
        if isinstance(op, Dequantize):
            return dequantized(op, self.axes, self.order, self.parallel, self.build)
        if isinstance(op, CachedTensor):
            return cached(op, self.axes, self.order, self.loops, self.build)
        values = [self.operand(op, i) for i in range(len(op.operands))]
        if isinstance(op, OPS):
            routing = RoutingStreams(self.axes, self.order, self.build, self.repeat)
            return routing.convert(op, values, self.level(values))
        hint = op.result.hint
        if isinstance(op, t.Contract):
            return self.contract(op, values, hint)
        if isinstance(op, t.Reduce):
            gone = reduced_axes(self.axes, op)
            return self.reduce(values[0], op.kind, gone, hint)
        if isinstance(op, t.Roll):
            return self.roll(op, values[0])
        leveled = self.level(values)
        return self.build(type(op), *leveled, hint=hint, **op.attrs)

    def contract(self, op: t.Contract, values: list[Value], hint: str) -> Value:
        lhs, rhs = self.level(values)
        gone = reduced_axes(self.axes, op)
        inside = sorted(self.axes.name(x) for x in gone if x != self.order.streamed)
        if inside:
            cls = RemakeStream if isinstance(op, Remake) else s.Contract
            out = self.build(cls, lhs, rhs, axes=tuple(inside), hint=hint)
        else:
            out = self.build(m.Mul, lhs, rhs, hint=f"{hint}_term")
        if self.order.streamed in gone:
            out = self.reduce(out, "sum", frozenset({self.order.streamed or 0}), hint)
        return out

    def reduce(self, value: Value, kind: str, gone: frozenset[int], hint: str) -> Value:
        for axis in sorted(gone, key=lambda x: x == self.order.streamed):
            name = self.axes.name(axis)
            cls = s.Reduce if axis == self.order.streamed else s.Fold
            assert isinstance(value.type, StreamType)
            if name in [a.name for a in value.type.axes]:
                value = self.build(cls, value, kind=kind, axis=name, hint=hint)
            elif kind == "sum":
                value = self.times(value, self.axes.size[axis], hint)
        return value

    def times(self, value: Value, size: Size, hint: str) -> Value:
        """The sum of ``size`` equal values."""
        assert isinstance(value.type, StreamType)
        dtype = value.type.dtype
        number = StreamType((), (), I64)
        count = self.build(m.SizeValue, size=size, type=number, hint="size")
        if dtype != I64:
            count = self.build(m.Cast, count, dtype=dtype, hint="count")
        return self.build(m.Mul, value, count, hint=hint)

    def sink(self, at: int, value: Value) -> Value:
        view = self.axes.views[None, at]
        stream = self.operand(None, at)
        assert isinstance(stream.type, StreamType)
        flat = self.axes.flat(view.dims)
        counted = flat and flat.isdisjoint(self.order.parallel)  # over a loop: out of it now
        if not stream.type.loops and self.parallel and not counted:
            raise UnsupportedError("an output that is one constant")
        dims = self._along(view)
        if self.alone is not None:
            dims = along_unit(dims, self.alone)
        name = result_name(self.graph, at, self.label)
        return self.build(s.Sink, stream, dims=dims, type=value.type, hint=name)


CROSSING = "_rows"  # in the names of what the first of two graphs leaves to the second


def result_name(graph: Graph, at: int, label: str = "") -> str:
    """The name that wires a result which one of several kernels makes: it has to be its own."""
    hint = f"{graph.results[at].hint}{label}"
    return f"{hint}_out{at}" if len(graph.results) > 1 else hint


def tensor_to_stream(graph: Graph, label: str = "", held: bool = False) -> Graph:
    """The stream graph of one decomposed tensor graph. Raises UnsupportedError."""
    try:
        return _Converter(graph, label, held).run()
    except VerifyError as error:
        raise UnsupportedError(f"no stream form: {error.message}", error.location) from error


def stream_graphs(graph: Graph, held: bool = False) -> tuple[Graph, ...]:
    """One stream graph, or several where products make what another streams, or the last reductions
    run across the rows of the others; then their attribute ``results`` says which results of the
    whole they have. What has no form else may have one without the reductions of inputs (norms of
    keys, beside their products), which are graphs of their own then. ``held``: for programs that
    hold whole rows. Raises UnsupportedError."""
    problem: UnsupportedError | None = None
    try:
        inner = inner_products(graph)
        if inner is not None:
            return _without_inner(graph, inner, held)
        whole = tensor_to_stream(graph, held=held)
        if not _folds_across_rows(whole) and not _row_after_row(whole):
            return (whole,)
    except UnsupportedError as error:
        problem = error
    try:
        parts = _split(graph, held)
    except UnsupportedError:
        parts = ()
    if parts and not any(_folds_across_rows(g) for g in parts):
        return parts
    if problem is None:
        return (whole,)
    try:
        return _without_reductions(graph, held)
    except UnsupportedError:
        raise problem from None


def _without_inner(graph: Graph, inner: Inner, held: bool) -> tuple[Graph, ...]:
    """Products of inputs as graphs of their own; those of codes are made again inside the loop."""
    again = made_again(graph, inner.coded)
    others = [op for op in (*inner.along, *inner.beside) if op not in inner.coded]
    if not others:
        return (tensor_to_stream(again, held=held),)
    parts = cut_products(again, others)
    if not parts:
        raise UnsupportedError("a product inside another one's loop that has no sizes of its own")
    return tuple(replace(tensor_to_stream(p, held=held), attrs=p.attrs) for p in parts)


def _without_reductions(graph: Graph, held: bool) -> tuple[Graph, ...]:
    """What is reduced of inputs, and read by other reductions, as graphs of their own."""
    first = reductions_of_inputs(graph)
    parts = cut_products(graph, first) if first else ()
    if not parts:
        raise UnsupportedError("no reduction of inputs to make beforehand")
    return tuple(replace(tensor_to_stream(p, held=held), attrs=p.attrs) for p in parts)


def _row_after_row(graph: Graph) -> bool:
    """True if rows are reduced one by one within the only loop, over all of them: one work item,
    where the rows could be shared out before they are summed up."""
    types = [v.type for op in graph.body.ops for v in op.results]
    loops = max((len(x.loops) for x in types if isinstance(x, StreamType)), default=0)
    kinds = {type(op) for op in graph.body.ops}
    return loops == 1 and {s.Fold, s.Reduce} <= kinds


def _folds_across_rows(graph: Graph) -> bool:
    """True if an axis without a known length is reduced inside an element, and not only rows by
    themselves are computed."""
    if not any(isinstance(op, s.Reduce | s.Scan | s.Contract) for op in graph.body.ops):
        return False
    for op in graph.body.ops:
        if isinstance(op, s.Fold) and isinstance(op.x.type, StreamType):
            axis = next(a for a in op.x.type.element if a.name == op.axis)
            if axis.size.constant is None:
                return True
    return False


def _split(graph: Graph, held: bool) -> tuple[Graph, ...]:
    split = split_sums(graph, lambda first, at: result_name(first, at, CROSSING))
    if split is None:
        return ()
    first = tensor_to_stream(split.first, CROSSING, held)
    second = tensor_to_stream(split.second, held=held)
    return (
        replace(first, attrs={"results": split.first_results}),
        replace(second, attrs={"results": split.second_results}),
    )


def to_stream(module: Module, held: bool = False) -> Module:
    """Tensor graphs to stream graphs. ``held``: for programs that hold whole rows
    (loop_order.py)."""
    out: list[Graph] = []
    for graph in module.graphs:
        out.extend(stream_graphs(graph, held) if graph.level == "graph" else (graph,))
    return Module(tuple(out))
