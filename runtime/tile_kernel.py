"""Tile programs that were written as such (not lowered from streams), made callable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tilewright.ir.core import Graph
from tilewright.ir.errors import BackendMissingError
from tilewright.ir.printer import print_graph
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.runtime.backends import (
    bundled_tile,
    default_backend,
    interpreted,
    kernel_target,
)
from tilewright.runtime.bundle.active import refuse
from tilewright.runtime.bundle.keys import tile_key
from tilewright.runtime.family import Call
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.kernel import Kernel
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.native import NativeFunction, load_object
from tilewright.runtime.native_code import SYMBOL, kernel_cache, machine_code, native_parts
from tilewright.runtime.tracing.recorder import traced_tile


def own_tile_kernel(program_for: Callable[[Target], Graph]) -> Call:
    """A callable for what a program is on this process' target, by its back end."""
    target = kernel_target()
    return make_tile_kernel(program_for(target), target, default_backend())


def make_tile_kernel(program: Graph, target: Target, backend: str) -> Call:
    """A callable for a tile program; its inputs must have the unit strides that it names."""
    return traced_tile(_made(program, target, backend), program, target.name, backend)


def _made(program: Graph, target: Target, backend: str) -> Call:
    if backend == "numba":
        with GENERATORS.lock:
            from tilewright.runtime.numba_kernel import make_numba_kernel

        return make_numba_kernel(program)
    count = int(program.attrs["outputs"])
    given, results = program.params[:-count], program.params[-count:]
    if backend == "interpreter":
        return partial(interpreted, program, [p.type for p in results])
    parts = native_parts(program)
    inputs = [p.type for p in given if isinstance(p.type, BufferType)]
    kernel = Kernel(
        program.name,
        [*inputs, *parts.outputs],
        program.sizes,
        parts.grid,
        count,
        parts.scratch_bytes,
        bundled_tile(program, target) or _compiled(program, target),
        [p.hint for p in given],
    )
    return kernel.call


def _compiled(program: Graph, target: Target) -> NativeFunction:
    """Machine code in this process."""
    try:
        return load_object(_object(program, target), SYMBOL)
    except BackendMissingError:
        key = tile_key(program)
        units = [x.unit for p in program.params if isinstance(x := p.type, BufferType)]
        given = len(units) - int(program.attrs["outputs"])
        refuse(program, key, key, tuple(units[:given]), target)
        raise


def _object(program: Graph, target: Target) -> bytes:
    """Machine code, from the disk cache if it is there."""
    key = cache_key(print_graph(program), "mlir", "tile", target.isa)
    entry = kernel_cache().get(key)
    if entry is not None:
        return entry.payload
    data = machine_code(program, target)
    kernel_cache().put(key, {"kernel": program.name, "target": target.name}, data)
    return data
