"""CUDA C++ kernels started by a driver that is not there (fake_gpu.py), which runs the very text in
the emulation with the parameters it was given: descriptions of tensors, strides, sizes."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.attention_programs import Attention
from tests.runtime.fake_gpu import FakeDriver, Kernel, fake_gpu, view
from tilewright.backends.cuda.emit import CudaSource
from tilewright.backends.cuda.host import TensorMap, run_on_host
from tilewright.ir.core import Graph
from tilewright.ir.errors import LoadingError
from tilewright.ir.parser import parse
from tilewright.ir.types import BufferType
from tilewright.runtime import cuda_kernel
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.program import Program

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
FORM = Attention(64, 64, "bf16", causal=True)


def run(driver: FakeDriver, kernel: Kernel, program: Graph, values: list[Any], items: int) -> None:
    """Runs a launch's blocks in the emulation, on the memory that its parameters say."""
    source: Any = kernel.source
    assert isinstance(source, CudaSource)
    count, maps = len(source.pointers), len(source.maps)
    pointers, described, rest = values[:count], values[count : count + maps], values[count + maps :]
    steps = dict(zip(source.strides, rest, strict=False))
    sizes = dict(zip(source.sizes, rest[len(steps) :], strict=True))
    arrays = []
    for i, (param, address) in enumerate(zip(program.params, pointers, strict=True)):
        assert isinstance(param.type, BufferType)
        shape = [size.evaluate(sizes) for size in param.type.shape]
        strides = [steps.get((i, d), 1) for d in range(len(shape))]
        tensor = view(address, shape, strides, TORCH_DTYPES[param.type.dtype.name])
        arrays.append(cuda_kernel.memory_of(tensor))
    tensors = []
    for x, description in zip(source.maps, described, strict=True):
        address, shape, gaps, box = driver.maps[struct.unpack("Q", description[:8])[0] - 1]
        assert address == pointers[x.buffer] and box[::-1] == x.box
        width = arrays[x.buffer].itemsize
        step = (*(gap // width for gap in gaps[::-1]), 1)
        tensors.append(TensorMap(arrays[x.buffer], x.box, x.swizzle, shape[::-1], step))
    arguments = [*arrays, *tensors, *rest]
    run_on_host(source.text, source.symbol, items, arguments, source.threads, source.shared_bytes)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with fake_gpu() as driver:
        programs: list[Graph] = []
        real = cuda_kernel.threads_program

        def remembered(*given: Any) -> Graph:
            programs.append(real(*given))
            return programs[-1]

        def machine_code(source: CudaSource, architecture: str) -> bytes:
            assert architecture == "sm_90a"  # of the GPU, whatever the target is
            integers = len(source.strides) + len(source.sizes)
            sizes = [8] * len(source.pointers) + [128] * len(source.maps) + [8] * integers
            code = source.text.encode()
            driver.images[code] = Kernel(sizes, programs[-1], source)  # type: ignore[arg-type]
            return code

        def launched(kernel: Kernel, values: list[Any]) -> None:
            run(driver, kernel, kernel.program, values, driver.launches[-1].grid[0])

        monkeypatch.setattr(cuda_kernel, "threads_program", remembered)
        monkeypatch.setattr(cuda_kernel, "machine_code", machine_code)
        monkeypatch.setattr(driver, "_run", launched)
        yield driver


def inputs(queries: int, keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = (1, 4, queries, 64), (1, 2, keys, 64), (1, 2, keys, 64)
    return [torch.randn(x, generator=generator).bfloat16() for x in shapes]


def check(made: Program, *tensors: torch.Tensor) -> None:
    (got,) = made(*tensors)
    want = FORM.reference(*tensors, None)
    assert float((got.double() - want).abs().max()) < 2e-2


def test_forms_by_what_memory_allows(driver: FakeDriver) -> None:
    made = Program(parse(FORM.text()), backend="cuda", target="cuda-sm90")
    q, k, v = inputs(70, 130)
    check(made, q, k, v)
    assert len(driver.maps) == 2 and driver.launches[-1].block == (256, 1, 1)
    check(made, q, k, v)
    check(made, *inputs(100, 33))  # other sizes: other descriptions, the same kernel
    assert len(driver.maps) == 4 and len(driver.kernels) == 1
    gaps = torch.randn(1, 2, 130, 72).bfloat16()[..., :64]  # rows 144 bytes apart
    check(made, q, gaps, v)
    assert len(driver.kernels) == 1 and driver.maps[-1][2] != driver.maps[0][2]
    odd = torch.randn(k.numel() + 1).bfloat16()[1:].view(k.shape)  # at an address + 2
    check(made, q, odd, v)
    same = k[:, :1].expand(1, 2, 130, 64)  # a stride of 0: 16 bytes at once, not in bulk
    check(made, q, same, v)
    forms = [x.form for x in made.explain().kernels[0].variants[0].machine]
    odd_k = "16 bytes at once; k one element at once"
    assert forms == ["bulk copies by a warp of its own", odd_k, "16 bytes at once"]


def test_a_gpu_with_less_shared_memory_has_fewer_stages(driver: FakeDriver) -> None:
    """As of compute capability 8.6, 8.9 and 12.x, whose target is 8.0's."""
    form = Attention(128, 128, "bf16", causal=True)
    stages = {}
    for room in (163 << 10, 99 << 10, 20 << 10):
        driver.shared_bytes = room
        made = Program(parse(form.text()), backend="cuda", target="cuda-sm80")
        q, k, v = (torch.randn(1, 2, 70, 128).bfloat16() for _ in range(3))
        if room < 99 << 10:  # not even one
            with pytest.raises(LoadingError, match="a block on this GPU has 20480: choose a sched"):
                made(q, k, v)
            continue
        (got,) = made(q, k, v)
        assert float((got.double() - form.reference(q, k, v, None)).abs().max()) < 2e-2
        (machine,) = made.explain().kernels[0].variants[0].machine
        assert machine.shared_bytes == driver.launches[-1].shared_bytes <= room
        stages[room] = machine.stages
    assert stages == {163 << 10: 3, 99 << 10: 2}


@pytest.mark.parametrize(
    ("head", "words"),
    [(16, "bulk copies by"), (64, "16 bytes at once (no bulk copies: %k: rows of 256 bytes")],
)
def test_reports_say_why_there_are_no_bulk_copies(
    driver: FakeDriver, head: int, words: str
) -> None:
    form = Attention(head, head, "f32")
    made = Program(parse(form.text()), backend="cuda", target="cuda-sm90")
    q, k, v = (torch.randn(1, 2, 20, head) for _ in range(3))
    (got,) = made(q, k, v)
    assert float((got.double() - form.reference(q, k, v, None)).abs().max()) < 1e-4
    (machine,) = made.explain().kernels[0].variants[0].machine
    assert machine.form.startswith(words) and bool(driver.maps) == (head == 16)
