"""How each back end makes a callable kernel from a variant; the disk cache stands in front."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import BackendMissingError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.sizes import parse_size
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import BufferType, TensorType, Type
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.bundle.active import bundle_in_use, codes_for, refuse
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.keys import stream_key, tile_key
from tilewright.runtime.bundle.manifest import Code
from tilewright.runtime.cpu_parts import InParts, SharedKernel, Sharing
from tilewright.runtime.determinism import refuse_flushing
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.kernel import TORCH_DTYPES, Kernel
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.native import NativeFunction
from tilewright.runtime.native_code import NativeParts, input_types, layout_class, native_code
from tilewright.runtime.report import VariantReport
from tilewright.runtime.targets import host_target
from tilewright.runtime.tuned import BySize

BACKENDS = ("mlir", "numba", "interpreter")


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
    try:
        parts, native, cached = native_code(variant, target, lower_variant, variant.graph.results)
    except BackendMissingError:
        if bundled is not None:  # with another schedule than the one asked for: as right as that
            return bundled[:2]
        refuse_form(variant, target)
        raise
    report = _report(variant, target.name, "mlir", parts.scratch_bytes, cached)
    sharing = Sharing.of(variant)
    few = InParts(variant, sharing, target, make_mlir) if sharing is not None else None
    return _kernel(variant, parts, native, few), report


def _kernel(
    variant: Variant, parts: NativeParts, native: NativeFunction, few: InParts | None = None
) -> Call:
    """The call of a variant's code; ``few``: what does calls of few work items."""
    made = Kernel if few is None else partial(SharedKernel, few)
    return made(
        variant.graph.name,
        [*input_types(variant), *parts.outputs],
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
