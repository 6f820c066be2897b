"""Which of several compilers of CUDA is taken, and by what kernels that it made are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tilewright.backends.cuda import compile as cuda_compile
from tilewright.runtime import cuda_kernel


class Library:
    """An NVRTC of some version."""

    def __init__(self, version: str) -> None:
        self.major, self.minor = map(int, version.split("."))

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.major, self.minor
        return 0


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    for function in (cuda_compile._nvrtc, cuda_compile._nvcc, cuda_compile.compiler_version):
        function.cache_clear()


@pytest.mark.parametrize(
    ("driver", "versions", "taken"),
    [
        (None, ["13.5", "12.8"], "13.5"),
        (13, ["13.5", "12.8"], "13.5"),
        (12, ["13.5", "missing", "12.8", "12.4"], "12.8"),
        (12, ["13.5"], "13.5"),  # better than none: machine code for other machines
        (13, ["missing"], None),
    ],
)
def test_the_newest_that_the_driver_takes(
    monkeypatch: pytest.MonkeyPatch, driver: int | None, versions: list[str], taken: str | None
) -> None:
    def load(path: str) -> Library:
        if path == "missing":
            raise OSError(path)
        return Library(path)

    for function in (cuda_compile._nvrtc, cuda_compile._nvcc, cuda_compile.compiler_version):
        function.cache_clear()
    monkeypatch.setattr(cuda_compile, "_libraries", lambda: iter(versions))
    monkeypatch.setattr(cuda_compile, "_driver_version", lambda: driver)
    monkeypatch.setattr(cuda_compile.ctypes, "CDLL", load)
    found = cuda_compile._nvrtc()
    assert (found and f"{found.major}.{found.minor}") == taken
    if taken:
        assert cuda_compile.compiler_version() == f"NVRTC {taken}"


def test_kernels_of_another_compiler_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[str, ...]] = []

    class Found:
        payload = b"code"

    class Cache:
        def get(self, key: str) -> Found:
            return Found()

    monkeypatch.setattr(cuda_kernel, "kernel_cache", Cache)
    monkeypatch.setattr(cuda_kernel, "cache_key", lambda *parts: keys.append(parts) or "key")
    source = cuda_kernel.CudaSource("text", "k", 32, 0, (), (), ())
    for version in ("NVRTC 12.8", "NVRTC 13.5"):
        monkeypatch.setattr(cuda_kernel, "compiler_version", lambda version=version: version)
        assert cuda_kernel.machine_code(source, "sm_90a") == b"code"
    assert keys[0] != keys[1]
