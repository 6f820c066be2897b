"""Launches on a real GPU: graphs, streams, devices, torch.compile. The rest of what can be known is
in ``test_cuda_launch.py``, without one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import tilewright
from tilewright.ir.errors import BindError, DeviceError

pytestmark = pytest.mark.gpu


def inputs(length: int = 200, width: int = 64) -> list[torch.Tensor]:
    return [torch.randn(2, 4, length, width, device="cuda").bfloat16() for _ in range(3)]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    out = tilewright.attention(q, k, v, is_causal=True, **options)
    assert isinstance(out, torch.Tensor)
    return out


def check(got: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    want = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True
    )
    assert float((got.double() - want).norm() / want.norm()) < 1e-2


def test_calls_first_and_again_and_at_odd_addresses() -> None:
    for _ in range(4):  # checked, then bound
        q, k, v = inputs()
        check(attention(q, k, v), q, k, v)
    odd = torch.randn(k.numel() + 1, device="cuda").bfloat16()[1:].view(k.shape)
    check(attention(q, odd, v), q, odd, v)
    rows = k.transpose(1, 2).contiguous().transpose(1, 2)
    check(attention(q, rows, v), q, rows, v)


def test_results_do_not_wait_and_do_not_allocate_more() -> None:
    q, k, v = inputs()
    attention(q, k, v)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = attention(q, k, v)
    assert torch.cuda.memory_allocated() - before == -(-out.numel() * 2 // 512) * 512


def test_on_another_stream() -> None:
    q, k, v = inputs(1000)
    attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        scaled = q * 2
        out = attention(scaled, k, v)
    stream.synchronize()
    check(out, q * 2, k, v)


def few_rows() -> tuple[torch.Tensor, tilewright.QuantizedTensor]:
    """A product whose k several work items share out."""
    weight = tilewright.QuantizedTensor.from_float(torch.randn(512, 8192), "u4", 128)
    return torch.randn(4, 8192, device="cuda").bfloat16(), weight.to("cuda")


def test_work_items_of_many_streams_count_apart() -> None:
    x, weight = few_rows()
    want = tilewright.linear(x, weight)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for _ in range(200):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(tilewright.linear(x, weight))
    torch.cuda.synchronize()
    assert all(bool((y == want).all()) for y in found)


def test_graphs_replayed_at_once_count_apart() -> None:
    x, weight = few_rows()
    want = tilewright.linear(x, weight)
    graphs, found = [torch.cuda.CUDAGraph() for _ in range(4)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            found.append([tilewright.linear(x, weight) for _ in range(20)])
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    assert all(bool((y == want).all()) for each in found for y in each)


def test_in_a_graph() -> None:
    q, k, v = inputs()
    want = attention(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v)
    graph.replay()
    assert bool((out == want).all())
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert bool((out == attention(q, k, v)).all())


def test_a_graph_of_what_was_never_called() -> None:
    q, k, v = inputs(64, 48)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(DeviceError, match="before capturing"), torch.cuda.graph(graph):
        attention(q, k, v)
    torch.cuda.synchronize()
    check(attention(q, k, v), q, k, v)


def test_from_new_threads() -> None:
    q, k, v = inputs()
    want = attention(q, k, v)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(attention(q, k, v))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(bool((x == want).all()) for x in found)


def test_in_torch_compile() -> None:
    q, k, v = inputs()
    with torch.no_grad():
        compiled = torch.compile(lambda q, k, v: attention(q * 2, k, v) + 1, fullgraph=True)
        got, want = compiled(q, k, v), attention(q * 2, k, v) + 1
    assert float((got.float() - want.float()).abs().max()) < 2e-2


def test_tensors_on_the_cpu_are_named() -> None:
    q, k, v = inputs()
    with pytest.raises((BindError, tilewright.TilewrightError), match="cpu"):
        attention(q, k.cpu(), v)


def test_no_memory_is_torch_s_error() -> None:
    q, k, v = inputs()
    attention(q, k, v)
    with pytest.raises(torch.OutOfMemoryError):
        attention(q[:, :, :1].expand(2, 4, 1 << 29, 64), k, v)


@pytest.mark.parametrize("dtype", ["u4", "u8", "f8e4m3", "nf4"])
def test_weights_of_few_bits(dtype: str) -> None:
    weight = tilewright.QuantizedTensor.from_float(torch.randn(200, 320, device="cuda"), dtype, 64)
    x = torch.randn(5, 320, device="cuda").bfloat16()
    got, want = tilewright.linear(x, weight), x.double() @ weight.dequantize().double().T
    assert float((got.double() - want).norm() / want.norm()) < 6e-3


@pytest.mark.parametrize("length", [100, 1500])
def test_wide_blocks_where_they_fill_the_gpu(length: int) -> None:
    """The faster back end by the number of work items; a bias and a cap on scores, too."""
    q, k, v = (torch.randn(4, 16, length, 128, device="cuda").bfloat16() for _ in range(3))
    check(attention(q, k, v), q, k, v)
    capped = tilewright.attention(q, k, v, score_mod=lambda s, b, h, i, j: 9 * torch.tanh(s / 9))
    assert isinstance(capped, torch.Tensor)
    scores = 9 * torch.tanh(q.double() @ k.double().mT * 128**-0.5 / 9)
    want = scores.softmax(-1) @ v.double()
    assert float((capped.double() - want).norm() / want.norm()) < 1e-2
