"""Tile programs that were written as such (not lowered from streams), made callable."""

from __future__ import annotations

import torch

from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.printer import print_graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.runtime.backends import SYMBOL, kernel_cache
from tilewright.runtime.family import Call
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.kernel import TORCH_DTYPES, Kernel
from tilewright.runtime.native import compile_llvm, load_object


def make_tile_kernel(program: Graph, target: Target, backend: str) -> Call:
    """A callable for a tile program; its inputs must have the unit strides that it names."""
    if backend == "numba":
        from tilewright.runtime.numba_kernel import make_numba_kernel

        return make_numba_kernel(program)
    if backend == "interpreter":
        return lambda *tensors: _interpreted(program, *tensors)
    from tilewright.backends.mlir.emit import emit_module, scratch_bytes

    outputs = int(program.attrs["outputs"])
    types = [p.type for p in program.params]
    buffers = [x for x in types if isinstance(x, BufferType)]
    kernel = Kernel(
        program.name,
        buffers,
        program.sizes,
        tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"]),
        outputs,
        scratch_bytes(program),
        load_object(_object(program, target, emit_module), SYMBOL),
        [p.hint for p in program.params[: len(buffers) - outputs]],
    )
    return kernel.call


def _object(program: Graph, target: Target, emit_module: object) -> bytes:
    """Machine code, from the disk cache if it is there."""
    from tilewright.backends.mlir.build import to_llvm_ir

    assert callable(emit_module)
    key = cache_key(print_graph(program), "mlir", "tile", target.isa)
    entry = kernel_cache().get(key)
    if entry is not None:
        return entry.payload
    data = compile_llvm(
        to_llvm_ir(emit_module(program, target, SYMBOL)), target.cpu, target.features
    )
    kernel_cache().put(key, {"kernel": program.name, "target": target.name}, data)
    return data


def _interpreted(program: Graph, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    wide = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in tensors]
    arrays = evaluate_graph(program, *(x.detach().numpy() for x in wide))
    outputs = program.params[len(tensors) :]
    return tuple(
        torch.from_numpy(a.copy()).to(TORCH_DTYPES[str(getattr(p.type, "dtype", ""))])
        for a, p in zip(arrays, outputs, strict=True)
    )
