"""Triton source to kernels: a function to launch, and machine code ahead of time without a GPU.

Triton is imported when first needed. Nothing here knows torch.
"""

from __future__ import annotations

import importlib
import linecache
import re
from dataclasses import dataclass
from typing import Any

from tilewright.backends.gpu.machine_code import usage
from tilewright.backends.triton.emit import TritonSource
from tilewright.ir.core import Graph, Value
from tilewright.ir.errors import BackendMissingError, KernelCompileError
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType

_TYPES = {"bool": "i8", "f64": "fp64", "f32": "fp32", "f16": "fp16"}  # else our own names


def triton_module(name: str = "triton") -> Any:
    """A module of Triton. Raises BackendMissingError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendMissingError(
            "kernels for GPUs need Triton: pip install 'tilewright[triton]' (Linux), or keep the "
            f"tensors on the CPU ({error})"
        ) from error


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    return bool(triton_module().knobs.runtime.interpret)


def build(source: TritonSource) -> Any:
    """The kernel of a source, to be launched as ``kernel[grid](*arguments)``.

    The text stays known under the file name ``<triton kernel SYMBOL …>``, where Triton reads it.
    """
    triton_module()
    name = f"<triton kernel {source.symbol} {hash(source.text) & 0xFFFFFFFF:08x}>"
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": f"tilewright_{source.symbol}"}
    exec(compile(source.text, name, "exec"), space)
    return space[source.symbol]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and bytes of spills of a thread, shared memory of a
    block, and its assembly (SASS is not asked for: PTX or amdgcn)."""

    registers: int
    spills: int
    shared_bytes: int
    assembly: str
    machine_code: bytes = b""


@dataclass(frozen=True)
class Chip:
    """A GPU as Triton names it: cuda and 90, or hip and gfx942."""

    kind: str
    arch: int | str

    @staticmethod
    def of(target: Target) -> Chip:
        """The chip that a target is named after."""
        cuda = target.gpu == "cuda"
        return Chip(target.gpu, int(target.cpu.removeprefix("sm_")) if cuda else target.cpu)


def compile_for(
    source: TritonSource,
    program: Graph,
    chip: Chip,
    options: dict[str, int],
    odd: int = 0,
    wide: bool = False,
) -> Any:
    """Triton's compiled kernel, whose GPU need not be there.

    The address and all strides of a buffer are multiples of 16 bytes, except where ``odd`` has the
    buffer's bit. Sizes and strides have 32 bits, 64 if ``wide``. Triton keeps it on disk.
    """
    compiler = triton_module("triton.compiler")
    gpu = triton_module("triton.backends.compiler").GPUTarget
    kernel = build(source)
    kinds = [_element(p) for p in program.params]
    types = [f"*{kind}" for kind in kinds]
    types += [f"tensordesc<{kinds[i]}{list(shape)}>" for i, shape in source.blocks]
    first = len(types)
    types += ["i64" if wide else "i32"] * (len(source.strides) + len(source.sizes))
    given = enumerate(program.params)
    aligned = {(i,): [["tt.divisibility", 16]] for i, _ in given if not odd >> i & 1}
    for number, (buffer, _) in enumerate(source.strides, first):
        if not odd >> buffer & 1:
            aligned[(number,)] = [["tt.divisibility", _elements_in_16(program.params[buffer])]]
    failed = triton_module("triton.runtime.errors").PTXASError
    try:
        return compiler.compile(
            compiler.ASTSource(
                fn=kernel,
                signature=dict(zip(kernel.arg_names, types, strict=True)),
                constexprs={},
                attrs=aligned,
            ),
            target=gpu(chip.kind, chip.arch, 32 if chip.kind == "cuda" else 64),
            # said, since Triton's default for fusing products and sums changes, and with it bits
            options={"enable_fp_fusion": True, **options},
        )
    except failed as error:  # a negative code is the number of the signal that ended it
        message = f"Triton's ptxas does not compile kernel {program.name}: {error}"
        raise KernelCompileError(message) from error


def _elements_in_16(param: Value) -> int:
    """How many elements of a buffer 16 bytes hold."""
    assert isinstance(param.type, BufferType)
    return max(1, 128 // max(8, param.type.dtype.bits))


def compile_ahead(
    source: TritonSource, program: Graph, target: Target, warps: int, stages: int
) -> Resources:
    """Machine code for a GPU that need not be there, with every stride a multiple of 16 bytes."""
    options = {"num_warps": warps, "num_stages": stages}
    made = compile_for(source, program, Chip.of(target), options)
    shared = int(made.metadata.shared)
    if target.gpu == "cuda":
        registers, spills = usage(made.asm["cubin"])
        return Resources(registers, spills, shared, made.asm["ptx"], made.asm["cubin"])
    text = made.asm["amdgcn"]
    return Resources(
        _number(r"\.vgpr_count:\s+(\d+)", text),
        _number(r"\.vgpr_spill_count:\s+(\d+)", text),
        shared,
        text,
    )


def _element(param: Value) -> str:
    """Triton's short name of a buffer's elements."""
    assert isinstance(param.type, BufferType)
    return _TYPES.get(param.type.dtype.name, param.type.dtype.name)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0
