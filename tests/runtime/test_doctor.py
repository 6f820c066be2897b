"""The report of this machine: true about what is here, and helpful about what is not."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tilewright.ir.errors import DeviceError
from tilewright.runtime import doctor as doctor_module
from tilewright.runtime import native
from tilewright.runtime.cuda import found
from tilewright.runtime.doctor import BACKENDS, Package, doctor
from tilewright.runtime.settings import settings


def test_report_of_this_machine() -> None:
    report = doctor()
    text, data = str(report), json.loads(json.dumps(report.to_dict()))
    versions = {row["name"]: row["version"] for row in data["packages"]}
    assert versions["torch"] == torch.__version__
    assert versions["llvmlite"] == importlib.import_module("llvmlite").__version__
    assert native.host_cpu()[0] == data["machine"]["cpu"]
    assert set(data["machine"]["features"]) <= set(native.host_cpu()[1].replace("+", "").split(","))
    works = {row["name"]: row["works"] for row in data["backends"]}
    assert works["interpreter"] and works["triton"] <= torch.cuda.is_available()
    for line in (report.machine.cpu, str(settings().cache_dir), torch.__version__):
        assert line in text


def test_missing_packages_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlir.ir", "torch_mlir.ir", "mlir", "torch_mlir", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    report = doctor()
    backends = {backend.name: backend for backend in report.backends}
    assert not backends["mlir"].works
    assert "pip install 'tilewright[mlir]'" in backends["mlir"].problem
    assert "pip install 'tilewright[triton]'" in backends["triton"].problem
    assert backends["interpreter"].works
    assert "MLIR bindings  not installed" in str(report)


def test_package_that_fails_to_import_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "numba":
            raise ImportError("needs NumPy 1")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    report = doctor()
    (numba,) = [backend for backend in report.backends if backend.name == "numba"]
    assert "numba does not import (ImportError: needs NumPy 1)" in numba.problem


def test_gpu_back_end_without_and_with_a_gpu() -> None:
    (triton,) = [backend for backend in BACKENDS if backend.name == "triton"]
    here = replace(Package("triton", ("triton",), "pip install triton"), version="3.9")
    assert "no GPU" in doctor_module._judge(triton, (here,), ()).problem
    assert doctor_module._judge(triton, (here,), ("H100",)).works


def test_wrong_setting_is_part_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "many")
    settings.cache_clear()
    report = doctor()
    assert report.cache is None
    assert "TILEWRIGHT_NUM_THREADS='many'" in str(report)
    json.dumps(report.to_dict())


def test_gpus_and_what_compiles_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"total_memory": 80 << 30, "multi_processor_count": 132}
    devices = [
        SimpleNamespace(name="H100", major=9, minor=0, **facts),
        SimpleNamespace(name="T4", major=7, minor=5, **facts),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    monkeypatch.setattr(found, "Driver", lambda: SimpleNamespace(version=13000))
    lines = str(doctor()).splitlines()
    assert "GPUs             H100, capability 9.0, 80 GiB, 132 multiprocessors" in lines
    assert any("T4" in line and "too old for kernels, which need 8.0" in line for line in lines)
    assert any("driver: for CUDA 13.0" in line for line in lines)


def test_no_driver_and_no_compiler_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DeviceError("could not start the CUDA driver: no device (CUDA error 100)")

    monkeypatch.setattr(found, "Driver", refuse)
    for module in (found, doctor_module):
        monkeypatch.setattr(module, "compiler_missing", lambda: "needs NVRTC or nvcc")
    monkeypatch.setattr(found.shutil, "which", lambda *names, **more: None)
    report = doctor()
    assert "driver: could not start the CUDA driver" in str(report)
    assert "nvcc: not found" in str(report) and "CUDA C++: needs NVRTC or nvcc" in str(report)
    (cuda,) = [backend for backend in report.backends if backend.name == "cuda"]
    assert cuda.problem.startswith("needs NVRTC or nvcc")
