"""Triton source to kernels: a function to launch, and machine code ahead of time without a GPU.

Triton is imported when first needed. Nothing here knows torch.
"""

from __future__ import annotations

import importlib
import linecache
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tilewright.backends.triton.emit import TritonSource
from tilewright.ir.core import Graph, Value
from tilewright.ir.errors import BackendMissingError
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType

_TYPES = {"bool": "i1", "f64": "fp64", "f32": "fp32", "f16": "fp16"}  # else our own names


def triton_module(name: str = "triton") -> Any:
    """A module of Triton. Raises BackendMissingError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendMissingError(
            "kernels for GPUs need Triton: pip install 'triton>=3.6' (Linux), or keep the tensors "
            f"on the CPU ({error})"
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


def compile_ahead(
    source: TritonSource, program: Graph, target: Target, warps: int, stages: int
) -> Resources:
    """Machine code for a GPU that need not be there, with every stride a multiple of 16."""
    compiler = triton_module("triton.compiler")
    gpu = triton_module("triton.backends.compiler").GPUTarget
    arch = int(target.cpu.removeprefix("sm_")) if target.gpu == "cuda" else target.cpu
    kernel = build(source)
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    kinds = [_element(p) for p in program.params]
    types = [f"*{kind}" for kind in kinds]
    types += [f"tensordesc<{kinds[i]}{list(shape)}>" for i, shape in source.blocks]
    pointers = len(types)
    types += ["i32"] * (len(source.strides) + len(source.sizes))
    for number, (name, kind) in enumerate(zip(kernel.arg_names, types, strict=True)):
        signature[name] = kind
        plain = number < pointers + len(source.strides) and not kind.startswith("tensordesc")
        if plain:
            aligned[(number,)] = [["tt.divisibility", 16]]
    made = compiler.compile(
        compiler.ASTSource(fn=kernel, signature=signature, constexprs={}, attrs=aligned),
        target=gpu(target.gpu, arch, 32 if target.gpu == "cuda" else 64),
        options={"num_warps": warps, "num_stages": stages},
    )
    shared = int(made.metadata.shared)
    if target.gpu == "cuda":
        registers, spills = _cubin_resources(made.asm["cubin"])
        return Resources(registers, spills, shared, made.asm["ptx"])
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


@cache
def _cuobjdump() -> str:
    """The disassembler that Triton brings."""
    nvidia = Path(triton_module("triton.backends.nvidia").__path__[0])
    return str(nvidia / "bin" / "cuobjdump")


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes (spills) of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [_cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = done.stdout + done.stderr
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)


def instructions(cubin: bytes) -> str:
    """The SASS of a CUDA kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [_cuobjdump(), "-sass", file.name], capture_output=True, text=True, check=True
        )
    return done.stdout
