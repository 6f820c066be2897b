"""Programs that the parser accepts, run by the interpreter on small inputs: a result, or an error
of ours."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.campaign import Target
from tests.fuzz.texts import Texts
from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import DType
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.types import BufferType, StreamType, TensorType

_MOST = 1 << 12  # elements of an input
_SIZES = {"N": 3, "M": 4}


def _inputs(source: random.Random) -> Callable[[], str]:
    texts = Texts(source)
    return lambda: texts.tokens() if source.random() < 0.6 else texts.operations()


def take_program(text: str) -> str:
    """Parses, and runs what has small sizes only, with arrays of small numbers."""
    module = parse(text)
    if not _is_small(module):
        return "too large to run"
    graph = module.main
    sizes = {name: _SIZES.get(name, 2) for name in graph.sizes}
    arrays = [_array(param.type, sizes) for param in graph.params]
    if any(array is None for array in arrays):
        return "takes what cannot be given"
    if graph.level == "tile":
        arrays = arrays[: len(arrays) - int(graph.attrs.get("outputs", 0))]
    with np.errstate(all="ignore"):
        evaluate(module, *arrays, sizes=sizes)
    return "ran"


def _is_small(module: Module) -> bool:
    return all(_fits(graph) for graph in module.graphs)


def _fits(graph: Graph) -> bool:
    """No value has more elements than a small array, no loop more rounds."""
    sizes = {name: _SIZES.get(name, 2) for name in graph.sizes}
    for op in graph.body.walk():
        for value in (*op.operands, *op.results):
            if _elements(value.type, sizes) > _MOST:
                return False
        if op.name in ("tile.for", "tile.while"):
            return False  # bounds may be any number that is computed
    return all(_elements(p.type, sizes) <= _MOST for p in graph.params) and all(
        isinstance(size, int) or size.evaluate(sizes) <= _MOST
        for size, _ in graph.attrs.get("grid", ())
    )


def _elements(type_: Any, sizes: dict[str, int]) -> int:
    if isinstance(type_, TensorType | BufferType):
        return math.prod(s.evaluate(sizes) for s in type_.shape)
    if isinstance(type_, StreamType):
        return math.prod(a.size.evaluate(sizes) for a in type_.axes)
    return math.prod(getattr(type_, "shape", ()))


def _array(type_: Any, sizes: dict[str, int]) -> Any:
    if not isinstance(type_, TensorType | BufferType):
        return None
    shape = [s.evaluate(sizes) for s in type_.shape]
    if any(size < 0 for size in shape):
        return None
    dtype: DType = type_.dtype
    numbers = np.arange(math.prod(shape)).reshape(shape) % 3
    return dtype.round(numbers.astype(np.float64) if dtype.is_float else numbers)


PROGRAMS = Target("programs", _inputs, take_program)
