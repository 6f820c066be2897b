"""Programs of every kind of kernel that goes into bundles, their inputs, and bundles of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from tests.attention_programs import Attention
from tests.lowbit_programs import Form, Weight, draw, lanes_of, tensors
from tilewright.ir.parser import parse
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.export import Exporter
from tilewright.runtime.bundle.folder import write_folder
from tilewright.runtime.targets import resolve_target

ELEMENTWISE = """
graph scaled<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x M x bf16>) {
  %wide = math.cast %y {dtype = f32}
  %half = math.const {value = 0.5, type = tensor<f32>}
  %s = math.mul %x, %half
  %sum = math.add %s, %wide
  %out = math.cast %sum {dtype = bf16}
  return %out, %s
}
"""
ROW_SUMS = """
graph sums<N, M>(%x: tensor<N x M x f32>) {
  %square = math.mul %x, %x
  %total = tensor.reduce %square {axis = 1, kind = "sum", keep = true}
  %share = math.div %square, %total
  return %share
}
"""
TWO_KERNELS = """
graph twice<N, M>(%x: tensor<N x M x f32>, %w: tensor<M x M x f32>) {
  %p = tensor.softmax %x {axis = 1}
  %y = tensor.contract %p, %w {equation = "nm,mk->nk"}
  %q = tensor.softmax %y {axis = 1}
  %z = tensor.contract %q, %w {equation = "nm,mk->nk"}
  return %z, %p
}
"""
DOCUMENTS = """
graph documents<H, N, M>(%q: tensor<H x N x 32 x f32>, %k: tensor<H x M x 32 x f32>,
                         %of_q: tensor<N x i64>, %of_k: tensor<M x i64>) {
  %dots = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
  %rows = tensor.reshape %of_q {shape = [1, size(N), 1]}
  %keys = tensor.reshape %of_k {shape = [1, 1, size(M)]}
  %same = math.compare %rows, %keys {relation = "eq"}
  %none = math.const {value = -inf, type = tensor<f32>}
  %scores = math.select %same, %dots, %none
  %p = tensor.softmax %scores {axis = 2, safe = true}
  %out = tensor.contract %p, %k {equation = "hnm,hmd->hnd"}
  return %out
}
"""
ATTENTION = Attention(64, 32).text()
CAUSAL = Attention(32, 32, "bf16", causal=True, mask="rows").text()
LOW_BIT = Form((Weight("u4", 32, zero=8),), 96, 32, ("bias",))
LOW_BIT_FLOAT = Form((Weight("u3", 20, zeros="f16"),), 70, 0)


def make(
    path: Path, calls: Iterable[tuple[str, Iterable[torch.Tensor] | None]], target: str = "host"
) -> Bundle:
    """A bundle of programs for calls with such tensors; None: in all their forms."""
    write(path, calls, target)
    return Bundle(path)


def write(
    path: Path, calls: Iterable[tuple[str, Iterable[torch.Tensor] | None]], target: str = "host"
) -> None:
    """``make`` for any machine."""
    exporter = Exporter(resolve_target(target), "test")
    for text, given in calls:
        exporter.add(parse(text), None if given is None else [x.to("meta") for x in given])
    made = exporter.made()
    write_folder(path, made.manifest, made.files)


def low_bit(form: Form, rows: int, blocks: int, seed: int = 0) -> tuple[str, list[torch.Tensor]]:
    """A product with packed weights as a program, and inputs of it."""
    lanes = lanes_of("host")
    return form.text(lanes), tensors(form, draw(form, lanes, rows, blocks, seed).inputs)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers."""
    made = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=made).to(dtype)
