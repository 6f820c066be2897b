"""Constants of every float dtype, infinities and NaN among them, in rows that keep two elements."""

from __future__ import annotations

import pytest
import torch

import tilewright

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# what a router fills in for all but the chosen experts (Llama 4: -inf), and what rounds
VALUES = ("-inf", "inf", "nan", "1.5", "-0.0", "0.3", "-1e-3")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_constants_keeps_its_largest(dtype: str, value: str) -> None:
    module = tilewright.parse(f"""graph f<N>(%x: tensor<N x 16 x {dtype}>) {{
  %const = math.const {{value = {value}, type = tensor<{dtype}>}}
  %full = tensor.broadcast %const {{shape = [size(N), size(16)]}} : tensor<N x 16 x {dtype}>
  %most, %ids = tensor.top_k %x {{k = 2, ties = "torch"}}
      : tensor<N x 2 x {dtype}>, tensor<N x 2 x i32>
  %o = tensor.scatter %full, %ids, %most {{axis = 1, kind = "set"}} : tensor<N x 16 x {dtype}>
  return %o
}}
""")
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    (found,) = tilewright.Program(module, backend="mlir")(x)
    largest, ids = x.topk(2)
    wanted = torch.full_like(x, float(value)).scatter_(1, ids, largest)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert bool((found.signbit() == wanted.signbit())[~wanted.isnan()].all())
