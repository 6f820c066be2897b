"""``import tilewright``: the public names, loaded when used; ``evaluate`` on arrays of any kind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import tilewright

TEXT = """
graph scaled<N>(%x: tensor<N x 3 x f32>) {
  %half = math.const {value = 0.5, type = tensor<f32>}
  %y = math.mul %x, %half
  return %y
}
"""
ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_every_public_name_is_there() -> None:
    for name in tilewright.__all__:
        assert getattr(tilewright, name) is not None
        assert name in dir(tilewright)
    assert not hasattr(tilewright, "no_such_name")


def test_errors_have_one_base() -> None:
    classes = [getattr(tilewright, name) for name in tilewright.__all__ if name.endswith("Error")]
    assert len(classes) == 18
    assert all(issubclass(cls, tilewright.TilewrightError) for cls in classes)


def test_importing_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, tilewright; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_do_not_load_dynamo() -> None:
    """It takes seconds: what uses it loads it when it is called. Two names are for transformers,
    which loads it."""
    code = """
import sys, tilewright
for name in set(tilewright.__all__) - {"TilewrightConfig", "register_experts"}:
    getattr(tilewright, name)
sys.exit('torch._dynamo' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parsing_and_evaluating_need_no_torch() -> None:
    code = f"""
import sys, tilewright
module = tilewright.parse({TEXT!r})
assert tilewright.evaluate(module, {ROWS!r})[0].tolist()[1] == [2.0, 2.5, 3.0]
sys.exit('torch' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        np.array(ROWS, np.float32),
        np.array(ROWS, np.float16),
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.bfloat16),
        torch.tensor(ROWS, dtype=torch.float16, requires_grad=True),
        torch.tensor(ROWS, dtype=torch.int32),
        torch.tensor(ROWS).t().contiguous().t(),
        torch.tensor(ROWS).to_sparse(),
        torch.complex(torch.zeros(2, 3), torch.tensor(ROWS)).conj().imag * -1,
    ],
)
def test_evaluate_takes_arrays_of_any_kind(given: object) -> None:
    (result,) = tilewright.evaluate(tilewright.parse(TEXT), given)
    np.testing.assert_array_equal(result, np.array(ROWS) / 2)


def test_precision() -> None:
    module = tilewright.parse(TEXT.replace("f32", "bf16").replace("0.5", "0.3"))
    x = torch.tensor(ROWS, dtype=torch.bfloat16)
    (rounded,) = tilewright.evaluate(module, x)
    (exact,) = tilewright.evaluate(module, x, precision="f64")
    assert rounded.dtype == np.float32 and exact.dtype == np.float64
    np.testing.assert_array_equal(rounded, torch.tensor(rounded).bfloat16().float().numpy())
    np.testing.assert_allclose(exact, np.array(ROWS) * 0.3, rtol=1e-2)


@pytest.mark.parametrize("given", [[[1.0], [1.0, 2.0]], "text", [["a"]], np.array(ROWS) * 1j, None])
def test_evaluate_refuses_what_is_no_array_of_numbers(given: object) -> None:
    with pytest.raises(tilewright.BindError, match="input 0 is not an array of numbers"):
        tilewright.evaluate(tilewright.parse(TEXT), given)


def test_evaluate_refuses_what_does_not_fit() -> None:
    module = tilewright.parse(TEXT)
    with pytest.raises(tilewright.BindError, match="must be 3"):
        tilewright.evaluate(module, np.zeros((2, 4)))
    with pytest.raises(tilewright.BindError, match="takes 1 inputs"):
        tilewright.evaluate(module)
    with pytest.raises(tilewright.SettingError, match='precision is None or "f64", not'):
        tilewright.evaluate(module, ROWS, precision="f32")
