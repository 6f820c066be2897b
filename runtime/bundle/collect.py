"""Compiles kernels for a bundle without running them: programs are called with tensors of torch's
``meta`` device, which have shapes and strides but no memory, and so make the forms of these calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Value
from tilewright.ir.printer import print_graph
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType, TensorType
from tilewright.runtime.backends import lower_variant
from tilewright.runtime.bundle.keys import choice_key, stream_key, tile_key
from tilewright.runtime.bundle.manifest import Buffer, Code
from tilewright.runtime.family import Variant
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.json_fields import IDENTIFIER
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.native import compile_llvm
from tilewright.runtime.native_code import kernel_cache, native_parts
from tilewright.runtime.report import VariantReport

_SHOWN = 40  # characters of a kernel's name in its symbol


@dataclass
class Collector:
    """Codes by key (choices included), and their object files by symbol."""

    target: Target
    codes: dict[str, Code] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def form(self, variant: Variant) -> MetaForm:
        """A form of a kernel, compiled if it is new."""
        form, alone = stream_key(variant.graph, variant.rows, variant.units)
        key = choice_key(form, variant.choice)
        if key not in self.codes:
            program = lower_variant(variant, self.target)
            facts = variant.rows, dict(variant.static_sizes), dict(variant.choice)
            self._add(key, (form, alone, "stream"), program, facts)
        return MetaForm(self.codes[key], variant.graph)

    def tile(self, program: Graph) -> MetaForm:
        """A kernel that was written as a tile program."""
        form = tile_key(program)
        key = choice_key(form, {})
        if key not in self.codes:
            self._add(key, (form, form, "tile"), program, (0, {}, {}))
        count = int(program.attrs["outputs"])
        return MetaForm(self.codes[key], program, count)

    def _add(
        self,
        key: str,
        names: tuple[str, str, str],
        program: Graph,
        facts: tuple[int, dict[str, int], dict[str, Any]],
    ) -> None:
        (form, alone, level), (rows, static, choice) = names, facts
        symbol = symbol_of(program.name, key)
        parts = native_parts(program)
        self.objects[symbol] = library_object(program, self.target, symbol)
        self.codes[key] = Code(
            symbol,
            form,
            program.name,
            level,
            alone,
            rows,
            static,
            choice,
            program.sizes,
            tuple((str(size), tile) for size, tile in parts.grid),
            parts.scratch_bytes,
            buffers(program.params),
            int(program.attrs["outputs"]),
        )


@dataclass(frozen=True)
class MetaForm:
    """What a compiled form is to programs: called with tensors without memory, it gives such.
    ``outputs`` of ``graph``'s parameters are results where it is a tile program."""

    code: Code
    graph: Graph
    outputs: int = 0

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Results of the right shapes and dtypes."""
        graph, params = self.graph, self.graph.params
        types = [v.type for v in graph.results]
        if self.outputs:
            types = [p.type for p in params[-self.outputs :]]
            given = params[: -self.outputs]
            names = {n for p in given for s in _shape(p) for n in s.names}
            inputs = graph.with_body(type(graph.body)(given, ()))
            graph = Graph(
                "tile", graph.name, tuple(n for n in graph.sizes if n in names), inputs.body
            )
        sizes = bind_sizes(graph, [tuple(x.shape) for x in tensors])
        found = []
        for type_ in types:
            assert isinstance(type_, TensorType | BufferType)
            shape = [s.evaluate(sizes) for s in type_.shape]
            found.append(torch.empty(shape, dtype=TORCH_DTYPES[type_.dtype.name], device="meta"))
        return tuple(found)


_collecting: ContextVar[Collector | None] = ContextVar("tilewright_collecting", default=None)


@contextmanager
def collecting(collector: Collector) -> Iterator[None]:
    """Programs for the back end ``export`` that are called inside make their forms there."""
    token = _collecting.set(collector)
    try:
        yield
    finally:
        _collecting.reset(token)


def make_export(variant: Variant, target: Target) -> tuple[Callable[..., Any], VariantReport]:
    """The back end ``export``: code for a bundle, which is not run."""
    collector = _collecting.get()
    assert collector is not None, "the back end `export` works inside `collecting` only"
    assert target == collector.target, f"one target a bundle: {target.name}"
    form = collector.form(variant)
    words = "up to a number of rows" if variant.rows else "any number of rows"
    report = VariantReport(
        words, target.name, "export", variant.units, variant.static_sizes, 0, False, 0.0
    )
    return form, report


def library_object(program: Graph, target: Target, symbol: str) -> bytes:
    """The object file of a tile program as a part of a library, from the disk cache if there."""
    from tilewright.backends.mlir.build import to_llvm_ir
    from tilewright.backends.mlir.emit import emit_module

    key = cache_key(print_graph(program), "mlir", f"library {symbol}", target.isa)
    entry = kernel_cache().get(key)
    if entry is not None:
        return entry.payload
    llvm_ir = to_llvm_ir(emit_module(program, target, symbol))
    data = compile_llvm(llvm_ir, target.cpu, target.features, shared=True)
    kernel_cache().put(key, {"kernel": program.name, "target": target.name}, data)
    return data


def symbol_of(name: str, key: str) -> str:
    """A C identifier for code: the kernel's name, and enough of its key to be the only one."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)[:_SHOWN]
    return f"tw_{plain}_{key[:16]}"


def buffers(params: tuple[Value, ...]) -> tuple[Buffer, ...]:
    """Parameters as a manifest has them, under names that are all different."""
    taken: set[str] = set()
    found = []
    for at, param in enumerate(params):
        type_ = param.type
        assert isinstance(type_, BufferType | TensorType)
        name = re.sub(r"[^A-Za-z0-9_]", "_", param.hint) or f"x{at}"
        name = name if IDENTIFIER.fullmatch(name) else f"x{at}"
        while name in taken:
            name += f"_{at}"
        taken.add(name)
        unit = type_.unit if isinstance(type_, BufferType) else -1
        shape = tuple(str(s) for s in type_.shape)
        found.append(Buffer(name, type_.dtype.name, shape, unit))
    return tuple(found)


def _shape(param: Value) -> tuple[Any, ...]:
    return param.type.shape if isinstance(param.type, BufferType) else ()
