"""Hand-written native code with the kernels' ABI, for tests of what surrounds a compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tilewright.ir.dtypes import TABLE
from tilewright.ir.sizes import SizeLike, parse_size
from tilewright.ir.types import BufferType
from tilewright.runtime import native, threads
from tilewright.runtime.kernel import Kernel
from tilewright.runtime.native import NativeFunction
from tilewright.runtime.settings import settings

MakeNative = Callable[[str, str], NativeFunction]
MakeBuffer = Callable[..., BufferType]


@cache
def _compiled(llvm_ir: str, symbol: str) -> NativeFunction:
    return native.load_object(native.compile_llvm(llvm_ir, *native.host_cpu()), symbol)


def _buffer(*shape: SizeLike, dtype: str = "f32") -> BufferType:
    sizes = tuple(parse_size(str(s)) for s in shape)
    return BufferType(sizes, TABLE[dtype], len(shape) - 1)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """Settings and threads of one test stay in it."""
    settings.cache_clear()
    yield
    settings.cache_clear()
    threads.set_num_threads(None)


@pytest.fixture
def make_native() -> MakeNative:
    """Compiles LLVM IR for this machine: ``make_native(text, symbol)``."""
    return _compiled


@pytest.fixture
def buffer() -> MakeBuffer:
    """``buffer("N", 64, dtype="f32")``: a parameter's type."""
    return _buffer


@pytest.fixture
def scaled_add_ir() -> str:
    return (Path(__file__).parent / "scaled_add.ll").read_text()


@pytest.fixture
def scaled_add(scaled_add_ir: str) -> Kernel:
    """``2 * x + y`` of two N x M tensors, in items of 2 x 3, with 6 floats of scratch."""
    params = [_buffer("N", "M")] * 3
    function = _compiled(scaled_add_ir, "scaled_add")
    grid = [("N", 2), ("M", 3)]
    return Kernel("scaled_add", params, ["N", "M"], grid, 1, 24, function, hints=("x", "y"))
