"""The programs in examples/: one kernel each (routing: two), close to the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.program import Program

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.tw"))
KERNELS = {"routing": 2}
SIZES = {"B": 2, "K": 2, "G": 2, "N": 9, "M": 50, "V": 70, "O": 33, "T": 11, "A": 3}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path) -> None:
    module = parse(path.read_text(encoding="utf-8"), str(path))
    program = Program(module)
    assert len(program.steps) == KERNELS.get(path.stem, 1)
    assert program.supported
    rng = torch.Generator().manual_seed(0)
    inputs = []
    for param in module.main.params:
        assert isinstance(param.type, TensorType)
        shape = [Size.of(s).evaluate(SIZES) for s in param.type.shape]
        whole, dtype = param.type.dtype.is_int, TORCH_DTYPES[str(param.type.dtype)]
        drawn = (
            torch.randint(0, SIZES["V"], shape, generator=rng)
            if whole
            else torch.randn(shape, generator=rng)
        )
        inputs.append(drawn.to(dtype))
    want = evaluate(module, *(x.numpy() for x in inputs), precision="f64")
    for got, exact in zip(program(*inputs), want, strict=True):
        least = max(1e-4, 1e-6 * float(np.abs(exact).max()))  # small results of large terms
        np.testing.assert_allclose(got.numpy(), exact, rtol=1e-4, atol=least)
