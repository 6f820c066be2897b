"""The calls whose kernels ``tilewright bench figures tuning_quality`` measures in all schedules.

Small enough that one call takes a few milliseconds, large enough that caches matter as in real
ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

import tilewright
from tilewright.bench.programs import attention_text, cross_entropy_text
from tilewright.lowbit import prepared

Call = Callable[[], object]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
HEADS = {64: 2, 80: 2, 128: 1}  # heads of each width
FEW_ROWS = (1, 4, 16)
_SOFTMAX = """\
graph softmax<N>(%x: tensor<N x 1024 x f32>) {
  %p = tensor.softmax %x {axis = 1, safe = true}
  return %p
}
"""
_RMSNORM = """\
graph rmsnorm<N>(%x: tensor<N x 1024 x f32>, %w: tensor<1024 x f32>) {
  %square = math.mul %x, %x
  %sum = tensor.reduce %square {kind = "sum", axis = 1, keep = true}
  %count = math.const {value = 0.0009765625, type = tensor<f32>}
  %mean = math.mul %sum, %count
  %epsilon = math.const {value = 1e-6, type = tensor<f32>}
  %shifted = math.add %mean, %epsilon
  %inverse = math.rsqrt %shifted
  %scaled = math.mul %x, %inverse
  %row = tensor.reshape %w {shape = [1, 1024]}
  %y = math.mul %scaled, %row
  return %y
}
"""


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _text(text: str, *inputs: torch.Tensor) -> Call:
    program = tilewright.Program(tilewright.parse(text))
    return lambda: program(*inputs)


def _attention(text: str, head: int, rows: int, length: int, heads: int, dtype: str) -> Call:
    q, k, v = (_random(1, heads, n, head).to(DTYPES[dtype]) for n in (rows, length, length))
    return _text(text, q, k, v)


def _cross_entropy(text: str) -> Call:
    labels = torch.arange(192) * 37 % 4096
    return _text(text, _random(192, 256), _random(4096, 256), labels)


def _linear(bits: int, rows: int, activation: str) -> Call:
    weight = tilewright.QuantizedTensor.from_float(_random(2048, 2048), f"u{bits}", group=32)
    packed, x = prepared(weight, activation), _random(rows, 2048)
    return lambda: tilewright.linear(x, packed, activation=activation)


def _neighbours() -> Call:
    """A normalisation and the product after it, which become one kernel."""

    @tilewright.compile
    def fused(x: Any, w: Any) -> Any:
        y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return torch.nn.functional.silu(y @ w.T)

    x, w = _random(192, 256), _random(1024, 256)
    return lambda: fused(x, w)


def texts() -> dict[str, str]:
    """The programs of the workloads that are given as text, by name."""
    found = {
        f"attention {dtype} D{head}{' causal' if causal else ''}": attention_text(
            head, causal=causal, dtype=dtype
        )
        for head in HEADS
        for dtype in DTYPES
        for causal in (False, True)
    }
    for dtype, rows in itertools.product(DTYPES, FEW_ROWS):
        found[f"decode {dtype} {rows} rows"] = attention_text(128, causal=False, dtype=dtype)
    return found | {
        "softmax": _SOFTMAX,
        "rmsnorm": _RMSNORM,
        "cross entropy": cross_entropy_text(),
    }


def workloads() -> dict[str, Callable[[], Call]]:
    """By name: what makes the call."""
    given = texts()
    found: dict[str, Callable[[], Call]] = {}
    for head, heads in HEADS.items():
        for dtype, kind in itertools.product(DTYPES, ("", " causal")):
            name = f"attention {dtype} D{head}{kind}"
            found[name] = _later(_attention, given[name], head, 1024, 1024, heads, dtype)
    for dtype, rows in itertools.product(DTYPES, FEW_ROWS):
        name = f"decode {dtype} {rows} rows"
        found[name] = _later(_attention, given[name], 128, rows, 2048, 8, dtype)
    found["softmax"] = _later(_text, given["softmax"], _random(1024, 1024))
    found["rmsnorm"] = _later(_text, given["rmsnorm"], _random(1024, 1024), _random(1024))
    found["cross entropy"] = _later(_cross_entropy, given["cross entropy"])
    found["normalisation and product"] = _neighbours
    for bits in (2, 4, 8):
        for rows in (1, 16, 256):
            for activation in ("int8", "float"):
                name = f"linear u{bits} M{rows} {activation}"
                found[name] = _later(_linear, bits, rows, activation)
    return found


def _later(make: Callable[..., Call], *given: Any) -> Callable[[], Call]:
    return lambda: make(*given)
