"""Calls on GPUs that come again: what repeats one starts the very form with the very values that
the call itself does, for other tensors of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tilewright
from tests.attention_programs import Attention
from tests.backends.gpu_corpus import kernels
from tests.runtime.fake_gpu import fake_gpu
from tilewright.frontend.attention.plans import forget_plans
from tilewright.gpu import using_backend, using_schedule
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.runtime.cuda.repeat import bound
from tilewright.runtime.cuda_kernel import CudaKernel
from tilewright.runtime.family import KernelFamily
from tilewright.runtime.gpu_targets import pretended

pytest.importorskip("triton")
SM90 = named_target("cuda-sm90")
Started = tuple[str, int, tuple[int, ...], int]  # form, work items, values, tensors copied in bulk


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Started]]:
    """What was started, by kernels that are never compiled."""
    found: list[Started] = []

    def loaded(self: CudaKernel, device: int, source: Any, form: str, odd: int) -> Any:
        def start(items: int, stream: int, values: Any, maps: Any = ()) -> None:
            found.append((form, items, tuple(values), len(maps)))

        return start

    monkeypatch.setattr(CudaKernel, "_loaded", loaded)
    with fake_gpu():
        yield found


def kernel(width: int) -> CudaKernel:
    (program,) = kernels(parse(Attention(width, width, "bf16").text()), SM90, 0)
    return CudaKernel(program, SM90, [])


def tensors(width: int, apart: int = 0, offset: int = 0) -> list[torch.Tensor]:
    """Attention's; with ``apart`` elements between rows, ``offset`` elements behind a boundary."""
    made = []
    for heads in (4, 2, 2):
        memory = torch.zeros(heads * 40 * (width + apart) + 64)
        memory = memory.bfloat16()[offset:]
        made.append(memory[: heads * 40 * (width + apart)].view(1, heads, 40, -1)[..., :width])
    return made


def without_outputs(found: Started, inputs: int) -> Started:
    """Results lie where the allocator puts them."""
    form, items, values, maps = found
    return form, items, (*values[:inputs], *values[inputs + 1 :]), maps


@pytest.mark.parametrize(("width", "apart"), [(64, 0), (64, 4), (20, 0)])
def test_what_repeats_a_call_starts_what_it_does(
    started: list[Started], width: int, apart: int
) -> None:
    made = kernel(width)
    assert bound(made.call, tuple(tensors(width, apart))) is None  # nothing is loaded yet
    made.call(*tensors(width, apart))
    again = bound(made.call, tuple(tensors(width, apart)))
    assert again is not None
    for _ in range(2):
        other = tensors(width, apart)
        started.clear()
        outs = made.call(*other), again(*other)
        first, second = (without_outputs(x, 3) for x in started)
        assert first == second
        assert [x.data_ptr() for x in other] == list(second[2][:3])
        (a,), (b,) = outs
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_odd_addresses_take_another_form(started: list[Started]) -> None:
    made = kernel(64)
    made.call(*tensors(64))
    again = bound(made.call, tuple(tensors(64)))
    assert again is not None and "one element" not in started[-1][0]
    odd = tensors(64, offset=1)
    again(*odd)
    assert "one element" in started[-1][0]
    assert bound(made.call, tuple(odd)) is None  # the next ones may lie well


def test_only_buffers_that_lie_badly_are_read_by_elements(started: list[Started]) -> None:
    forget_plans()
    q, k, v = (torch.randn(1, 2, 129, 64).bfloat16() for _ in range(3))
    bias = torch.zeros(1, 129)  # rows of 516 bytes, as those of the logarithms

    def biased(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return score + bias[b, j]

    odd = torch.zeros(q.numel() + 1).bfloat16()[1:].view(q.shape)
    bulk = "bulk copies by a warp of its own"
    with using_backend("cuda"), torch.no_grad():
        tilewright.attention(q, k, v, return_lse=True)
        assert started[-1][0] == bulk
        tilewright.attention(odd, k, v)
        assert started[-1][0] == f"{bulk}; q one element at once"
        tilewright.attention(q, k, odd)
        assert started[-1][0].startswith("16 bytes at once; v one element at once")
        tilewright.attention(odd, odd, odd)
        assert started[-1][0].startswith("16 bytes at once; q, k, v one element at once")
        tilewright.attention(q, k, v, score_mod=biased)
        assert started[-1][0].startswith(bulk)
    forget_plans()


def test_bulk_copies_are_repeated(started: list[Started], monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernel(64)
    assert made.roles is not None
    made.call(*tensors(64))
    assert started[-1][3] > 0
    again = bound(made.call, tuple(tensors(64)))
    assert again is not None
    monkeypatch.setattr(CudaKernel, "start", None)  # the kernel's own way is not taken
    again(*tensors(64))
    assert started[-1][3] == started[0][3]


# ---- products with quantised weights


def test_products_that_come_again_look_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third product of a kind starts what the first did, with x and the results elsewhere."""
    generator = torch.Generator().manual_seed(0)
    w, bias = torch.randn(64, 256, generator=generator), torch.randn(64, generator=generator)
    weight = tilewright.QuantizedTensor.from_float(w, "u4", group=128)
    looked: list[object] = []
    whole = KernelFamily.__call__
    monkeypatch.setattr(
        KernelFamily, "__call__", lambda self, *given: looked.append(self) or whole(self, *given)
    )
    with fake_gpu() as driver, torch.no_grad():
        driver.runs = False
        for rows, beside in ((1, None), (1, bias), (3, None), (3, bias)):
            for residual in (None, torch.zeros(rows, 64).bfloat16()):
                started = []
                for count in range(1, 6):
                    x = torch.randn(rows, 256).bfloat16()
                    y = tilewright.linear(x, weight, beside, residual=residual)
                    assert y.shape == (rows, 64) and y.dtype == torch.bfloat16
                    assert len(looked) == min(count, 2)
                    values = list(driver.launches[-1].values)
                    assert x.data_ptr() in values and y.data_ptr() in values
                    places = x.data_ptr(), y.data_ptr()
                    started.append([v if v not in places else places.index(v) for v in values])
                assert len(set(map(len, started))) == 1
                differing = [len(set(map(str, at))) > 1 for at in zip(*started, strict=True)]
                assert sum(differing) <= 2  # sums of parts, and the interpreter's counters
                looked.clear()
        x = torch.randn(1, 257).bfloat16()[:, 1:]  # an odd address
        tilewright.linear(x, weight)
        assert len(looked) == 0 and x.contiguous().data_ptr() % 16
        with using_schedule(16, 128, 4, 2):
            monkeypatch.setattr(pretended, "on", True)
            tilewright.linear(torch.zeros(1, 256).bfloat16(), weight)
        assert len(looked) == 1
