"""Compiles kernels for a GPU's bundle, without a GPU: CUDA C++ to machine code and PTX.

A form is several kernels: one that moves 16 bytes at once, for tensors that start and step at
multiples of that, one that moves single elements, and, where only some tensors of a call that it is
made for step otherwise, one that moves the others' 16 bytes at once. Work is never shared out along
the inner axis, as programs do for few rows: that depends on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tilewright.backends.cuda.compile import architecture_of, compile_to_ptx
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_tile.kernel_info import is_routing
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.runtime.bundle.collect import MetaForm, buffers, symbol_of
from tilewright.runtime.bundle.keys import choice_key, stream_key
from tilewright.runtime.bundle.manifest import Code, Image
from tilewright.runtime.cuda_kernel import machine_code, own_blocks
from tilewright.runtime.family import Variant
from tilewright.runtime.report import VariantReport


@dataclass(frozen=True)
class Lowered:
    """A form that is being made: on blocks, and as a program of threads. ``keys``: of the form, and
    of the program alone. ``wide``: what ``CudaSource`` says where all tensors lie well."""

    variant: Variant
    whole: Graph
    program: Graph
    keys: tuple[str, str]
    wide: frozenset[int]


@dataclass
class GpuCollector:
    """Codes by key and by tensors that do not lie well, and their files by name; ``programs`` by
    symbol, on blocks."""

    target: Target
    codes: dict[str, Code] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    programs: dict[str, Graph] = field(default_factory=dict)
    lowered: dict[str, Lowered] = field(default_factory=dict)

    def make(self, variant: Variant, target: Target) -> tuple[Callable[..., Any], VariantReport]:
        """A form of a kernel, compiled if it is new (what families call)."""
        assert target == self.target, f"one target a bundle: {target.name}"
        if is_routing(variant.graph):
            raise UnsupportedError("routing on GPUs is several kernels: it has no bundle yet")
        form, alone = stream_key(variant.graph, variant.rows, variant.units)
        key = choice_key(form, variant.choice)
        if key not in self.codes:
            units = {p.hint: u for p, u in zip(variant.graph.params, variant.units, strict=True)}
            blocks = own_blocks(variant, target)
            given = variant.graph, target, units, blocks, variant.rows, variant.choice
            whole = gpu_program(*given)
            program = threads_program(whole, target)
            wide = emit_cuda(program, "kernel").wide
            self.lowered[key] = Lowered(variant, whole, program, (form, alone), wide)
            self.add(key, frozenset())
            self.add(key, wide)
        report = VariantReport(
            "", target.name, "export", variant.units, variant.static_sizes, 0, False, 0.0
        )
        return GpuForm(self.codes[key], variant.graph, collector=self, key=key), report

    def add(self, key: str, odd: frozenset[int]) -> None:
        """A form's kernel for calls whose ``odd`` buffers do not lie at multiples of 16 bytes."""
        made = self.lowered[key]
        odd &= made.wide  # how the others lie makes no other kernel
        name = f"{key} odd {sorted(odd)}" if odd else key
        if name not in self.codes:
            self.codes[name] = self._code(made, odd)

    def _code(self, made: Lowered, odd: frozenset[int]) -> Code:
        variant, whole, (form, alone) = made.variant, made.whole, made.keys
        choice = {**variant.choice, "odd": sorted(odd)} if odd else variant.choice
        symbol = symbol_of(whole.name, choice_key(form, choice))
        source = emit_cuda(made.program, symbol, odd)
        architecture = architecture_of(self.target.cpu)
        cubin, ptx = f"{symbol}.cubin", f"{symbol}.ptx"
        self.files[cubin] = machine_code(source, architecture)
        self.files[ptx] = compile_to_ptx(source.text, architecture, symbol).encode()
        self.programs[symbol] = whole
        strides, wide = tuple(source.strides), tuple(sorted(source.wide))
        image = Image(cubin, ptx, source.threads, source.shared_bytes, strides, bool(wide), wide)
        return Code(
            symbol,
            form,
            whole.name,
            "stream",
            alone,
            variant.rows,
            dict(variant.static_sizes),
            dict(variant.choice),
            tuple(source.sizes),
            tuple((str(size), int(tile)) for size, tile in whole.attrs["grid"]),
            0,
            buffers(whole.params),
            int(whole.attrs["outputs"]),
            image,
        )


@dataclass(frozen=True, kw_only=True)
class GpuForm(MetaForm):
    """A form that, called, is compiled for how the tensors of the call step, too."""

    collector: GpuCollector
    key: str

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = super().__call__(*tensors)
        strides = [x.stride() for x in (*tensors, *results)]
        self.collector.add(self.key, self.code.odd(strides))
        return results
