"""The providers: what each is, the packages it needs, whether they are here and in which
version."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench.devices import Cuda, Device, Host
from tilewright.bench.machine import versions_of
from tilewright.bench.suites.catalogue import unknown
from tilewright.bench.suites.problem import Form, Problem

Offer = Callable[[Problem, Any], list[Form]]
OURS = "tilewright"


@dataclass(frozen=True)
class Provider:
    """``packages`` are distributions with the module that each is imported as; ``install`` says how
    to get them; ``kinds`` are those of devices that it can be measured on."""

    name: str
    title: str
    module: str
    packages: tuple[tuple[str, str], ...]
    install: str = ""
    kinds: tuple[str, ...] = ("cpu", "cuda")

    def versions(self) -> dict[str, str]:
        return versions_of(package for package, _ in self.packages)

    def absence(self, device: Device | None = None) -> str:
        """Why it cannot be measured on a device (None: on any that is here), or nothing."""
        if device is None:
            device = Host() if "cpu" in self.kinds else Cuda()
            if device.kind == "cuda" and not torch.cuda.is_available():
                return "needs a CUDA device, and there is none"
        if device.kind not in self.kinds:
            return _OTHER_DEVICE[device.kind]
        if device.tensors == "cpu" and "cpu" not in self.kinds:
            return "needs a CUDA device, and this is a rehearsal without one"
        gone = self.missing()
        if gone:
            return f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} not installed"
        return ""

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package, module in self.packages if not _found(module)]

    def offers(self) -> dict[str, Offer]:
        """By suite. Imports the provider."""
        module = importlib.import_module(f"tilewright.bench.providers.{self.module}")
        found: dict[str, Offer] = module.OFFERS[self.name]
        return found


_OTHER_DEVICE = {
    "cpu": "needs a CUDA device: --device cuda",
    "cuda": "measured on the CPU, not on GPUs",
}
_TORCH = (("torch", "torch"),)
_CPU, _CUDA = ("cpu",), ("cuda",)
PROVIDERS = (
    Provider(OURS, "Tilewright", "ours", (("tilewright", "tilewright"),)),
    Provider("torch-eager", "PyTorch, operation by operation", "eager", _TORCH),
    Provider("torch-sdpa", "PyTorch's scaled_dot_product_attention", "sdpa", _TORCH),
    Provider("inductor", "torch.compile with Inductor", "inductor", _TORCH),
    Provider("flex", "torch.compile(flex_attention)", "flex", _TORCH),
    Provider("torch-int", "PyTorch's own low-bit products", "torch_int", _TORCH),
    Provider(
        "transformers",
        "transformers' own layers of experts",
        "transformers_experts",
        (("transformers", "transformers"),),
        "pip install 'tilewright[demo]'",
    ),
    Provider(
        "onnxruntime",
        "ONNX Runtime",
        "onnxruntime_",
        (("onnxruntime", "onnxruntime"), ("onnx", "onnx")),
        "pip install 'tilewright[bench]'",
        _CPU,
    ),
    Provider(
        "openvino",
        "OpenVINO",
        "openvino_",
        (("openvino", "openvino"),),
        "pip install openvino",
        _CPU,
    ),
    Provider(
        "torchao", "torchao", "torchao_", (("torchao", "torchao"),), "pip install --no-deps torchao"
    ),
    Provider(
        "llama.cpp",
        "llama.cpp's ggml, through llama-cpp-python",
        "ggml",
        (("llama-cpp-python", "llama_cpp"),),
        "pip install llama-cpp-python (needs a C++ compiler, takes minutes)",
        _CPU,
    ),
    Provider("cublas", "cuBLAS, through PyTorch", "cublas", _TORCH, "", _CUDA),
    Provider("cudnn", "cuDNN's attention, through PyTorch", "sdpa", _TORCH, "", _CUDA),
    Provider(
        "triton",
        "Triton's products, by Inductor's search",
        "triton_templates",
        (("triton", "triton"), *_TORCH),
        "pip install 'tilewright[triton]'",
        _CUDA,
    ),
    Provider(
        "flash-attn",
        "FlashAttention",
        "flash_attn_",
        (("flash-attn", "flash_attn"),),
        "pip install flash-attn --no-build-isolation (needs nvcc)",
        _CUDA,
    ),
    Provider(
        "gemlite", "gemlite", "gemlite_", (("gemlite", "gemlite"),), "pip install gemlite", _CUDA
    ),
    Provider("marlin", "Marlin, in vLLM", "marlin", (("vllm", "vllm"),), "pip install vllm", _CUDA),
)
GROUPS = {
    "all": tuple(p.name for p in PROVIDERS[1:]),
    "torch": ("torch-eager", "torch-sdpa", "inductor", "flex", "torch-int"),
}


def chosen(names: Sequence[str]) -> list[Provider]:
    """The providers of these names or groups, ours first, each once, in the catalogue's order; all
    for none. Raises BenchError that says what exists."""
    known = {p.name: p for p in PROVIDERS}
    wanted: set[str] = {OURS}
    for name in names or ("all",):
        if name in GROUPS:
            wanted.update(GROUPS[name])
        elif name in known:
            wanted.add(name)
        else:
            raise BenchError(unknown("provider", name, [*GROUPS, *known]))
    return [p for p in PROVIDERS if p.name in wanted]


def provider(name: str) -> Provider:
    return next(p for p in PROVIDERS if p.name == name)


def titles(names: Iterable[str]) -> dict[str, str]:
    """Of these providers; a name that this version does not know stands for itself."""
    known = {p.name: p.title for p in PROVIDERS}
    return {name: known.get(name, name) for name in names}


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
