"""``tilewright run MODULE:FUNCTION`` and ``explain MODULE:FUNCTION``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command

Refused = Callable[..., str]

FUNCTIONS = """
import torch
import torch.nn.functional as F

def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

def several(x):
    return {"twice": x + x, "rest": (x.sum(), [x > 0])}

def no_tensor(x):
    return 3

class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.weight * x

module = Twice()
number = 3

def fails(x):
    raise ValueError("the user's own mistake")
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "some_functions.py"
    path.write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(path)


def test_attention_runs_in_a_kernel(tilewright: Command, functions: str) -> None:
    inputs = ["-i", "1x2x9x16:f32", "-i", "1x2x9x16", "-i", "1 x 2 x 9 x 16"]
    done = tilewright("run", f"{functions}:attention", *inputs, "--repeat", "1")
    assert done.code == 0, done
    assert "input 2  1 x 2 x 9 x 16 x f32" in done.out and "result 0" in done.out
    assert "against the float64 oracle" in done.out
    assert "regions 1" in done.out and ": kernel" in done.out
    assert "torch   0 operations" in done.out


def test_explain_calls_the_function_once(tilewright: Command, functions: str) -> None:
    inputs = ["-i", "1x2x9x16"] * 3
    done = tilewright("explain", "some_functions:attention", *inputs)
    assert "tensor.softmax" in done.out and "nothing stayed with torch" in done.out, done
    data = json.loads(tilewright("explain", f"{functions}:attention", *inputs, "--json").out)
    assert data["graphs"][0]["regions"][0]["calls"] == 1


def test_results_of_any_form(tilewright: Command, functions: str) -> None:
    for name in ("several", "module", "no_tensor"):
        done = tilewright("run", f"{functions}:{name}", "-i", "3", "--repeat", "1")
        assert done.code == 0, done
    done = tilewright("run", f"{functions}:several", "-i", "3", "--dtype", "f64", "--repeat", "1")
    assert "result 2  3 x bool" in done.out, done


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention", [], "a function needs its inputs: --input 2x8x128x64:f32"),
        ("atention", ["-i", "3"], "has no 'atention'; did you mean 'attention'?"),
        ("number", ["-i", "3"], "is a int, which cannot be called"),
        ("fails", ["-i", "3"], "fails failed: ValueError: the user's own mistake"),
        ("attention", ["-i", "3x:f32"], "--input '3x:f32': write sizes and a dtype"),
        ("attention", ["-i", "3:f99"], "unknown dtype 'f99'; known: f64"),
        ("attention", ["-i", ""], "--input '': write sizes and a dtype"),
        ("attention", ["-i", "99999999x99999999"], "this machine has"),
        ("attention", ["-i", "3", "-s", "N=3"], "--size: a function has inputs"),
        ("attention", ["-i", "3", "--backend", "mlir"], "--backend: tilewright.compile takes"),
        ("attention", ["-i", "1x1x2x4"] * 2, "attention failed: TypeError"),
    ],
)
def test_mistakes(
    refused: Refused, functions: str, name: str, options: list[str], message: str
) -> None:
    text = refused("run", f"{functions}:{name}", *options, "--repeat", "1")
    assert message in " ".join(text.split("\n")[:3])


def test_modules_that_cannot_be_imported(refused: Refused, tmp_path: Path) -> None:
    one = ("-i", "3")
    assert "there is no Python module 'no_such'" in refused("run", "no_such.thing:f", *one)
    for command in ("run", "explain"):  # before what a function needs
        assert "there is no Python module 'no_such'" in refused(command, "no_such.thing:f")
    assert "names no Python module" in refused("run", "not a name:f", *one)
    assert "there is no file 'no_such.py'" in refused("run", "no_such.py:f", *one)
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1 / 0\n")
    text = refused("run", f"{broken}:f", *one)
    assert "broken.py:1: ZeroDivisionError: division by zero" in text
    needs = tmp_path / "needs_another.py"
    needs.write_text("import no_such_either\n")
    assert "no_such_either" in refused("run", f"{needs}:f", *one)
