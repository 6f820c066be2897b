"""The calls whose kernels ``tilewright bench figures tuning_quality`` measures in all schedules.

Small enough that one call takes a few milliseconds, large enough that caches matter as in real
ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tilewright
from tilewright.bench.programs import attention_text, cross_entropy_text
from tilewright.lowbit import prepared

Call = Callable[[], object]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
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


def _attention(head: int, rows: int, length: int, heads: int, dtype: str, causal: bool) -> Call:
    q, k, v = (_random(1, heads, n, head).to(DTYPES[dtype]) for n in (rows, length, length))
    return _text(attention_text(head, causal=causal, dtype=dtype), q, k, v)


def _cross_entropy() -> Call:
    labels = torch.arange(192) * 37 % 4096
    return _text(cross_entropy_text(), _random(192, 256), _random(4096, 256), labels)


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


def workloads() -> dict[str, Callable[[], Call]]:
    """By name: what makes the call."""
    found: dict[str, Callable[[], Call]] = {}
    for head, heads in ((64, 2), (80, 2), (128, 1)):
        for dtype in DTYPES:
            for causal in (False, True):
                kind = " causal" if causal else ""
                name = f"attention {dtype} D{head}{kind}"
                found[name] = _later(_attention, head, 1024, 1024, heads, dtype, causal)
    for dtype in DTYPES:
        for rows in (1, 4, 16):
            name = f"decode {dtype} {rows} rows"
            found[name] = _later(_attention, 128, rows, 2048, 8, dtype, False)
    found["softmax"] = _later(_text, _SOFTMAX, _random(1024, 1024))
    found["rmsnorm"] = _later(_text, _RMSNORM, _random(1024, 1024), _random(1024))
    found["cross entropy"] = _cross_entropy
    found["normalisation and product"] = _neighbours
    for bits in (2, 4, 8):
        for rows in (1, 16, 256):
            for activation in ("int8", "float"):
                name = f"linear u{bits} M{rows} {activation}"
                found[name] = _later(_linear, bits, rows, activation)
    return found


def _later(make: Callable[..., Call], *given: Any) -> Callable[[], Call]:
    return lambda: make(*given)
