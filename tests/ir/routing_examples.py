"""Examples of the operations of routing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.ir.examples import SINK, Example, X, Y, on_streams

SCORES = np.array([[0.5, 2.0, -1.0, 2.0], [np.nan, 1.0, 3.0, -np.inf]])
IDS = np.array([[2, 0], [2, 5], [0, 2]], np.int32)  # 5 is outside


def _graph(op: str, attrs: str, want: Any, *inputs: tuple[str, Any]) -> Example:
    """An operation on tensors of the inputs' shapes and the dtypes given with them."""
    names = "xyz"[: len(inputs)]
    types = [" x ".join([*map(str, np.shape(x)), d]) for d, x in inputs]
    params = ", ".join(f"%{c}: tensor<{t}>" for c, t in zip(names, types, strict=True))
    values = ", ".join(f"%{c}" for c in names)
    text = f"graph f({params}) {{ %r = tensor.{op} {values} {{{attrs}}} return %r }}"
    return Example(f"tensor.{op}", text, tuple(x for _, x in inputs), want)


def _tensor_examples() -> Iterator[Example]:
    text = "graph f(%x: tensor<2 x 4 x f64>) { %v, %i = tensor.top_k %x {k = 3} return %RESULT }"
    order = np.array([[1, 3, 0], [0, 2, 1]])
    yield Example("tensor.top_k", text.replace("RESULT", "i"), (SCORES,), order)
    yield _graph("sort_order", "axis = 1", np.array([[2, 0, 1, 3], [3, 1, 2, 0]]), ("f64", SCORES))
    at = np.array([[2, 9], [0, -1]])  # outside: the nearest inside
    picked = np.array([[X[0, 2], X[0, 2]], [X[1, 0], X[1, 0]]])
    yield _graph("take_along", "axis = 1", picked, ("f64", X), ("i64", at))
    source = np.array([[7.0, 8.0], [9.0, 10.0]])
    at = np.array([[1, 1], [3, 0]])  # the last of two stays; 3 is outside
    put = np.array([[X[0, 0], 8.0, X[0, 2]], [10.0, X[1, 1], X[1, 2]]])
    given = (("f64", X), ("i64", at), ("f64", source))
    yield _graph("scatter", 'axis = 1, kind = "set"', put, *given)
    yield _graph("segment_count", "segments = size(4)", np.array([2, 0, 3, 0]), ("i32", IDS))
    sums = np.array([[0.0, X[0, 0], X[0, 0] + X[0, 1]], [0.0, X[1, 0], X[1, 0] + X[1, 1]]])
    yield _graph("prefix_sum", "axis = -1, exclusive = true", sums, ("f64", X))
    places = np.array([[2, 0], [3, -1], [1, 4]])
    offsets = np.array([0, 2, 2, 5])
    yield _graph("segment_rank", "", places, ("i32", IDS), ("i64", offsets))


def _on_ids(op: str, lines: str, want: Any) -> Example:
    """A stream of pairs of ids over n, and two offsets or counters for segments."""
    text = (
        "stream f(%x: tensor<3 x 2 x i32>, %y: tensor<4 x i64>) {\n"
        '%a = stream.source %x {dims = [["n"], ["k"]], type = stream<n=3; k=2 x i32>}\n'
        '%b = stream.source %y {dims = [["s"]], type = stream<n=3; s=4 x i64>}\n'
        f"{lines}\nreturn %o }}"
    )
    return Example(op, text, (IDS, np.array([0, 2, 2, 5])), want)


def _stream_examples() -> Iterator[Example]:
    chosen = '%v, %i = stream.top_k %a {axes = ["m"], kept = axis(k, 2)}\n'
    sink = '%o = stream.sink %v {dims = [["n"], ["k"]], type = tensor<2 x 2 x f64>}'
    best = np.array([sorted(row)[::-1][:2] for row in X.tolist()])
    yield on_streams("stream.top_k", chosen, sink, X, Y, want=best)
    head = (
        "stream f(%x: tensor<2 x 3 x f64>, %y: tensor<2 x 2 x i64>) {\n"
        '%a = stream.source %x {dims = [["n"], ["d"]], type = stream<n=2; d=3 x f64>}\n'
        '%b = stream.source %y {dims = [["n"], ["k"]], type = stream<n=2; k=2 x i64>}\n'
    )
    at = np.array([[2, 0], [1, 9]])
    taken = '%r = stream.take_along %a, %b {axes = ["d"]}\n%o = stream.sink %r '
    taken += '{dims = [["n"], ["k"]], type = tensor<2 x 2 x f64>}\nreturn %o }'
    want = np.array([[X[0, 2], X[0, 0]], [X[1, 1], X[1, 2]]])
    yield Example("stream.take_along", head + taken, (X, at), want)
    put = "%c = math.const {value = 5.0, type = stream<; f64>}\n"
    put += '%r = stream.scatter %a, %b, %c {axes = ["d"], given = ["k"], kind = "sum", '
    put += "type = stream<n=2; d=3 x f64>}\n%o = stream.sink %r "
    put += '{dims = [["n"], ["d"]], type = tensor<2 x 3 x f64>}\nreturn %o }'
    want = np.array([[X[0, 0] + 5, X[0, 1], X[0, 2] + 5], [X[1, 0], X[1, 1] + 5, X[1, 2]]])
    yield Example("stream.scatter", head + put, (X, at), want)
    count = '%r = stream.segment_count %a {axis = "n", segments = axis(s, 4)}\n'
    count += '%o = stream.sink %r {dims = [["s"]], type = tensor<4 x i32>}'
    yield _on_ids("stream.segment_count", count, np.array([2, 0, 3, 0]))
    rank = '%r = stream.segment_rank %a, %b {axis = "n"}\n'
    rank += '%o = stream.sink %r {dims = [["n"], ["k"]], type = tensor<3 x 2 x i32>}'
    yield _on_ids("stream.segment_rank", rank, np.array([[2, 0], [3, -1], [1, 4]]))
    sums = '%r = stream.prefix_sum %a {axes = ["m"]}'
    running = np.array([[sum(row[: i + 1]) for i in range(3)] for row in X.tolist()])
    yield on_streams("stream.prefix_sum", sums, f"%o = {SINK}", X, Y, want=running)


ROUTING_EXAMPLES = [*_tensor_examples(), *_stream_examples()]
