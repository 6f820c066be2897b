"""Kernels started by the CUDA driver: on a GPU that is not there (fake_gpu.py), which reads what it
was given out of memory and computes with it, so that a wrong address, stride or size shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import tilewright
from tests.attention_programs import Attention
from tests.runtime.fake_gpu import NO_BINARY, NO_MEMORY, FakeDriver, fake_gpu
from tilewright.frontend.attention import again
from tilewright.frontend.attention.plans import forget_plans
from tilewright.frontend.programs import forget_programs
from tilewright.gpu import using_schedule
from tilewright.ir.errors import BindError, DeviceError, UnsupportedError
from tilewright.ir.parser import parse
from tilewright.runtime import program as program_module
from tilewright.runtime.cuda import descriptions as descriptions_module
from tilewright.runtime.cuda import start as start_module
from tilewright.runtime.cuda.driver import Driver, Image
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.cuda.start import Layout, starter
from tilewright.runtime.gpu_targets import pretended
from tilewright.runtime.program import Program
from tilewright.runtime.tuned import TUNED

pytest.importorskip("triton")
FORM = Attention(16, 16, "bf16", causal=True)


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_gpu() as driver:
        yield driver


def inputs(queries: int = 20, keys: int = 20, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = (1, 4, queries, width), (1, 2, keys, width), (1, 2, keys, width)
    return [torch.randn(x, generator=generator).bfloat16() for x in shapes]


def forget() -> None:
    forget_plans()
    forget_programs()


def program(target: str = "cuda-sm90", form: Attention = FORM) -> Program:
    return Program(parse(form.text()), backend="triton", target=target)


def check(made: Program, *tensors: torch.Tensor, form: Attention = FORM) -> None:
    (got,) = made(*tensors)
    want = form.reference(*tensors, None)
    assert float((got.double() - want).abs().max()) < 2e-2


@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm90"])
def test_lengths_share_one_form(driver: FakeDriver, target: str) -> None:
    made = program(target)
    for length in (20, 20, 31, 24):
        check(made, *inputs(length, length))
    assert len(driver.kernels) == 1
    launch = driver.launches[0]
    assert launch.stream == 77 and launch.grid[1:] == (1, 1)
    (machine,) = made.explain().kernels[0].variants[0].machine
    assert launch.block == (32 * machine.warps, 1, 1)
    assert machine.shared_bytes == launch.shared_bytes and machine.registers == 168
    assert bool(driver.maps) == (target == "cuda-sm90") == ("bulk" in machine.form)


def test_odd_addresses_and_strides_have_forms_of_their_own(driver: FakeDriver) -> None:
    made = program()
    q, k, v = inputs()
    check(made, q, k, v)
    odd = torch.randn(k.numel() + 1).bfloat16()[1:].view(k.shape)  # at an address + 2
    check(made, q, odd, v)
    wide = torch.randn(1, 2, 20, 17).bfloat16()[..., :16]  # strides of 34 bytes
    check(made, q, k, wide)
    check(made, q, k, k.new_ones(1, 1, 1, 16).expand(1, 2, 20, 16))  # nothing to copy in bulk
    found = [m.form for m in made.explain().kernels[0].variants[0].machine]
    assert found[0] == "bulk copies" and found[3] == "plain"
    assert [f.split(" not ")[0] for f in found[1:3]] == ["k", "v"]
    count = len(driver.kernels)
    for tensors in ((q, k, wide), (q, k, v), (q, odd, v), (q, k, wide)):  # all known
        check(made, *tensors)
    assert len(driver.kernels) == count
    check(made, q, odd, wide)
    check(made, q, wide, v)  # as with ``odd``
    found = [m.form for m in made.explain().kernels[0].variants[0].machine]
    assert [f.split(" not ")[0] for f in found[4:]] == ["k, v"]


def test_strides_of_64_bits(driver: FakeDriver) -> None:
    driver.runs = False
    q, k, v = inputs()
    far = k.as_strided((1, 2, 20, 16), (1 << 32, 320, 16, 1))
    made = program()
    made(q, far, v)
    assert "64-bit strides" in str(made.explain())
    assert 1 << 32 in driver.launches[-1].values
    made(q, k, v)
    assert 1 << 32 not in driver.launches[-1].values


def test_descriptions_are_made_once_and_forgotten(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptions_module, "MOST", 4)
    driver.runs = False
    made = program()
    q, k, v = inputs()
    kernel = made._single
    for _ in range(5):
        made(q, k, v)
    assert len(driver.maps) == 2
    others = [k.clone() for _ in range(9)]
    for other in others:
        made(q, other, v)
    assert len(driver.maps) == 11
    made(q, others[-1], v)
    assert len(driver.maps) == 11 and kernel is not None
    made(q, k, v)  # its description is gone
    assert len(driver.maps) == 12


def test_threads_launch_at_once(driver: FakeDriver) -> None:
    driver.runs = False
    image = Image(b"code", "kernel", 128, 0)
    layout = Layout(2, (), 1)
    driver.images[b"code"] = forms_kernel(layout)
    loaded = gpus.driver.load(image, 0)
    start = starter(gpus.driver, image, loaded, layout, 0)

    def work(number: int) -> None:
        for _ in range(200):
            start(number, 5, (number, number + 1, number + 2), ())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launches) == 1600
    for launch in driver.launches:
        n = launch.grid[0]
        assert launch.values == [n, n + 1, n + 2, 0, 0]


def forms_kernel(layout: Layout) -> object:
    from tests.runtime.fake_gpu import Kernel

    return Kernel(layout.sizes(), None, None)  # type: ignore[arg-type]


# ---- calls that come again


def test_repeated_calls_are_bound_and_right(driver: FakeDriver) -> None:
    forget()
    with torch.no_grad():
        for round_ in range(5):
            q, k, v = (x + round_ for x in inputs())
            got = tilewright.attention(q, k, v, is_causal=True, enable_gqa=True)
            assert isinstance(got, torch.Tensor)
            want = FORM.reference(q, k, v, None)
            assert float((got.double() - want).abs().max()) < 2e-2 * (round_ + 1)
        calls = len(driver.launches)
        q, k, v = inputs()
        odd = torch.randn(k.numel() + 1).bfloat16()[1:].view(k.shape)  # an address, then strides
        wide = torch.randn(1, 2, 20, 17).bfloat16()[..., :16]
        for other in (odd, odd, odd, wide, wide, wide, wide):
            got = tilewright.attention(q, other, v, is_causal=True, enable_gqa=True)
            want = FORM.reference(q, other, v, None)
            assert isinstance(got, torch.Tensor) and float((got.double() - want).abs().max()) < 2e-2
        assert len(driver.launches) == calls + 7
    forget()


def test_repeated_calls_do_not_pass_the_checks(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget()
    q, k, v = inputs()
    driver.runs = False
    for _ in range(3):
        tilewright.attention(q, k, v, enable_gqa=True)
    monkeypatch.setattr(again, "closure_of", lambda *functions: pytest.fail("not needed"))
    assert again.called_again(q, k, v, None, None, (False, None, True, False, False))
    with pytest.raises(UnsupportedError, match="requires gradients"):
        tilewright.attention(q.clone().requires_grad_(), k, v, enable_gqa=True)
    with pytest.raises(BindError, match="enable_gqa"):
        tilewright.attention(q, k, v)
    with pytest.raises(BindError, match="same heads and length"):
        tilewright.attention(q, k, v[:, :, :-1], enable_gqa=True)
    with pytest.raises(UnsupportedError, match="negated"):
        tilewright.attention(torch._neg_view(q), k, v, enable_gqa=True)
    forget()


def test_a_call_like_some_before_is_one_look_up(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes by its plan again where anything differs that a kernel depends on."""
    forget()
    driver.runs = False
    q, k, v = inputs()
    looked: list[object] = []
    known_plan = again.known_plan
    monkeypatch.setattr(again, "known_plan", lambda *x: looked.append(x) or known_plan(*x))

    def looks(*tensors: torch.Tensor, **options: Any) -> bool:
        before = len(looked)
        tilewright.attention(*tensors, enable_gqa=True, **options)
        return len(looked) > before

    for _ in range(4):
        looks(q, k, v)
    assert not looks(q, k, v) and not looks(q.clone(), k.clone(), v.clone())
    assert looks(q, k, v, is_causal=True) and looks(q, k, v, scale=0.5)
    assert looks(q, k[:, :, :-1], v[:, :, :-1])
    assert looks(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    with using_schedule(16, 16, 4, 2):
        monkeypatch.setattr(pretended, "on", True)
        assert looks(q, k, v)
    monkeypatch.setattr(TUNED, "number", TUNED.number + 1)
    assert looks(q, k, v)
    forget()
    assert looks(q, k, v)
    forget()


def test_calls_in_a_row_are_found_by_torchs_guards(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a guard does not let through goes where everything is looked at."""
    forget()
    looked: list[object] = []
    kinds = program_module.kinds
    monkeypatch.setattr(program_module, "kinds", lambda n: looked.append(n) or kinds(n))

    def looks(*tensors: torch.Tensor, **options: Any) -> bool:
        before = len(looked)
        got = tilewright.attention(*tensors, enable_gqa=True, **options)
        form = replace(FORM, causal=bool(options))
        want = form.reference(*tensors, None)
        assert isinstance(got, torch.Tensor) and float((got.double() - want).abs().max()) < 2e-2
        return len(looked) > before

    q, k, v = inputs()
    for _ in range(6):
        looks(q, k, v)
    assert not looks(q, k, v) and not looks(*(x.flip(2) for x in (q, k, v)))
    assert looks(q, k, k) and looks(q, k[:, :, :-1], v[:, :, :-1])
    assert looks(q, k.transpose(1, 2).contiguous().transpose(1, 2), v)
    assert looks(q, k, v, is_causal=True) and not looks(q, k, v)
    odd = torch.randn(k.numel() + 1).bfloat16()[1:].view(k.shape)
    assert not looks(q, odd, v)  # the launch itself looks at addresses
    with torch.inference_mode():
        assert looks(q, k, v)
    with pytest.raises(UnsupportedError, match="requires gradients"):
        tilewright.attention(q.clone().requires_grad_(), k, v, enable_gqa=True)
    with pytest.raises(UnsupportedError, match="negated"):
        tilewright.attention(torch._neg_view(q), k, v, enable_gqa=True)
    learned = q.clone().requires_grad_()
    with torch.no_grad():  # a guard made here holds outside, too
        for _ in range(6):
            looks(learned, k, v)
    with pytest.raises(UnsupportedError, match="requires gradients"):
        tilewright.attention(learned, k, v, enable_gqa=True)
    forget()
    assert looks(q, k, v)
    forget()


# ---- what can be wrong


def test_a_new_thread_enters_the_context(driver: FakeDriver) -> None:
    made = program()
    made(*inputs())
    driver.current = None
    check(made, *inputs())
    assert driver.current == 7


def test_nothing_is_compiled_while_a_graph_is_captured(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = program()
    monkeypatch.setitem(gpus.__dict__, "capturing", lambda: True)
    with pytest.raises(DeviceError, match="call it once with such inputs before capturing"):
        made(*inputs())
    monkeypatch.setitem(gpus.__dict__, "capturing", lambda: False)
    check(made, *inputs())
    monkeypatch.setitem(gpus.__dict__, "capturing", lambda: True)
    check(made, *inputs(30, 30))  # nothing new to compile
    q, k, v = inputs()
    odd = torch.randn(k.numel() + 1).bfloat16()[1:].view(k.shape)
    with pytest.raises(DeviceError, match="captured"):
        made(q, odd, v)


@pytest.mark.parametrize(
    ("function", "code", "text"),
    [
        ("cuModuleLoadData", NO_BINARY, "update the NVIDIA driver, or keep the tensors on the CPU"),
        ("cuModuleLoadData", NO_MEMORY, "torch.cuda.empty_cache"),
        ("cuLaunchKernelEx", 999, "could not start the kernel tilewright_kernel with 2 blocks"),
        ("cuTensorMapEncodeTiled", 1, r"describe a tensor of shape \(1, 2, 20, 16\)"),
        ("cuDevicePrimaryCtxRetain", 999, "could not reach GPU -1: another error"),
    ],
)
def test_what_the_driver_refuses(driver: FakeDriver, function: str, code: int, text: str) -> None:
    driver.answers[function] = code
    with pytest.raises(DeviceError, match=text):
        program()(*inputs())


def test_no_room_on_the_gpu(driver: FakeDriver) -> None:
    driver.shared_bytes = 1000
    with pytest.raises(DeviceError, match="bytes of shared memory, a block on this GPU has 1000"):
        program()(*inputs())
    driver.shared_bytes, driver.threads = 1 << 20, 64
    with pytest.raises(DeviceError, match="a block has 128 threads of 168 registers"):
        program()(*inputs())


def test_no_driver() -> None:
    class Refusing(FakeDriver):
        def _cuInit(self, flags: int) -> int:  # type: ignore[override]
            return 100

    with pytest.raises(DeviceError, match="could not start the CUDA driver"):
        Driver(Refusing())


def test_too_many_blocks(driver: FakeDriver) -> None:
    image = Image(b"code", "kernel", 128, 0)
    driver.images[b"code"] = forms_kernel(Layout(1, (), 0))  # type: ignore[assignment]
    start = starter(gpus.driver, image, gpus.driver.load(image, 0), Layout(1, (), 0), 0)
    for items in (1 << 31, 1 << 40):
        driver.answers["cuLaunchKernelEx"] = 1
        with pytest.raises(DeviceError, match="split the call"):
            start(items, 0, (1,), ())


def test_parameters_that_another_triton_would_take(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module.Layout, "sizes", lambda layout: [8])
    with pytest.raises(UnsupportedError, match=r"use Triton 3\.6 to 3\.9"):
        program()(*inputs())


def test_out_of_memory_says_what_for(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*facts: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(gpus.__dict__, "empty", empty)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        program()(*inputs())
    assert "allocating the results of attention" in raised.value.__notes__[0]


def test_tensors_elsewhere_are_named(driver: FakeDriver) -> None:
    made = program()
    q, k, v = inputs()
    with pytest.raises(BindError, match="is on meta"):
        made(q, k.to("meta"), v)
    with pytest.raises(BindError, match="dtype"):
        made(q, k.half(), v)
