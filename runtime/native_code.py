"""Native code of kernels for the host: compiled through MLIR and LLVM, kept on disk and in this
process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tilewright.ir.core import Graph, Value
from tilewright.ir.printer import print_graph
from tilewright.ir.sizes import Size, parse_size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType, TensorType
from tilewright.runtime.cache import Cache
from tilewright.runtime.family import Variant
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.graph_text import anonymous, table_text
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.memory_limit import LIBRARY, compiling_bytes, require_memory
from tilewright.runtime.native import NativeFunction, compile_llvm, load_object

SYMBOL = "tilewright_kernel"


@dataclass(frozen=True)
class NativeParts:
    """What a compiled kernel needs besides its code."""

    scratch_bytes: int
    grid: tuple[tuple[Size, int], ...]
    outputs: tuple[BufferType, ...]


@cache
def kernel_cache() -> Cache:
    """The disk cache of this process."""
    return Cache()


def layout_class(rows: int) -> str:
    """A row class in words."""
    return f"up to {rows} rows" if rows else "any number of rows"


_loaded: dict[str, tuple[NativeParts, NativeFunction]] = {}


def native_code(
    variant: Variant,
    target: Target,
    lower: Callable[[Variant, Target], Graph],
    results: Sequence[Value],
    what: str = "",
) -> tuple[NativeParts, NativeFunction, bool]:
    """Code of the tile program that ``lower`` makes of a variant, which has these ``results``:
    already in this process, from the disk cache, or compiled now, which the last says no to.
    ``what``: which of a variant's programs it is, if it is not the usual one."""
    options = f"{what}rows {variant.rows}, units {variant.units}{table_text(variant.graph)}"
    options += "".join(f", {field} {value}" for field, value in sorted(variant.choice.items()))
    options += f", order {variant.order}" if variant.order else ""
    key = cache_key(print_graph(anonymous(variant.graph)), "mlir", options, target.isa)
    if key in _loaded:
        return (*_loaded[key], True)
    entry = kernel_cache().get(key)
    kept = None if entry is None else _from_metadata(entry.metadata, results)
    if entry is None or kept is None:
        program = lower(variant, target)
        parts, data = native_parts(program), machine_code(program, target)
        kernel_cache().put(key, _to_metadata(variant, target, parts), data)
    else:
        parts, data = kept, entry.payload
    _loaded[key] = parts, load_object(data, SYMBOL)
    return (*_loaded[key], kept is not None)


def native_parts(program: Graph) -> NativeParts:
    """What a tile program's code needs besides."""
    with GENERATORS.lock:
        from tilewright.backends.mlir.emit import scratch_bytes

    outputs = program.params[len(program.params) - int(program.attrs["outputs"]) :]
    grid = tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"])
    typed = tuple(x for p in outputs if isinstance(x := p.type, BufferType))
    return NativeParts(scratch_bytes(program), grid, typed)


def machine_code(program: Graph, target: Target) -> bytes:
    """A tile program through MLIR and LLVM."""
    with GENERATORS.lock:
        from tilewright.backends.mlir.build import loaded, to_llvm_ir
        from tilewright.backends.mlir.emit import emit_module

    text = emit_module(program, target, SYMBOL)
    with GENERATORS.lock:
        if not loaded():
            require_memory(LIBRARY, "loading MLIR")
        require_memory(compiling_bytes(text), f"compiling kernel {program.name}")
        return compile_llvm(to_llvm_ir(text), target.cpu, target.features)


def input_types(variant: Variant) -> list[BufferType]:
    """What a variant's code takes for its inputs."""
    out = []
    for param, unit in zip(variant.graph.params, variant.units, strict=True):
        assert isinstance(param.type, TensorType)
        out.append(BufferType(param.type.shape, param.type.dtype, unit))
    return out


def _to_metadata(variant: Variant, target: Target, parts: NativeParts) -> dict[str, Any]:
    return {
        "kernel": variant.graph.name,
        "target": target.name,
        "layout_class": layout_class(variant.rows),
        "scratch_bytes": parts.scratch_bytes,
        "grid": [[str(size), tile] for size, tile in parts.grid],
        "outputs": [[str(s) for s in out.shape] for out in parts.outputs],
    }


def _from_metadata(facts: dict[str, Any], results: Sequence[Value]) -> NativeParts | None:
    """What was kept beside the code; None for what we did not write."""
    try:
        grid = tuple((parse_size(size), int(tile)) for size, tile in facts["grid"])
        outputs = []
        for value, shape in zip(results, facts["outputs"], strict=True):
            assert isinstance(value.type, TensorType)
            sizes = tuple(parse_size(s) for s in shape)
            outputs.append(BufferType(sizes, value.type.dtype, len(sizes) - 1))
        return NativeParts(int(facts["scratch_bytes"]), grid, tuple(outputs))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
