"""GPUs that are missing, too old or elsewhere: named errors with the way out."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

import tilewright
from tests.attention_programs import Attention
from tests.runtime.fake_gpu import fake_gpu
from tilewright.backends.triton.build import triton_module
from tilewright.ir.errors import BackendMissingError, BindError, TargetError
from tilewright.ir.parser import parse
from tilewright.runtime.cuda.driver import Driver
from tilewright.runtime.cuda.gpus import Gpus, gpus, refuse_capture
from tilewright.runtime.gpu_targets import device_target
from tilewright.runtime.program import Program

TEXT = Attention(16, 16, "bf16").text()


class OnAnotherGpu(torch.Tensor):
    """A CPU tensor that says it is on the second GPU."""

    device = torch.device("cuda", 1)

    def get_device(self) -> int:
        return 1


@pytest.mark.parametrize("capability", [(7, 5), (3, 7)])
def test_a_gpu_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla")
    device_target.cache_clear()
    with pytest.raises(TargetError, match=r"Tesla has compute capability \d\.\d; .*x\.cpu\(\)"):
        device_target(0)
    device_target.cache_clear()


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 6), "cuda-sm80"),
        ((9, 0), "cuda-sm90"),
        ((10, 3), "cuda-sm100"),
        ((12, 0), "cuda-sm80"),  # without the matrix units of 10.x
    ],
)
def test_newer_gpus_have_the_newest_target_that_fits(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    device_target.cache_clear()
    assert device_target(0).name == name
    device_target.cache_clear()


def test_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(
        BackendMissingError, match=r"pip install .tilewright\[triton\]. .*keep the tensors"
    ):
        triton_module()


def test_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", nothing)
    with pytest.raises(BackendMissingError, match=r"no libcuda\.so\.1 here: install the driver"):
        Driver()


def test_inputs_on_several_devices() -> None:
    pytest.importorskip("triton")
    q, k, v = (torch.randn(1, 2, 4, 16).bfloat16() for _ in range(3))
    with fake_gpu() as driver:
        made = Program(parse(TEXT), backend="triton", target="cuda-sm90")
        with pytest.raises(BindError, match=r"%k is on cuda:1 and %q on cpu; .*x\.to\('cpu'\)"):
            made(q, k.as_subclass(OnAnotherGpu), v)
        assert not driver.launches


def test_attention_on_no_device_at_all() -> None:
    q = torch.empty(1, 2, 4, 16, device="meta")
    with pytest.raises(tilewright.TilewrightError, match="on meta"):
        tilewright.attention(q, q, q)


def test_no_capture_without_a_gpu() -> None:
    if not torch.cuda.is_available():
        assert not Gpus().capturing()
        refuse_capture("a kernel")
        assert isinstance(gpus.direct, bool)
