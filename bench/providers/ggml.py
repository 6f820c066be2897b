"""llama.cpp's ggml, called through the library that llama-cpp-python ships.

Products with its block formats that hold the same numbers as ours: Q4_0, Q5_0 and Q8_0 are groups
of 32 with an f16 scale and the zero in the middle. ggml rounds activations to int8.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilewright.bench import machine
from tilewright.bench.suites.lowbit import GROUP, LowBit, Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

F32, Q4_0, Q5_0, Q8_0 = 0, 2, 6, 8  # ggml_type
FORMATS = {4: ("Q4_0", Q4_0), 5: ("Q5_0", Q5_0), 8: ("Q8_0", Q8_0)}
MIB = 1 << 20
Array = np.ndarray[Any, Any]


class _Init(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits not in FORMATS:
        raise NotOffered(f"has no {case.bits}-bit format that holds the same numbers")
    if case.activation != "int8":
        raise NotOffered("always rounds activations to int8")
    name, kind = FORMATS[case.bits]
    return [Form(name, lambda: _product(case, inputs, kind))]


def _product(case: LowBit, inputs: Weights, kind: int) -> Call:
    """A graph of one ggml_mul_mat; repacked as llama.cpp repacks is out of its C interface's
    reach."""
    base, cpu = _libraries()
    blocks = _blocks(inputs, case.bits)
    room = blocks.nbytes + 4 * case.rows * (case.inner + case.outputs) * 4 + 64 * MIB
    context = base.ggml_init(_Init(room, None, False))
    weight = base.ggml_new_tensor_2d(context, kind, case.inner, case.outputs)
    x = base.ggml_new_tensor_2d(context, F32, case.inner, case.rows)
    ctypes.memmove(base.ggml_get_data(weight), blocks.ctypes.data, blocks.nbytes)
    values = inputs.x.contiguous()
    ctypes.memmove(base.ggml_get_data(x), values.data_ptr(), values.nbytes)
    out = base.ggml_mul_mat(context, weight, x)
    graph = base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, out)
    address = base.ggml_get_data(out)
    owner = _Owner(base, context)

    def call() -> torch.Tensor:
        assert owner
        status = cpu.ggml_graph_compute_with_ctx(context, graph, machine.THREADS)
        if status:
            raise RuntimeError(f"ggml_graph_compute_with_ctx gave {status}")
        shape = (ctypes.c_float * (case.rows * case.outputs)).from_address(address)
        return torch.frombuffer(shape, dtype=torch.float32).view(case.rows, case.outputs)

    return call


class _Owner:
    """Frees a context with the last call that uses it."""

    def __init__(self, base: Any, context: int) -> None:
        self._base, self._context = base, context

    def __del__(self) -> None:
        self._base.ggml_free(self._context)


def _blocks(inputs: Weights, bits: int) -> Array:
    """Codes as blocks: the scale, (Q5_0: the fifth bits,) then 16 bytes with the codes i and i + 16
    in their halves, or 32 signed bytes."""
    drawn, given = inputs.arrays()
    codes = drawn.reshape(-1, GROUP)
    scales = given.reshape(-1, 1).astype(np.float16).view(np.uint8)
    if bits == 8:
        signed = (codes.astype(np.int16) - inputs.zero).astype(np.int8).view(np.uint8)
        return np.ascontiguousarray(np.concatenate([scales, signed], axis=1))
    low = codes & 15
    halves = low[:, :16] | (low[:, 16:] << 4)
    parts = [scales, halves]
    if bits == 5:
        parts.insert(1, np.packbits(codes >> 4, axis=1, bitorder="little"))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


@cache
def _libraries() -> tuple[Any, Any]:
    """libggml-base and libggml-cpu of llama-cpp-python, which lie beside its llama library."""
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent / "lib"
    base, cpu = (_library(folder, name) for name in ("ggml-base", "ggml-cpu"))
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    for name, result, given in (
        ("ggml_init", pointer, (_Init,)),
        ("ggml_free", None, (pointer,)),
        ("ggml_new_tensor_2d", pointer, (pointer, ctypes.c_int, long, long)),
        ("ggml_get_data", pointer, (pointer,)),
        ("ggml_mul_mat", pointer, (pointer, pointer, pointer)),
        ("ggml_new_graph", pointer, (pointer,)),
        ("ggml_build_forward_expand", None, (pointer, pointer)),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, given
    compute = cpu.ggml_graph_compute_with_ctx
    compute.restype, compute.argtypes = ctypes.c_int, (pointer, pointer, ctypes.c_int)
    return base, cpu


def _library(folder: Path, name: str) -> Any:
    paths = sorted(folder.glob(f"*{name}*"))
    if not paths:
        raise OSError(f"llama-cpp-python has no library {name} in {folder}")
    return ctypes.CDLL(str(paths[0]), mode=ctypes.RTLD_GLOBAL)


OFFERS = {"llama.cpp": {"lowbit": lowbit}}
