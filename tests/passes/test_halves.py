"""Concatenated slices as rolls: the same values, one kernel with attention, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_tensor import Concat
from tilewright.ir.parser import parse
from tilewright.passes.halves import join_halves
from tilewright.runtime.program import Program


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.data())
def test_any_slices_in_any_order(lengths: list[int], data: st.DataObject) -> None:
    """Parts of two tensors, some through functions, wherever they come from and go to."""
    total = sum(lengths) or 1
    lengths = lengths if sum(lengths) else [1]
    lines, names = [], []
    for at, length in enumerate(lengths):
        start = data.draw(st.integers(0, total - length))
        source = data.draw(st.sampled_from("xy"))
        lines.append(
            f"%s{at} = tensor.slice %{source} "
            f"{{axis = 1, start = {start}, stop = {start + length}}}"
        )
        functions = ["math.neg %s{0}", "math.mul %s{0}, %r", "math.mul %s{0}, %two", "same"]
        function = data.draw(st.sampled_from(functions))
        lines.append(f"%p{at} = {function}".format(at) if function != "same" else "")
        names.append(f"%s{at}" if function == "same" else f"%p{at}")
    text = f"""graph f(%x: tensor<3 x {total} x f32>, %y: tensor<3 x {total} x f32>,
        %r: tensor<3 x 1 x f32>) {{
      %two = math.const {{value = 2.0, type = tensor<f32>}}
      {chr(10).join(lines)}
      %o = tensor.concat {", ".join(names)} {{axis = 1}}
      return %o
    }}"""
    module = parse(text)
    joined = join_halves(module)
    assert not any(isinstance(op, Concat) for op in joined.main.body.ops)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((3, n)).astype("f4") for n in (total, total, 1)]
    (want,), (got,) = evaluate(module, *inputs), evaluate(joined, *inputs)
    np.testing.assert_array_equal(got, want)


STAYS = {
    "a part of a longer axis": (6, "%a = tensor.slice %x {axis = 1, start = 0, stop = 2}"),
    "a sum of a part": (4, '%a = tensor.reduce %b {kind = "sum", axis = 1, keep = true}'),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    size, line = STAYS[name]
    text = f"""graph f(%x: tensor<3 x {size} x f32>) {{
      %b = tensor.slice %x {{axis = 1, start = 1, stop = 3}}
      {line}
      %o = tensor.concat %a, %b {{axis = 1}}
      return %o
    }}"""
    module = join_halves(parse(text))
    assert any(isinstance(op, Concat) for op in module.main.body.ops)


ROTARY = """graph rotary<H, N, M>(%q: tensor<H x N x W x f32>, %k: tensor<H x M x W x f32>,
    %v: tensor<H x M x W x f32>, %cq: tensor<N x W x f32>, %sq: tensor<N x W x f32>,
    %ck: tensor<M x W x f32>, %sk: tensor<M x W x f32>) {
  %q_low = tensor.slice %q {axis = 2, start = 0, stop = HALF}
  %q_high = tensor.slice %q {axis = 2, start = HALF, stop = W}
  %q_minus = math.neg %q_high
  %q_half = tensor.concat %q_minus, %q_low {axis = 2}
  %q1 = math.mul %q, %cq
  %q2 = math.mul %q_half, %sq
  %qr = math.add %q1, %q2
  %k_low = tensor.slice %k {axis = 2, start = 0, stop = HALF}
  %k_high = tensor.slice %k {axis = 2, start = HALF, stop = W}
  %k_minus = math.neg %k_high
  %k_half = tensor.concat %k_minus, %k_low {axis = 2}
  %k1 = math.mul %k, %ck
  %k2 = math.mul %k_half, %sk
  %kr = math.add %k1, %k2
  %s = tensor.contract %qr, %kr {equation = "hnd,hmd->hnm"}
  %p = tensor.softmax %s {axis = 2}
  %o = tensor.contract %p, %v {equation = "hnm,hmd->hnd"}
  return %o
}"""


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@pytest.mark.parametrize("width", [64, 96])
def test_rotary_embeddings_are_part_of_attention(target: str | None, width: int) -> None:
    """One kernel from unrotated queries and keys, for many rows and for one (decode)."""
    module = parse(ROTARY.replace("W", str(width)).replace("HALF", str(width // 2)))
    program = Program(module, target=target)
    assert len(program.steps) == 1 and program.supported
    rng = np.random.default_rng(0)
    for rows, keys in ((1, 70), (100, 130)):
        q, k, v = (
            rng.standard_normal((2, n, width)).astype("f4") * 0.3 for n in (rows, keys, keys)
        )
        angles = [rng.uniform(0, 6, (n, width)) for n in (rows, keys)]
        tables = [f(a).astype("f4") for a in angles for f in (np.cos, np.sin)]
        (got,) = program(*(torch.from_numpy(x) for x in (q, k, v, *tables)))
        (want,) = evaluate(module, q, k, v, *tables, precision="f64")
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)
