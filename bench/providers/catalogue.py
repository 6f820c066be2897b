"""The providers: what each is, the packages it needs, whether they are here and in which
version."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench.suites.catalogue import unknown
from tilewright.bench.suites.problem import Form, Problem

Offer = Callable[[Problem, Any], list[Form]]
OURS = "tilewright"


@dataclass(frozen=True)
class Provider:
    """``packages`` are distributions with the module that each is imported as; ``install`` says how
    to get them; ``missing`` finds what else is not there. Of ``gpu`` providers nothing is measured
    on a machine without a CUDA device."""

    name: str
    title: str
    module: str
    packages: tuple[tuple[str, str], ...]
    install: str = ""
    gpu: bool = False

    def versions(self) -> dict[str, str]:
        found = {}
        for package, _ in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def absence(self) -> str:
        """Why it cannot be measured here, or nothing."""
        if self.gpu and not torch.cuda.is_available():
            return "needs a CUDA device, and there is none"
        gone = [package for package, module in self.packages if not _found(module)]
        if gone:
            return f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} not installed"
        if self.gpu:
            return "measured by python -m tilewright.bench.gpu_session, not by suites"
        return ""

    def offers(self) -> dict[str, Offer]:
        """By suite. Imports the provider."""
        module = importlib.import_module(f"tilewright.bench.providers.{self.module}")
        found: dict[str, Offer] = module.OFFERS[self.name]
        return found


_TORCH = (("torch", "torch"),)
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
    ),
    Provider(
        "openvino", "OpenVINO", "openvino_", (("openvino", "openvino"),), "pip install openvino"
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
    ),
    *(
        Provider(name, title, "", packages, install, gpu=True)
        for name, title, packages, install in (
            ("cublas", "cuBLAS, through PyTorch", _TORCH, "a CUDA build of torch"),
            ("cudnn", "cuDNN's attention, through PyTorch", _TORCH, "a CUDA build of torch"),
            (
                "triton",
                "Triton's kernels",
                (("triton", "triton"),),
                "pip install 'tilewright[triton]'",
            ),
            (
                "flash-attn",
                "FlashAttention",
                (("flash-attn", "flash_attn"),),
                "pip install flash-attn",
            ),
            ("gemlite", "gemlite", (("gemlite", "gemlite"),), "pip install gemlite"),
            ("marlin", "Marlin", (("gptqmodel", "gptqmodel"),), "pip install gptqmodel"),
        )
    ),
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
