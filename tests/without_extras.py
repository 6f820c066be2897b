"""Run by test_without_extras.py in a process of its own: only what pyproject.toml depends on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

EXTRAS = (
    *("mlir", "torch_mlir", "triton", "cupy", "cuda", "optuna", "scipy", "matplotlib", "ray"),
    *("transformers", "onnx", "onnxruntime", "gguf", "hypothesis", "pytest", "ml_dtypes"),
    *("jsonschema", "playwright", "openvino", "torchao", "llama_cpp"),
)
for name in EXTRAS:
    sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError

import torch  # noqa: E402  (after the names above are gone)
from typer.main import get_command  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import tilewright  # noqa: E402
from tilewright.cli import app  # noqa: E402

ROWS = """graph rows<N>(%x: tensor<N x 20 x f32>) {
%y = tensor.softmax %x {axis = 1}
return %y }"""


def numbers() -> dict[str, float]:
    """The largest error of each kind of program, by the Numba back end."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (9, 7, 7))
    x, weight = torch.randn(5, 20), torch.randn(16, 32)

    def attention(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax(q @ k.mT / 3, dim=-1) @ v

    compiled = tilewright.compile(attention)
    rows = tilewright.Program(tilewright.parse(ROWS))
    packed = tilewright.QuantizedTensor.from_float(weight, "u4", group=32)
    direct = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        pairs = {
            "compiled": (compiled(q, k, v), attention(q, k, v)),
            "attention": (tilewright.attention(q, k, v), direct),
            "rows": (rows(x)[0], x.softmax(-1)),
            "linear": (
                tilewright.linear(x[:, :1] + weight[:5], packed),
                (x[:, :1] + weight[:5]) @ packed.dequantize().T,
            ),
        }
    assert compiled.explain().to_dict()["graphs"][0]["regions"][0]["status"] == "kernel"
    assert rows.backend == "numba"
    return {name: float((got - want).abs().max()) for name, (got, want) in pairs.items()}


def helps() -> dict[str, int]:
    """Exit codes of ``--help`` of every command."""
    found: dict[str, int] = {}

    def walk(command: Any, *path: str) -> None:
        found[" ".join(path)] = CliRunner().invoke(app, [*path, "--help"]).exit_code
        for child, below in getattr(command, "commands", {}).items():
            walk(below, *path, child)

    walk(get_command(app))
    return found


def inside(module: str) -> Any:
    """A module of the package."""
    return importlib.import_module(f"tilewright.{module}")


def refusals(folder: Path) -> dict[str, str]:
    """What is said where a package is missing."""
    tried = {
        "mlir": lambda: tilewright.Program(tilewright.parse(ROWS), backend="mlir")(
            torch.randn(3, 20)
        ),
        "huggingface": tilewright.register_attention,
        "experts": lambda: tilewright.register_experts,
        "config": lambda: tilewright.TilewrightConfig,
        "gguf": lambda: inside("frontend.checkpoints.gguf")._type_table(),
        "onnx": lambda: tilewright.open_checkpoint(folder / "model.onnx"),
        "triton": lambda: inside("backends.triton.build").triton_module(),
        "placement": lambda: inside("runtime.placement.alternate").optimiser(),
        "tune": lambda: inside("runtime.tuning.search")._Sampler(None, 0),
        "ray": lambda: inside("runtime.tuning.ray_workers").RayWorkers("auto"),
        "plot": lambda: inside("runtime.simulator.plot")._pyplot(),
    }
    (folder / "model.onnx").write_bytes(bytes(64))
    said = {}
    for name, call in tried.items():
        try:
            call()
        except tilewright.TilewrightError as error:
            said[name] = str(error)
    return said


def main() -> None:
    public = [name for name in tilewright.__all__ if name not in ("TilewrightConfig",)]
    missing = []
    for name in public:
        try:
            getattr(tilewright, name)
        except tilewright.BackendMissingError:
            missing.append(name)
    seen = {
        "loaded": sorted(name for name in EXTRAS if sys.modules.get(name) is not None),
        "missing": missing,
        "refusals": refusals(Path(sys.argv[1])),
        "helps": helps(),
        "numbers": numbers(),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
