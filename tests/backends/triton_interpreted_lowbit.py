"""Products with quantised weights by Triton kernels in Triton's interpreter, as users call them.
``test_triton_lowbit.py`` runs this file in its own process, with TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.runtime.gpu_targets import pretended, using_schedule
from tilewright.runtime.lowbit import gated_kernel, gpu_matrix, linears_kernel
from tilewright.runtime.lowbit.fallback import FALLBACKS
from tilewright.runtime.lowbit.gpu import for_gpu
from tilewright.runtime.lowbit.gpu_products import PackedCall
from tilewright.runtime.lowbit.gpu_programs import PRODUCTS
from tilewright.runtime.schedule_forms import KernelForm
from tilewright.runtime.tuned import TUNED, TunedSchedules
from tilewright.runtime.tuning.traced import tasks_of_call

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ERRORS = {"f32": 2e-6, "f16": 2e-3, "bf16": 1.6e-2}
NAMES = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "i2", "i4", "i8", "f3e1m1", "f4e2m1"]
NAMES += ["f5e2m2", "f6e3m2", "f7e3m3", "f8e4m3", "f8e5m2", "nf4"]
EPILOGUES = [None, "relu", "silu", "gelu_tanh", "gelu"]


def want(
    x: torch.Tensor, weight: tilewright.QuantizedTensor, bias: torch.Tensor | None
) -> torch.Tensor:
    y = x.double() @ weight.dequantize().double().T
    return y if bias is None else y + bias.double()


def close(got: torch.Tensor, exact: torch.Tensor, dtype: str) -> None:
    assert got.dtype == DTYPES[dtype] and got.shape == exact.shape
    if exact.numel():
        scale = 1 + float(exact.abs().max())
        assert float((got.double() - exact).abs().max()) <= ERRORS[dtype] * scale


FUNCTIONS = {
    None: lambda y: y,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
}


@settings(max_examples=15)
@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(sorted(DTYPES)),
    group=st.sampled_from([16, 32, 64, 128, 20, 7, "channel", "tensor"]),
    rows=st.integers(1, 20),
    columns=st.integers(2, 400),
    outputs=st.integers(1, 140),
    scale=st.sampled_from(["f16", "bf16", "f32"]),
    zero=st.sampled_from(["int", "float"]),
    bias=st.booleans(),
    residual=st.booleans(),
    epilogue=st.sampled_from(EPILOGUES),
    codes=st.sampled_from([64, 128]),
    seed=st.integers(0, 1000),
)
def test_linear(  # noqa: PLR0913, PLR0917  (what is drawn)
    name: str,
    dtype: str,
    group: int | str,
    rows: int,
    columns: int,
    outputs: int,
    scale: str,
    zero: str,
    bias: bool,
    residual: bool,
    epilogue: str | None,
    codes: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    more = {"zero": zero} if name.startswith("u") else {}
    w = torch.randn(outputs, columns)
    weight = tilewright.QuantizedTensor.from_float(w, name, group, scale_dtype=scale, **more)
    x = torch.randn(rows, columns).to(DTYPES[dtype])
    b = torch.randn(outputs).to(DTYPES[dtype]) if bias else None
    beside = torch.randn(rows, outputs).to(DTYPES[dtype]) if residual else None
    exact = FUNCTIONS[epilogue](want(x, weight, b))
    exact = exact if beside is None else exact + beside.double()
    FALLBACKS.clear()
    with using_schedule(8, codes, 2, 2):
        got = tilewright.linear(x, weight, b, epilogue=epilogue, residual=beside)
    assert not FALLBACKS
    close(got, exact, dtype)


@pytest.mark.parametrize(
    ("name", "scale", "group"), [("f4e2m1", "e8m0", 32), ("f4e2m1", "f8e4m3", 16)]
)
def test_scales_in_bytes(name: str, scale: str, group: int) -> None:
    """MX and NVFP4, whose scale of the whole tensor goes onto x."""
    w, x = torch.randn(70, 200), torch.randn(3, 200)
    weight = tilewright.QuantizedTensor.from_float(w, name, group, scale_dtype=scale)
    with using_schedule(8, 128, 2, 2):
        close(tilewright.linear(x, weight), want(x, weight, None), "f32")


def test_many_weights_and_gates() -> None:
    x = torch.randn(5, 300).bfloat16()
    make = tilewright.QuantizedTensor.from_float
    a, b = make(torch.randn(100, 300), "u4", 64), make(torch.randn(100, 300), "f6e3m2", 32)
    with using_schedule(8, 128, 2, 2):
        gated = gated_kernel(x, a, b)
        both = linears_kernel(x, (a, b))
    silu = torch.nn.functional.silu(want(x, a, None))
    close(gated, silu * want(x, b, None), "bf16")
    close(both[0], want(x, a, None), "bf16")
    close(both[1], want(x, b, None), "bf16")


def test_no_rows_and_other_rows() -> None:
    """Row counts choose a form; none computes nothing; another count compiles nothing."""
    weight = tilewright.QuantizedTensor.from_float(torch.randn(70, 600), "u4", 64)
    bias = torch.randn(70)
    with using_schedule(8, 128, 2, 2):
        for rows in (0, 1, 3, 9, 17):
            x = torch.randn(rows, 600)
            close(tilewright.linear(x, weight, bias), want(x, weight, bias), "f32")


def test_work_items_that_share_out_k_finish_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel: it writes the results, and every call gives the same bits."""
    given: list[list[torch.Tensor]] = []
    plain = PackedCall._between

    def between(self: PackedCall, *facts: Any) -> list[torch.Tensor]:
        given.append(plain(self, *facts))
        return given[-1]

    monkeypatch.setattr(PackedCall, "_between", between)
    weight = tilewright.QuantizedTensor.from_float(torch.randn(130, 2048), "u3", 64)
    x = torch.randn(2, 2048)
    with using_schedule(8, 128, 2, 2):
        got = tilewright.linear(x, weight)
        close(got, want(x, weight, None), "f32")
        assert all(torch.equal(got, tilewright.linear(x, weight)) for _ in range(2))
    assert len(given) == 4  # what repeats the call asks, too
    for sums, counters in given:
        assert sums.shape == (4, 2, 192) and not counters.any()


def test_weights_are_repacked_once_and_moved_as_they_are() -> None:
    weight = tilewright.QuantizedTensor.from_float(torch.randn(70, 300), "u3", 64)
    with using_schedule(8, 128, 2, 2):
        first = for_gpu(weight)
        assert first.layout.order == "tiles" and first.layout.lanes == 64
        assert for_gpu(weight) is first and for_gpu(first) is first
    assert torch.equal(first.codes(), weight.codes())
    x = torch.randn(4, 300)  # the CPU's kernels take it back
    close(tilewright.linear(x, first), want(x, weight, None), "f32")


def test_models_of_quantised_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 128), torch.nn.SiLU(), torch.nn.Linear(128, 70))
    tilewright.quantize(model, "u5", group=32)
    x = torch.randn(2, 3, 96)
    with torch.no_grad():
        exact = model(x)
        FALLBACKS.clear()
        with using_schedule(8, 128, 2, 2):
            got = model(x)
    assert not FALLBACKS
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["u4", "u3", "f8e7m0", "nf4"])
def test_very_many_rows(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are written out, a slice after the other, and multiplied by torch."""
    monkeypatch.setattr(gpu_matrix, "SLICE_BYTES", 64 * 2 * 150)
    torch.manual_seed(0)
    weight = tilewright.QuantizedTensor.from_float(torch.randn(70, 150), name, 20)
    x, bias = torch.randn(600, 150).to(DTYPES[dtype]), torch.randn(70)
    residual = torch.randn(600, 70).to(DTYPES[dtype])
    FALLBACKS.clear()
    with using_schedule(8, 128, 2, 2):
        got = tilewright.linear(x, weight, bias, epilogue="silu", residual=residual)
    assert not FALLBACKS
    close(got, torch.nn.functional.silu(want(x, weight, bias)) + residual.double(), dtype)
    gate = tilewright.QuantizedTensor.from_float(torch.randn(70, 150), name, 20)
    with using_schedule(8, 128, 2, 2):
        both = gated_kernel(x, gate, weight)
    close(both, torch.nn.functional.silu(want(x, gate, None)) * want(x, weight, None), dtype)


@pytest.mark.parametrize("name", ["u4", "f4e2m1"])
def test_products_are_traced_and_take_tuned_schedules(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``tune`` would try for a traced call is found again under its key by the next one."""
    monkeypatch.setattr(pretended, "on", True)
    weight = tilewright.QuantizedTensor.from_float(torch.randn(128, 512), name, 64)
    x = torch.randn(3, 512)
    tasks, skipped = tasks_of_call(lambda: tilewright.linear(x, weight))
    ((task, _),) = tasks
    assert not skipped and task.backend == "triton" and task.target.startswith("cuda")
    form = KernelForm.of(task)
    choice = next(c for c in form.space if c["warps"] != form.space.default["warps"])

    def winners(schedules: object, kernel: str, gpu: bool) -> dict[tuple[int, ...], object]:
        assert gpu
        return {task.size_class: choice} if kernel == task.kernel else {}

    monkeypatch.setattr(TunedSchedules, "any", True)
    monkeypatch.setattr(TunedSchedules, "of", winners)
    monkeypatch.setattr(TUNED, "number", TUNED.number + 1)
    close(tilewright.linear(x, weight), want(x, weight, None), "f32")
    (schedule,) = {r.schedule for f in PRODUCTS.values() for r in f.reports if f.known}
    assert f"{choice['warps']} warps" in schedule
