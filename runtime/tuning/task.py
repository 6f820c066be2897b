"""What is tuned: one kernel at one size of its inputs, as text and numbers for any process.

A *size class* is the power of two at or above every length that a call may change, in the order of
the inputs' dimensions: schedules are found for one size and used for all of its class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import TuningError
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import TensorType
from tilewright.runtime.backends import MAKERS
from tilewright.runtime.family import KernelFamily, Variant
from tilewright.runtime.graph_text import anonymous, table_text
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.targets import program_target
from tilewright.runtime.tracing.kernels import TracedKernel

SizeClass = tuple[int, ...]
Dimension = tuple[int, int]  # input, dimension


@dataclass(frozen=True)
class TensorShape:
    """An input: its shape, and its dimensions from the outermost in memory to the innermost."""

    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class KernelTask:
    """One kernel to tune. ``text``: its stream graph; ``kernel``: the hash under which its results
    are kept; ``size_class``: of these inputs."""

    name: str
    kernel: str
    text: str
    target: str
    backend: str
    inputs: tuple[TensorShape, ...]
    size_class: SizeClass

    @property
    def graph(self) -> Graph:
        """The stream graph. Raises TuningError where this process cannot read it."""
        try:
            return parse(self.text, f"<kernel {self.name}>").main
        except Exception as error:
            raise TuningError(f"kernel {self.name} cannot be read here: {error}") from error

    @property
    def shapes(self) -> str:
        """The inputs' shapes in words."""
        return " ".join("x".join(map(str, x.shape)) or "scalar" for x in self.inputs)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> KernelTask:
        """Raises TuningError for what ``to_json`` did not write."""
        try:
            facts: dict[str, Any] = json.loads(text)
            inputs = tuple(
                TensorShape(tuple(x["shape"]), tuple(x["order"])) for x in facts.pop("inputs")
            )
            size_class = tuple(facts.pop("size_class"))
            made = KernelTask(**facts, inputs=inputs, size_class=size_class)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TuningError(f"no description of a kernel to tune: {error!r}") from error
        texts = made.name, made.kernel, made.text, made.target, made.backend
        numbers = *size_class, *(n for x in inputs for n in (*x.shape, *x.order))
        if not all(type(x) is str for x in texts) or not all(type(n) is int for n in numbers):
            raise TuningError("no description of a kernel to tune: texts and numbers are mixed up")
        return made


def task_of(row: TracedKernel) -> KernelTask:
    """The task to tune what a recorded call of a kernel took (a row at the level ``stream``).

    Raises TuningError for one with the user's own dtypes, which other processes do not know.
    """
    if row.tables:
        names = ", ".join(row.tables)
        raise TuningError(f"{row.name} has dtypes of your own ({names}), known to one process only")
    target = program_target(row.target, row.backend)
    family = KernelFamily(row.module().main, target, MAKERS[row.backend])
    inputs = tuple(TensorShape(x.shape, order_of(x.strides)) for x in row.inputs)
    key = family.key(family.completed(uninitialised(family.source, inputs)))
    found = size_class(changing(family.source), [x.shape for x in inputs])
    kernel = kernel_key(family.variant(key), target, row.backend)
    return KernelTask(row.name, kernel, row.program, row.target, row.backend, inputs, found)


def uninitialised(graph: Graph, shapes: Sequence[TensorShape]) -> tuple[torch.Tensor, ...]:
    """Inputs that are only looked at from outside."""
    out = []
    for param, given in zip(graph.params, shapes, strict=True):
        assert isinstance(param.type, TensorType)
        dtype = TORCH_DTYPES[str(param.type.dtype)]
        stored = torch.empty([given.shape[dim] for dim in given.order], dtype=dtype)
        out.append(stored.permute(sorted(range(stored.dim()), key=lambda dim: given.order[dim])))
    return tuple(out)


def order_of(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions from the outermost in memory to the innermost; broadcast ones, which lie
    nowhere, count as outermost, so that who has stride one stays the same."""
    return tuple(sorted(range(len(strides)), key=lambda at: (strides[at] != 0, -strides[at], at)))


def kernel_key(variant: Variant, target: Target, backend: str) -> str:
    """The name of a form whatever its values are called: its graph, rows, unit strides, target, and
    who makes it."""
    backend = "mlir" if backend == "export" else backend  # bundles hold what it makes
    text = print_graph(anonymous(variant.graph)), table_text(variant.graph)
    parts = (*text, str(variant.rows), str(variant.units), target.isa, backend)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def changing(graph: Graph) -> tuple[Dimension, ...]:
    """The dimensions of the inputs whose lengths a call may change, each length once."""
    found: dict[Size, Dimension] = {}
    for at, param in enumerate(graph.params):
        assert isinstance(param.type, TensorType)
        for dim, size in enumerate(param.type.shape):
            if size.constant is None:
                found.setdefault(size, (at, dim))
    return tuple(found.values())


def size_class(dimensions: Sequence[Dimension], shapes: Sequence[tuple[int, ...]]) -> SizeClass:
    """Powers of two at or above the lengths of these dimensions."""
    return tuple(max(0, shapes[at][dim] - 1).bit_length() for at, dim in dimensions)
