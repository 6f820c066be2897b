"""How each back end makes a callable kernel from a variant; the disk cache stands in front."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import BackendMissingError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.printer import print_graph
from tilewright.ir.sizes import Size, parse_size
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import BufferType, TensorType, Type
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.bundle.active import bundle_in_use, codes_for, refuse
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.keys import stream_key, tile_key
from tilewright.runtime.bundle.manifest import Code
from tilewright.runtime.cache import Cache
from tilewright.runtime.determinism import refuse_flushing
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.graph_text import anonymous, table_text
from tilewright.runtime.kernel import TORCH_DTYPES, Kernel
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.memory_limit import LIBRARY, compiling_bytes, require_memory
from tilewright.runtime.native import NativeFunction, compile_llvm, load_object
from tilewright.runtime.report import VariantReport
from tilewright.runtime.targets import host_target
from tilewright.runtime.tuned import BySize

SYMBOL = "tilewright_kernel"
BACKENDS = ("mlir", "numba", "interpreter")


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


def default_backend() -> str:
    """``mlir`` where LLVM's code generator is installed or a bundle in use has what it would make,
    else ``numba``, else the interpreter."""
    if bundle_in_use() is not None:
        return "mlir"
    if importlib.util.find_spec("llvmlite") is None:  # Numba's code generator, too
        return "interpreter"
    if any(importlib.util.find_spec(p) for p in ("mlir", "torch_mlir")):
        return "mlir"
    return "numba" if importlib.util.find_spec("numba") else "interpreter"


@cache
def kernel_target() -> Target:
    """What kernels that are not asked for by target are compiled for in this process."""
    return named_target("scalar") if default_backend() == "numba" else host_target()


def layout_class(rows: int) -> str:
    """A row class in words."""
    return f"up to {rows} rows" if rows else "any number of rows"


def lower_variant(variant: Variant, target: Target) -> Graph:
    """The tile program of a variant."""
    return kernel_to_tile(
        variant.graph, target, variant.rows, variant.unit_dims, variant.choice, variant.order
    )


def make_mlir(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """Machine code from the bundle in use, from the disk cache, or through MLIR and LLVM."""
    bundled = _bundled(variant, target)
    if bundled is not None and variant.choice in ({}, bundled[2]):
        return bundled[:2]
    options = f"rows {variant.rows}, units {variant.units}{table_text(variant.graph)}"
    options += "".join(f", {field} {value}" for field, value in sorted(variant.choice.items()))
    options += f", order {variant.order}" if variant.order else ""
    key = cache_key(print_graph(anonymous(variant.graph)), "mlir", options, target.isa)
    try:
        parts, native, cached = _native_parts(key, variant, target)
    except BackendMissingError:
        if bundled is not None:  # with another schedule than the one asked for: as right as that
            return bundled[:2]
        refuse_form(variant, target)
        raise
    report = _report(variant, target.name, "mlir", parts.scratch_bytes, cached)
    return _kernel(variant, parts, native), report


def _kernel(variant: Variant, parts: NativeParts, native: NativeFunction) -> Call:
    """The call of a variant's code."""
    return Kernel(
        variant.graph.name,
        [*_input_types(variant), *parts.outputs],
        variant.graph.sizes,
        parts.grid,
        len(parts.outputs),
        parts.scratch_bytes,
        native,
        [p.hint for p in variant.graph.params],
    ).call


def _bundled(variant: Variant, target: Target) -> tuple[Call, VariantReport, Choice] | None:
    """The code of a variant in the bundle in use, if it has it, and the choice that it was made
    with; by size class if it has several."""
    bundle = bundle_in_use()  # once: another thread may put another one in its place
    if bundle is None or variant.order:  # bundles hold forms in any order
        return None
    sized = codes_for(bundle, stream_key(variant.graph, variant.rows, variant.units)[0], target)
    if sized is None:
        return None
    codes = [bundle.codes[symbol] for _, symbol in sized.codes]
    if same := [code for code in codes if variant.choice and code.choice == variant.choice]:
        codes = same[:1]
    calls = [_kernel(variant, *_from_bundle(bundle, code)) for code in codes]
    call = calls[0]
    if len(codes) > 1:
        places = {size_class: {"code": at} for at, (size_class, _) in enumerate(sized.codes)}
        call = BySize(places, sized.dimensions, lambda choice: calls[choice.get("code", 0)])
    scratch = max(code.scratch_bytes for code in codes)
    report = _report(variant, target.name, "bundle", scratch, True)
    return call, report, codes[0].choice if len(codes) == 1 else {}


def bundled_tile(program: Graph, target: Target) -> NativeFunction | None:
    """The code of a tile program in the bundle in use, if it has it."""
    bundle = bundle_in_use()
    sized = None if bundle is None else codes_for(bundle, tile_key(program), target)
    if bundle is None or sized is None:
        return None
    return _from_bundle(bundle, bundle.codes[sized.codes[0][1]])[1]


def refuse_form(variant: Variant, target: Target) -> None:
    """NotInBundleError if a bundle is in use that has no code for a variant."""
    key, program = stream_key(variant.graph, variant.rows, variant.units)
    refuse(variant.graph, key, program, variant.units, target)


def _from_bundle(bundle: Bundle, code: Code) -> tuple[NativeParts, NativeFunction]:
    outputs = tuple(b.type for b in code.params[len(code.params) - code.outputs :])
    grid = tuple((parse_size(size), tile) for size, tile in code.grid)
    native = NativeFunction(bundle.address(code.symbol), bundle)
    return NativeParts(code.scratch_bytes, grid, outputs), native


_loaded: dict[str, tuple[NativeParts, NativeFunction]] = {}


def _native_parts(
    key: str, variant: Variant, target: Target
) -> tuple[NativeParts, NativeFunction, bool]:
    """Code for a key: already in this process, from the disk cache, or compiled now."""
    if key in _loaded:
        return (*_loaded[key], True)
    entry = kernel_cache().get(key)
    kept = None if entry is None else _from_metadata(entry.metadata, variant)
    if entry is None or kept is None:
        parts, data = _compile_mlir(variant, target)
        kernel_cache().put(key, _to_metadata(variant, target, parts), data)
    else:
        parts, data = kept, entry.payload
    _loaded[key] = parts, load_object(data, SYMBOL)
    return (*_loaded[key], kept is not None)


def _compile_mlir(variant: Variant, target: Target) -> tuple[NativeParts, bytes]:
    program = lower_variant(variant, target)
    return native_parts(program), machine_code(program, target)


def native_parts(program: Graph) -> NativeParts:
    """What a tile program's code needs besides."""
    with GENERATORS.lock:
        from tilewright.backends.mlir.emit import scratch_bytes

    outputs = (p.type for p in program.params[-int(program.attrs["outputs"]) :])
    grid = tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"])
    typed = tuple(x for x in outputs if isinstance(x, BufferType))
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


def _input_types(variant: Variant) -> list[BufferType]:
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


def _from_metadata(facts: dict[str, Any], variant: Variant) -> NativeParts | None:
    """What was kept beside the code; None for what we did not write."""
    try:
        grid = tuple((parse_size(size), int(tile)) for size, tile in facts["grid"])
        outputs = []
        for value, shape in zip(variant.graph.results, facts["outputs"], strict=True):
            assert isinstance(value.type, TensorType)
            sizes = tuple(parse_size(s) for s in shape)
            outputs.append(BufferType(sizes, value.type.dtype, len(sizes) - 1))
        return NativeParts(int(facts["scratch_bytes"]), grid, tuple(outputs))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _report(
    variant: Variant, target: str, backend: str, scratch: int, cached: bool
) -> VariantReport:
    return VariantReport(
        layout_class(variant.rows),
        target,
        backend,
        variant.units,
        variant.static_sizes,
        scratch,
        cached,
        0.0,
    )


def _to_numpy(tensor: torch.Tensor) -> Any:
    """A NumPy array of the values (16-bit floats widened to f32)."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return wide.detach().numpy()


def _from_numpy(array: Any, type_: TensorType | BufferType) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(array, order="C")).to(TORCH_DTYPES[str(type_.dtype)])


def interpreted(
    graph: Graph, types: Iterable[Type], *tensors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What a graph at any level means, in NumPy; its results have these types."""
    arrays = evaluate_graph(graph, *(_to_numpy(x) for x in tensors))
    return tuple(
        _from_numpy(a, x)
        for a, x in zip(arrays, types, strict=True)
        if isinstance(x, TensorType | BufferType)
    )


def make_interpreter(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """The tile program run by the interpreter: slow, the oracle of the others."""
    program = lower_variant(variant, target)
    types = [v.type for v in variant.graph.results]
    call: Call = partial(interpreted, program, types)
    call = refuse_flushing(call, "interpreter") if variant.order else call
    return call, _report(variant, target.name, "interpreter", 0, False)


def run_on_host(graph: Graph, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A kernel that no schedule covers yet, in NumPy by the meaning of its stream program."""
    return interpreted(graph, [v.type for v in graph.results], *tensors)


def run_from_device(graph: Graph, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``run_on_host`` for tensors on a device: calls with nothing to sum."""
    results = run_on_host(graph, *(x.cpu() for x in tensors))
    return tuple(x.to(tensors[0].device) for x in results)


def make_numba(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """Plain loops compiled by Numba."""
    with GENERATORS.lock:
        from tilewright.runtime.numba_kernel import make_numba_kernel

    kernel = make_numba_kernel(lower_variant(variant, target))
    return kernel, _report(variant, target.name, "numba", 0, False)


def make_triton(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A kernel for a GPU, written in Triton."""
    with GENERATORS.lock:
        from tilewright.runtime.triton_kernel import make_triton as make

    return make(variant, target)


def make_fastest(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A kernel for a GPU by the back end that is faster there."""
    with GENERATORS.lock:
        from tilewright.runtime.gpu_choice import make_fastest as make

    return make(variant, target)


def make_cuda(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A kernel for a CUDA device, written in CUDA C++."""
    return _cuda(variant, target, emulated=False)


def make_cuda_host(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """The same kernel, its threads run by the host's emulation of a CUDA device."""
    return _cuda(variant, target, emulated=True)


def _cuda(variant: Variant, target: Target, emulated: bool) -> tuple[Call, VariantReport]:
    with GENERATORS.lock:
        from tilewright.runtime import cuda_kernel, cuda_ordered

    make = cuda_ordered.make_ordered if variant.order else cuda_kernel.make_cuda
    return make(variant, target, emulated=emulated)


def make_export(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """Code for a bundle, which is not run (runtime/bundle/collect.py)."""
    with GENERATORS.lock:
        from tilewright.runtime.bundle.collect import make_export as make

    return make(variant, target)


MAKERS = {
    "mlir": make_mlir,
    "interpreter": make_interpreter,
    "numba": make_numba,
    "gpu": make_fastest,
    "triton": make_triton,
    "cuda": make_cuda,
    "cuda-host": make_cuda_host,
    "export": make_export,
}


def choose_backend(name: str | None) -> str:
    """A back end's name, checked. Raises BackendMissingError for an unknown one."""
    chosen = name or default_backend()
    if chosen not in MAKERS:
        raise BackendMissingError(f"unknown back end {name!r}; known: {', '.join(MAKERS)}")
    return chosen
