"""Everything that needs no extra works without them, and what does need one says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "without_extras.py"
SAID = {
    "mlir": "tilewright[mlir]",
    "huggingface": "tilewright[huggingface]",
    "experts": "tilewright[huggingface]",
    "config": "tilewright[huggingface]",
    "gguf": "tilewright[checkpoints]",
    "onnx": "tilewright[checkpoints]",
    "triton": "tilewright[triton]",
    "placement": "tilewright[placement]",
    "tune": "tilewright[tune]",
    "ray": "tilewright[ray]",
    "plot": "tilewright[plot]",
}
COMMANDS = {"run", "compile", "explain", "doctor", "tune run", "bench compare", "cache ls"}
WITHOUT_LLVM = """
import sys
sys.modules["llvmlite"] = None  # Numba needs it, too
import torch, tilewright
text = "graph rows<N>(%x: tensor<N x 20 x f32>) { %y = tensor.softmax %x {axis = 1} return %y }"
x, weight = torch.randn(5, 20), tilewright.QuantizedTensor.from_float(torch.randn(8, 20), "u4", 20)
program = tilewright.Program(tilewright.parse(text))
assert program.backend == "interpreter"
torch.testing.assert_close(program(x)[0], x.softmax(-1))
torch.testing.assert_close(tilewright.linear(x, weight), x @ weight.dequantize().T)
for backend in ("mlir", "numba"):
    try:
        tilewright.Program(tilewright.parse(text), backend=backend)(x)
    except tilewright.BackendMissingError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What without_extras.py saw in a process that has none of the extras' packages."""
    folder = tmp_path_factory.mktemp("files")
    command = [sys.executable, str(PROGRAM), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_extra_was_loaded(seen: dict[str, Any]) -> None:
    assert seen["loaded"] == []


def test_kernels_are_numba_s_and_right(seen: dict[str, Any]) -> None:
    assert set(seen["numbers"]) == {"compiled", "attention", "rows", "linear"}
    for name, error in seen["numbers"].items():
        assert error < 2e-5, (name, error)


def test_every_command_has_its_help(seen: dict[str, Any]) -> None:
    assert set(seen["helps"]) >= COMMANDS
    assert not {command: code for command, code in seen["helps"].items() if code}


def test_what_is_missing_says_which_extra_to_install(seen: dict[str, Any]) -> None:
    assert seen["missing"] == ["register_experts"]
    assert set(seen["refusals"]) == set(SAID)
    for name, extra in SAID.items():
        assert f"pip install '{extra}'" in seen["refusals"][name]


def test_without_llvmlite_the_interpreter_runs(tmp_path: Path) -> None:
    """As docs/install.md says; the other back ends say what they need."""
    command = [sys.executable, "-c", WITHOUT_LLVM]
    env = os.environ | {"TILEWRIGHT_CACHE_DIR": str(tmp_path)}  # no kernel that is there already
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    mlir, numba = done.stdout.splitlines()
    assert "pip install llvmlite" in mlir or "tilewright[mlir]" in mlir
    assert "No module named 'llvmlite" in numba
