"""Machine code: the stated CPU decides it, objects load, what would end the process is an error."""

from __future__ import annotations

import ctypes
import platform

import pytest

from tilewright.ir.errors import TargetError, UnsupportedError
from tilewright.runtime import native

X86 = platform.machine() in ("x86_64", "AMD64")
DOUBLE = """
define void @double(ptr %p) {
  %x = load <16 x float>, ptr %p, align 4
  %y = fadd <16 x float> %x, %x
  store <16 x float> %y, ptr %p, align 4
  ret void
}
"""
CALLS = """
declare float @{name}(float)
define void @f(ptr %p) {{
  %x = load float, ptr %p
  %y = call float @{name}(float %x)
  store float %y, ptr %p
  ret void
}}
"""


def run(function: native.NativeFunction, numbers: list[float]) -> list[float]:
    array = (ctypes.c_float * len(numbers))(*numbers)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)(ctypes.addressof(array))
    return list(array)


def test_object_compiles_loads_and_runs() -> None:
    data = native.compile_llvm(DOUBLE, *native.host_cpu())
    numbers = [float(i) for i in range(16)]
    assert run(native.load_object(data, "double"), numbers) == [2 * n for n in numbers]


@pytest.mark.skipif(not X86, reason="names x86 CPUs")
def test_cpu_decides_the_instructions() -> None:
    assert "zmm" in native.assembly(DOUBLE, "x86-64-v4", "-prefer-256-bit")
    narrow = native.assembly(DOUBLE, "x86-64-v3", "")
    assert "ymm" in narrow and "zmm" not in narrow
    oldest = native.assembly(DOUBLE, "x86-64", "")
    assert "xmm" in oldest and "ymm" not in oldest


def test_same_input_gives_same_bytes() -> None:
    host = native.host_cpu()
    assert native.compile_llvm(DOUBLE, *host) == native.compile_llvm(DOUBLE, *host)


def test_libm_resolves() -> None:
    data = native.compile_llvm(CALLS.format(name="cbrtf"), *native.host_cpu())
    assert run(native.load_object(data, "f"), [27.0]) == [3.0]


@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF symbols")
def test_function_that_the_process_lacks_is_an_error() -> None:
    data = native.compile_llvm(CALLS.format(name="no_such_function"), *native.host_cpu())
    assert native.undefined_symbols(data) == ("no_such_function",)
    with pytest.raises(UnsupportedError, match=r"f: .*calls no_such_function"):
        native.load_object(data, "f")


def test_wrong_symbol_and_wrong_bytes() -> None:
    data = native.compile_llvm(DOUBLE, *native.host_cpu())
    with pytest.raises(TargetError, match="no function triple"):
        native.load_object(data, "triple")
    foreign = data[:18] + b"\x08\x00" + data[20:]  # the same for MIPS
    for wrong in (b"", b"no object", data[:10], data[: len(data) // 2], data[:-1], foreign):
        with pytest.raises(TargetError, match="double: not an object file for"):
            native.load_object(wrong, "double")


def test_wrong_ir_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="wrong LLVM IR"):
        native.compile_llvm("define void @f( {", *native.host_cpu())


def test_code_lives_as_long_as_its_function() -> None:
    """Many loads of one name do not disturb each other."""
    data = native.compile_llvm(DOUBLE, *native.host_cpu())
    functions = [native.load_object(data, "double") for _ in range(4)]
    assert len({f.address for f in functions}) == 4
    del functions[1:]
    assert run(functions[0], [1.5] * 16) == [3.0] * 16
