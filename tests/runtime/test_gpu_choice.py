"""Which back end makes a GPU's kernel: without a GPU, by what the choice gives and which of two
calls is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tilewright
from tests.attention_forms import cached, module_of, module_of_form
from tests.attention_programs import Attention
from tests.runtime.fake_gpu import fake_gpu
from tilewright.frontend.attention.form import Form
from tilewright.frontend.attention.plans import forget_plans
from tilewright.gpu import using_backend, using_schedule
from tilewright.ir.errors import DeviceError, KernelCompileError, LoadingError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.tables import with_tables
from tilewright.runtime import cuda_kernel, gpu_choice
from tilewright.runtime.cuda_kernel import own_blocks
from tilewright.runtime.family import Variant
from tilewright.runtime.gpu_choice import OrElse, Wide, make_fastest, wide_program
from tilewright.runtime.gpu_targets import pretended

pytest.importorskip("triton")
SM90 = named_target("cuda-sm90")
LONG = Attention(128, 128, "bf16", causal=True)


def variant(form: Attention | str, rows: int = 0) -> Variant:
    module = module_of(form) if isinstance(form, str) else parse(form.text())
    (graph,) = map(with_tables, run_passes(module, TO_KERNELS).graphs)
    units = tuple(len(getattr(p.type, "shape", ())) - 1 for p in graph.params)
    return Variant(graph, rows, units, {})


@pytest.mark.parametrize("head", [72, 80, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_many_rows_is_wide(head: int, causal: bool) -> None:
    program = wide_program(variant(Attention(head, head, "bf16", causal=causal)), SM90)
    assert program is not None and program.attrs["warps"] == 8
    assert [tile for _, tile in program.attrs["grid"]][-1] == 128


@pytest.mark.parametrize(
    "form",
    [
        Attention(64, 64, "bf16"),
        Attention(100, 128, "bf16"),
        Attention(256, 256, "bf16"),
        Attention(64, 64, "f32"),
        Attention(128, 128, "bf16", mask="bool"),
        Attention(128, 128, "bf16", mask="add"),
        "pages",
        "ragged",
        "cache u8, u4",
    ],
    ids=str,
)
def test_what_spills_or_comes_in_lines_is_triton_s(form: Attention | str) -> None:
    assert wide_program(variant(form), SM90) is None


def test_what_is_asked_for_is_not_chosen() -> None:
    assert wide_program(variant(LONG), SM90) is not None
    assert wide_program(variant(LONG), named_target("cuda-sm80")) is None
    assert wide_program(variant(LONG, rows=16), SM90) is None
    tuned = variant(LONG)
    assert wide_program(Variant(tuned.graph, 0, tuned.units, {}, {"inner": 32}), SM90) is None
    with using_schedule(64, 64, 4, 3):
        assert wide_program(variant(LONG), SM90) is None
    assert pretended.backend == "gpu"
    with using_backend("triton"):
        assert pretended.backend == "triton"


def blocks(form: Form | str, rows: int, target: str = "cuda-sm90") -> tuple[int, ...] | None:
    """Rows, positions and work items at once of a form's blocks for one warp."""
    module = module_of(form) if isinstance(form, str) else module_of_form(form)
    (graph,) = map(with_tables, run_passes(module, TO_KERNELS).graphs)
    units = tuple(len(getattr(p.type, "shape", ())) - 1 for p in graph.params)
    found = own_blocks(Variant(graph, rows, units, {}), named_target(target))
    return None if found is None else (found.rows, found.inner, found.warps, found.at_once)


def test_few_rows_over_few_bits_have_one_warp() -> None:
    u8_u4 = "cache u8, u4"
    assert blocks(u8_u4, 8) == blocks(u8_u4, 8, "cuda-sm80") == (8, 32, 1, 12)
    assert blocks(u8_u4, 16) == (16, 32, 1, 8)
    assert blocks(u8_u4, 64) is blocks(u8_u4, 0) is None
    assert blocks(u8_u4, 8, "hip-gfx942") is None
    assert blocks("cache u3, u5", 8) == (8, 128, 1, 8)  # whole chunks of 32 codes in a thread
    assert blocks("cache u3, u5", 16) is blocks("cache u3, u5", 8, "cuda-sm80") is None
    assert blocks("cache u4 by channel, u2", 8) == (8, 64, 1, 8)
    assert blocks(cached((8, 4), width=16), 8) is None  # a thread's part is 32 wide
    assert blocks(cached((8, 8), width=256), 8) is None
    for form in ("decode", "pages"):
        assert blocks(form, 8) is None
    with using_schedule(16, 64, 4, 2):
        assert blocks(u8_u4, 8) is None


@pytest.mark.parametrize("missing", [None, "no compiler"])
def test_few_rows_over_few_bits_are_cuda_s(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def maker(name: str) -> Any:
        return lambda variant, target, **options: made.append(name) or (len, None)

    monkeypatch.setattr(gpu_choice, "compiler_missing", lambda: missing)
    monkeypatch.setattr(gpu_choice, "make_cuda", maker("cuda"))
    monkeypatch.setattr(gpu_choice, "make_triton", maker("triton"))
    for form, rows in (("cache u8, u4", 8), ("cache u8, u4", 64), ("decode", 8)):
        make_fastest(variant(form, rows), SM90)
    assert made == [(missing and "triton") or "cuda", "triton", "triton"]


def test_wide_blocks_where_they_fill_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_choice, "processors", lambda device: 8)
    made = variant(LONG)
    program = wide_program(made, SM90)
    assert program is not None
    calls: list[str] = []

    def call(name: str) -> Any:
        def found(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            calls.append(name)
            return tensors[:1]

        return found

    wide = Wide(made.graph, program, call("wide"), call("usual"))
    for heads, length in ((4, 200), (4, 128), (4, 129), (8, 100), (1, 1000), (1, 800)):
        q = torch.empty(1, heads, length, 128, device="meta")
        wide.call(q, q, q)
    assert calls == ["wide", "usual", "wide", "wide", "wide", "usual"]
    q = torch.empty(1, 8, 200, 128, device="meta")
    turned = torch.empty(1, 200, 8, 128, device="meta").transpose(1, 2)
    for other in (q[..., :1].expand(q.shape), q[:, :1].expand(q.shape), turned):
        wide.call(q, other, q)
    odd = torch.empty(1, 8, 200, 132, device="meta")[..., :128]
    wide.call(odd, odd, odd)
    assert calls[6:] == ["usual", "usual", "wide", "usual"]
    assert wide.bind(*(torch.empty(1, 4, 200, 128, device="meta"),) * 3) is None


def test_machine_code_that_cannot_be_loaded_is_triton_s() -> None:
    called: list[str] = []
    errors: list[Exception] = [DeviceError("a stream is being captured"), LoadingError("too new")]

    def first(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise errors[len(called)]

    def other(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        called.append("other")
        return tensors

    made = OrElse(first, lambda: other)
    x = torch.zeros(1)
    with pytest.raises(DeviceError, match="captured"):
        made.call(x)
    errors.insert(0, errors.pop())
    with pytest.warns(UserWarning, match="too new\nTriton's kernel is used"):
        assert made.call(x) == (x,)
    assert made.call(x) == (x,) and called == ["other", "other"]  # without a warning
    vars(other)["bind"] = lambda *tensors: len
    assert made.bind(x) is len


def test_a_compiler_that_does_not_know_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps over a cache in few bits are CUDA C++ by default, and Triton's then."""
    forget_plans()

    def refused(*facts: object) -> bytes:
        raise KernelCompileError("invalid value for --gpu-architecture")

    monkeypatch.setattr(gpu_choice, "compiler_missing", lambda: None)
    monkeypatch.setattr(cuda_kernel, "machine_code", refused)
    cache = tilewright.KVCache(1, 2, 32).append(*torch.randn(2, 1, 2, 50, 32))
    q = torch.randn(1, 2, 1, 32).bfloat16()
    want = tilewright.attention(q, cache)
    with fake_gpu() as driver, pytest.warns(UserWarning, match="gpu-architecture"):
        got = tilewright.attention(q, cache)
    assert driver.launches and float((got - want).abs().max()) < 2e-2
    forget_plans()


def test_without_a_compiler_everything_is_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    monkeypatch.setattr(gpu_choice, "compiler_missing", lambda: "no NVRTC, no nvcc")
    monkeypatch.setattr(gpu_choice, "make_triton", lambda *given: taken.append(given) or (1, 2))
    assert make_fastest(variant(LONG), SM90) == (1, 2) and len(taken) == 1
