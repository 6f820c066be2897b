"""One kernel in all its compiled forms: chosen by what the inputs are, made when first needed.

A form depends on which dimension of each input has stride one, on the sizes that lie inside an element
(a head's), and on how many rows share a read; never on a batch or a length.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import StreamType, TensorType
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.schedule import row_classes
from tilewright.passes.specialise import specialise
from tilewright.runtime.report import VariantReport

Call = Callable[..., tuple[torch.Tensor, ...]]
Key = tuple[tuple[int, ...], tuple[int, ...], int]  # units, static sizes, row class


@dataclass(frozen=True)
class Variant:
    """What to compile: a specialised stream graph, its row class and unit strides."""

    graph: Graph
    rows: int
    units: tuple[int, ...]
    static_sizes: dict[str, int]


Maker = Callable[[Variant, Target], tuple[Call, VariantReport]]


class KernelFamily:
    """Dispatches calls of one kernel to its compiled forms. Safe to call from several threads."""

    def __init__(self, graph: Graph, target: Target, make: Maker) -> None:
        self.graph, self.target, self.make = graph, target, make
        info = analyse(graph)
        self.static_names = tuple(sorted(_static_names(graph)))
        self.row_count: Size = info.row_count
        self.classes = row_classes(target)
        self.forms: dict[Key, Call] = {}
        self.reports: list[VariantReport] = []
        self.lock = threading.Lock()
        self._where = _places(graph)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = self.key(tensors)
        form = self.forms.get(key)
        if form is None:
            form = self._make(key)
        return form(*tensors)

    def key(self, tensors: tuple[torch.Tensor, ...]) -> Key:
        """What decides the form for these inputs. Raises BindError if they do not fit."""
        sizes = self._sizes(tensors)
        static = tuple(sizes[n] for n in self.static_names)
        rows = self.row_count.evaluate(sizes)
        units = tuple(_unit(x) for x in tensors)
        return units, static, next((c for c in self.classes if c and rows <= c), 0)

    def _sizes(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, int]:
        if self._where is not None and len(tensors) == len(self.graph.params):
            try:
                return {n: tensors[i].shape[d] for n, i, d in self._where}
            except IndexError:
                pass
        return bind_sizes(self.graph, [tuple(x.shape) for x in tensors])

    def _make(self, key: Key) -> Call:
        with self.lock:
            if key in self.forms:
                return self.forms[key]
            start = time.perf_counter()
            units, static, rows = key
            values = dict(zip(self.static_names, static, strict=True))
            variant = Variant(specialise(self.graph, values), rows, units, values)
            call, report = self.make(variant, self.target)
            report.seconds = time.perf_counter() - start
            self.reports.append(report)
            self.forms[key] = call
            return call


def _unit(tensor: torch.Tensor) -> int:
    """The last dimension with stride one (or of at most one element), -1 if none."""
    shape, strides = tensor.shape, tensor.stride()
    for dim in range(len(shape) - 1, -1, -1):
        if strides[dim] == 1 or (shape[dim] <= 1 and dim == len(shape) - 1):
            return dim
    return -1


def _static_names(graph: Graph) -> set[str]:
    """Sizes of axes that lie inside an element: known when compiling."""
    types = [v.type for op in graph.body.ops for v in op.results]
    axes = [a for x in types if isinstance(x, StreamType) for a in x.element]
    return {name for axis in axes for name in axis.size.names}


def _places(graph: Graph) -> list[tuple[str, int, int]] | None:
    """(size name, input, dimension) for every name that is a dimension by itself; None if not all."""
    found: dict[str, tuple[str, int, int]] = {}
    for at, param in enumerate(graph.params):
        assert isinstance(param.type, TensorType)
        for dim, size in enumerate(param.type.shape):
            text = str(size)
            if text in graph.sizes and text not in found:
                found[text] = (text, at, dim)
    used = {n for p in graph.params for s in getattr(p.type, "shape", ()) for n in s.names}
    return list(found.values()) if used <= set(found) else None
