"""The interpreter: the meaning of a module at any level, in NumPy. Slow, clear, the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import F64, DType
from tilewright.ir.errors import BindError, EvaluationError, SettingError
from tilewright.ir.ops_math import SizeValue
from tilewright.ir.types import StreamType, TensorType


class Arithmetic:
    """In which numbers to compute: each dtype rounded to itself, or all floats in f64."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact

    def settle(self, value: Any, dtype: DType | None) -> Any:
        """A result as its dtype holds it."""
        if dtype is None:
            return value
        if dtype.is_float:
            return F64.round(value) if self.exact else dtype.round(value)
        return dtype.round(value)


def evaluate(
    module: Module,
    *inputs: Any,
    precision: str | None = None,
    sizes: dict[str, int] | None = None,
    lanes: bool = False,
) -> tuple[Any, ...]:
    """Runs the first graph of ``module`` on NumPy arrays (shapes as its parameters).

    ``precision="f64"`` computes all floats in double precision without intermediate rounding (the
    oracle); else every op's result is rounded to its dtype. ``lanes`` runs a tile program lane by
    lane: slower, but it refuses what no machine could do (evaluate_lanes.py). Raises BindError,
    EvaluationError; SettingError for lanes at another level.
    """
    return evaluate_graph(module.main, *inputs, precision=precision, sizes=sizes, lanes=lanes)


def evaluate_graph(
    graph: Graph,
    *inputs: Any,
    precision: str | None = None,
    sizes: dict[str, int] | None = None,
    lanes: bool = False,
) -> tuple[Any, ...]:
    """``evaluate`` for one graph."""
    arithmetic = Arithmetic(exact=precision == "f64")
    arrays = [np.asarray(x) for x in inputs]
    if graph.level == "tile":
        from tilewright.ir.evaluate_tile import run_tile_program

        return run_tile_program(graph, arrays, arithmetic, sizes, lanes)
    if lanes:
        raise SettingError(f"lanes=True runs tile programs; {graph.name} is a {graph.level}")
    values = bind_sizes(graph, [a.shape for a in arrays], sizes)
    scope: dict[Value, Any] = {}
    for param, array in zip(graph.params, arrays, strict=True):
        if not isinstance(param.type, TensorType):
            raise BindError(f"%{param.hint}: {param.type} cannot be given from outside")
        scope[param] = arithmetic.settle(array, param.type.dtype)
    for op in graph.body.ops:
        with reported(op):
            outputs = run_op(op, [scope[v] for v in op.operands], values)
        for result, output in zip(op.results, outputs, strict=True):
            settled = arithmetic.settle(once(output), getattr(result.type, "dtype", None))
            scope[result] = repeated(settled, np.shape(output))
    return tuple(scope[v] for v in graph.results)


def once(array: Any) -> Any:
    """A view with length 1 along the axes that an array only repeats (those of step 0, as
    ``np.broadcast_to`` makes them): what is the same everywhere is computed once."""
    if not isinstance(array, np.ndarray) or 0 not in array.strides:
        return array
    steps = zip(array.shape, array.strides, strict=True)
    return array[tuple(slice(0, 1 if n > 1 and not step else None) for n, step in steps)]


def repeated(array: Any, shape: tuple[int, ...]) -> Any:
    """An array as a view of a shape that ``once`` shortened."""
    return array if np.shape(array) == shape else np.broadcast_to(array, shape)


def run_op(op: Op, inputs: list[Any], sizes: dict[str, int]) -> tuple[Any, ...]:
    """The results of one operation on arrays, not rounded; ``sizes`` are the names' values."""
    sized = getattr(op, "reference_sized", None)
    by_axes = getattr(op, "reference_axes", None)
    if sized is not None:
        type_ = op.result.type
        assert isinstance(type_, TensorType)
        out = sized(*inputs, tuple(s.evaluate(sizes) for s in type_.shape))
    elif isinstance(op, SizeValue):
        out = op.reference_size(op.size.evaluate(sizes))
    elif by_axes is not None:
        out = by_axes(*inputs, sizes=axis_sizes(op, sizes))
    else:
        out = _at_each_place(op, _align(op, inputs))
    if len(op.results) == 1:
        return (out,)
    assert isinstance(out, tuple)
    return out


def axis_sizes(op: Op, sizes: dict[str, int]) -> dict[str, int]:
    """The value of every axis that occurs in the op's stream types."""
    types = [v.type for v in itertools.chain(op.operands, op.results)]
    axes = [a for t in types if isinstance(t, StreamType) for a in t.axes]
    return {a.name: a.size.evaluate(sizes) for a in axes}


def _align(op: Op, inputs: list[Any]) -> list[Any]:
    """Streams of a pointwise op, each viewed over all axes of the result."""
    out_type = op.results[0].type
    if "pointwise" not in op.traits or not isinstance(out_type, StreamType):
        return inputs
    aligned = []
    for value, array in zip(op.operands, inputs, strict=True):
        type_ = value.type
        assert isinstance(type_, StreamType)
        have = [a.name for a in type_.axes]
        want = [a.name for a in out_type.axes if a.name in have]
        moved = np.transpose(array, [have.index(n) for n in want])
        shape = iter(moved.shape)
        view = [next(shape) if a.name in have else 1 for a in out_type.axes]
        aligned.append(moved.reshape(view))
    return aligned


def _at_each_place(op: Op, inputs: list[Any]) -> Any:
    """An op's reference; a pointwise one of streams is not computed twice along an axis along which
    no operand varies."""
    streams = inputs and isinstance(op.results[0].type, StreamType)
    if not streams or len(op.results) > 1 or "pointwise" not in op.traits:
        return op.reference(*inputs)
    out = op.reference(*map(once, inputs))
    return repeated(out, np.broadcast_shapes(*map(np.shape, inputs)))


@contextmanager
def reported(op: Op) -> Iterator[None]:
    """NumPy's refusals (sizes below 0 or beyond memory) as errors at the operation."""
    try:
        yield
    except (MemoryError, OverflowError, ValueError) as error:
        raise EvaluationError(f"{op.name}: {error}", op.loc) from error


def check(condition: bool, message: str, op: Op) -> None:
    """Raises EvaluationError for something that a program must not do."""
    if not condition:
        raise EvaluationError(f"{op.name}: {message}", op.loc)
